"""Decoded training clips on disk: every video is decoded once, then epochs read plain memory.

A store is a memory-mapped uint8 array (videos, T, S, S, 3) beside its labels. It fits datasets of up to some 100,000
short clips (0.2 MB each at 16 x 64 x 64); the operating system's page cache does the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import DataError
from ..core.files import storing
from ..data.datasets import VideoDataset, VideoSample
from ..data.loader import TIMEOUT_S, iter_samples
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
    timeout_s: float = TIMEOUT_S,
    tracks: Mapping[str, np.ndarray] | None = None,
    progress: bool = True,
) -> ClipStore:
    """Decodes a dataset into `directory`, or opens what an earlier call wrote there for the same list and sizes.

    Args:
        sampling: names the rule by which `dataset` picks frames; another rule is another store.
        workers, timeout_s: see `iter_samples`.
        tracks: the actors of a synthetic split (`data.synthetic.read_actors`); None leaves `ClipStore.tracks` out.

    Raises:
        DataError: no video of the dataset can be read.
        StorageError: the disk is full, or fails.
    """
    listing = [[str(r.path), r.label, _stamp(r.path)] for r in dataset.videos.records]
    asked = {
        "num_frames": num_frames,
        "size": size,
        "sampling": sampling,
        # Others may read what these refuse.
        "decoder": [
            dataset.decoder,
            dataset.limits.max_pixels,
            dataset.limits.max_frames,
            dataset.max_video_bytes,
        ],
        "videos": listing,
        "tracks": tracks is not None,
    }
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    root = directory / f"clips-{num_frames}x{size}-{key}"
    if not (root / "done.json").is_file():
        with storing(root):
            directory.mkdir(parents=True, exist_ok=True)
            partial_root = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=directory))
            try:
                track = None if tracks is None else partial(_track, tracks)
                shape = (len(dataset), num_frames, size, size, 3)
                batches = iter_samples(
                    dataset, videos_per_batch=8, workers=workers, pin_memory=False, timeout_s=timeout_s
                )
                _decode(batches, partial_root, shape, track, progress)
                _publish(partial_root, root)
            finally:
                shutil.rmtree(partial_root, ignore_errors=True)
    return _open(root, with_tracks=tracks is not None)


def _open(root: Path, *, with_tracks: bool) -> ClipStore:
    """A store that was written. Raises DataError: it holds no video."""
    done = json.loads((root / "done.json").read_text())
    if not done["count"]:
        count, first = len(done["failed"]), done["failed"][0]
        raise DataError(f"none of the {count} training videos can be read; first reason: {first}")
    frames = np.load(root / "frames.npy", mmap_mode="r", allow_pickle=False)[: done["count"]]
    stored = np.load(root / "tracks.npy", allow_pickle=False) if with_tracks else None
    labels = np.load(root / "labels.npy", allow_pickle=False)
    return ClipStore(frames, labels, tuple(done["failed"]), stored)


def _decode(
    batches: Iterable[list[VideoSample]],
    root: Path,
    shape: tuple[int, ...],
    track: Callable[[VideoSample], np.ndarray] | None,
    progress: bool,
) -> None:
    frames = np.lib.format.open_memmap(root / "frames.npy", mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk would end the process with SIGBUS
        with (root / "frames.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
    labels: list[int] = []
    failed: list[str] = []
    tracks: list[np.ndarray] = []
    with tqdm(total=shape[0], desc="decoding once", unit="video", disable=not progress) as bar:
        for batch in batches:
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
