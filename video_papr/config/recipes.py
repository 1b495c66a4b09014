"""The options of `train` and `depth`: what to train or prune, and how."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from ..core.errors import ConfigError
from .groups import Stage
from .options import Natural, NonNegative, Path, Positive, PositiveNumber, Share, Tuple, option, options

# depth.mode -> the words that checkpoints use
BACKBONE_KINDS: dict[str, tuple[str, ...]] = {"auto": ("linear",), "ffn": ("linear",), "block": ("removed",)}
_BOTH = ("dense", "pointwise")
SCORER_KINDS: dict[str, tuple[str, ...]] = {"auto": _BOTH, "dense": _BOTH[:1], "pointwise": _BOTH[1:]}
CONVNEXT_KINDS: dict[str, tuple[str, ...]] = {
    "auto": ("dense", "linear"),
    "dense": ("dense",),
    "pointwise": ("pointwise",),
    "ffn": ("linear",),
    "block": ("removed",),
}


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("must be [low, high] with low <= high")
    return value


_RANGE = Field(description="[low, high], both above 0 and at most 1")
Ratios = Annotated[Tuple[Annotated[tuple[Share, Share], _RANGE]], AfterValidator(_ascending)]
_PARTS = Field(description="a list of [clutter, number of videos]")
Curriculum = Tuple[Annotated[tuple[Tuple[tuple[NonNegative, Positive]], ...], _PARTS]]
KeepBy = Literal["random", "actor", "map", "blobs", "actor_blobs"]  # names of training.dropping.SCORES
Augment = Literal["hflip", "hflip_actions", "natural", "none"]
X3D = Literal["x3d_xs", "x3d_s", "x3d_m"]
Precision = Literal["fp32", "bf16", "auto"]
DepthMode = Literal["auto", "ffn", "block", "dense", "pointwise"]
Method = Literal["updp", "greedy", "random", "uniform"]


# fmt: off
@options()
class Training:
    """What both have: networks, optimiser and data."""

    prefix: ClassVar[str]  # the group's name, which `options` sets
    batch_size: Positive = option(32, "clips per step")
    accumulate: Positive = option(1, "backward passes per step; must divide batch_size")
    learning_rate: PositiveNumber = option(1e-3, "peak, after a linear warm-up; a cosine leads to 0")
    weight_decay: NonNegative = option(0.05, "of matrices and kernels")
    warmup: NonNegative = option(0.05, "share of the steps")
    clip_norm: PositiveNumber = option(1.0, "largest norm of the gradient")
    dtype: Precision = option("fp32", "bf16: autocast; auto: bf16 where the device computes in it")
    validate_every: Positive = option(300, "steps between validations and checkpoints")
    weights: Path | None = option(None, "train: start from these; depth, scorer: the trained X3D classifier")
    scorer: X3D = option("x3d_s", "scorer: which X3D")
    scorer_frames: Positive | None = option(None, "scorer: frames that it sees; null: as published")
    scorer_size: Positive | None = option(None, "scorer: pixels that it sees; null: as published")
    keep_ratio: Ratios | None = option(None, "backbone: random share of the tokens of each batch; null: all")
    keep_by: KeepBy = option("random", "backbone: which tokens stay; all but random are for synthetic videos")
    augment: Augment = option("hflip", "hflip_actions: renaming synthetic actions; natural: flips, crops and light")
    val_videos: Positive = option(1200, "synthetic: size of the validation split")
    val_share: Share = option(0.2, "other datasets: share of the videos held out for validation, by class")
    resume: bool = option(False, "go on with what an earlier run left in output_dir")

    @property
    def dropping(self) -> tuple[tuple[float, float] | None, KeepBy]:
        """How many tokens of a backbone stay in training, and which: of `training.dropping.Dropping`."""
        return self.keep_ratio, self.keep_by

    def check_keep_by(self, dataset: str) -> None:
        """Refuses `keep_by` where nobody knows the actors, or nothing is dropped."""
        if self.keep_by != "random" and (dataset != "synthetic" or self.keep_ratio is None):
            own = self.prefix
            raise ConfigError(
                f"{own}.keep_by={self.keep_by} needs dataset=synthetic, which knows its actors, and {own}.keep_ratio"
            )


@options("train")
class TrainConfig(Training):
    """What to train, and how."""

    target: Literal["backbone", "scorer", "probe"] = option("backbone", "a backbone, a scorer (X3D), or a linear probe")
    steps: Positive = option(4000, "optimiser steps")
    label_smoothing: NonNegative = option(0.0, "share of the target that is spread over all classes")
    location_loss: NonNegative = option(0.0, "backbone, synthetic: weight of the loss on where the actor is")
    motion_loss: NonNegative = option(0.0, "backbone, synthetic: weight of the loss on how the actor moves")
    curriculum: Curriculum = option((), "synthetic: easier splits to start with")
    full_at: NonNegative = option(0.45, "share of the training after which only the full task is drawn")
    colors: bool = option(False, "permute and invert the colours")
    tensorboard: bool = option(False, 'also write TensorBoard events (pip install "video_papr[train]")')


@options("probe")
class ProbeConfig:
    """train.target=probe: how the linear classifier on a frozen backbone is fitted."""

    folds: Path | None = option(None, "table of file and fold, or file and group (scene); null: drawn by class")
    num_folds: Annotated[int, Field(ge=2)] = option(5, "parts held out in turn, unless folds has a column fold")


@options("depth")
class DepthConfig(Training):
    """What to prune in depth (UPDP), and how."""

    target: Literal["backbone", "scorer"] = option("backbone", "a backbone, or an X3D whose trunk scores tubelets")
    prune: Positive = option(1, "number of blocks to prune")
    mode: DepthMode = option("auto", "transformer: ffn (auto), block; scorer: dense, pointwise; ConvNeXt: all of them")
    method: Method = option("updp", "who chooses the blocks: supernet and search, or a baseline")
    start: Literal["fit", "copy"] = option("fit", "of the pruned branches: least squares, or the block's weights")
    progressive: bool = option(True, "move to the pruned blocks little by little; false: at once")
    max_latency: Share | None = option(None, "at most this share of the measured time may be left; null: any")
    train_size: Positive | None = option(None, "scorer: pixels that it sees in training; null: as in use")
    stage: Stage = option("head", "scorer: where its map is read; only blocks up to there are pruned")
    align_corners: bool = option(True, "scorer: how its map is laid over the tokens, for fitness=map")
    cell_center: NonNegative = option(0.5, "scorer: likewise")
    fitness: Literal["accuracy", "map"] = option("accuracy", "what the search asks; map: kept tokens that stay so")
    fitness_keep: Share = option(0.3, "fitness=map: the keep ratio")
    supernet_steps: Positive = option(300, "method=updp: optimiser steps of the supernet")
    progressive_steps: Positive = option(300, "steps in which the chosen blocks move to their pruned form")
    finetune_steps: Natural = option(300, "steps after that")
    distill: NonNegative = option(1.0, "weight of the loss that asks for the unpruned model's answers")
    temperature: PositiveNumber = option(2.0, "of both answers in it")
    map: NonNegative = option(1.0, "scorer: weight of the loss that asks for the unpruned scorer's map")
    search_clips: Positive = option(600, "clips of the validation split that score a choice of blocks")
    calibration_clips: Positive = option(64, "training clips for the statistics of norms, and for start=fit")
    population: Annotated[int, Field(ge=2)] = option(12, "of the evolutionary search")
    generations: Natural = option(8, "of the evolutionary search")
    exhaustive: Natural = option(64, "where there are at most so many choices, all are scored")
    latency_clips: Positive = option(8, "clips of each timed call")
    latency_repeats: Positive = option(20, "calls of which the median counts")

    def __post_init__(self) -> None:
        if self.target == "backbone" and self.fitness == "map":
            raise ConfigError("depth.fitness='map': only depth.target=scorer has a map; use accuracy.")
        if self.max_latency is not None and self.method != "updp":
            raise ConfigError(
                f"depth.max_latency={self.max_latency}: depth.method={self.method} knows no budget; use updp or null."
            )

    def kinds_of(self, backbone: str) -> tuple[str, ...]:
        """What a block may become.

        Raises ConfigError: the network has no such mode.
        """
        modes = CONVNEXT_KINDS if backbone == "timm_convnext" else BACKBONE_KINDS
        whose = f"backbone={backbone}"
        if self.target == "scorer":
            modes, whose = SCORER_KINDS, "depth.target=scorer"
        if self.mode not in modes:
            raise ConfigError(f"depth.mode={self.mode!r}: {whose} has {', '.join(modes)}.")
        return modes[self.mode]
