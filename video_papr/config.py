"""The configuration as frozen dataclasses, and `check`, which turns a composed configuration into them.

Every wrong value raises `ConfigError` with one line that names the key, its value and what is allowed. What each
key means is written beside it in `conf/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError

Rule = Callable[[str, Any], Any]  # (dotted key, raw value) -> checked value
Section = TypeVar("Section")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _wrong(key: str, value: Any, allowed: str, hint: str = "") -> ConfigError:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return ConfigError(f"{key}={shown}: {allowed}.{hint}")


def _integer(low: int, what: str) -> Rule:
    def rule(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise _wrong(key, value, f"must be {what}")
        return value

    return rule


def _one_of(*options: str | int | None) -> Rule:
    listed = ["null" if option is None else str(option) for option in options]

    def rule(key: str, value: Any) -> Any:
        if isinstance(value, bool) or value not in options:
            raise _wrong(key, value, f"must be one of {', '.join(listed)}", did_you_mean(str(value), listed))
        return value

    return rule


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "must be true or false")
    return value


def _any(key: str, value: Any) -> Any:
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or not str(value).strip():
        raise _wrong(key, value, "must be a name or a path")
    return str(value)


def _ratio(key: str, value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not isfinite(value)
        or not 0 < value <= 1
    ):
        raise _wrong(
            key, value, "must be a number above 0 and at most 1 (share of the tubelets that is kept)"
        )
    return float(value)


def _number(what: str, allowed: Callable[[float], bool]) -> Rule:
    def rule(key: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not isfinite(value)
            or not allowed(value)
        ):
            raise _wrong(key, value, f"must be {what}")
        return float(value)

    return rule


def _range(key: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _wrong(key, value, "must be [low, high]")
    return _ratio(key, value[0]), _ratio(key, value[1])


def _stages(key: str, value: Any) -> tuple[tuple[float, int], ...]:
    """A list of [clutter, videos]."""
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(v, (list, tuple)) and len(v) == 2 for v in value
    ):
        raise _wrong(key, value, "must be a list of [clutter, number of videos]")
    return tuple((_share_or_more(key, clutter), _positive(key, videos)) for clutter, videos in value)


def _or(word: str | None, rule: Rule) -> Rule:
    """Lets `word` ("auto" or None for null) pass, and names it in the message for everything else."""

    def either(key: str, value: Any) -> Any:
        if value == word and isinstance(value, type(word)):
            return word
        try:
            return rule(key, value)
        except ConfigError as error:
            raise ConfigError(f"{str(error).rstrip('.')}, or {word or 'null'}.") from None

    return either


_positive = _integer(1, "a whole number of at least 1")
_natural = _integer(0, "a whole number of at least 0")
_positive_number = _number("a number above 0", lambda x: x > 0)
_share_or_more = _number("a number of at least 0", lambda x: x >= 0)


def _key(rule: Rule, default: Any = MISSING) -> Any:
    return (
        field(metadata={"rule": rule})
        if default is MISSING
        else field(default=default, metadata={"rule": rule})
    )


@dataclass(frozen=True)
class DatasetConfig:
    """Which videos, and which of their frames. See conf/dataset/."""

    name: str = _key(_one_of("synthetic", "folder", "csv", "k400"))
    root: str | None = _key(_or(None, _text), None)
    annotations: str | None = _key(_or(None, _text), None)
    limit: int | None = _key(_or(None, _positive), None)
    decoder: str = _key(_one_of("auto", "decord", "pyav"), "auto")
    sampling: str = _key(_one_of("dense", "uniform"), "dense")
    frame_stride: int = _key(_positive, 4)
    short_side: int | None = _key(_or(None, _positive), None)
    split: str = _key(_one_of("test", "val", "train"), "test")
    seed: int = _key(_natural, 0)
    num_videos: int = _key(_positive, 600)
    cache_dir: str | None = _key(_or(None, _text), None)
    bundled: Any = field(default=None, metadata={"rule": _any})  # read by interpolation only
    scorer: Any = field(default=None, metadata={"rule": _any})  # read by interpolation only

    def __post_init__(self) -> None:
        if self.name != "synthetic" and self.root is None:
            raise ConfigError(f"dataset.root is not set: dataset={self.name} needs dataset.root=PATH.")
        if self.name == "csv" and self.annotations is None:
            raise ConfigError("dataset.annotations is not set: dataset=csv needs dataset.annotations=FILE.")


@dataclass(frozen=True)
class BackboneConfig:
    """The video transformer. See conf/backbone/."""

    name: str = _key(_one_of("videomae_tiny", "videomae_s", "videomae_b", "videomae_l", "videomae_h"))
    weights: str | None = _key(_or(None, _text), None)
    num_classes: int | None = _key(_or(None, _positive), None)
    num_frames: int | None = _key(_or(None, _positive), None)
    input_size: int | None = _key(_or(None, _positive), None)


@dataclass(frozen=True)
class PrunerConfig:
    """Which tubelets stay. A key that a pruner does not have is None and is not passed on. See conf/pruner/."""

    name: str = _key(
        _one_of("none", "x3d_xs", "x3d_s", "x3d_m", "random", "uniform", "center", "motion", "brightness")
    )
    keep_ratio: float = _key(_ratio)
    weights: str | None = _key(_or(None, _text), None)
    scope: str | None = _key(_one_of("global", "frame", None), None)
    align_corners: bool | None = _key(_or(None, _flag), None)
    stage: str | None = _key(_one_of("head", "res2", "res3", "res4", "res5", None), None)
    frames: int | None = _key(_or(None, _positive), None)
    size: int | None = _key(_or(None, _positive), None)
    seed: int | None = _key(_or(None, _natural), None)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `build_pruner` beside the name."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class ViewsConfig:
    """Clips per video and crops per clip. See conf/views/."""

    clips: int = _key(_positive)
    crops: int = _key(_one_of(1, 3))

    @property
    def per_video(self) -> int:
        return self.clips * self.crops

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how to compute. See conf/runtime/."""

    device: str = _key(_one_of("auto", "cpu", "cuda"), "auto")
    dtype: str = _key(_one_of("auto", "fp32", "bf16", "fp16"), "auto")
    batch_size: int | str = _key(_or("auto", _positive), "auto")
    workers: int | str = _key(_or("auto", _natural), "auto")
    compile: bool = _key(_flag, False)
    threads: int | None = _key(_or(None, _positive), None)
    debug: bool = _key(_flag, False)

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.dtype == "fp16":
            raise ConfigError("runtime.dtype='fp16': not supported on the CPU; use fp32, bf16 or auto.")


