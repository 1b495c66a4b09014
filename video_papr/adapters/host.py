"""What pruning has to know about a model of another library, and how its tokens are kept.

Letters: B clips, T frames, H x W pixels, N tokens of the grid, P class tokens, K kept tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD, Colors
from ..core.types import TokenGrid, TokenSelection
from ..pruning.select import gather_tokens


class Handle(Protocol):
    """What takes one change of a model back, as the handle of a hook does."""

    def remove(self) -> None: ...


@dataclass(frozen=True)
class Host:
    """A model that can be pruned.

    Attributes:
        home: the module that embeds pixels; what `prune` has done is noted there.
        grid: the tokens that it makes of one clip, without class tokens.
        clip: (T, H, W) that it reads; T is 1 for an image model.
        mean, std: of its pixels, RGB in 0..1.
        attach: (a `Selector`) -> the hooks that drop tokens.
        frame_step: a clip may have any multiple of so many frames, and the grid's follow it; None: those of `clip`.
        reductions: of each stage of a hierarchical model, the pixels along each side of one of its places. It reads
            any multiple of the largest, and has one selection for each stage, instead of `grid`'s.
        unpack: of a host that reads the patches of several videos in one row, with their grids, as a Qwen-VL does:
            (patches, grid_thw) -> number of a video -> its pixels (1, T, 3, H, W) and its grid. It takes any size.
        same_places: attention over space and over time are apart, so every frame has to keep the same places.
        num_prefix: class tokens and others in front of the grid's, which always stay.
        first_stays: the answer is read from the grid's first token, which is among the kept ones whatever its score.
    """

    name: str
    home: nn.Module
    grid: TokenGrid
    clip: tuple[int, int, int]
    mean: Colors
    std: Colors
    attach: Callable[[Any], Sequence[Handle]]
    frame_step: int | None = None
    reductions: tuple[int, ...] = ()
    unpack: Callable[[Tensor, Tensor], dict[int, tuple[Tensor, TokenGrid]]] | None = None
    same_places: bool = False
    num_prefix: int = 0
    first_stays: bool = False

    def choose_stages(self, given: Sequence[int] | None, key: str = "stages") -> tuple[int, ...]:
        """The stages that drop places, in ascending order: all unless it is said which.

        Raises ConfigError, which calls them by `key`: the model has other stages, or none.
        """
        own = range(len(self.reductions))
        if given is None:
            return tuple(own)
        if not own:
            raise ConfigError(f"{key}={list(given)}: {self.name} has no stages, it drops tokens once")
        if not given or not set(given) <= set(own):
            known = ", ".join(map(str, own))
            raise ConfigError(f"{key}={list(given)} must be some of {self.name}'s {known}")
        return tuple(sorted(set(given)))


@dataclass(frozen=True)
class Family:
    """Models of another library that are pruned in the same way. The documentation's table is made of these.

    Attributes:
        drops: what is dropped, and where.
        checked: what the tests compare a pruned model with.
        open: (model, name of its class) -> the host; raises ConfigError with the reason where it cannot be pruned.
        reads_images: pixels are (B, 3, H, W) instead of (B, T, 3, H, W).
        keep_ratio: unless `prune` is told another one.
    """

    library: str
    classes: tuple[str, ...]
    drops: str
    checked: str
    open: Callable[[Any, str], Host]
    reads_images: bool = False
    keep_ratio: float = 0.3


def keep_behind(tokens: Tensor, selection: TokenSelection, *, num_prefix: int) -> Tensor:
    """tokens (B, P + N, D) of a selection from the N -> (B, P + K, D)."""
    return keep_tokens(tokens, selection.keep_idx, num_prefix)


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


def check_rgb(channels: int, name: str) -> None:
    """Raises ConfigError unless a model, of the class `name`, reads three channels."""
    if channels != 3:
        raise ConfigError(f"cannot prune this {name}: it reads {channels} channels instead of RGB")


def image_colors(model: Any, channels: int, name: str) -> dict[str, Any]:
    """`mean` and `std` of an image model of timm that reads so many channels: those of its weights, or ImageNet's.

    Raises ConfigError: it does not read RGB.
    """
    check_rgb(channels, name)
    cfg = getattr(model, "pretrained_cfg", None) or {}  # create_model leaves it there
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {key: tuple(cfg.get(key) or value) for key, value in usual.items()}


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size that is one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
