"""Decoded training clips on disk: every video is decoded once, then epochs read plain memory.

A store is a memory-mapped uint8 array (videos, T, S, S, 3) beside its labels. It fits datasets of up to some 100,000
short clips (0.2 MB each at 16 x 64 x 64); the operating system's page cache does the rest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.datasets import VideoDataset
from ..data.loader import iter_samples
from ..data.transforms import resize_and_crop
from ..errors import DataError


@dataclass(frozen=True)
class ClipStore:
    """One centre clip per readable video.

    Attributes:
        frames: (n, T, S, S, 3) uint8, memory-mapped.
        labels: (n,) int64.
        failed: names and reasons of the videos that could not be read.
    """

    frames: np.ndarray
    labels: np.ndarray
    failed: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """rows (B,) -> frames (B, T, S, S, 3) uint8 and labels (B,) int64."""
        return torch.from_numpy(self.frames[rows]), torch.from_numpy(self.labels[rows])


def build_store(
    dataset: VideoDataset, directory: Path, *, num_frames: int, size: int, workers: int, progress: bool = True
) -> ClipStore:
    """Decodes a dataset into `directory`, or opens what an earlier call wrote there for the same list and sizes.

    Raises:
        DataError: no video of the dataset can be read.
    """
    listing = [[str(r.path), r.label, _stamp(r.path)] for r in dataset.videos.records]
    asked = {"num_frames": num_frames, "size": size, "sampling": dataset.sampling_key, "videos": listing}
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    root = directory / f"clips-{num_frames}x{size}-{key}"
    if not (root / "done.json").is_file():
        _decode(dataset, root, (len(dataset), num_frames, size, size, 3), workers, progress)
    done = json.loads((root / "done.json").read_text())
    if not done["count"]:
        raise DataError(
            f"none of the {len(dataset)} training videos can be read; first reason: {done['failed'][0]}"
        )
    frames = np.load(root / "frames.npy", mmap_mode="r")[: done["count"]]
    return ClipStore(frames, np.load(root / "labels.npy"), tuple(done["failed"]))


def _decode(dataset: VideoDataset, root: Path, shape: tuple[int, ...], workers: int, progress: bool) -> None:
    root.mkdir(parents=True, exist_ok=True)
    frames = np.lib.format.open_memmap(root / "frames.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels, failed = [], []
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
    frames.flush()
    np.save(root / "labels.npy", np.array(labels, np.int64))
    (root / "done.json").write_text(json.dumps({"count": len(labels), "failed": failed}))


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
