"""The groups of `conf/`: which keys each has, and what values they take.

What a key means is written beside it in `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..core.errors import ConfigError
from .rules import (
    any_number,
    anything,
    cell,
    flag,
    flag_or,
    frame_size,
    from_0_to_1,
    mapping,
    natural,
    non_negative,
    off_or_place,
    one_of,
    or_else,
    places,
    positive,
    positive_number,
    ratio,
    setting,
    share,
    some_of,
    text,
)

# Of the group `dataset`, also where no dataset is listed (cli/pipeline_config.py).
DECODER = one_of("auto", "decord", "pyav", "pillow")
SAMPLING = one_of("dense", "uniform", "videomae_dense", "videomae_uniform", "vivit_dense")


@dataclass(frozen=True)
class DatasetConfig:
    """Which videos, and which of their frames. See conf/dataset/."""

    name: str = setting(one_of("synthetic", "folder", "csv", "k400", "ssv2", "ucf101", "hmdb51", "images"))
    root: str | None = setting(or_else(None, text), None)
    annotations: str | None = setting(or_else(None, text), None)
    class_names: str | None = setting(or_else(None, text), None)
    index: str | None = setting(or_else(None, text), None)
    limit: int | None = setting(or_else(None, positive), None)
    decoder: str = setting(DECODER, "auto")
    decode_size: str = setting(one_of("full", "short_side"), "full")
    decode_timeout_s: float = setting(positive_number, 120.0)
    decode_memory_mb: int | None = setting(or_else(None, positive), 8192)
    max_pixels: int | None = setting(or_else(None, positive), 33_177_600)
    max_frames: int | None = setting(or_else(None, positive), 1_000_000)
    allow_outside_root: bool = setting(flag, False)
    sampling: str = setting(SAMPLING, "dense")
    frame_stride: int = setting(positive, 4)
    short_side: int | None = setting(or_else(None, positive), None)
    split: str = setting(one_of("test", "val", "train"), "test")
    fold: int = setting(one_of(1, 2, 3), 1)
    seed: int = setting(natural, 0)
    num_videos: int = setting(positive, 600)
    camera: str | None = setting(one_of("mixed", "calm", "shaky", None), None)
    cache_dir: str | None = setting(or_else(None, text), None)
    clip_cache: str | None = setting(off_or_place, None)
    clip_cache_gb: float = setting(positive_number, 10.0)
    bundled: Any = field(default=None, metadata={"rule": anything})  # read by interpolation only
    scorer: Any = field(default=None, metadata={"rule": anything})  # read by interpolation only

    def __post_init__(self) -> None:
        if self.name != "synthetic" and self.root is None:
            raise ConfigError(f"dataset.root is not set: dataset={self.name} needs dataset.root=PATH.")
        if self.name in ("csv", "ssv2") and self.annotations is None:
            raise ConfigError(
                f"dataset.annotations is not set: dataset={self.name} needs dataset.annotations=FILE."
            )
        if self.decode_size != "full" and self.decoder not in ("auto", "pyav"):
            raise ConfigError(
                f"dataset.decode_size={self.decode_size}: dataset.decoder={self.decoder} reads whole frames; "
                "use auto or pyav, or dataset.decode_size=full."
            )


@dataclass(frozen=True)
class BackboneConfig:
    """The video transformer. See conf/backbone/."""

    name: str = setting(
        one_of(
            *("videomae_tiny", "videomae_s", "videomae_b", "videomae_l", "videomae_h", "vivit_b"),
            *("vjepa2_l", "vjepa2_h", "vjepa2_g", "timm_vit"),
        )
    )
    model: str | None = setting(or_else(None, text), None)
    weights: str | None = setting(or_else(None, text), None)
    num_classes: int | None = setting(or_else(None, positive), None)
    replace_head: bool = setting(flag, False)
    num_frames: int | None = setting(or_else(None, positive), None)
    input_size: int | tuple[int, int] | None = setting(or_else(None, frame_size), None)
    published: Any = field(default=None, metadata={"rule": anything})  # read by interpolation only

    def __post_init__(self) -> None:
        if self.replace_head and (self.weights is None or self.num_classes is None):
            raise ConfigError("backbone.replace_head=true needs backbone.weights= and backbone.num_classes=.")
        if isinstance(self.input_size, tuple) and self.name != "timm_vit":
            raise ConfigError(
                f"backbone.input_size={list(self.input_size)}: {self.name} reads square frames, give one number."
            )


PRUNER_NAMES = one_of(
    *("none", "x3d_xs", "x3d_s", "x3d_m", "papr_plus", "image_convnet", "similarity", "run_length"),
    *("random", "uniform", "center", "motion", "brightness"),
)


@dataclass(frozen=True)
class PrunerConfig:
    """Which tubelets stay. A key that a pruner does not have is None and is not passed on. See conf/pruner/."""

    name: str = setting(text)  # one of PRUNER_NAMES, unless there is a scorer
    keep_ratio: float | None = setting(ratio, None)
    model: str | None = setting(or_else(None, text), None)
    weights: str | None = setting(or_else(None, text), None)
    scope: str | None = setting(one_of("global", "frame", "place", None), None)
    align_corners: bool | None = setting(or_else(None, flag), None)
    cell_center: float | None = setting(or_else(None, non_negative), None)
    stage: str | None = setting(one_of("head", "res2", "res3", "res4", "res5", None), None)
    stages: tuple[str, ...] | None = setting(
        or_else(None, some_of("res2", "res3", "res4", "res5", "head")), None
    )
    motion: float | None = setting(or_else(None, non_negative), None)
    floor: float | None = setting(or_else(None, from_0_to_1), None)
    ground: float | None = setting(or_else(None, from_0_to_1), None)
    frames: int | None = setting(or_else(None, positive), None)
    size: int | None = setting(or_else(None, positive), None)
    seed: int | None = setting(or_else(None, natural), None)
    published: Any = field(default=None, metadata={"rule": anything})  # read by interpolation only
    budget: str | None = setting(one_of("fixed", "mass", "threshold", None), None)
    mass: float | None = setting(or_else(None, share), None)
    threshold: float | None = setting(or_else(None, from_0_to_1), None)
    min_keep: float | None = setting(or_else(None, share), None)
    max_keep: float | None = setting(or_else(None, share), None)
    tau: float | None = setting(or_else(None, any_number), None)
    mode: str | None = setting(one_of("ratio", "threshold", "adaptive", None), None)
    deviations: float | None = setting(or_else(None, any_number), None)
    diversity: str | None = setting(one_of("none", "cluster", "grid", None), None)
    cluster_tau: float | None = setting(or_else(None, any_number), None)
    after_block: int | tuple[int, ...] | None = setting(or_else(None, places), None)
    carry: str | None = setting(one_of("none", "pool", "merge", None), None)
    carry_cell: tuple[int, int, int] | None = setting(or_else(None, cell), None)
    scorer: str | None = setting(or_else(None, text), None)
    scorer_options: dict[str, Any] | None = setting(or_else(None, mapping), None)

    def __post_init__(self) -> None:
        if self.scorer is not None:
            return
        try:
            PRUNER_NAMES("pruner.name", self.name)
        except ConfigError as error:
            raise ConfigError(f"{error} A pruner of your own also needs pruner.scorer.") from None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `build_pruner` beside the name."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "published")}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class MergerConfig:
    """Which tokens are joined inside the backbone. A key that a merger does not have is None. See conf/merger/."""

    name: str = setting(one_of("none", "tome"))
    r: int | None = setting(or_else(None, natural), None)
    schedule: str | None = setting(one_of("constant", "decreasing", None), None)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `build_merger` beside the name."""
        given = {"r": self.r, "schedule": self.schedule}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class ViewsConfig:
    """Clips per video and crops per clip. See conf/views/."""

    clips: int = setting(positive)
    crops: int = setting(one_of(1, 3))

    @property
    def per_video(self) -> int:
        return self.clips * self.crops

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how to compute. See conf/runtime/."""

    device: str = setting(one_of("auto", "cpu", "cuda"), "auto")
    dtype: str = setting(one_of("auto", "fp32", "bf16", "fp16"), "auto")
    batch_size: int | str = setting(or_else("auto", positive), "auto")
    workers: int | str = setting(or_else("auto", natural), "auto")
    compile: bool | str = setting(flag_or("reduce-overhead", "max-autotune"), False)
    packing: str = setting(one_of("auto", "packed", "bucketed"), "auto")
    threads: int | None = setting(or_else(None, positive), None)
    kernels: bool = setting(flag, False)
    debug: bool = setting(flag, False)
    profile: bool = setting(flag, False)

    @property
    def compile_options(self) -> dict[str, Any]:
        """What torch.compile is told, where `compile` is not false; none for true."""
        return {"mode": self.compile} if isinstance(self.compile, str) else {}

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.dtype == "fp16":
            raise ConfigError("runtime.dtype='fp16': not supported on the CPU; use fp32, bf16 or auto.")
        if self.compile and self.packing == "packed":
            raise ConfigError(
                "runtime.packing='packed': cannot be combined with runtime.compile=true; use auto or bucketed."
            )


@dataclass(frozen=True)
class TaskConfig:
    """What is classified. See conf/task/."""

    name: str = setting(one_of("video", "image"), "video")
