"""Every family of models that `prune` takes: the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..core.errors import ConfigError
from ..core.tables import Table
from . import hiera, qwen_vl, stages, timesformer, timm_vit, videomae, videoprism, vjepa2
from .host import Family, Host, class_of

FAMILIES = (
    videomae.FAMILY,
    vjepa2.FAMILY,
    timesformer.FAMILY,
    videoprism.FAMILY,
    qwen_vl.FAMILY,
    timm_vit.FAMILY,
    *stages.FAMILIES,
    hiera.FAMILY,
)


def open_model(model: nn.Module) -> tuple[Family, Host]:
    """The family that a model belongs to, and what pruning has to know about it.

    Raises ConfigError: no family has its class, or this one of its class cannot be pruned.
    """
    for family in FAMILIES:
        name = class_of(model, family.library, family.classes)
        if name is not None:
            return family, family.open(model, name)
    known = "; ".join(f"{', '.join(family.classes)} of {family.library}" for family in FAMILIES)
    raise ConfigError(
        f"cannot prune a {type(model).__name__}; supported: {known}. Give the model itself, without a "
        "wrapper; of a language model its vision tower."
    )


def table(seconds: Mapping[str, str] | None = None) -> str:
    """The families as a table in Markdown, as the README shows it.

    Args:
        seconds: first class of a family -> what was measured; see benchmarks/host_seconds.py.
    """
    columns = ["library", "classes", "what is dropped", "tested against", "seconds on 2 cores: dense, pruned"]
    rows = [
        [
            family.library,
            ", ".join(f"`{name}`" for name in family.classes),
            family.drops,
            family.checked,
            (seconds or {}).get(family.classes[0], ""),
        ]
        for family in FAMILIES
    ]
    return Table(columns, rows, left=range(5)).filled().markdown()
