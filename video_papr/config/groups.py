"""The options of each group of `conf/`: type, range, default and one line of help, each written once, here.

A default that depends on the chosen option (the size of a scorer's frames, say) is in that option's YAML file instead;
its declaration is `option(None, ...)`, and None means that the key is not there.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from ..core.errors import ConfigError, did_you_mean
from .options import (
    From0To1,
    Natural,
    NonNegative,
    Number,
    Path,
    Positive,
    PositiveNumber,
    Share,
    Some,
    Text,
    Tuple,
    Unset,
    option,
    options,
)
from .sources import names

Decoder = Literal["auto", "pyav", "decord", "torchcodec", "pillow"]
DecodeSize = Literal["full", "short_side"]
Sampling = Literal[
    "dense", "uniform", "videomae_dense", "videomae_uniform", "vivit_dense", "mmaction", "vjepa2"
]
Camera = Literal["mixed", "calm", "shaky"]
Stage = Literal["res2", "res3", "res4", "res5", "head"]
Stages = Some[Stage]
Recipe = Literal["own", "papr"]
Normalize = Literal["own", "backbone"]
Interpolation = Literal["linear", "bicubic"]
Recalibration = Literal["uniform", "cam", "none"]
Scope = Literal["global", "frame", "place"]
Budget = Literal["fixed", "top_p", "threshold"]
Mode = Literal["ratio", "threshold", "adaptive"]
Diversity = Literal["none", "cluster", "grid"]
Compensation = Literal["none", "pool", "merge"]
IMAGES = ("timm_vit", "timm_convnext", "timm_swin", "timm_hiera")  # backbones that read images
TIMM = (*IMAGES, "image_vit")  # backbones that take a model of timm
Pool = Literal["mean", "max", "concat"]
Schedule = Literal["constant", "decreasing"]
Order = Literal["grid", "published"]
Compile = bool | Literal["reduce-overhead", "max-autotune"]
Dtype = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Engine = Literal["auto", "torch", "openvino", "onnxruntime"]
Packing = Literal["auto", "packed", "bucketed"]


def _or_off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


Cache = Annotated[Path | None, BeforeValidator(_or_off)]
Sides = Tuple[Annotated[tuple[Positive, Positive], Field(description="[height, width]")]]
CELL = "[frames, height, width], three whole numbers of at least 1"
Cell = Tuple[Annotated[tuple[Positive, Positive, Positive], Field(description=CELL)]]
Colour = Tuple[Annotated[tuple[Number, Number, Number], Field(description="[red, green, blue]")]]
BLOCKS = "a list of ascending ones, as in [3,6,9]"
Blocks = Tuple[Annotated[tuple[Natural, ...], Field(min_length=1, description=BLOCKS)]]


def _check_name(group: str, name: str, hint: str = "") -> None:
    """A name is that of a file in conf/GROUP."""
    known = names(group)
    if known and name not in known:
        guess = did_you_mean(name, known)
        raise ConfigError(f"{group}.name={name!r}: must be one of {', '.join(known)}.{guess}{hint}")


# fmt: off
class _Built:
    """A group that names what is to be built."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the function that builds it, beside the name: those that are given."""
        own = [f.name for f in fields(cast(Any, self)) if f.name not in ("name", "published", "bundled")]
        return {key: value for key in own if (value := getattr(self, key)) is not None}


