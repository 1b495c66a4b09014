"""Pruners that score frames: a scorer makes a significance map, and the best tokens of the map are kept.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core.errors import ConfigError, check_known
from ..core.parts import join_selection, split_frames
from ..core.types import Mark, TokenGrid, TokenSelection, unobserved
from .budget import BUDGET_OPTIONS, Budget, check_number, map_budget
from .protocol import COMPENSATION_OPTIONS, MAP_OPTIONS, HasGrid, Pruner, PrunerSpec
from .select import SCOPES, in_every_frame, select_counts, select_tokens

SHARED_OPTIONS = (*MAP_OPTIONS, "min_per_frame", "uniform_share", "count_class_token")


class MapPruner(Pruner):
    """Scores the tubelets of a clip and keeps the best.

    Args:
        scorer: (frames, grid) -> significance map.
        min_per_frame, uniform_share: see `select.select_tokens`.
        scope: "place": every frame keeps the same places; None: if the backbone needs it.
        by_parts: where the backbone reads a clip part by part, each part keeps its best, as if it were a clip.
        count_class_token: `keep_ratio` is a share of the grid's tokens and the class tokens, as PaPr counts in images;
            these stay beside the tokens that it gives.

    Raises ConfigError: `count_class_token` where the clip decides how much is kept, or a value out of range.
    """

    def __init__(
        self,
        spec: PrunerSpec,
        scorer: nn.Module,
        budget: Budget,
        *,
        min_per_frame: float = 0.0,
        uniform_share: float = 0.0,
        scope: str | None = None,
        by_parts: bool = False,
        count_class_token: bool = False,
        **compensation: Any,
    ) -> None:
        super().__init__(spec, budget, **compensation)
        self.scorer = scorer
        self.min_per_frame = check_number("min_per_frame", min_per_frame, 0, 1)
        self.uniform_share = check_number("uniform_share", uniform_share, 0, 1)
        self.scope, self.by_parts = scope, by_parts
        self.same_places: bool | None = True if scope == "place" else None  # None: no backbone yet
        if count_class_token and budget.variable:
            raise ConfigError("pruner.count_class_token=true goes with pruner.budget=fixed")
        self.count_class_token, self.counted = count_class_token, 0

    def fit(self, backbone: Any) -> None:
        """Takes over what a backbone asks of scope, its class tokens, where they count, and its normalisation.

        Args:
            backbone: has `num_prefix`, and `mean` and `std` of its pixels; `same_places` where frames must agree.

        Raises ConfigError: it was fitted to another backbone, which differs in that; or frames must keep the same
        places, and cannot.
        """
        self._fit_scope(getattr(backbone, "same_places", False), getattr(backbone, "name", "this backbone"))
        if isinstance(getattr(self.scorer, "normalize", None), str):
            self.scorer.fit(backbone.mean, backbone.std)  # type: ignore[operator]
        if self.count_class_token:
            if self.counted not in (0, backbone.num_prefix):
                raise ConfigError(
                    f"pruner.count_class_token=true: the pruner serves a backbone with {self.counted} class tokens, "
                    f"and this one has {backbone.num_prefix}; build a pruner for each"
                )
            self.counted = backbone.num_prefix

    def _fit_scope(self, same_places: bool, name: str) -> None:
        if same_places and "scope" not in self.spec.options:
            raise ConfigError(
                f"pruner={self.name} cannot be used here: {name} keeps the same places of every frame"
            )
        if same_places and self.scope not in (None, "place"):
            raise ConfigError(
                f"pruner.scope={self.scope} cannot be used here: {name} keeps the same places of every frame, "
                "scope='place'"
            )
        if self.scope is None and self.same_places not in (None, same_places):
            raise ConfigError(
                "pruner.scope=null: frames of one backbone keep the same places, those of another do not; build a "
                "pruner for each"
            )
        self.same_places = same_places or self.scope == "place"

    def significance(self, frames: Tensor, backbone: HasGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> (B, T', H', W') float32, higher = keep."""
        return self.scorer(frames, backbone.grid)

    def maps(self, frames: Tensor, grids: Sequence[TokenGrid]) -> list[Tensor]:
        """frames (B, 1, H, W, 3) uint8 -> a map for each of several grids; a network looks once."""
        at_once: Any = getattr(self.scorer, "maps", None)
        return at_once(frames, grids) if at_once else [self.scorer(frames, grid) for grid in grids]

    def select(
        self, frames: Tensor, backbone: HasGrid, *, packed: bool = False, mark: Mark = unobserved
    ) -> TokenSelection:
        """frames (B, T, H, W, 3) uint8 -> the kept tokens of every clip; see `Pruner.select`."""
        grids = getattr(backbone, "stage_grids", ())
        maps = self.maps(frames, grids) if grids else [self.significance(frames, backbone)]
        mark("score")
        selection, *others = (self.choose(found, getattr(backbone, "parts", 1)) for found in maps)
        if grids:
            selection = replace(selection, stages=(selection, *others))
        mark("select")
        return selection

    def check_backbone(self, backbone: Any, *, merges: bool) -> None:
        """Raises ConfigError unless the backbone reads several frames, where these are compared; see `Pruner`."""
        if self.spec.compares_frames and getattr(backbone, "num_frames", 2) == 1:
            raise ConfigError(f"pruner={self.name}: compares the frames of a video, and an image has one")
        super().check_backbone(backbone, merges=merges)

    def choose(self, significance: Tensor, parts: int = 1) -> TokenSelection:
        """significance (B, T', H', W') -> the kept tokens of every clip, of which the backbone reads so many parts."""
        if self.by_parts and parts > 1:
            return join_selection(self.choose(split_frames(significance, parts)), parts)
        frames, scored = significance.shape[1], significance.flatten(1).isfinite().any(1)
        if self.same_places:
            significance = significance.mean(1, keepdim=True)
        shares: dict[str, Any] = {"min_per_frame": self.min_per_frame, "uniform_share": self.uniform_share}
        if not self.budget.variable:
            selection = select_tokens(
                significance, keep_ratio=self.budget.value, counted=self.counted * parts, **shares
            )
        else:
            selection = select_counts(significance, self.budget.counts(significance), **shares)
        if self.same_places:
            selection = in_every_frame(selection, frames)
        return replace(selection, compensation=self.compensation, cell=self.compensation_cell, scored=scored)


