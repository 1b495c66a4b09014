"""The configuration of a pipeline that reads videos on request: of `tools/predict.py` and `Pipeline.from_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig

from ..config import (
    DECODER,
    SAMPLING,
    BackboneConfig,
    MergerConfig,
    PrunerConfig,
    RuntimeConfig,
    ViewsConfig,
    check_command,
    check_section,
    plain,
)
from ..config.commands import Section
from ..config.rules import natural, or_else, positive, setting, text
from ..core.errors import ConfigError

GROUPS = ("dataset", "backbone", "pruner", "merger", "views", "runtime")


@dataclass(frozen=True)
class ReadingConfig:
    """The keys of the group `dataset` that say how a video is read; no videos are listed."""

    name: str = setting(text)
    sampling: str = setting(SAMPLING, "dense")
    frame_stride: int = setting(positive, 4)
    short_side: int | None = setting(or_else(None, positive), None)
    decoder: str = setting(DECODER, "auto")
    class_names: str | None = setting(or_else(None, text), None)


def _reading(key: str, value: Any) -> ReadingConfig:
    known = {entry.name for entry in fields(ReadingConfig)}
    if not isinstance(value, Mapping):
        raise ConfigError(f"dataset={value!r}: must be an option of the group, with its keys.")
    return check_section(ReadingConfig, {name: value[name] for name in value if name in known}, "dataset")


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that makes a pipeline. `reading` is what it needs of the group `dataset`."""

    reading: ReadingConfig = field(metadata={"rule": _reading})
    backbone: BackboneConfig
    pruner: PrunerConfig
    merger: MergerConfig
    views: ViewsConfig
    runtime: RuntimeConfig
    seed: int = setting(natural, 0)


def check_pipeline(schema: type[Section], cfg: DictConfig | Mapping[str, Any]) -> Section:
    """Checks a composed configuration against `PipelineConfig` or a schema that extends it.

    Raises:
        ConfigError: the first wrong key, in one line.
    """
    values = plain(cfg)
    if "dataset" not in values:
        raise ConfigError("dataset is not set: choose an option of the group, dataset=OPTION.")
    return check_command(
        schema, {"reading" if key == "dataset" else key: value for key, value in values.items()}
    )
