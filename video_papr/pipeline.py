"""The whole way from frames to logits. Start reading here.

    frames (B, T, S, S, 3) uint8
      -> pruner: X3D or a rule scores every tubelet, the best K stay      `select`
      -> backbone: only the kept tubelets are embedded and encoded        `classify`
      -> logits (B, classes)

Letters: B clips, T frames, S x S pixels, N tokens of the grid, K kept tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbones.videomae import VideoMAE
from .pixels import normalize_pixels
from .pruning.builders import Pruner
from .structures import TokenSelection


class Pipeline(nn.Module):
    """A backbone, and the pruner that decides what it reads.

    Args:
        backbone: from `build_backbone`.
        pruner: from `build_pruner`; None is the dense model.
    """

    def __init__(self, backbone: VideoMAE, pruner: Pruner | None = None) -> None:
        super().__init__()
        self.backbone, self.pruner = backbone, pruner

    def select(self, frames: Tensor) -> TokenSelection | None:
        """frames (B, T, S, S, 3) uint8 -> the kept tubelets; None when nothing prunes."""
        self._check_frames(frames)
        return None if self.pruner is None else self.pruner(frames, self.backbone.grid)

    def classify(self, frames: Tensor, selection: TokenSelection | None) -> Tensor:
        """frames (B, T, S, S, 3) uint8, selection or None for all tubelets -> logits (B, classes)."""
        self._check_frames(frames)
        dtype = next(self.backbone.parameters()).dtype
        pixels = normalize_pixels(frames, mean=self.backbone.mean, std=self.backbone.std, dtype=dtype)
        return self.backbone(pixels, None if selection is None else selection.keep_idx)

    def forward(self, frames: Tensor) -> Tensor:
        """frames (B, T, S, S, 3) uint8, as the loader cuts them for the backbone -> logits (B, classes).

        Raises:
            ValueError: the frames have another shape or dtype than the backbone reads.
        """
        return self.classify(frames, self.select(frames))

    def _check_frames(self, frames: Tensor) -> None:
        size = self.backbone.input_size
        expected = (self.backbone.num_frames, size, size, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames must be uint8 (B, {', '.join(map(str, expected))}), got {frames.dtype} {tuple(frames.shape)}"
            )