def build_map_pruner(
    spec: PrunerSpec,
    scorer: nn.Module,
    *,
    scope: str | None = None,
    min_per_frame: float | None = None,
    uniform_share: float = 0.0,
    budget: str = "fixed",
    count_class_token: bool = False,
    **options: Any,
) -> MapPruner:
    """A `MapPruner` from the options that such pruners share, `protocol.MAP_OPTIONS`.

    `scope` None: "frame" for a backbone that reads frame by frame, otherwise "global".
    """
    usual = SCOPES[check_known("pruner.scope", scope or "global", SCOPES)]
    return MapPruner(
        spec,
        scorer,
        map_budget(budget, **{key: options[key] for key in BUDGET_OPTIONS if key in options}),
        min_per_frame=usual if min_per_frame is None else min_per_frame,
        uniform_share=uniform_share,
        scope=scope,
        by_parts=scope in (None, "frame") and min_per_frame is None,
        count_class_token=count_class_token,
        **{key: options[key] for key in COMPENSATION_OPTIONS if key in options},
    )


def built_from(
    make: Callable[..., nn.Module], *, papr: Mapping[str, Any] | None = None, **usual: Any
) -> Callable[..., MapPruner]:
    """The `build` of a `PrunerSpec` whose scorer `make` builds from the options that no other pruner shares.

    Args:
        papr: what "papr", PaPr to the letter, as `recipe` means for the options that are not given.
        usual: what they are otherwise, where that is not the default.
    """
    return partial(_build, make, {"own": usual, "papr": papr or {}})  # a spec travels with its pruner


def _build(
    make: Callable[..., nn.Module],
    recipes: Mapping[str, Mapping[str, Any]],
    spec: PrunerSpec,
    *,
    recipe: str = "own",
    **options: Any,
) -> MapPruner:
    options = {**recipes[check_known("pruner.recipe", recipe, recipes)], **options}
    own = {key: value for key, value in options.items() if key not in SHARED_OPTIONS}
    shared = {key: value for key, value in options.items() if key in SHARED_OPTIONS}
    return build_map_pruner(spec, make(**own), **shared)