@options("dataset")
class DatasetConfig:
    """Which videos, and which of their frames."""

    name: Text = option(help="kind of dataset; set by the option")
    root: Path | None = option(None, "folder of the videos")
    annotations: Path | None = option(None, "list of videos and labels; null: labels are the names of folders")
    class_names: Path | None = option(None, "file of class names in the order of the labels")
    index: Path | None = option(None, "index.csv of tools/prepare_data.py: videos known to be damaged fail at once")
    limit: Positive | None = option(None, "only so many videos, drawn at random but always the same; null: all")
    decoder: Decoder = option("auto", "auto: pyav, which reads every file; pillow reads images")
    decode_size: DecodeSize = option("full", "short_side: PyAV scales large frames while it decodes")
    decode_timeout_s: PositiveNumber = option(120.0, "seconds that decoding one video may take; needs workers")
    memory_mb: Positive | None = option(2048, "MiB of decoded frames at once, half of it for one video")
    max_pixels: Positive | None = option(33_177_600, "videos with larger frames fail; the default is 7680 x 4320")
    max_frames: Positive | None = option(1_000_000, "videos with more frames fail before they are decoded")
    allow_outside_root: bool = option(False, "true: paths of a list, and links, may lead out of root")
    sampling: Sampling | None = option(None, "dense: frame_stride apart; uniform: one per segment; null: as trained")
    usual_sampling: Sampling = option("dense", "sampling for weights that do not say how they were trained")
    frame_stride: Positive | None = option(None, "frames between two of dense sampling; null: as trained, otherwise 4")
    short_side: Positive | None = option(None, "pixels of the shorter side before cropping; null: as trained")
    split: Literal["test", "val", "train"] = option("test", "synthetic, hmdb51: which part of the dataset")
    fold: Literal[1, 2, 3] = option(1, "hmdb51: which of the three official splits")
    seed: Natural = option(0, "synthetic: another seed makes a fresh split of the same kind")
    num_videos: Positive = option(600, "synthetic: videos to make")
    camera: Camera | Unset = option(None, "synthetic: mixed pans and shakes; calm: a tenth of that; shaky: twice")
    cache_dir: Path | None = option(None, "folder of made videos and decoded clips; null: the user's cache directory")
    clip_cache: Cache = option(None, "folder that keeps decoded views between runs, or auto; null: none; for eval.py")
    clip_cache_gb: PositiveNumber = option(10.0, "largest size of clip_cache, in GB (1e9 bytes)")
    bundled: dict[str, Any] | Unset = option(None, "weights in the package trained on this dataset")
    scorer: dict[str, Any] | Unset = option(None, "settings of the bundled scorer that differ from the paper's")

    def __post_init__(self) -> None:
        _check_name("dataset", self.name)
        if self.decode_size != "full" and self.decoder not in ("auto", "pyav"):
            raise ConfigError(
                f"dataset.decode_size={self.decode_size}: dataset.decoder={self.decoder} reads whole frames; "
                "use auto or pyav, or dataset.decode_size=full."
            )

    def check_listed(self) -> None:
        """Refuses a dataset whose videos cannot be listed; predict.py, say, needs none."""
        for key, where in (("root", "PATH"), ("annotations", "FILE")):
            needed = self.name != "synthetic" if key == "root" else self.name in ("csv", "ssv2")
            if needed and getattr(self, key) is None:
                raise ConfigError(f"dataset.{key} is not set: dataset={self.name} needs dataset.{key}={where}.")


@options("backbone")
class BackboneConfig(_Built):
    """The video transformer."""

    name: Text = option(help="architecture; set by the option")
    model: Text | Unset = option(None, "timm_*, image_vit: timm's name, with or without the tag of its weights")
    weights: Path | None = option(None, "bundled name, file, folder or org/name of the Hugging Face Hub; null: random")
    num_classes: Positive | None = option(None, "null: what the weights say, otherwise the dataset's classes")
    replace_head: bool = option(False, "true: a new, untrained classifier of num_classes classes")
    num_frames: Positive | None = option(None, "frames of a clip; null: the architecture's own")
    input_size: Positive | Sides | None = option(None, "height and width in pixels; null: the architecture's own")
    stages: Some[Natural] | Unset = option(None, "timm_convnext, timm_swin: those that drop places, from 0")
    pool: Pool | Unset = option(None, "image_vit: mean or max of the frames' answers; concat: features side by side")
    published: dict[str, Any] | Unset = option(None, "weights that the authors publish, by dataset")

    def __post_init__(self) -> None:
        _check_name("backbone", self.name)
        if self.replace_head and (self.weights is None or self.num_classes is None):
            raise ConfigError("backbone.replace_head=true needs backbone.weights= and backbone.num_classes=.")
        if isinstance(self.input_size, tuple) and self.name not in TIMM:
            size = list(self.input_size)
            raise ConfigError(f"backbone.input_size={size}: {self.name} reads square frames, give one number.")


