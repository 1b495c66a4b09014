"""From a checked configuration to the objects that it describes: videos, networks, caches. The device: `machine`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..backbones.builders import Backbone, build_backbone
from ..config import DatasetConfig, PipelineConfig, PrunerConfig, TrainRunConfig
from ..core.console import loading_said_aloud, warn
from ..core.errors import DataError
from ..data.annotations import OnInvalid, VideoList, read_class_names, refuse
from ..data.datasets import build_video_list, limit_videos
from ..data.index import apply_index, read_index
from ..evaluation.answers import Example
from ..evaluation.cost import Engine
from ..evaluation.visualize import Panel
from ..pipeline import Pipeline
from ..pruning.builders import SPECS, build_pruner
from ..pruning.protocol import Pruner
from ..pruning.scorers.channels_last import use_channels_last
from ..pruning.tome import build_merger
from ..synthetic.videos import SyntheticSplit, generate


def build_videos(
    dataset: DatasetConfig, *, progress: bool = True, on_invalid: OnInvalid = refuse
) -> tuple[Path, VideoList]:
    """Lists the videos of a dataset, making them first if they are synthetic. Returns the root folder, and the list.

    Raises DataError: the root, the annotation file, the class names or the index is missing or wrong, or there is no
    video.
    """
    name, root = dataset.name, dataset.root
    if name == "synthetic":
        drawn = (dataset.split, dataset.seed, dataset.num_videos)
        split = SyntheticSplit(*drawn, camera=dataset.camera or "mixed")
        cache = Path(dataset.cache_dir).expanduser() if dataset.cache_dir else None
        name, root = "folder", str(generate(split, cache_dir=cache, progress=progress))
    assert root is not None  # DatasetConfig asks for it
    videos = build_video_list(
        name=name,
        root=root,
        annotations=dataset.annotations,
        class_names=read_class_names(dataset.class_names) if dataset.class_names else None,
        split=dataset.split,
        fold=dataset.fold,
        allow_outside_root=dataset.allow_outside_root,
        on_invalid=on_invalid,
    )
    if dataset.limit is not None:
        videos = limit_videos(videos, dataset.limit)
    for line in videos.notes:
        warn(line)
    return Path(root), videos if dataset.index is None else _indexed(videos, dataset.index)


def _indexed(videos: VideoList, source: str) -> VideoList:
    """Marks what the index knows to be damaged, and says how far it fits."""
    videos, use = apply_index(videos, read_index(source), source=source)
    notes = [
        (use.unreadable, "are damaged and count as failed without another try"),
        (use.changed, "were damaged and changed since: they are read again"),
        (use.unlisted, "are not in it: they are read as without it"),
    ]
    for count, what in notes:
        if count:
            warn(f"dataset.index={source}: {count} of {len(videos)} videos {what}")
    return videos


def build_pipeline(config: PipelineConfig | TrainRunConfig, videos: VideoList, engine: Engine) -> Pipeline:
    """Builds backbone, pruner and merger on the device. Random weights are announced in one line."""
    backbone, pruner = config.backbone, config.pruner
    untrained, asked = backbone.weights is None, backbone.options
    if untrained and "num_classes" not in asked:
        asked["num_classes"] = count_classes(videos)
    with loading_said_aloud():
        model = build_backbone(backbone.name, **asked, seed=config.seed)
    scorer = build_folded_pruner(pruner)
    notes = ["backbone.weights=null: accuracy is chance"] if untrained else []
    imported = ":" in (pruner.model or "")  # a network that may bring its own weights
    if pruner.name in SPECS and SPECS[pruner.name].trained and pruner.weights is None and not imported:
        notes.append("pruner.weights=null: the map of a random ConvNet says little")
    if notes:
        warn(f"random weights ({'; '.join(notes)}). Give a checkpoint file to change that.")
    joiner = None
    if isinstance(config, PipelineConfig):
        joiner = build_merger(config.merger.name, **config.merger.options)
    return Pipeline(model, scorer, joiner, packing=config.runtime.packing).to(engine.device)


def build_folded_pruner(config: PrunerConfig) -> Pruner | None:
    """Builds the pruner; an X3D has its batch norms folded, which saves time and keeps the map."""
    return use_channels_last(build_pruner(config.name, **config.options))


def count_classes(videos: VideoList) -> int:
    """Returns the classes that the dataset names, or the largest label + 1."""
    if videos.class_names is not None:
        return len(videos.class_names)
    return max(record.label for record in videos.records) + 1


def match_labels(videos: VideoList, model_names: tuple[str, ...] | None, num_classes: int) -> VideoList:
    """Numbers the labels as the model does: by name where both sides know their classes.

    A folder with ten of Kinetics' classes numbers them 0 to 9; the model's logits keep their 400 places.

    Raises DataError: a label has no logit.
    """
    if videos.class_names is not None and model_names is not None:
        places = {_bare(name): place for place, name in enumerate(model_names)}
        unknown = [name for name in videos.class_names if _bare(name) not in places]
        if not unknown:
            places_of = [places[_bare(name)] for name in videos.class_names]
            records = tuple(replace(record, label=places_of[record.label]) for record in videos.records)
            return replace(videos, records=records, class_names=model_names)
        warn(
            f"the weights do not know {len(unknown)} of the dataset's {len(videos.class_names)} classes "
            f"({unknown[0]!r}, ...): accuracy means nothing here."
        )
    for record in videos.records:
        if record.label >= num_classes:
            raise DataError(
                f"{record.name}: label {record.label} is out of range, the backbone has {num_classes} classes "
                f"(0 to {num_classes - 1}); check dataset.annotations, backbone.weights and backbone.num_classes."
            )
    return videos


def shared_names(videos: VideoList, backbone: Backbone) -> tuple[str, ...] | None:
    """Names that hold for labels and for logits alike; None when the two sides number their classes differently."""
    names = videos.class_names or backbone.class_names
    agreed = names is not None and len(names) == backbone.num_classes
    return names if agreed and backbone.class_names in (None, names) else None


def _bare(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def spread(count: int, total: int) -> set[int]:
    """Returns up to `count` places, evenly over 0..total-1: datasets are often sorted by class."""
    count = min(count, total)
    return {(2 * place + 1) * total // (2 * count) for place in range(count)}


def panel(
    pipeline: Pipeline, example: Example, picture: torch.Tensor, class_names: tuple[str, ...] | None
) -> Panel:
    """The picture of one example, (T, H, W, 3) uint8: what was kept of it, and the map that decided."""
    answer = example.answer
    name = str if class_names is None else class_names.__getitem__
    said = name(answer.top5[0]) if answer.top5 else "-"
    truth = "-" if answer.label is None else name(answer.label)
    title = f"{answer.name}    label: {truth}    answer: {said}"
    return Panel(title, picture, example.mask, significance_of(pipeline, example.frames))


def significance_of(pipeline: Pipeline, frames: torch.Tensor) -> torch.Tensor | None:
    """The map that decides about one view: frames (T, S, S, 3) uint8 -> (T', H', W'); None when nothing prunes."""
    with torch.inference_mode():
        maps = pipeline.significance(frames[None].to(next(pipeline.parameters()).device))
    return None if maps is None else maps[0]
