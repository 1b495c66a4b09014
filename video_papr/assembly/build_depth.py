"""From a checked configuration of `tools/depth_prune.py` to the objects that it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones.builders import BACKBONES, Backbone, build_backbone, token_grid
from ..backbones.depth_pruned import POSITIONS, REMOVED, TIMM_MODEL
from ..backbones.encoder import Encoder
from ..backbones.weights import find_backbone
from ..checkpoints.files import load_exactly, read_weights, write_weights
from ..config import (
    BackboneConfig,
    DepthConfig,
    DepthRunConfig,
    ProbeConfig,
    PrunerConfig,
    TrainConfig,
    TrainRunConfig,
)
from ..config.options import read
from ..core.console import loading_said_aloud
from ..core.errors import CheckpointError, ConfigError
from ..depth.places import find_places, open_places
from ..depth.plan import Plan, Pruned
from ..depth.search import check_count
from ..depth.subjects import Subject, Teaching, backbone_subject, scorer_subject
from ..pruning.scorers.x3d import CLIPS, find_x3d
from ..pruning.scorers.x3d_network import DEPTHS, X3D
from ..pruning.select import check_resizing
from ..training.dropping import Dropping
from .build_train import build_schedule, square_side
from .resume import flat_keys

SETTINGS = "settings.json"
SUBJECTS_OF_TIMM = ("timm_convnext", "timm_vit")
# Keys that say where and how, not what: they may change when a run is resumed.
FREE = ("output_dir", "progress", "runtime", "depth.resume", "dataset.cache_dir")


def check_depth(config: DepthRunConfig) -> DepthRunConfig:
    """Refuses what cannot be right before the videos are decoded, which may take hours.

    Returns:
        the configuration, with the size of the images filled in where timm's network says it.

    Raises:
        ConfigError: a split that is not for training, or keys that do not go together.
        CheckpointError: the weights are missing.
        MergeError: the network has a layer that cannot be merged.
    """
    dataset, backbone, depth = config.dataset, config.backbone, config.depth
    image = backbone.name in SUBJECTS_OF_TIMM
    known = image or backbone.name.startswith(("videomae", "vivit"))
    if not known or image != (dataset.name == "images") or (image and depth.target == "scorer"):
        raise ConfigError(
            f"dataset={dataset.name}, backbone={backbone.name}, depth.target={depth.target}: depth pruning is for "
            f"VideoMAE, ViViT and X3D on videos, and for {' and '.join(SUBJECTS_OF_TIMM)} on images"
        )
    if dataset.name == "synthetic" and dataset.split != "train":
        raise ConfigError(
            f"dataset.split={dataset.split}: pruning trains on the split train and searches on val; test is for "
            "measuring"
        )
    if depth.target == "backbone":
        if backbone.weights is None:
            raise ConfigError(
                "backbone.weights=null: there is nothing to learn from a random model; give trained ones"
            )
        if image:
            return _check_timm(config)
        keep_one = REMOVED in depth.kinds_of(backbone.name)
        check_count(depth.prune, BACKBONES[backbone.name]["depth"], keep_one=keep_one)
        find_backbone(backbone.weights, key="backbone.weights")
        return config
    upto = [count for stage, count in DEPTHS.items() if depth.stage == "head" or stage <= depth.stage]
    check_count(depth.prune, sum(upto), keep_one=False)
    if depth.weights is None:
        raise ConfigError(
            "depth.weights=null: there is nothing to learn from a random scorer; give trained weights"
        )
    find_x3d(depth.weights, key="depth.weights")
    check_resizing(align_corners=depth.align_corners, cell_center=depth.cell_center)
    return config


def _check_timm(config: DepthRunConfig) -> DepthRunConfig:
    """`check_depth` of a network of timm, which only the network itself can answer."""
    backbone, depth = config.backbone, config.depth
    if backbone.name == "timm_convnext" and depth.keep_ratio is not None:
        raise ConfigError(
            f"depth.keep_ratio={list(depth.keep_ratio)}: {backbone.name} trains on all places; leave it out"
        )
    square = not isinstance(backbone.input_size, tuple)
    net = _backbone(config) if square else None
    if net is None or len(set(net.frame_size)) > 1:
        size = list(backbone.input_size if net is None else net.frame_size)  # type: ignore[arg-type]
        raise ConfigError(f"backbone.input_size={size}: depth pruning reads square images, give one number")
    _check_whole(backbone, net)
    kinds, places = depth.kinds_of(backbone.name), find_places(net)
    check_count(depth.prune, len(places), keep_one=REMOVED in kinds)
    open_places(places, [kinds[0]] * len(places))
    return replace(config, backbone=replace(backbone, input_size=net.frame_size[0]))


def build_plan(config: DepthRunConfig) -> Plan:
    """The plan of `depth.run`."""
    depth = config.depth
    shared = {field.name: getattr(depth, field.name) for field in fields(Plan) if hasattr(depth, field.name)}
    backbone = config.backbone
    grid = token_grid(backbone.name, num_frames=backbone.num_frames, input_size=square_side(config.backbone))
    registration = {"align_corners": depth.align_corners, "cell_center": depth.cell_center}
    return Plan(
        **shared,
        kinds=depth.kinds_of(backbone.name),
        schedule=build_schedule(depth, config.runtime, config.seed),
        teaching=Teaching(depth.distill, depth.temperature, depth.map),
        alike=(grid, depth.fitness_keep, registration) if depth.fitness == "map" else None,
        seed=config.seed,
    )


def stores_config(config: DepthRunConfig) -> TrainRunConfig:
    """What `build_train.build_stores` reads: the clips and the split are those of a training."""
    shared = ("target", "batch_size", "learning_rate", "val_videos", "val_share")
    train = TrainConfig(**{key: getattr(config.depth, key) for key in shared})
    return TrainRunConfig(
        dataset=config.dataset,
        backbone=config.backbone,
        runtime=config.runtime,
        train=train,
        probe=read(ProbeConfig, {}),
        pruner=read(PrunerConfig, {"name": "none"}),
        seed=config.seed,
        output_dir=config.output_dir,
        progress=config.progress,
    )


def build_network(config: DepthRunConfig, class_names: tuple[str, ...]) -> tuple[nn.Module, Subject]:
    """The trained network that is to be pruned, in eval mode, and how it is run.

    Raises CheckpointError: the weights do not fit, were pruned before, or know other classes than the dataset.
    """
    depth = config.depth
    if depth.target == "scorer":
        return _scorer(depth, class_names)
    backbone, net = config.backbone, _backbone(config)
    _check_classes(f"backbone.weights={backbone.weights}", net.class_names, net.num_classes, class_names)
    _check_whole(backbone, net)
    return net, backbone_subject(backbone.name, net, Dropping(*depth.dropping))


def _backbone(config: DepthRunConfig) -> Backbone:
    backbone = config.backbone
    with loading_said_aloud():
        net = build_backbone(
            backbone.name,
            weights=backbone.weights,
            num_classes=backbone.num_classes,
            num_frames=backbone.num_frames,
            input_size=square_side(config.backbone),
            model=backbone.model,
        )
    return net


def _check_whole(backbone: BackboneConfig, net: Backbone) -> None:
    if net.depth_pruned:
        raise CheckpointError(
            f"backbone.weights={backbone.weights}: its depth was pruned before; start from whole weights"
        )


def save(
    path: Path,
    pruned: Pruned,
    backbone: BackboneConfig,
    class_names: tuple[str, ...],
    trained: Mapping[str, Any],
) -> None:
    """Writes the merged network as an ordinary checkpoint, in float32.

    Args:
        backbone: the configuration of the network, or of the one whose clips a scorer sees.
        trained: its `model`, on what it was trained, and how that was read.

    A merged matrix holds a shortcut of 1 beside far smaller weights, so halves would lose more than elsewhere.
    """
    report = {key: pruned.report[key] for key in ("pruned", "kinds", "method", "progressive", "top1_val")}
    described: dict[str, Any] = {**trained, "class_names": class_names}
    described |= {"blocks": pruned.blocks, "depth": report, "torch": torch.__version__}
    state = pruned.net.state_dict()
    if backbone.name in SUBJECTS_OF_TIMM:
        body: Any = pruned.net
        state = body.body.state_dict() if hasattr(body, "body") else {**state, POSITIONS: body.positions}
        described[TIMM_MODEL] = backbone.model
    elif isinstance(pruned.net, Encoder):
        norms = [(name, m) for name, m in pruned.net.named_modules() if isinstance(m, nn.LayerNorm)]
        inner, last = (
            next(m.eps for name, m in norms if name.startswith("blocks.") is inside)
            for inside in (True, False)
        )
        described["norm_eps"] = [inner, last]
    write_weights(path, state, described, half=False)


def same_run(directory: Path, config: DepthRunConfig) -> None:
    """Notes the configuration in the run's directory; with `depth.resume` compares it with what is noted there.

    Raises ConfigError: it is another one; the line names the first key that differs.
    """
    path, now = directory / SETTINGS, flat_keys(asdict(config), FREE)
    if config.depth.resume and path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"depth.resume=true: {path} is damaged ({error}); start without it") from None
        for key, value in json.loads(json.dumps(now)).items():
            if before.get(key) != value:
                raise ConfigError(
                    f"depth.resume=true: {directory} was begun with {key}={before.get(key)}, now {value}; start "
                    "without it, or in another output_dir"
                )
        return
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def _scorer(depth: DepthConfig, class_names: tuple[str, ...]) -> tuple[nn.Module, Subject]:
    source = f"depth.weights={depth.weights}"
    assert depth.weights is not None  # `check_depth` refuses that
    state, described = read_weights(find_x3d(depth.weights, key="depth.weights"))
    if "blocks" in described:
        raise CheckpointError(f"{source}: its depth was pruned before; start from whole weights")
    head = state.get("blocks.5.proj.weight")
    if head is None:
        raise CheckpointError(f"{source} is no whole X3D: blocks.5.proj.weight is missing")
    _check_classes(source, described.get("class_names"), len(head), class_names)
    net = X3D(len(head)).to(memory_format=torch.channels_last_3d)
    load_exactly(net, state, source=source)
    frames, size = CLIPS[depth.scorer]
    frames, size = depth.scorer_frames or frames, depth.scorer_size or size
    subject = scorer_subject(
        depth.scorer,
        frames=frames,
        size=depth.train_size or size,
        stage=depth.stage,
        timed_frames=frames,
        timed_size=size,
    )
    return net.eval(), subject


def _check_classes(source: str, known: Any, count: int, names: tuple[str, ...]) -> None:
    """Labels are numbered as the dataset lists its classes, so the weights must do the same."""
    if count != len(names):
        raise CheckpointError(
            f"{source} knows {count} classes, the dataset has {len(names)}; fine-tune first (docs/finetune.md)"
        )
    if known is not None and tuple(known) != tuple(names):
        other = next((a, b) for a, b in zip(known, names, strict=True) if a != b)
        raise CheckpointError(
            f"{source} numbers its classes otherwise than the dataset ({other[0]!r}, {other[1]!r})"
        )