@dataclass(frozen=True)
class EvalConfig:
    """Everything that `tools/eval.py` reads."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    pruner: PrunerConfig
    views: ViewsConfig
    runtime: RuntimeConfig
    seed: int = _key(_natural, 0)
    output_dir: str = _key(_text, "outputs")
    baseline: bool = _key(_flag, True)
    visualize: int = _key(_natural, 4)
    progress: bool = _key(_flag, True)


@dataclass(frozen=True)
class TrainConfig:
    """What to train, and how. See conf/train.yaml."""

    target: str = _key(_one_of("backbone", "scorer"))
    steps: int = _key(_positive)
    batch_size: int = _key(_positive)
    learning_rate: float = _key(_positive_number)
    accumulate: int = _key(_positive, 1)
    weight_decay: float = _key(_share_or_more, 0.05)
    warmup: float = _key(_share_or_more, 0.05)
    label_smoothing: float = _key(_share_or_more, 0.0)
    clip_norm: float = _key(_positive_number, 1.0)
    dtype: str = _key(_one_of("fp32", "bf16"), "fp32")
    validate_every: int = _key(_positive, 500)
    weights: str | None = _key(_or(None, _text), None)
    keep_ratio: tuple[float, float] | None = _key(_or(None, _range), None)
    locate: float = _key(_share_or_more, 0.0)
    scorer: str = _key(_one_of("x3d_xs", "x3d_s", "x3d_m"), "x3d_s")
    scorer_frames: int | None = _key(_or(None, _positive), None)
    scorer_size: int | None = _key(_or(None, _positive), None)
    curriculum: tuple[tuple[float, int], ...] = _key(_stages, ())
    full_at: float = _key(_share_or_more, 0.45)
    augment: str = _key(_one_of("actions", "mirror", "none"), "mirror")
    colors: bool = _key(_flag, False)
    val_videos: int = _key(_positive, 1200)
    val_share: float = _key(_ratio, 0.2)
    resume: bool = _key(_flag, False)
    tensorboard: bool = _key(_flag, False)


@dataclass(frozen=True)
class TrainRunConfig:
    """Everything that `tools/train.py` reads."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    runtime: RuntimeConfig
    train: TrainConfig
    seed: int = _key(_natural, 0)
    output_dir: str = _key(_text, "outputs")
    progress: bool = _key(_flag, True)


SECTIONS: dict[str, type] = {
    "dataset": DatasetConfig,
    "backbone": BackboneConfig,
    "pruner": PrunerConfig,
    "views": ViewsConfig,
    "runtime": RuntimeConfig,
    "train": TrainConfig,
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
        raise _wrong(prefix, values, "must be an option of the group, with its keys")
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
