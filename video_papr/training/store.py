"""Decoded training clips on disk: every video is decoded once, then epochs read plain memory.

A store is a memory-mapped uint8 array (videos, T, S, S, 3) beside its labels. It fits datasets of up to some 100,000
short clips (0.2 MB each at 16 x 64 x 64); the operating system's page cache does the rest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import DataError
from ..data.datasets import VideoDataset, VideoSample
from ..data.loader import iter_samples
from ..data.transforms import resize_and_crop
from ..synthetic.tracks import in_view


class Batch(NamedTuple):
    """What one step trains on: B clips.

    Attributes:
        tracks: (B, T, 5) float32, the actor in the view, where the dataset knows it; see `data.tracks`.
        kept: (B, K) int64, the tokens that each clip keeps, where some are dropped; see `targets.Target.plan`.
    """

    frames: Tensor  # (B, T, S, S, 3) uint8
    labels: Tensor  # (B,) int64
    tracks: Tensor | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class ClipStore:
    """One centre clip per readable video."""

    frames: np.ndarray  # (n, T, S, S, 3) uint8, memory-mapped
    labels: np.ndarray  # (n,) int64
    failed: tuple[str, ...] = ()  # names and reasons of the videos that could not be read
    tracks: np.ndarray | None = None  # (n, T, 5) float32, or None; see `Batch`

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> Batch:
        """rows (B,) -> the clips of these rows."""
        tracks = None if self.tracks is None else torch.from_numpy(self.tracks[rows])
        return Batch(torch.from_numpy(self.frames[rows]), torch.from_numpy(self.labels[rows]), tracks)


def build_store(
    dataset: VideoDataset,
    directory: Path,
    *,
    sampling: str,
    num_frames: int,
    size: int,
    workers: int,
    tracks: Mapping[str, np.ndarray] | None = None,
    progress: bool = True,
) -> ClipStore:
    """Decodes a dataset into `directory`, or opens what an earlier call wrote there for the same list and sizes.

    Args:
        sampling: names the rule by which `dataset` picks frames; another rule is another store.
        tracks: the actors of a synthetic split (`data.synthetic.read_actors`); None leaves `ClipStore.tracks` out.

    Raises:
        DataError: no video of the dataset can be read.
    """
    listing = [[str(r.path), r.label, _stamp(r.path)] for r in dataset.videos.records]
    asked = {
        "num_frames": num_frames,
        "size": size,
        "sampling": sampling,
        "decoder": dataset.decoder,  # another one may read what this one refuses
        "videos": listing,
        "tracks": tracks is not None,
    }
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    root = directory / f"clips-{num_frames}x{size}-{key}"
    if not (root / "done.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        partial_root = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=directory))
        try:
            track = None if tracks is None else partial(_track, tracks)
            shape = (len(dataset), num_frames, size, size, 3)
            _decode(dataset, partial_root, shape, workers, track, progress)
            _publish(partial_root, root)
        finally:
            shutil.rmtree(partial_root, ignore_errors=True)
    done = json.loads((root / "done.json").read_text())
    if not done["count"]:
        raise DataError(
            f"none of the {len(dataset)} training videos can be read; first reason: {done['failed'][0]}"
        )
    frames = np.load(root / "frames.npy", mmap_mode="r")[: done["count"]]
    stored = np.load(root / "tracks.npy") if tracks is not None else None
    return ClipStore(frames, np.load(root / "labels.npy"), tuple(done["failed"]), stored)


def _decode(
    dataset: VideoDataset,
    root: Path,
    shape: tuple[int, ...],
    workers: int,
    track: Callable[[VideoSample], np.ndarray] | None,
    progress: bool,
) -> None:
    frames = np.lib.format.open_memmap(root / "frames.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels: list[int] = []
    failed: list[str] = []
    tracks: list[np.ndarray] = []
    with tqdm(total=len(dataset), desc="decoding once", unit="video", disable=not progress) as bar:
        for batch in iter_samples(dataset, videos_per_batch=8, workers=workers, pin_memory=False):
            for sample in batch:
                bar.update()
                if sample.frames is None:
                    failed.append(f"{sample.name}: {sample.error}")
                    continue
                view = resize_and_crop(sample.frames[:1], size=shape[2], short_side=None, num_crops=1)
                frames[len(labels)] = view[0].numpy()
                labels.append(sample.label)
                if track is not None:
                    tracks.append(track(sample))
    frames.flush()
    np.save(root / "labels.npy", np.array(labels, np.int64))
    if tracks:
        np.save(root / "tracks.npy", np.stack(tracks))
    (root / "done.json").write_text(json.dumps({"count": len(labels), "failed": failed}))


def _publish(partial_root: Path, root: Path) -> None:
    """Renames a finished store into place; when another process was faster, its copy (the same) stays."""
    try:
        partial_root.rename(root)
    except OSError:
        if not (root / "done.json").is_file():
            raise


def _track(tracks: Mapping[str, np.ndarray], sample: VideoSample) -> np.ndarray:
    """The actor (T, 5) in the centre view of a sample's first clip."""
    assert sample.frames is not None and sample.frame_indices is not None
    height, width = sample.frames.shape[2:4]
    return in_view(tracks[sample.name][sample.frame_indices[0]], (height, width)).numpy()


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
