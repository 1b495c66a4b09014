"""Clips to measure on: synthetic actions, or cut from a file whose decoding is timed."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ..backbones.builders import Backbone
from ..data.decoding import decode_clips
from ..data.sampling import dense_clips
from ..data.transforms import resize_and_crop
from ..synthetic.videos import render_clips

STRIDE = 4  # frames between two sampled ones, as in VideoMAE's evaluation


def synthetic_clips(backbone: Backbone, count: int, *, seed: int = 0) -> Tensor:
    """`count` synthetic actions as the backbone reads them, (count, T, H, W, 3) uint8, on the CPU.

    What a clip shows matters to no time but that of pruners which let the clip decide how much is kept.
    """
    rng = np.random.default_rng(seed)
    return render_clips(count, num_frames=backbone.num_frames, size=backbone.frame_size, rng=rng)


def file_clips(
    path: Path | str, backbone: Backbone, count: int, *, repeats: int = 5
) -> tuple[Tensor, dict[str, float]]:
    """`count` clips spread over a video, (count, T, H, W, 3) uint8, and what they took.

    Returns:
        the clips, and medians over `repeats` in milliseconds for all of them together: "decode", and "resize" (with
        cropping).

    Raises VideoDecodeError: the file cannot be decoded.
    """

    def choose(num_frames: int) -> np.ndarray:
        return dense_clips(num_frames, num_frames=backbone.num_frames, frame_stride=STRIDE, num_clips=count)

    times: dict[str, list[float]] = {"decode": [], "resize": []}
    for _ in range(repeats):
        start = perf_counter()
        decoded = torch.from_numpy(decode_clips(path, choose).frames)
        ready = perf_counter()
        views = resize_and_crop(decoded, size=backbone.frame_size)
        times["decode"].append(1000 * (ready - start))
        times["resize"].append(1000 * (perf_counter() - ready))
    return views, {name: median(values) for name, values in times.items()}
