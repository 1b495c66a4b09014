"""Pruners by name: a scorer and a selection."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import read_weights
from ..errors import ConfigError
from ..structures import TokenGrid, TokenSelection
from .rules import RULES
from .selection import check_keep_ratio, check_scope, select_tokens
from .x3d import CLIPS, X3DScorer

PRUNERS = ("none", *CLIPS, *RULES)


class Pruner(nn.Module):
    """Scores the tubelets of a clip and keeps the best.

    Attributes:
        name: as in `PRUNERS`.
        scorer: (frames, grid) -> significance map.
        keep_ratio, scope: see `selection.select_tokens`.
    """

    def __init__(
        self, name: str, scorer: nn.Module, *, keep_ratio: float = 0.3, scope: str = "global"
    ) -> None:
        super().__init__()
        self.name, self.scorer = name, scorer
        self.keep_ratio, self.scope = check_keep_ratio(keep_ratio), check_scope(scope)

    def significance(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> (B, T', H', W') float32, higher = keep."""
        return self.scorer(frames, grid)

    def forward(self, frames: Tensor, grid: TokenGrid) -> TokenSelection:
        """frames (B, T, H, W, 3) uint8 -> the kept tokens of every clip."""
        return select_tokens(self.significance(frames, grid), keep_ratio=self.keep_ratio, scope=self.scope)


class RuleScorer(nn.Module):
    """One of `rules.RULES` with its seed."""

    def __init__(self, name: str, *, seed: int = 0) -> None:
        super().__init__()
        self.rule, self.seed = RULES[name], seed

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        return self.rule(frames, grid, self.seed)


def build_pruner(
    name: str,
    *,
    keep_ratio: float = 0.3,
    scope: str = "global",
    weights: str | Path | None = None,
    **options: Any,
) -> Pruner | None:
    """Builds a pruner in eval mode; "none" gives None, the dense model.

    Args:
        name: one of `PRUNERS`.
        keep_ratio: share of the tokens that stay, 0 < keep_ratio <= 1.
        scope: "global" or "frame".
        weights: of an X3D: a bundled name or a file; None is a random X3D, a control.
        options: of an X3D: `frames`, `size`, `stage`, `align_corners`, `cell_center`; of a rule, and of random
            weights: `seed`.

    Raises:
        ConfigError: an unknown name or option, or a value out of range.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    if name == "none":
        return None
    if name in RULES:
        _check_options(name, options if weights is None else {"weights": weights, **options}, ("seed",))
        scorer: nn.Module = RuleScorer(name, **options)
    elif name in CLIPS:
        _check_options(name, options, ("frames", "size", "stage", "align_corners", "cell_center", "seed"))
        scorer = _x3d_scorer(name, weights, **options)
    else:
        close = difflib.get_close_matches(name, PRUNERS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"pruner={name} is unknown; use one of {', '.join(PRUNERS)}.{hint}")
    return Pruner(name, scorer, keep_ratio=keep_ratio, scope=scope).eval().requires_grad_(False)


def _x3d_scorer(
    name: str,
    weights: str | Path | None,
    *,
    frames: int | None = None,
    size: int | None = None,
    seed: int = 0,
    **rest: Any,
) -> X3DScorer:
    paper_frames, paper_size = CLIPS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = X3DScorer(
            frames=paper_frames if frames is None else frames,
            size=paper_size if size is None else size,
            **rest,
        )
    if weights is not None:
        state, _ = read_weights(weights, key="pruner.weights")
        scorer.trunk.load_classifier(state, source=f"pruner.weights={weights}")
    return scorer


def _check_options(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in options:
        if key not in known:
            raise ConfigError(f"pruner.{key} is no option of pruner={name}; it has {', '.join(known)}")
