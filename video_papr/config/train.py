"""The keys of `train` in `conf/train.yaml`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from .rules import (
    KEEP_BY,
    flag,
    non_negative,
    one_of,
    or_else,
    positive,
    positive_number,
    ratio,
    ratio_range,
    setting,
    stages,
    text,
)


@dataclass(frozen=True)
class TrainConfig:
    """What to train, and how. See conf/train.yaml."""

    target: str = setting(one_of("backbone", "scorer"))
    steps: int = setting(positive)
    batch_size: int = setting(positive)
    learning_rate: float = setting(positive_number)
    accumulate: int = setting(positive, 1)
    weight_decay: float = setting(non_negative, 0.05)
    warmup: float = setting(non_negative, 0.05)
    label_smoothing: float = setting(non_negative, 0.0)
    clip_norm: float = setting(positive_number, 1.0)
    dtype: str = setting(one_of("fp32", "bf16"), "fp32")
    validate_every: int = setting(positive, 500)
    weights: str | None = setting(or_else(None, text), None)
    keep_ratio: tuple[float, float] | None = setting(or_else(None, ratio_range), None)
    keep_by: str = setting(KEEP_BY, "random")
    locate: float = setting(non_negative, 0.0)
    follow: float = setting(non_negative, 0.0)
    scorer: str = setting(one_of("x3d_xs", "x3d_s", "x3d_m"), "x3d_s")
    scorer_frames: int | None = setting(or_else(None, positive), None)
    scorer_size: int | None = setting(or_else(None, positive), None)
    curriculum: tuple[tuple[float, int], ...] = setting(stages, ())
    full_at: float = setting(non_negative, 0.45)
    augment: str = setting(one_of("mirror", "mirror_actions", "natural", "none"), "mirror")
    colors: bool = setting(flag, False)
    val_videos: int = setting(positive, 1200)
    val_share: float = setting(ratio, 0.2)
    resume: bool = setting(flag, False)
    tensorboard: bool = setting(flag, False)
