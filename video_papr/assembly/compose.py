"""From the config groups to a pipeline that reads videos: for `tools/predict.py` and `Pipeline.from_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from omegaconf import DictConfig

from ..backbones.builders import BACKBONES
from ..backbones.probe import read_probe
from ..checkpoints.files import PROBE
from ..config import BackboneConfig, PipelineConfig, PrunerConfig, check, plain
from ..config.checking import sections
from ..config.hydra import compose_words, quote
from ..config.options import read
from ..core.console import warn
from ..core.errors import ConfigError, DataError
from ..data.annotations import VideoList, kinetics400_class_names, read_class_names
from ..data.recipe import Recipe
from ..pipeline import Pipeline
from . import build, runtime
from .views import frame_reducer, limits_of, read_as_trained

GROUPS = tuple(sections(PipelineConfig))
FITTED = "fitted"  # the pruner of conf/ that stands for the one of the probe
Command = TypeVar("Command", bound=PipelineConfig)


def from_config(
    config: DictConfig | Mapping[str, Any] | None = None, **groups: Any
) -> tuple[Pipeline, Recipe]:
    """A pipeline, and how it reads videos; see `api.Pipeline.from_config`."""
    if config is not None and groups:
        raise ConfigError(f"give a configuration or groups, not both ({', '.join(groups)})")
    words = [word for name, value in groups.items() for word in _overrides(name, value)]
    composed = compose_words(words) if config is None else config
    own = [*GROUPS, "seed"]  # a configuration of eval.py, say, has more keys
    return build_reader(check(PipelineConfig, {k: v for k, v in plain(composed).items() if k in own}))


def as_fitted(config: Command) -> Command:
    """A configuration with pruner=fitted replaced by what the probe says; any other configuration as it is.

    Raises:
        ConfigError: there is no probe.
        CheckpointError: see `read_probe`.
    """
    if config.backbone.name != PROBE:
        if config.pruner.name == FITTED:
            raise ConfigError(
                f"pruner={FITTED}: goes with backbone=probe, whose file says which pruner that is"
            )
        return config
    fitted = read(PrunerConfig, read_probe(config.backbone.weights).pruner)
    chosen = config.pruner
    if chosen.name == FITTED:
        # 1.0, the value in conf/, stands for the fitted one; pruner=none reads all tokens.
        ratio = fitted.keep_ratio if chosen.keep_ratio == 1 else chosen.keep_ratio
        chosen = fitted if fitted.name == "none" else replace(fitted, keep_ratio=ratio)
        config = replace(config, pruner=chosen)
    if (chosen.name, chosen.keep_ratio) != (fitted.name, fitted.keep_ratio):
        warn(
            f"pruner={pruner_said(chosen)}: the probe was fitted with pruner={pruner_said(fitted)}, which "
            f"pruner={FITTED} takes"
        )
    return config


def backbone_said(backbone: BackboneConfig) -> str:
    """The network, for people: a model of timm by its name there, a probe by that of its backbone."""
    if backbone.name != PROBE:
        return backbone.model or backbone.name
    fitted = read_probe(backbone.weights).backbone
    return f"{fitted.get('model') or fitted['name']} + probe"


def pruner_said(pruner: PrunerConfig) -> str:
    """Its name and keep ratio, for messages."""
    return pruner.name if pruner.name == "none" else f"{pruner.name} at keep {pruner.keep_ratio}"


def build_reader(config: PipelineConfig) -> tuple[Pipeline, Recipe]:
    """Builds a pipeline in eval mode, on its device, and the recipe that reads videos for it.

    Raises:
        ConfigError: the device is missing.
        CheckpointError: weights are missing, damaged or of another network.
        DataError: the class names do not fit the weights.
    """
    config = as_fitted(config)
    reading, engine = config.dataset, runtime.build_engine(config.runtime)
    names = None if reading.class_names is None else read_class_names(reading.class_names)
    backbone = config.backbone
    if backbone.name != PROBE and backbone.weights is None and backbone.num_classes is None:
        num_classes = len(names) if names else BACKBONES[backbone.name]["num_classes"]
        config = replace(config, backbone=replace(backbone, num_classes=num_classes))
    pipeline = build.build_pipeline(config, VideoList((), names), engine)
    model = pipeline.backbone
    if names is None and model.class_names is None and reading.name == "k400" and model.num_classes == 400:
        model.class_names = kinetics400_class_names()  # the authors' own files of weights name no classes
    if names is not None:
        if len(names) != model.num_classes:
            raise DataError(
                f"dataset.class_names={reading.class_names}: {len(names)} names for {model.num_classes} "
                "classes; check backbone.weights"
            )
        model.class_names = names
    runtime.speed_up(pipeline, config.runtime, engine)
    reading = read_as_trained(reading, model)
    assert reading.sampling is not None and reading.frame_stride is not None  # filled in
    recipe = Recipe(
        sampling=reading.sampling,
        frame_stride=reading.frame_stride,
        clips=config.views.clips,
        crops=config.views.crops,
        short_side=reading.short_side,
        decoder=reading.decoder,
        batch_size=runtime.batch_size(config.runtime, engine),
        dtype=engine.dtype,
        limits=limits_of(reading),
        memory_mb=reading.memory_mb,
        reduce=frame_reducer(reading, config.views, model),
    )
    return pipeline.eval(), recipe


def _overrides(name: str, value: Any) -> list[str]:
    """`pruner="x3d_s"`, or `pruner={"name": "x3d_s", "stage": "res4"}`, in Hydra's words."""
    if name in GROUPS and not isinstance(value, Mapping):
        return [f"{name}={value}"]
    if not isinstance(value, Mapping):
        return [f"{name}={_quoted(value)}"]
    option = [f"{name}={value['name']}"] if name in GROUPS and "name" in value else []
    keys = {key: inner for key, inner in value.items() if not (option and key == "name")}
    return option + [word for key, inner in keys.items() for word in _overrides(f"{name}.{key}", inner)]


def _quoted(value: Any) -> str:
    """A value in Hydra's grammar; texts in quotes, so that they may hold anything."""
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_quoted, value))}]"
    return quote(str(value))
