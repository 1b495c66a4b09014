"""PaPr with a ConvNet that reads images: MobileOne, ResNet and other networks of timm, frame by frame.

The method of the seed paper (Mahmud et al., ECCV 2024) for images; of a clip, one frame is scored for each slice of the
token grid.

Letters: B clips, T frames of H x W pixels, t frames that are scored, C channels, h x w the ConvNet's cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints.timm_models import build_timm, pretrained_cfg
from ...core.errors import ConfigError
from ...core.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize_pixels
from ...core.types import TokenGrid
from ..map_pruner import built_from
from ..protocol import MAP_OPTIONS, PrunerSpec
from ..select import check_resizing, resize_map
from .stage_map import StageMap

DEFAULT_MODEL = "mobileone_s0"


class ImageScorer(nn.Module):
    """The map of a ConvNet, on the token grid.

    Args:
        reader: of (B, 3, H, W) pixels.
        mean, std: of its pixels, RGB in 0..1.
        frames: of a clip that it sees, evenly spaced; None: one for each slice of the token grid.
        size: shorter side of what it sees, in pixels; None: the backbone's view as it is.
        resizing: options of `select.resize_map`.
    """

    def __init__(
        self,
        reader: StageMap,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        frames: int | None = None,
        size: int | None = None,
        **resizing: Any,
    ) -> None:
        super().__init__()
        check_clip(frames, size)
        self.reader = reader.to(memory_format=torch.channels_last)
        self.mean, self.std = mean, std
        self.frames, self.size = frames, size
        self.resizing = check_resizing(**resizing)

    def cells(self, frames: Tensor, count: int) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> maps of `count` of them, as the ConvNet gives them, (B, t, h, w) float32."""
        length = frames.shape[1]
        # The middle frame of each of `count` equal parts.
        chosen = [(2 * part + 1) * length // (2 * count) for part in range(count)]
        pixels = normalize_pixels(frames[:, chosen].flatten(0, 1)[:, None], mean=self.mean, std=self.std)[
            :, :, 0
        ]
        size = scaled(pixels.shape[2], pixels.shape[3], self.size)
        if size != pixels.shape[2:]:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        dtype = next(self.reader.parameters()).dtype
        cells = self.reader(pixels.to(dtype, memory_format=torch.channels_last))
        return cells.unflatten(0, (len(frames), count))

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        count = min(grid.frames if self.frames is None else self.frames, frames.shape[1])
        return resize_map(self.cells(frames, count), grid, **self.resizing)

    def maps(self, frames: Tensor, grids: Sequence[TokenGrid]) -> list[Tensor]:
        """The significance maps on several grids of one frame, for one pass of the network."""
        cells = self.cells(frames, 1)
        return [resize_map(cells, grid, **self.resizing) for grid in grids]


def scaled(height: int, width: int, size: int | None) -> tuple[int, int]:
    """Height and width with `size` as the shorter side; None: as they are."""
    if size is None:
        return height, width
    scale = size / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def check_clip(frames: int | None, size: int | None) -> None:
    """Raises ConfigError unless what a ConvNet sees has at least one frame and one pixel."""
    for key, value in (("frames", frames), ("size", size)):
        if value is not None and value < 1:
            raise ConfigError(f"pruner.{key}={value} must be at least 1")


def build_image_scorer(
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    stage: str | None = None,
    recalibration: str = "uniform",
    seed: int = 0,
    **options: Any,
) -> ImageScorer:
    """Builds a scorer from a ConvNet of timm.

    Args:
        model: timm's name, with or without the tag of its weights; None: `DEFAULT_MODEL`.
        weights: "pretrained", a file, or None for random ones; see `timm_models.build_timm`.
        stage, recalibration: see `StageMap`.

    Raises:
        ConfigError: timm has no such model, it gives no feature map, or an option is out of range.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    model = DEFAULT_MODEL if model is None else model
    classes = 0 if recalibration == "uniform" else None
    network = build_timm(model, group="pruner", weights=weights, num_classes=classes, seed=seed)
    # MobileOne's branches become one convolution each; nothing happens to networks without such branches.
    from timm.utils.model import reparameterize_model  # takes seconds, so only where it is needed

    reparameterize_model(network, inplace=True)
    reader = StageMap(network, stage, recalibration, sample=torch.zeros(1, 3, 64, 64), name=model)
    cfg = pretrained_cfg(network)
    return ImageScorer(
        reader,
        mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
        std=tuple(cfg.get("std") or IMAGENET_STD),
        **options,
    )


OWN = (
    *("model", "stage", "recalibration", "frames", "size", "align_corners", "cell_center"),
    *("interpolation", "seed"),
)
# PaPr to the letter, beside the defaults of `ImageScorer`.
PAPR: dict[str, Any] = {"interpolation": "bicubic", "count_class_token": True}


SPECS = (
    PrunerSpec(
        "image_convnet",
        "PaPr with a ConvNet for images of timm, frame by frame.",
        built_from(build_image_scorer, papr=PAPR),
        ("recipe", *OWN, "count_class_token", "uniform_share", *MAP_OPTIONS),
        for_images=True,
        shares_crops=True,
        trained=True,
        published="pretrained",
    ),
)
