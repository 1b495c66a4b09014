"""What pruning has to know about a model of another library, and the way from its pixels to the tokens that stay.

Letters: B clips, T frames, H x W pixels, N tokens of the grid, P class tokens, K kept tokens, D channels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..pruning.builders import Pruner
from ..pruning.selection import gather_tokens
from ..structures import TokenGrid, TokenSelection

# How far from 0..1 a colour may lie, as resizing may overshoot, before its normalisation is doubted.
SLACK = 0.05

Colors = tuple[float, float, float]


@dataclass(frozen=True)
class Host:
    """A model that can be pruned.

    Attributes:
        name: its class, for messages.
        home: the module that embeds pixels; what `prune` has done is noted there.
        grid: the tokens that it makes of one clip, without class tokens.
        clip: (T, H, W) that it reads; T is 1 for an image model.
        mean, std: of its pixels, RGB in 0..1.
        reads_images: pixels are (B, 3, H, W) instead of (B, T, 3, H, W).
        attach: (selector) -> the hooks that drop tokens.
    """

    name: str
    home: nn.Module
    grid: TokenGrid
    clip: tuple[int, int, int]
    mean: Colors
    std: Colors
    reads_images: bool
    attach: Callable[[Selector], list[RemovableHandle]]


class Selector:
    """Chooses tokens from the pixels that a host model reads.

    It is no module, so that neither the host's `state_dict` nor its precision nor its training mode reach the scorer. A
    scorer on another device than the pixels is copied there at the first call.

    Args:
        host: whose pixels are read.
        pruner: what chooses, in eval mode.
        mean, std: undo the normalisation of the pixels.
    """

    def __init__(self, host: Host, pruner: Pruner, *, mean: Colors, std: Colors) -> None:
        self.grid, self.clip, self.reads_images = host.grid, host.clip, host.reads_images
        self.mean, self.std = mean, std
        self.pruners = {"": pruner}
        self.doubted = False

    def __call__(self, pixels: Tensor) -> TokenSelection:
        """pixels (B, T, 3, H, W), of an image model (B, 3, H, W), normalised -> the kept tokens of each clip.

        Raises:
            ValueError: another shape.
        """
        self.check(pixels)
        selection: TokenSelection = self._pruner(pixels.device)(self.frames(pixels), self.grid)
        return selection

    def check(self, pixels: Tensor) -> None:
        """Raises ValueError unless the pixels have the shape that the host reads."""
        frames, height, width = self.clip
        expected = (3, height, width) if self.reads_images else (frames, 3, height, width)
        if pixels.ndim != 1 + len(expected) or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must be (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}"
            )

    def frames(self, pixels: Tensor) -> Tensor:
        """Undoes the normalisation: pixels as in `__call__` -> frames (B, T, H, W, 3) uint8."""
        colors = pixels.detach().movedim(-3, -1).float()
        colors = colors * colors.new_tensor(self.std) + colors.new_tensor(self.mean)
        if self.reads_images:
            colors = colors[:, None]
        if not (self.doubted or torch.compiler.is_compiling()):
            self._doubt(colors)
        return (colors * 255).round().clamp(0, 255).byte()

    def _doubt(self, colors: Tensor) -> None:
        """Warns, once, when the first batch shows that the pixels were normalised in another way."""
        self.doubted = True
        low, high = (float(bound) for bound in colors.aminmax())
        if low < -SLACK or high > 1 + SLACK:
            warnings.warn(
                f"undoing mean={self.mean}, std={self.std} gives colours from {low:.2f} to {high:.2f} instead of 0 to "
                "1: the pixels were normalised in another way; give prune(..., processor=) or mean= and std=",
                stacklevel=2,
            )

    def _pruner(self, device: torch.device) -> Pruner:
        """The pruner on a device; every device has its own, so that threads on several of them do not meet."""
        first = self.pruners[""]
        at = next((value.device for value in first.parameters()), device)
        if at == device:
            return first
        if str(device) not in self.pruners:
            self.pruners[str(device)] = copy.deepcopy(first).to(device)
        return self.pruners[str(device)]


@dataclass
class Attachment:
    """What `prune` has added to a model: enough to use it, and to take it away."""

    selector: Selector
    handles: list[RemovableHandle]


def keep_tokens(tokens: Tensor, keep_idx: Tensor, num_prefix: int) -> Tensor:
    """tokens (B, P + N, D), keep_idx (B, K) of the N tokens -> (B, P + K, D); the P in front always stay."""
    if keep_idx.shape[1] == tokens.shape[1] - num_prefix:  # the same bits, whatever their layout in memory
        return tokens
    return gather_tokens(tokens, keep_idx, num_prefix=num_prefix)


def class_of(model: object, package: str, names: tuple[str, ...]) -> str | None:
    """The first of the model's classes that `package` defines under one of `names`; needs no import of it."""
    for cls in type(model).__mro__:
        if cls.__name__ in names and cls.__module__.split(".")[0] == package:
            return cls.__name__
    return None


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size that is one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
