"""Scorers that live outside of this package, found by their import path.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.types import TokenGrid
from ..map_pruner import build_map_pruner
from ..protocol import MAP_OPTIONS, PrunerSpec

Scorer = Callable[[Tensor, TokenGrid], Tensor]


class CustomScorer(nn.Module):
    """Somebody's scorer, with its maps checked: what it does wrong shows here, not as a strange accuracy.

    Args:
        scorer: (frames (B, T, H, W, 3) uint8, grid) -> (B, T', H', W') float, higher = keep. A module among the
            pipeline's own: it moves to the pipeline's device, and is in eval mode.
    """

    def __init__(self, source: str, scorer: Scorer) -> None:
        super().__init__()
        self.source, self.scorer = source, scorer

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`.

        Raises:
            ConfigError: the scorer gives anything else.
        """
        significance: Any = self.scorer(frames, grid)  # whatever it says it gives
        wanted = (len(frames), *grid.shape)
        if not isinstance(significance, Tensor):
            given = type(significance).__name__
        elif significance.shape != wanted or not torch.is_floating_point(significance):
            given = f"{significance.dtype} {tuple(significance.shape)}"
        else:
            return significance
        raise ConfigError(
            f"pruner.scorer={self.source} gives {given}; a map must be float {wanted}, one value for each token "
            "(video_papr.pruning.select.resize_map stretches a coarser one)"
        )


def build_custom(source: str | Callable[..., Scorer], options: Mapping[str, Any]) -> CustomScorer:
    """Imports and makes a scorer.

    Args:
        source: a class, or a function that returns a scorer; or its import path, "package.module:name".

    Raises ConfigError: it cannot be imported, or refuses the options.
    """
    make = imported(source, "pruner.scorer") if isinstance(source, str) else source
    shown = source if isinstance(source, str) else getattr(source, "__name__", repr(source))
    try:
        scorer = make(**options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "none"
        raise ConfigError(
            f"pruner.scorer={shown} refuses pruner.scorer_options ({given}): {error}"
        ) from error
    if not callable(scorer):
        raise ConfigError(
            f"pruner.scorer={shown} gives {type(scorer).__name__}; it must give a callable (frames, grid) -> map"
        )
    return CustomScorer(shown, scorer)


def own_spec(name: str) -> PrunerSpec:
    """Describes a pruner whose scorer comes from outside."""
    return PrunerSpec(name, "A pruner from outside of this package.", build_map_pruner, MAP_OPTIONS)


def imported(path: str, key: str) -> Callable[..., Any]:
    """What stands at an import path, "package.module:name".

    Raises ConfigError: there is no such module or callable; the line begins with `key`.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{key}={path!r}: must be an import path, package.module:name")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports something that is not: its own mistake
        raise ConfigError(
            f"{key}={path}: no module {error.name!r}; install it, or put its folder on PYTHONPATH"
        ) from error
    made = getattr(module, name, None)
    if not callable(made):
        raise ConfigError(f"{key}={path}: {module_name} has no class or function {name!r}")
    return made
