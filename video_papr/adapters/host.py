"""What pruning has to know about a model of another library, and how its tokens are chosen from its pixels.

Letters: B clips, T frames, H x W pixels, N tokens of the grid, P class tokens, K kept tokens, D channels.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.types import TokenGrid, TokenSelection
from ..pruning.builders import Pruner
from ..pruning.select import gather_tokens

# How far from 0..1 a colour may lie, as resizing may overshoot, before its normalisation is doubted.
SLACK = 0.05

Colors = tuple[float, float, float]


class Handle(Protocol):
    """What takes one change of a model back, as the handle of a hook does."""

    def remove(self) -> None: ...


@dataclass(frozen=True)
class Host:
    """A model that can be pruned.

    Attributes:
        name: its class, for messages.
        home: the module that embeds pixels; what `prune` has done is noted there.
        grid: the tokens that it makes of one clip, without class tokens.
        clip: (T, H, W) that it reads; T is 1 for an image model.
        mean, std: of its pixels, RGB in 0..1.
        attach: (selector) -> the hooks that drop tokens.
        same_places: attention over space and over time are apart, so every frame has to keep the same places.
        first_stays: the answer is read from the grid's first token, which is among the kept ones whatever its score.
    """

    name: str
    home: nn.Module
    grid: TokenGrid
    clip: tuple[int, int, int]
    mean: Colors
    std: Colors
    attach: Callable[[Selector], Sequence[Handle]]
    same_places: bool = False
    first_stays: bool = False


@dataclass(frozen=True)
class Family:
    """Models of another library that are pruned in the same way. The documentation's table is made of these.

    Attributes:
        library: package that defines the classes.
        classes: their names.
        drops: what is dropped, and where.
        checked: what the tests compare a pruned model with.
        open: (model, name of its class) -> the host; raises ConfigError with the reason where it cannot be pruned.
        reads_images: pixels are (B, 3, H, W) instead of (B, T, 3, H, W).
    """

    library: str
    classes: tuple[str, ...]
    drops: str
    checked: str
    open: Callable[[Any, str], Host]
    reads_images: bool = False


class Selector:
    """Chooses tokens from the pixels that a host model reads.

    It is no module, so that neither the host's `state_dict` nor its precision nor its training mode reach the scorer. A
    scorer on another device than the pixels is copied there at the first call.

    Args:
        host: whose pixels are read.
        pruner: what chooses, in eval mode.
        mean, std: undo the normalisation of the pixels.
        reads_images: see `Family`.
    """

    def __init__(self, host: Host, pruner: Pruner, *, mean: Colors, std: Colors, reads_images: bool) -> None:
        self.grid, self.clip, self.reads_images = host.grid, host.clip, reads_images
        self.first_stays = host.first_stays
        self.mean, self.std = mean, std
        self.pruners = {"": pruner}
        self.doubted = False

    def __call__(self, pixels: Tensor) -> TokenSelection:
        """pixels (B, T, 3, H, W), of an image model (B, 3, H, W), normalised -> the kept tokens of each clip.

        Raises:
            ValueError: another shape.
        """
        self.check(pixels)
        pruner = self._pruner(pixels.device)
        significance = pruner.significance(self.frames(pixels), self.grid)
        if self.first_stays:
            significance = significance.clone()
            significance[:, 0, 0, 0] = torch.inf
        return pruner.choose(significance)

    @property
    def drops(self) -> bool:
        """Whether any token of a clip is dropped."""
        return self.pruners[""].choose(torch.zeros(1, *self.grid.shape)).drops

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


class PerThread(threading.local):
    """A value that every thread has its own of; a copied or unpickled one starts with None."""

    value: Any = None

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return PerThread, ()


class Override:
    """Gives one instance another attribute, until it is removed."""

    def __init__(self, owner: object, name: str, value: object) -> None:
        self.owner, self.name = owner, name
        self.before = {name: vars(owner)[name]} if name in vars(owner) else {}
        setattr(owner, name, value)

    def remove(self) -> None:
        delattr(self.owner, self.name)
        vars(self.owner).update(self.before)


class EmbeddingHooks:
    """Surrounds the pass of a module that sees the pixels and makes the tokens; needs no memory between the two.

    Args:
        selector: chooses from the pixels.
        keep: (tokens, selection) -> the kept tokens.
        argument: name of the pixels in the module's `forward`.
    """

    def __init__(
        self,
        selector: Selector,
        keep: Callable[[Tensor, TokenSelection], Tensor],
        argument: str = "pixel_values",
    ) -> None:
        self.selector, self.keep, self.argument = selector, keep, argument

    def attach(self, module: nn.Module) -> list[Handle]:
        return [
            module.register_forward_pre_hook(self._check, with_kwargs=True),
            module.register_forward_hook(self._drop, with_kwargs=True),
        ]

    def _check(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.selector.check(args[0] if args else kwargs[self.argument])

    def _drop(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor
    ) -> Tensor:
        return self.keep(tokens, self.selector(args[0] if args else kwargs[self.argument]))


@dataclass
class Attachment:
    """What `prune` has added to a model: enough to use it, and to take it away."""

    selector: Selector
    handles: Sequence[Handle]


def keep_tokens(tokens: Tensor, keep_idx: Tensor, num_prefix: int = 0) -> Tensor:
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
