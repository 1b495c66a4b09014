"""The options of each command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..core.errors import ConfigError
from .groups import (
    IMAGES,
    TIMM,
    BackboneConfig,
    DatasetConfig,
    MergerConfig,
    PrunerConfig,
    RuntimeConfig,
    TaskConfig,
    ViewsConfig,
)
from .options import (
    Listed,
    Natural,
    NonNegative,
    Path,
    Positive,
    PositiveNumber,
    Share,
    Some,
    Text,
    option,
    options,
    read,
)
from .recipes import DepthConfig, ProbeConfig, TrainConfig
from .sources import names

OUTPUT = "where the results go"
JSON = "or --json: the result as JSON on stdout, and all else on stderr"
BAR = "progress bar"
OFFERED = ("x3d_s", "similarity", "motion", "center", "uniform", "random")


# fmt: off
@options(kw_only=True)
class PipelineConfig:
    """What makes a pipeline. Of `dataset` it reads how frames are chosen and which weights are meant."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    pruner: PrunerConfig
    merger: MergerConfig
    views: ViewsConfig
    runtime: RuntimeConfig
    seed: Natural = option(0, "of random weights and of whatever is drawn at random")


@options(kw_only=True)
class EvalConfig(PipelineConfig):
    """Everything that `tools/eval.py` reads."""

    task: TaskConfig
    output_dir: Path = option(help="where the results go; the jobs of a sweep in 0, 1, ... below it")
    resume: bool = option(True, "go on with what an earlier run in output_dir has finished; false: start over")
    share_maps: bool = option(False, "the crops of a clip share one map: what they cover is scored once")
    baseline: bool = option(True, "also run the dense model on the same views and compare, video by video")
    visualize: Natural = option(4, "kept_tubelets.png shows so many videos; 0: no picture")
    progress: bool = option(True, "progress bar with running accuracy and throughput")
    json: bool = option(False, JSON)
    optimize: Text | None = option(None, "column of summary.csv that the job answers with, for sweepers that search")

    def __post_init__(self) -> None:
        self.dataset.check_listed()
        images = self.dataset.name == "images"
        if self.task.name == "image" and not images:
            raise ConfigError(f"task=image: dataset={self.dataset.name} holds videos; use dataset=images.")
        if not images:
            return
        if self.backbone.name not in (*IMAGES, "probe"):
            said = f"backbone={self.backbone.name}: reads clips"
            raise ConfigError(f"{said}; images (dataset=images) need one of {', '.join(IMAGES)}.")
        if self.views.clips != 1:
            raise ConfigError(f"views.clips={self.views.clips}: an image is one clip; use views=1x1 or 1x3.")


@options(kw_only=True)
class PredictConfig(PipelineConfig):
    """Everything that `tools/predict.py` reads."""

    video: Path | None = option(
        None, "file, folder, pattern, https:// address; -: paths on stdin; live: 0 (webcam), screen, rtsp://, pipe"
    )
    window_seconds: PositiveNumber | None = option(None, "answer windows of this length; null: the whole video")
    stride_seconds: PositiveNumber | None = option(None, "from window to window; null: they lie side by side")
    top_k: Positive = option(5, "classes in each answer")
    annotate: Literal["film", "pictures", "none"] = option(
        "film", "film: the whole video with answer and kept tubelets drawn on it, and pictures"
    )
    visualize: Natural = option(4, "for how many videos")
    show: bool = option(False, "true: a window with the answers to a live source")
    max_seconds: PositiveNumber | None = option(None, "a live source is read this long; null: until it ends, or Ctrl+C")
    features: bool = option(False, "true: what the classifier reads, not its answers; needs runtime.cluster=ray")
    output_dir: Path = option(help=OUTPUT)
    progress: bool = option(True, BAR)
    json: bool = option(False, JSON)

    def __post_init__(self) -> None:
        if self.stride_seconds is not None and self.window_seconds is None:
            raise ConfigError(f"stride_seconds={self.stride_seconds}: needs window_seconds=SECONDS.")
        if self.features and self.runtime.cluster is None:
            raise ConfigError("features=true: needs runtime.cluster=ray; from Python, Pipeline.features() gives them.")
        if self.json and self.runtime.cluster is not None:
            raise ConfigError("json=true: not with runtime.cluster, which writes Parquet files; leave one of them out.")
        if self.window_seconds is not None and self.runtime.cluster is not None:
            raise ConfigError(f"window_seconds={self.window_seconds}: not with runtime.cluster; leave one of them out.")


@options(kw_only=True)
class ExportConfig(PipelineConfig):
    """Everything that `tools/export.py` reads."""

    onnx: bool = option(True, "model.onnx, for ONNX Runtime and what else reads ONNX")
    program: bool = option(True, "model.pt2, for torch.export.load")
    aot: bool | Literal["auto"] = option("auto", "model.aot.pt2, by AOTInductor; auto: if there is a C++ compiler")
    check_clips: Positive = option(4, "clips of noise, and as many synthetic ones, that each file answers as a check")
    output_dir: Path = option(help=OUTPUT)

    def __post_init__(self) -> None:
        if not (self.onnx or self.program or self.aot):
            raise ConfigError("onnx, program and aot are all false: nothing is left to write.")
        if self.runtime.dtype not in ("auto", "fp32"):
            raise ConfigError(f"runtime.dtype={self.runtime.dtype!r}: graphs are written in float32; use auto or fp32.")
        if self.runtime.compile:
            raise ConfigError("runtime.compile: not for export; aot=true writes a compiled package.")
        if self.runtime.engine == "openvino":
            raise ConfigError("runtime.engine='openvino': not for export; OpenVINO reads model.onnx.")


