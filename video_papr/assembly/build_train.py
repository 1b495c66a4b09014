"""From a checked configuration of `tools/train.py` to the objects that it describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..backbones.builders import OTHERS, clip_size
from ..backbones.encoder import Encoder
from ..checkpoints.files import find_weights
from ..config import BackboneConfig, DatasetConfig, DepthConfig, RuntimeConfig, TrainConfig, TrainRunConfig
from ..core.console import warn
from ..core.errors import ConfigError, DataError
from ..core.processes import ALONE, Ranks
from ..core.reading import ReadConfig
from ..data.annotations import VideoList
from ..data.datasets import VideoDataset
from ..data.transforms import reduced_size
from ..pruning.scorers.x3d import MEAN, STD
from ..synthetic.videos import SyntheticSplit, generate, read_actors
from ..training.augment import Augment, MirrorActions, mirror, natural, unchanged
from ..training.dropping import Dropping
from ..training.loop import Schedule
from ..training.parallel import check_split
from ..training.store import ClipStore, build_store
from ..training.targets import Losses, Target, backbone_target, scorer_target
from .build import build_video_list, build_videos
from .runtime import num_workers, training_dtype
from .views import cache_dir, frame_sampler, limits_of, read_as_trained, read_config


def check_training(config: TrainRunConfig, ranks: Ranks = ALONE) -> None:
    """Refuses what cannot be right before the videos are decoded, which may take hours.

    Raises:
        ConfigError: weights given under the wrong key, a split that is not for training, or a batch that does not
            split.
        CheckpointError: `train.weights` is neither a file nor a bundled model.
    """
    dataset, backbone, train = config.dataset, config.backbone, config.train
    if config.pruner.name != "none":
        raise ConfigError(
            f"pruner={config.pruner.name}: goes with train.target=probe; train.keep_ratio drops tokens in training"
        )
    if backbone.name in OTHERS or dataset.name == "images":
        raise ConfigError(
            f"dataset={dataset.name}, backbone={backbone.name}: videos train video transformers here; images and "
            "models of timm and transformers are for tools/eval.py and experiment=probe"
        )
    if backbone.weights is not None:
        raise ConfigError(f"backbone.weights={backbone.weights}: a training starts from train.weights=")
    if dataset.name == "synthetic" and dataset.split != "train":
        raise ConfigError(
            f"dataset.split={dataset.split}: training reads the split train; val and test are for measuring"
        )
    if dataset.name == "synthetic" and train.augment == "natural":
        raise ConfigError("train.augment=natural: is for real videos; the synthetic actions need actions")
    build_schedule(train, config.runtime, config.seed)
    check_split(train.batch_size, train.accumulate, ranks)
    if train.weights is not None:
        find_weights(train.weights, key="train.weights")


def build_schedule(train: TrainConfig | DepthConfig, runtime: RuntimeConfig, seed: int) -> Schedule:
    """The keys of a group that a schedule has; each training of a depth pruning has its own steps.

    Raises ConfigError: `accumulate` does not divide the batch.
    """
    chosen = {
        field.name: getattr(train, field.name) for field in fields(Schedule) if hasattr(train, field.name)
    }
    if train.batch_size % train.accumulate:
        key = train.prefix
        raise ConfigError(
            f"{key}.accumulate={train.accumulate} must divide {key}.batch_size={train.batch_size}"
        )
    chosen["dtype"] = training_dtype(train.dtype, runtime)
    return Schedule(**{"steps": 1, "seed": seed, **chosen})


def build_augment(name: str, class_names: tuple[str, ...]) -> Augment:
    """`train.augment` as a function."""
    augments: dict[str, Augment] = {"hflip": mirror, "natural": natural, "none": unchanged}
    return MirrorActions(class_names) if name == "hflip_actions" else augments[name]


def build_target(config: TrainRunConfig, *, num_classes: int) -> Target:
    """The network to train."""
    train, backbone = config.train, config.backbone
    if train.target == "backbone":
        return backbone_target(
            backbone.name,
            num_classes=num_classes,
            weights=train.weights,
            num_frames=backbone.num_frames,
            input_size=square_side(backbone),
            dropping=Dropping(*train.dropping),
            losses=Losses(train.label_smoothing, train.location_loss, train.motion_loss),
            seed=config.seed,
        )
    return scorer_target(
        train.scorer,
        num_classes=num_classes,
        weights=train.weights,
        frames=train.scorer_frames,
        size=train.scorer_size,
        label_smoothing=train.label_smoothing,
        seed=config.seed,
    )


def build_stores(config: TrainRunConfig) -> tuple[tuple[str, ...], list[ClipStore], ClipStore]:
    """Decodes what the training reads, once.

    Returns:
        the class names, the stages of the curriculum (the last is the dataset itself), and the validation clips.

    Raises:
        ConfigError: a curriculum for a dataset that is not synthetic.
        DataError: no video can be read, or a class has too few for a validation split.
    """
    dataset, train = config.dataset, config.train
    if dataset.name != "synthetic" and train.curriculum:
        raise ConfigError("train.curriculum: only dataset=synthetic has easier splits; leave it empty")
    root, videos = build_videos(dataset, progress=config.progress)
    if dataset.name == "synthetic":
        easier = [_synthetic(config, "train", count, clutter) for clutter, count in train.curriculum]
        parts = [*easier, (root, videos)]
        held_out = _synthetic(config, "val", train.val_videos, 1.0)
    else:
        videos, rest = hold_out(videos, train.val_share, seed=config.seed)
        parts, held_out = [(root, videos)], (root, rest)
    largest = max(record.label for record in videos.records)
    names = videos.class_names or tuple(str(label) for label in range(largest + 1))
    return names, [_store(config, *part) for part in parts], _store(config, *held_out)


def hold_out(videos: VideoList, share: float, *, seed: int) -> tuple[VideoList, VideoList]:
    """Splits a list by class into the part to train on and the held-out `share` (at least one video per class).

    Raises DataError: a class has fewer than two videos.
    """
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    for label in sorted({record.label for record in videos.records}):
        rows = [row for row, record in enumerate(videos.records) if record.label == label]
        if len(rows) < 2:
            raise DataError(
                f"{videos.records[rows[0]].name}: its class has a single video; two are needed to hold one out"
            )
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.update(rng.permutation(rows)[:count].tolist())
    kept = tuple(record for row, record in enumerate(videos.records) if row not in held)
    out = tuple(record for row, record in enumerate(videos.records) if row in held)
    return replace(videos, records=kept), replace(videos, records=out)


def tensorboard_log(directory: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes each row of the log as TensorBoard scalars.

    Raises ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            'train.tensorboard=true needs TensorBoard: pip install "video_papr[train]"'
        ) from None
    writer = SummaryWriter(str(directory))

    def log(row: dict[str, Any]) -> None:
        for key in ("loss", "top1", "learning_rate"):
            writer.add_scalar(key, float(row[key]), row["step"])
        writer.flush()

    return log


def _synthetic(config: TrainRunConfig, split: str, count: int, clutter: float) -> tuple[Path, VideoList]:
    made = SyntheticSplit(split, config.dataset.seed, count, clutter, config.dataset.camera or "mixed")
    root = generate(made, cache_dir=cache_dir(config.dataset), progress=config.progress)
    return root, build_video_list(name="folder", root=str(root))


def _store(config: TrainRunConfig, root: Path, videos: VideoList) -> ClipStore:
    """Decodes a list for the backbone's clips, also where a scorer is trained: it sees the backbone's clips."""
    backbone = config.backbone
    num_frames, size = clip_size(
        backbone.name, num_frames=backbone.num_frames, input_size=square_side(backbone)
    )
    used = read_as_trained(config.dataset)
    dataset = VideoDataset(
        videos,
        frame_sampler(used, 1, num_frames),
        decoder=used.decoder,
        limits=limits_of(used),
        memory_mb=used.memory_mb,
        reduce=None if used.decode_size == "full" else partial(reduced_size, size=size, short_side=size),
    )
    store = build_store(
        dataset,
        cache_dir(config.dataset) / "clips",
        sampling=f"{used.sampling}-{used.frame_stride}-{used.decode_size}",
        num_frames=num_frames,
        size=size,
        workers=num_workers(config.runtime),
        timeout_s=used.decode_timeout_s,
        tracks=read_actors(root) if config.dataset.name == "synthetic" else None,
        progress=config.progress,
    )
    if store.failed:
        lost = f"{len(store.failed)} of {len(dataset)} videos"
        warn(f"{lost} cannot be read and are left out, e.g. {store.failed[0]}")
    return store


def reading_of(dataset: DatasetConfig, backbone: BackboneConfig, net: nn.Module) -> ReadConfig:
    """How a training of `net`, a backbone or an X3D, reads its clips: its file of weights says so from then on."""
    used = read_as_trained(dataset)
    num_frames, size = clip_size(
        backbone.name, num_frames=backbone.num_frames, input_size=square_side(backbone)
    )
    mean, std = (net.mean, net.std) if isinstance(net, Encoder) else (MEAN, STD)
    return read_config(used, num_frames, size, short_side=size, mean=mean, std=std)


def square_side(backbone: BackboneConfig) -> int | None:
    """`backbone.input_size`; what can be trained reads square frames."""
    assert not isinstance(backbone.input_size, tuple)  # only timm's may have it, and is refused beforehand
    return backbone.input_size