@options("pruner")
class PrunerConfig(_Built):
    """Which tubelets are kept. A key that a pruner does not have is None, and is not passed on."""

    name: Text = option(help="kind of pruner; set by the option")
    keep_ratio: Share | Unset = option(None, "share of the tubelets that is kept")
    model: Text | Unset = option(None, "a ConvNet of timm; video_convnet: of torchvision, or package.module:callable")
    weights: Path | None = option(None, "of the scorer: bundled or published name, or file; null: random")
    recipe: Recipe | Unset = option(None, "papr: PaPr to the letter, in every key of the pruner that is null")
    bundled: dict[str, Any] | Unset = option(None, "recipe -> settings of the dataset's bundled scorer")
    scope: Scope | None = option(None, "one ranking; frame: as many of each; place: the same of each; null: as fits")
    align_corners: bool | Unset = option(None, "how the map is resized to the token grid; true as published")
    cell_center: NonNegative | Unset = option(None, "where in its square a cell of the map looks; 0.5: the middle")
    align_clip: bool | None = option(None, "the clip that X3D sees is resampled with corners aligned; null: by recipe")
    normalize: Normalize | None = option(None, "whose mean and deviation X3D's pixels have; null: by recipe")
    interpolation: Interpolation | None = option(None, "how the map is resized in space; null: by recipe")
    count_class_token: bool | None = option(None, "keep_ratio is a share of class tokens too; null: by recipe")
    stage: Text | None = option(None, "part of the ConvNet that gives the map; X3D: res2 to res5, head; null: the last")
    recalibration: Recalibration | Unset = option(None, "uniform: channel mean; cam: of its class; none: the top logit")
    stages: Stages | Unset = option(None, "layers of X3D whose standardised maps are added; X3D stops after the last")
    motion: NonNegative | Unset = option(None, "weight of the frame difference beside the map; 0: not used")
    min_per_frame: From0To1 | Unset = option(None, "every frame is sure of this share of an even split")
    uniform_share: From0To1 | Unset = option(None, "this share of the kept tubelets lies evenly, whatever the map says")
    frames: Positive | None = option(None, "frames of a clip that the scorer sees; null: as the token grid, or all")
    size: Positive | None = option(None, "height and width that the scorer sees, in pixels; null: the view as it is")
    mean: Colour | None = option(None, "of the scorer's pixels, RGB in 0..1; null: as published, otherwise 0.5")
    std: Colour | None = option(None, "likewise, their deviation")
    seed: Natural | Unset = option(None, "of random weights, and of what random draws")
    published: dict[str, Any] | Unset = option(None, "weights that the authors publish, by dataset")
    budget: Budget | Unset = option(None, "fixed: keep_ratio of every clip; otherwise as many as the clip's map says")
    top_p: Share | Unset = option(None, "budget=top_p: the fewest tubelets that hold this share of the map's mass")
    threshold: From0To1 | Unset = option(None, "budget=threshold: lowest value kept; 0 and 1: the map's own ends")
    min_keep: Share | Unset = option(None, "at least this share of the tubelets, where the clip decides")
    max_keep: Share | Unset = option(None, "at most this share of the tubelets, where the clip decides")
    tau: Number | Unset = option(None, "drop from this similarity to the others, or to the previous tubelet, on")
    mode: Mode | Unset = option(None, "keep_ratio of every clip; drop above tau; drop above mean + deviations * std")
    deviations: Number | Unset = option(None, "mode=adaptive: standard deviations above the clip's mean")
    diversity: Diversity | Unset = option(None, "cluster: dropped tokens have kept neighbours; grid: best of 2 x 4 x 4")
    cluster_tau: Number | Unset = option(None, "diversity=cluster: cosine similarity of neighbours, -1 to 1")
    after_block: Natural | Blocks | Unset = option(None, "blocks that read all tokens first; a list: step by step")
    compensation: Compensation | Unset = option(None, "pool: kept tokens count more often; merge: one token per region")
    compensation_cell: Cell | Unset = option(None, "compensation=merge: size of a region in tokens")
    scorer: Text | None = option(None, "import path of a scorer of your own, package.module:Name")
    scorer_options: dict[str, Any] | Unset = option(None, "its keyword arguments")

    def __post_init__(self) -> None:
        if self.scorer is None:
            _check_name("pruner", self.name, " A pruner of your own also needs pruner.scorer.")
        if isinstance(self.after_block, tuple) and list(self.after_block) != sorted(set(self.after_block)):
            raise ConfigError(
                f"pruner.after_block={list(self.after_block)}: must be a whole number of at least 0, or a list of "
                "ascending ones, as in [3,6,9]."
            )


