"""PaPr with any ConvNet that reads videos: torchvision's (R3D, MC3, R(2+1)D, S3D), or one of your own.

Letters: B clips, T frames of H x W pixels, t x h x w the ConvNet's cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints.files import load_exactly, read_weights
from ...checkpoints.hub import url_file
from ...checkpoints.timm_models import PRETRAINED
from ...checkpoints.wrappers import unwrap
from ...core.errors import ConfigError, did_you_mean
from ...core.pixels import normalize_planes, resample_frames
from ...core.types import TokenGrid
from ..map_pruner import built_from
from ..protocol import MAP_OPTIONS, PrunerSpec
from ..select import check_resizing, resize_map
from .custom import imported
from .image_convnet import check_clip, scaled
from .stage_map import StageMap

DEFAULT_MODEL = "r3d_18"
# Of the networks of your own that do not say it: pixels from -1 to 1.
MEAN = STD = (0.5, 0.5, 0.5)
TRANSFORMERS = ("mvit", "swin")  # begin torchvision's names of what is no ConvNet
SAMPLE = (8, 64)  # frames and pixels on which a network is tried, where no others are asked for


class VideoScorer(nn.Module):
    """The map of a stage of a 3-D ConvNet, on the token grid.

    Args:
        reader: of (B, 3, t, h, w) pixels.
        mean, std: of its pixels, RGB in 0..1.
        frames: of a clip that it sees; None: all.
        size: shorter side of what it sees, in pixels; None: the backbone's view as it is.
        resizing: options of `select.resize_map`.
    """

    def __init__(
        self,
        reader: StageMap,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        frames: int | None = None,
        size: int | None = None,
        **resizing: Any,
    ) -> None:
        super().__init__()
        self.reader, self.mean, self.std = reader, mean, std
        self.frames, self.size = frames, size
        self.resizing = check_resizing(**resizing)

    def cells(self, frames: Tensor) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> the map as the ConvNet gives it, (B, t, h, w) float32."""
        size = scaled(frames.shape[2], frames.shape[3], self.size)
        clip = resample_frames(frames, num_frames=self.frames or frames.shape[1], size=size)
        pixels = normalize_planes(clip, mean=self.mean, std=self.std)
        return self.reader(pixels.to(next(self.reader.parameters()).dtype))

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        return resize_map(self.cells(frames), grid, **self.resizing)


def build_video_scorer(
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    stage: str | None = None,
    recalibration: str = "uniform",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    frames: int | None = None,
    size: int | None = None,
    seed: int = 0,
    **resizing: Any,
) -> VideoScorer:
    """Builds a scorer from a ConvNet.

    Args:
        model: one of `convnets`, or "package.module:callable", which returns a module; None: `DEFAULT_MODEL`.
        weights: a file; or "pretrained", those that torchvision names; None: as the model is built.
        stage, recalibration: see `StageMap`.
        mean, std, size: of what it sees; None: as torchvision says for its networks, otherwise `MEAN`, `STD`, and the
            backbone's view as it is.
        resizing: of `VideoScorer`.

    Raises:
        ConfigError: there is no such model or stage, or an option is out of range.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    model = DEFAULT_MODEL if model is None else model
    check_clip(frames, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, published = _build(model)
    if weights is not None:
        _load(network, weights, None if published is None else published.url)
    if published is not None:
        usual = published.transforms()
        mean, std, size = mean or usual.mean, std or usual.std, size or usual.crop_size[0]
    length, side = frames or SAMPLE[0], size or SAMPLE[1]
    reader = StageMap(
        network.eval().requires_grad_(False),
        stage,
        recalibration,
        sample=torch.zeros(1, 3, length, side, side),
        name=model,
    )
    mean, std = _colour("mean", mean or MEAN), _colour("std", std or STD)
    return VideoScorer(reader, mean=mean, std=std, frames=frames, size=size, **resizing)


def convnets() -> list[str]:
    """torchvision's names of ConvNets for videos."""
    from torchvision import models  # takes seconds, so only where it is needed

    return [name for name in models.list_models(models.video) if not name.startswith(TRANSFORMERS)]


def _build(model: str) -> tuple[nn.Module, Any]:
    """The network, and what torchvision says about the weights that it publishes; None: it is not torchvision's."""
    if ":" in model:
        make = imported(model, "pruner.model")
        try:
            network = make()
        except TypeError as error:
            raise ConfigError(
                f"pruner.model={model} must make a network without arguments: {error}"
            ) from error
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"pruner.model={model} gives {type(network).__name__}; it must give an nn.Module"
            )
        return network, None
    if model not in convnets():
        hint = did_you_mean(model, convnets())
        raise ConfigError(
            f"pruner.model={model} is unknown; use one of {', '.join(convnets())}, or package.module:callable.{hint}"
        )
    from torchvision import models

    return models.get_model(model), models.get_model_weights(model).DEFAULT


def _colour(key: str, value: Sequence[float]) -> tuple[float, ...]:
    """Three numbers as a tuple, or ConfigError."""
    if (
        len(value) != 3
        or not all(math.isfinite(number) for number in value)
        or (key == "std" and min(value) <= 0)
    ):
        right = "above 0" if key == "std" else "of red, green and blue in 0..1"
        raise ConfigError(f"pruner.{key}={list(value)} must be three numbers {right}")
    return tuple(value)


def _load(network: nn.Module, weights: str | Path, url: str | None) -> None:
    key, source = "pruner.weights", f"pruner.weights={weights}"
    if weights == PRETRAINED and url is None:
        raise ConfigError(f"{source}: only networks of torchvision have published weights; give a file")
    path = url_file(str(url), key=key, value=PRETRAINED) if weights == PRETRAINED else weights
    names = list(network.state_dict())
    state, _ = read_weights(path, key=key)
    load_exactly(network, unwrap(state, names[:1], source=source, names=names), source=source)


OWN = (
    *("model", "stage", "recalibration", "frames", "size", "mean", "std"),
    *("align_corners", "cell_center", "seed"),
)


SPECS = (
    PrunerSpec(
        "video_convnet",
        "PaPr with any 3-D ConvNet, of torchvision or your own, at the stage that you name.",
        built_from(build_video_scorer),
        (*OWN, *MAP_OPTIONS),
        shares_crops=True,
        trained=True,
        published="pretrained",
    ),
)
