"""The keys of `depth` in `conf/depth_prune.yaml`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError
from .rules import (
    KEEP_BY,
    flag,
    natural,
    non_negative,
    one_of,
    or_else,
    positive,
    positive_number,
    ratio,
    ratio_range,
    setting,
    share,
    text,
)

# depth.mode -> the words that checkpoints use
BACKBONE_KINDS: dict[str, tuple[str, ...]] = {"auto": ("linear",), "ffn": ("linear",), "block": ("removed",)}
SCORER_KINDS: dict[str, tuple[str, ...]] = {
    "auto": ("dense", "pointwise"),
    "dense": ("dense",),
    "pointwise": ("pointwise",),
}


@dataclass(frozen=True)
class DepthConfig:
    """What to prune, and how. See conf/depth_prune.yaml."""

    target: str = setting(one_of("backbone", "scorer"))
    prune: int = setting(positive)
    mode: str = setting(one_of("auto", "ffn", "block", "dense", "pointwise"), "auto")
    method: str = setting(one_of("updp", "greedy", "random", "uniform"), "updp")
    start: str = setting(one_of("fit", "copy"), "fit")
    progressive: bool = setting(flag, True)
    max_latency: float | None = setting(or_else(None, share), None)
    weights: str | None = setting(or_else(None, text), None)
    scorer: str = setting(one_of("x3d_xs", "x3d_s", "x3d_m"), "x3d_s")
    scorer_frames: int | None = setting(or_else(None, positive), None)
    scorer_size: int | None = setting(or_else(None, positive), None)
    train_size: int | None = setting(or_else(None, positive), None)
    stage: str = setting(one_of("res2", "res3", "res4", "res5", "head"), "head")
    align_corners: bool = setting(flag, True)
    cell_center: float = setting(non_negative, 0.5)
    fitness: str = setting(one_of("accuracy", "map"), "accuracy")
    fitness_keep: float = setting(ratio, 0.3)
    supernet_steps: int = setting(positive, 300)
    progressive_steps: int = setting(positive, 300)
    finetune_steps: int = setting(natural, 300)
    batch_size: int = setting(positive, 32)
    accumulate: int = setting(positive, 1)
    learning_rate: float = setting(positive_number, 3e-4)
    weight_decay: float = setting(non_negative, 0.05)
    warmup: float = setting(non_negative, 0.05)
    clip_norm: float = setting(positive_number, 1.0)
    dtype: str = setting(one_of("fp32", "bf16"), "fp32")
    validate_every: int = setting(positive, 200)
    distill: float = setting(non_negative, 1.0)
    temperature: float = setting(positive_number, 2.0)
    map: float = setting(non_negative, 1.0)
    keep_ratio: tuple[float, float] | None = setting(or_else(None, ratio_range), None)
    keep_by: str = setting(KEEP_BY, "random")
    augment: str = setting(one_of("mirror", "mirror_actions", "natural", "none"), "mirror")
    val_videos: int = setting(positive, 1200)
    val_share: float = setting(share, 0.2)
    search_clips: int = setting(positive, 600)
    calibration_clips: int = setting(positive, 64)
    population: int = setting(positive, 12)
    generations: int = setting(natural, 8)
    exhaustive: int = setting(natural, 64)
    latency_clips: int = setting(positive, 8)
    latency_repeats: int = setting(positive, 20)
    resume: bool = setting(flag, False)

    def __post_init__(self) -> None:
        if self.mode not in self._modes:
            raise ConfigError(
                f"depth.mode={self.mode!r}: depth.target={self.target} has {', '.join(self._modes)}."
            )
        if self.target == "backbone" and self.fitness == "map":
            raise ConfigError("depth.fitness='map': only depth.target=scorer has a map; use accuracy.")
        if self.max_latency is not None and self.method != "updp":
            raise ConfigError(
                f"depth.max_latency={self.max_latency}: depth.method={self.method} knows no budget; use updp or null."
            )
        if self.population < 2:
            raise ConfigError(
                f"depth.population={self.population}: must be at least 2, the parents of a child."
            )

    @property
    def _modes(self) -> dict[str, tuple[str, ...]]:
        return BACKBONE_KINDS if self.target == "backbone" else SCORER_KINDS

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a block may become."""
        return self._modes[self.mode]
