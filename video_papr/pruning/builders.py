"""Pruners by name: built from what each one's file declares, see `protocol.PrunerSpec`."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, check_known
from . import RENAMED_OPTIONS, RENAMED_VALUES, scorers
from .protocol import Pruner, PrunerSpec
from .scorers.custom import Scorer, build_custom, own_spec


def _declared() -> dict[str, PrunerSpec]:
    """The `SPECS` of every file in `scorers/`, networks first."""
    modules = [
        import_module(f"{scorers.__name__}.{entry.name}") for entry in pkgutil.iter_modules(scorers.__path__)
    ]
    found = [spec for module in modules for spec in getattr(module, "SPECS", ())]
    return {spec.name: spec for spec in sorted(found, key=lambda spec: not spec.trained)}


SPECS: dict[str, PrunerSpec] = _declared()


def pruner_names(suits: Callable[[PrunerSpec], bool] = lambda spec: True) -> tuple[str, ...]:
    """Names of the built-in pruners that are declared to suit, without "none"."""
    return tuple(name for name, spec in SPECS.items() if suits(spec))


PRUNERS = ("none", *pruner_names())


def build_pruner(
    name: str,
    *,
    weights: str | Path | None = None,
    scorer: str | Callable[..., Scorer] | None = None,
    scorer_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pruner | None:
    """Builds a pruner in eval mode; "none" gives None, the dense model.

    Args:
        name: "none" or one of `SPECS`; with `scorer`, any other name.
        weights: of an X3D: a bundled name, a file, or a name of `x3d.PUBLISHED`; of "image_convnet" and
            "video_convnet": "pretrained" or a file; of "pixel_rule": a bundled name or a file. None is a random
            network, a control.
        options: those that the pruner's spec declares; docs/configuration.md says what each means. Old names are taken
            with a warning, see `RENAMED_OPTIONS`.
        scorer: of a pruner from outside: a class, a function that returns a scorer, or its import path
            "package.module:name"; see `custom.CustomScorer`.
        scorer_options: keyword arguments of `scorer`.

    Raises:
        ConfigError: an unknown name or option, or a value out of range.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    if scorer is None and scorer_options:
        raise ConfigError(f"unknown key pruner.scorer_options for pruner={name}: it goes with pruner.scorer")
    if scorer is not None and (name == "none" or name in SPECS):
        raise ConfigError(
            f"pruner.name={name!r} is a pruner of this package; name the one with a scorer anew"
        )
    if name == "none":
        return None
    spec = SPECS[check_known("pruner", name, ("none", *SPECS))] if scorer is None else own_spec(name)
    options = current_names(options)
    given = options if weights is None else {**options, "weights": weights}
    known = ("weights", *spec.options) if spec.trained else spec.options
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown key pruner.{key} for pruner={name}; it has {', '.join(known)}")
    made = () if scorer is None else (build_custom(scorer, scorer_options or {}),)
    pruner = spec.build(spec, *made, **given)
    return pruner.eval().requires_grad_(False)


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of today; an old name or value is taken with a warning.

    Raises ConfigError: an option is given under both names.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        new = RENAMED_OPTIONS.get(key, key)
        new_value = RENAMED_VALUES.get(new, {}).get(value, value) if isinstance(value, str) else value
        if new in found:
            raise ConfigError(f"pruner.{new} is given twice, once under its old name")
        if (new, new_value) != (key, value):
            warnings.warn(
                f"pruner.{key}={value} is now pruner.{new}={new_value}; the old name goes with the next release",
                FutureWarning,
                stacklevel=3,
            )
        found[new] = new_value
    return found
