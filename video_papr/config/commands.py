"""What each command reads, and `check`, which turns a composed configuration into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..core.errors import ConfigError
from .depth import DepthConfig
from .groups import (
    BackboneConfig,
    DatasetConfig,
    MergerConfig,
    PrunerConfig,
    RuntimeConfig,
    TaskConfig,
    ViewsConfig,
)
from .rules import did_you_mean, flag, natural, or_else, setting, text, wrong
from .train import TrainConfig

Section = TypeVar("Section")


@dataclass(frozen=True)
class EvalConfig:
    """Everything that `tools/eval.py` reads."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    pruner: PrunerConfig
    merger: MergerConfig
    views: ViewsConfig
    runtime: RuntimeConfig
    task: TaskConfig
    seed: int = setting(natural, 0)
    output_dir: str = setting(text, "outputs")
    resume: bool = setting(flag, True)
    baseline: bool = setting(flag, True)
    share_maps: bool = setting(flag, False)
    visualize: int = setting(natural, 4)
    progress: bool = setting(flag, True)
    optimize: str | None = setting(or_else(None, text), None)

    def __post_init__(self) -> None:
        images = self.dataset.name == "images"
        if self.task.name == "image" and not images:
            raise ConfigError(f"task=image: dataset={self.dataset.name} holds videos; use dataset=images.")
        if not images:
            return
        if self.backbone.name != "timm_vit":
            raise ConfigError(
                f"backbone={self.backbone.name}: reads clips; images (dataset=images) need backbone=timm_vit."
            )
        if self.pruner.name in ("motion", "run_length"):
            raise ConfigError(
                f"pruner={self.pruner.name}: compares the frames of a video, and an image has one; use image_convnet, "
                "similarity, random, uniform, center, brightness or none."
            )
        if self.views.clips != 1:
            raise ConfigError(f"views.clips={self.views.clips}: an image is one clip; use views=1x1 or 1x3.")


@dataclass(frozen=True)
class TrainRunConfig:
    """Everything that `tools/train.py` reads."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    runtime: RuntimeConfig
    train: TrainConfig
    seed: int = setting(natural, 0)
    output_dir: str = setting(text, "outputs")
    progress: bool = setting(flag, True)


@dataclass(frozen=True)
class DepthRunConfig:
    """Everything that `tools/depth_prune.py` reads."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    runtime: RuntimeConfig
    depth: DepthConfig
    seed: int = setting(natural, 0)
    output_dir: str = setting(text, "outputs")
    progress: bool = setting(flag, True)


SECTIONS: dict[str, type] = {
    "depth": DepthConfig,
    "dataset": DatasetConfig,
    "backbone": BackboneConfig,
    "pruner": PrunerConfig,
    "merger": MergerConfig,
    "views": ViewsConfig,
    "runtime": RuntimeConfig,
    "train": TrainConfig,
    "task": TaskConfig,
}


def check_section(schema: type[Section], values: Any, prefix: str = "") -> Section:
    """Checks the keys of one group against their dataclass.

    Args:
        schema: one of the dataclasses above, or another whose fields are made the same way.
        values: mapping of the group's keys to plain values.
        prefix: the group's name, for messages.

    Raises:
        ConfigError: an unknown or missing key, or a value that is not allowed.
    """
    dot = f"{prefix}." if prefix else ""
    if not isinstance(values, Mapping):
        raise wrong(prefix, values, "must be an option of the group, with its keys")
    known = {f.name: f for f in fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{dot}{key}: no such key.{did_you_mean(str(key), known)} Known: {', '.join(known)}."
            )
    for name, entry in known.items():
        if name not in values and entry.default is MISSING:
            raise ConfigError(f"{dot}{name} is not set.")
    return schema(**{key: known[key].metadata["rule"](f"{dot}{key}", value) for key, value in values.items()})


def plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Resolves a composed configuration into plain dicts and values.

    Raises:
        ConfigError: a reference to a key that does not exist, or a value still to be given (`???`).
    """
    if not isinstance(cfg, DictConfig):
        return dict(cfg)
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def check(cfg: DictConfig | Mapping[str, Any]) -> EvalConfig:
    """Checks a composed configuration of `tools/eval.py`; see `check_command`."""
    return check_command(EvalConfig, cfg)


def check_command(schema: type[Section], cfg: DictConfig | Mapping[str, Any]) -> Section:
    """Checks a composed configuration against the schema of its command.

    Raises:
        ConfigError: the first wrong key, in one line.
    """
    values = plain(cfg)
    entries = fields(schema)  # type: ignore[arg-type]
    rules = {f.name: f.metadata["rule"] for f in entries if "rule" in f.metadata}
    sections = {f.name: SECTIONS[f.name] for f in entries if f.name in SECTIONS}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key in rules:
            checked[key] = rules[key](key, value)
        elif key not in sections:
            raise ConfigError(f"{key}: no such key.{did_you_mean(key, [*rules, *sections])}")
    for name, section in sections.items():  # after the keys above, which the groups may refer to
        if name not in values:
            raise ConfigError(f"{name} is not set: choose an option of the group, {name}=OPTION.")
        checked[name] = check_section(section, values[name], name)
    return schema(**checked)