@options("merger")
class MergerConfig(_Built):
    """Which tokens are joined inside the backbone. A key that a merger does not have is None."""

    name: Text = option(help="kind of merger; set by the option")
    r: Natural | Unset = option(None, "tokens merged per block, at most half of those that there are")
    schedule: Schedule | Unset = option(None, "constant: r in every block; decreasing: from 2 r in the first down to 0")
    prop_attn: bool | Unset = option(None, "attention counts a token as often as it has tubelets; false: once")
    order: Order | Unset = option(None, "grid: tokens stay in the grid's order; published: as the authors' code has it")

    def __post_init__(self) -> None:
        _check_name("merger", self.name)


@options("views")
class ViewsConfig:
    """Clips per video and crops per clip."""

    clips: Positive = option(help="clips of a video, evenly spaced over it")
    crops: Literal[1, 3] = option(help="crops of a clip; 1: centre, 3: evenly along the longer side")

    @property
    def per_video(self) -> int:
        return self.clips * self.crops

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


@options("runtime")
class RuntimeConfig:
    """Where and how to compute."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one")
    dtype: Dtype = option("auto", "auto: fp32 on the CPU, bf16 or fp16 on a GPU; int8: weights, in an engine")
    batch_size: Positive | Literal["auto"] = option("auto", "views per forward pass; auto: CPU 8, GPU 64")
    workers: Natural | Literal["auto"] = option("auto", "decoding processes; 0: in the main process; auto: by cores")
    engine: Engine = option("auto", "what runs the networks; auto: openvino on a CPU where it is installed, or torch")
    compile: Compile = option(False, "torch.compile; reduce-overhead: with CUDA graphs; max-autotune: fastest kernels")
    cluster: Literal["ray"] | None = option(None, "ray: predict.py shares videos among the machines of a Ray cluster")
    packing: Packing = option("auto", "unequal numbers of tokens: packed in one row, or in groups of similar length")
    threads: Positive | None = option(None, "CPU threads of torch; null: torch's own choice")
    debug: bool = option(False, "true: stack traces of errors that are usually one line")
    profile: bool = option(False, "true: eval.py shows the share of each stage, and the bottleneck")

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.dtype == "fp16":
            raise ConfigError("runtime.dtype='fp16': not supported on the CPU; use fp32, bf16 or auto.")
        graphs = self.engine not in ("auto", "torch")
        if graphs and self.compile:
            raise ConfigError(
                f"runtime.engine={self.engine!r}: cannot be combined with runtime.compile, which is torch's; leave one "
                "out."
            )
        if graphs and (self.dtype == "fp16" or (self.dtype in ("bf16", "int8") and self.engine == "onnxruntime")):
            raise ConfigError(f"runtime.engine={self.engine!r}: not for runtime.dtype={self.dtype}; use fp32 or auto.")
        if self.dtype == "int8" and not graphs:
            raise ConfigError("runtime.dtype='int8': needs runtime.engine=openvino.")
        if self.compile and self.packing == "packed":
            raise ConfigError(
                "runtime.packing='packed': cannot be combined with runtime.compile=true; use auto or bucketed."
            )

    @property
    def compile_options(self) -> dict[str, Any]:
        """What torch.compile is told, where `compile` is not false; none for true."""
        return {"mode": self.compile} if isinstance(self.compile, str) else {}


@options("task")
class TaskConfig:
    """What is classified."""

    name: Literal["video", "image"] = option("video", "kind of task; set by the option")
