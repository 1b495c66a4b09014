"""How a pipeline reads videos: frame sampling, views and batches in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .decoding import DecodedClips, decode_clips
from .limits import DEFAULT_LIMITS, Limits
from .readers.answers import Resize
from .sampling import choose_sampler, frames_needed


@dataclass(frozen=True)
class Recipe:
    """How a pipeline reads videos: the keys of the config groups dataset, views and runtime, with their meaning.

    `limits` are dataset.max_pixels and max_frames; `reduce` is dataset.decode_size, see `decode_clips`.
    The defaults suit weights that were trained on Kinetics-400, one view per video.
    """

    sampling: str = "dense"
    frame_stride: int = 4
    clips: int = 1
    crops: int = 1
    short_side: int | None = None
    decoder: str = "auto"
    batch_size: int = 8
    dtype: torch.dtype = torch.float32
    limits: Limits = DEFAULT_LIMITS
    memory_mb: int | None = 2048
    reduce: Resize | None = None

    def decode(
        self, path: Path | str, choose: Callable[[int], np.ndarray], *, motion: bool = False
    ) -> DecodedClips:
        """`decode_clips` under these keys: half of `memory_mb` is for the frames of one video."""
        return decode_clips(
            path,
            choose,
            decoder=self.decoder,
            limits=self.limits,
            reduce=self.reduce,
            motion=motion,
            max_bytes=None if self.memory_mb is None else self.memory_mb * 2**19,
        )

    def indices(self, num_video_frames: int, num_frames: int) -> np.ndarray:
        """Which frames of a video or window are read: (C, T) int64."""
        sampler = choose_sampler(
            self.sampling, num_frames=num_frames, num_clips=self.clips, frame_stride=self.frame_stride
        )
        return sampler(num_video_frames)

    def frames_needed(self, num_frames: int) -> int:
        """Frames that a video or window must have so that no frame of a clip is repeated."""
        return frames_needed(self.sampling, num_frames=num_frames, frame_stride=self.frame_stride)