@options(kw_only=True)
class DemoConfig(PipelineConfig):
    """Everything that the browser demo reads."""

    pruners: Listed[Text] = option(OFFERED, "on offer on the page, beside that of the group")
    host: Text = option("127.0.0.1", "address to listen on; 0.0.0.0: whoever reaches it, without a password")
    port: Annotated[int, Field(ge=0, le=65535)] = option(7860, "0: any free one")
    max_upload_mb: PositiveNumber = option(200.0, "largest file that is taken")
    max_seconds: PositiveNumber = option(300.0, "longest video that is taken")
    window_seconds: PositiveNumber = option(5.0, "a video of more than two such windows is answered window by window")
    max_waiting: Natural = option(8, "people who may wait while one is answered")
    examples: Natural = option(6, "synthetic clips to pick, made once and cached; 0: none")
    output_dir: Path = option(help="the configuration; uploads and films are removed at the end")


@options(kw_only=True)
class ListingConfig:
    """What reads whole datasets."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    runtime: RuntimeConfig
    output_dir: Path = option(help=OUTPUT)
    progress: bool = option(True, BAR)

    def __post_init__(self) -> None:
        self.dataset.check_listed()


@options(kw_only=True)
class TrainRunConfig(ListingConfig):
    """Everything that `tools/train.py` reads."""

    train: TrainConfig
    probe: ProbeConfig
    pruner: PrunerConfig
    seed: Natural = option(0, "of random weights, order and augmentation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train.check_keep_by(self.dataset.name)


@options(kw_only=True)
class DepthRunConfig(ListingConfig):
    """Everything that `tools/depth_prune.py` reads."""

    depth: DepthConfig
    seed: Natural = option(0, "of subnets, search, order and augmentation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.depth.check_keep_by(self.dataset.name)
        self.depth.kinds_of(self.backbone.name)


@options(kw_only=True)
class PrepareConfig(ListingConfig):
    """Everything that `tools/prepare_data.py` reads."""

    check: Literal["frames", "packets"] = option("frames", "decode every frame; packets: the first one only, faster")
    min_frames: Positive | None = option(None, "fewer frames are too short; null: what a clip of the backbone reads")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset.name == "images":
            raise ConfigError("dataset=images: this command checks videos; tools/eval.py counts damaged images.")
        if self.dataset.index is not None:
            raise ConfigError(f"dataset.index={self.dataset.index!r}: this command writes the index; leave it out.")


def _pruner(value: Any) -> Any:
    """A name, or a mapping of `name` and other keys of the group pruner."""
    if isinstance(value, str):
        value = {"name": value}
    try:
        made = read(PrunerConfig, value) if isinstance(value, Mapping) else value
    except ConfigError as error:
        raise ConfigError(f"pruners: {error}") from None
    if isinstance(made, PrunerConfig) and made.name == "none":
        raise ValueError("the dense model is always among the variants; name pruners only")
    return made


def _backbone(name: str) -> str:
    video = [known for known in names("backbone") if known not in (*TIMM, "probe")]
    if name not in video:
        raise ValueError(f"must be one of {', '.join(video)}")
    return name


Backbone = Annotated[Text, AfterValidator(_backbone)]
Variant = Annotated[PrunerConfig, BeforeValidator(_pruner)]


@options(kw_only=True)
class BenchConfig:
    """Everything that `tools/bench.py` reads; of `runtime` device, engine, compile, packing and threads."""

    runtime: RuntimeConfig
    backbones: Some[Backbone] = option(("videomae_s",), "architectures, with random weights")
    pruners: Listed[Variant] = option(("x3d_s", "random"), "names, or names with keys: {name: x3d_s, frames: 4}")
    keep_ratios: Some[Share] = option((0.3,), "of every pruner that has one")
    tome: Listed[Positive] = option((), "ToMe with so many tokens merged per block, one variant each")
    huggingface: bool | Literal["auto"] = option("auto", "transformers' own model; auto: where it is installed")
    batch_sizes: Some[Positive] = option((1,), "clips per call")
    dtypes: Some[Literal["fp32", "bf16", "fp16"]] = option(("fp32",), "of weights; fp16: GPU only")
    num_frames: Some[Positive | None] = option((None,), "of a clip; null: the architecture's own")
    input_sizes: Some[Positive | None] = option((None,), "in pixels; null: the architecture's own")
    vary: Literal["all", "one"] = option("all", "every combination; one: frames, sizes and batches one at a time")
    video: Path | None = option(None, "file to decode and to cut the clips from; null: synthetic clips")
    stages: bool = option(True, "also time every stage by itself")
    ceilings: bool = option(True, "also measure the device's fastest matrix product and copy")
    repeats: Positive = option(10, "rounds; every variant runs once in each, in an order that is drawn anew")
    minutes: PositiveNumber | None = option(5.0, "fewer rounds where all take longer, at least 3; null: all of them")
    warmup: Natural = option(1, "calls of each variant before the first round")
    sample_ms: NonNegative = option(100.0, "a call that is shorter is repeated until it takes so long")
    seed: Natural = option(0, "of random weights, clips and the order of the rounds")
    output_dir: Path = option(help=OUTPUT)
    progress: bool = option(True, "progress bar over the rounds")


# fmt: on
COMMANDS: dict[str, type] = {
    "eval": EvalConfig,
    "predict": PredictConfig,
    "train": TrainRunConfig,
    "depth_prune": DepthRunConfig,
    "prepare_data": PrepareConfig,
    "export": ExportConfig,
    "bench": BenchConfig,
    "demo": DemoConfig,
}
