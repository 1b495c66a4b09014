"""Pruners by name: a scorer and a selection."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import read_weights
from ..core.errors import ConfigError
from ..core.types import CELL, TokenGrid, TokenSelection
from .budget import Budget, check_number, map_budget
from .compensation import check_carry, check_cell
from .scorers.custom import Scorer, build_custom
from .scorers.fusion import FusedScorer
from .scorers.image_convnet import build_image_scorer
from .scorers.rules import RULES
from .scorers.x3d import CLIPS, X3DScorer, find_x3d
from .scorers.x3d_depth_pruned import check_blocks, shorten_x3d
from .select import in_every_frame, scope_floor, select_counts, select_tokens
from .similarity import SimilarityPruner

CONVNETS = (*CLIPS, "papr_plus", "image_convnet")
PRUNERS = ("none", *CONVNETS, "similarity", *RULES)

BUDGET = ("keep_ratio", "budget", "mass", "threshold", "min_keep", "max_keep")
CARRY = ("carry", "carry_cell")
SHARED = (*BUDGET, "scope", *CARRY)
X3D = ("frames", "size", "align_corners", "cell_center", "seed")
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CLIPS, (*X3D, "stage", *SHARED)),
    "papr_plus": (*X3D, "stages", "motion", "floor", "ground", *BUDGET, *CARRY),
    **dict.fromkeys(RULES, ("seed", *SHARED)),
    "image_convnet": ("model", "frames", "size", "align_corners", "cell_center", "seed", *SHARED),
    "run_length": ("tau", "min_keep", "max_keep", *CARRY),
    "similarity": (
        *("mode", "keep_ratio", "tau", "deviations", "diversity", "cluster_tau", "after_block"),
        *("min_keep", "max_keep", *CARRY),
    ),
}


class Pruner(nn.Module):
    """Scores the tubelets of a clip and keeps the best.

    Attributes:
        name: as in `PRUNERS`.
        scorer: (frames, grid) -> significance map.
        budget: how many tokens a clip keeps.
        floor, ground: see `selection.select_tokens`.
        same_places: whether every frame keeps the same places, `scope="place"`.
        carry, carry_cell: what becomes of the dropped tubelets' mass, see `carrying`.
    """

    def __init__(
        self,
        name: str,
        scorer: nn.Module,
        *,
        budget: Budget,
        floor: float = 0.0,
        ground: float = 0.0,
        same_places: bool = False,
        carry: str = "none",
        carry_cell: Sequence[int] = CELL,
    ) -> None:
        super().__init__()
        self.name, self.scorer = name, scorer
        self.budget, self.floor = budget, check_number("floor", floor, 0, 1)
        self.ground = check_number("ground", ground, 0, 1)
        self.same_places = same_places
        self.carry, self.carry_cell = check_carry(carry), check_cell(carry_cell)

    def significance(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> (B, T', H', W') float32, higher = keep."""
        return self.scorer(frames, grid)

    def forward(self, frames: Tensor, grid: TokenGrid) -> TokenSelection:
        """frames (B, T, H, W, 3) uint8 -> the kept tokens of every clip."""
        return self.choose(self.significance(frames, grid))

    def choose(self, significance: Tensor) -> TokenSelection:
        """significance (B, T', H', W') -> the kept tokens of every clip."""
        frames = significance.shape[1]
        if self.same_places:
            significance = significance.mean(1, keepdim=True)
        if not self.budget.variable:
            selection = select_tokens(
                significance, keep_ratio=self.budget.value, floor=self.floor, ground=self.ground
            )
        else:
            counts = self.budget.counts(significance)
            selection = select_counts(significance, counts, floor=self.floor, ground=self.ground)
        if self.same_places:
            selection = in_every_frame(selection, frames)
        return replace(selection, carry=self.carry, cell=self.carry_cell)


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
    weights: str | Path | None = None,
    scorer: str | Callable[..., Scorer] | None = None,
    scorer_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pruner | SimilarityPruner | None:
    """Builds a pruner in eval mode; "none" gives None, the dense model.

    Args:
        name: one of `PRUNERS`; with `scorer`, any other name.
        weights: of an X3D: a bundled name, a file, or a name of `x3d.PUBLISHED`; of "image_convnet": "pretrained" or a
            file. None is a random network, a control.
        options: see `OPTIONS`. `keep_ratio` (0.3), `scope` ("global"), `budget` ("fixed") and the keys of
            `budget.map_budget` for all that make a map from frames; beside these, `frames`, `size`, `stage`,
            `align_corners`, `cell_center` of an X3D; the same without `stage`, and timm's name `model`, of
            "image_convnet"; and `seed` of a rule or of random weights. "papr_plus" takes what X3D-S does, but `stages`
            and `motion` (see `FusedScorer`) in place of `stage`, and `floor` (0.5) and `ground` (0.3) of
            `select_tokens` in place of `scope`. "run_length" takes `tau` (6, on the scale 0 to 255), `min_keep` and
            `max_keep`; "similarity" what `SimilarityPruner` takes. All take `carry` and `carry_cell`, see `carrying`.
        scorer: of a pruner from outside: a class, a function that returns a scorer, or its import path
            "package.module:name"; see `custom.CustomScorer`.
        scorer_options: keyword arguments of `scorer`.

    Raises:
        ConfigError: an unknown name or option, or a value out of range.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    own_scorer = _own_scorer(name, scorer, scorer_options)
    if name == "none":
        return None
    if name not in PRUNERS and own_scorer is None:
        close = difflib.get_close_matches(name, PRUNERS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"pruner={name} is unknown; use one of {', '.join(PRUNERS)}.{hint}")
    given = options if weights is None or name in CONVNETS else {"weights": weights, **options}
    known = SHARED if own_scorer is not None else OPTIONS[name]
    for key in given:
        if key not in known:
            raise ConfigError(f"pruner.{key} is no option of pruner={name}; it has {', '.join(known)}")
    pruner: Pruner | SimilarityPruner
    if name == "similarity":
        pruner = SimilarityPruner(**options)
    elif name == "run_length":
        tau = check_number("tau", options.pop("tau", 6.0), 0, 255)
        carry = {key: options.pop(key) for key in CARRY if key in options}
        pruner = Pruner(name, RuleScorer(name), budget=Budget("level", tau, **options), **carry)
    else:
        own = {key: value for key, value in options.items() if key not in (*SHARED, "floor", "ground")}
        maker = own_scorer if own_scorer is not None else _scorer(name, weights, **own)
        shares = {key: value for key, value in options.items() if key in BUDGET and key != "budget"}
        budget = map_budget(options.get("budget", "fixed"), **shares)
        scope = options.get("scope", "global")
        usual = 0.5 if name == "papr_plus" else scope_floor(scope)
        carry = {key: options[key] for key in CARRY if key in options}
        ground = options.get("ground", 0.3 if name == "papr_plus" else 0.0)
        floor = options.get("floor", usual)
        same = scope == "place"
        pruner = Pruner(name, maker, budget=budget, floor=floor, ground=ground, same_places=same, **carry)
    return pruner.eval().requires_grad_(False)


def _own_scorer(
    name: str, scorer: str | Callable[..., Scorer] | None, options: Mapping[str, Any] | None
) -> nn.Module | None:
    """The scorer from outside, if there is one."""
    if scorer is None:
        if options:
            raise ConfigError(
                f"pruner.scorer_options is no option of pruner={name}: it goes with pruner.scorer"
            )
        return None
    if name in PRUNERS:
        raise ConfigError(
            f"pruner.name={name!r} is a pruner of this package; name the one with a scorer anew"
        )
    return build_custom(scorer, options or {})


def _scorer(name: str, weights: str | Path | None, **own: Any) -> nn.Module:
    """What makes the map, of the pruners of this package."""
    if name in RULES:
        return RuleScorer(name, **own)
    if name == "image_convnet":
        return build_image_scorer(weights=weights, **own)
    return _x3d_scorer(name, weights, **own)


def _x3d_scorer(
    name: str,
    weights: str | Path | None,
    *,
    frames: int | None = None,
    size: int | None = None,
    seed: int = 0,
    **rest: Any,
) -> X3DScorer:
    usual_frames, usual_size = CLIPS.get(name, (8, 96))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = (X3DScorer if name in CLIPS else FusedScorer)(
            frames=usual_frames if frames is None else frames,
            size=usual_size if size is None else size,
            **rest,
        )
    if weights is not None:
        state, described = read_weights(find_x3d(weights, key="pruner.weights"))
        source = f"pruner.weights={weights}"
        if "blocks" in described:
            shorten_x3d(scorer.trunk, check_blocks(described["blocks"], source=source))
        scorer.trunk.load_classifier(state, source=source)
    return scorer
