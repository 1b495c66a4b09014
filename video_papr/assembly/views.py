"""How a dataset's videos become the views that a backbone reads: sampling, resizing and cropping, the clip cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..backbones.builders import Backbone
from ..config import DatasetConfig, ViewsConfig
from ..core.console import warn
from ..core.errors import ConfigError
from ..core.paths import default_cache_dir
from ..core.reading import ReadConfig
from ..data.annotations import VideoList
from ..data.clip_cache import ClipCache
from ..data.datasets import VideoDataset
from ..data.limits import Limits
from ..data.sampling import NEAR, choose_sampler
from ..data.transforms import crop_places, reduced_size, resize_and_crop
from ..evaluation.answers import Example
from ..evaluation.cost import Engine
from ..evaluation.sharing import SharedMaps
from ..evaluation.visualize import picture_scale
from ..pipeline import Pipeline
from ..pruning.builders import pruner_names

FRAME_STRIDE = 4  # where neither the configuration nor the weights say it: VideoMAE's on Kinetics


def read_as_trained(dataset: DatasetConfig, backbone: Backbone | None = None) -> DatasetConfig:
    """The dataset's keys with what is not set filled in: as the backbone's weights were trained, or as is usual.

    Warns where a key that is set contradicts the weights.

    Args:
        backbone: None where weights decide nothing, as before a training.
    """
    read = getattr(backbone, "read", None) or ReadConfig()
    usual = getattr(backbone, "usual_sampling", None) or dataset.usual_sampling
    sampling: Any = dataset.sampling or read.sampling or usual
    own_stride = read.frame_stride or getattr(backbone, "usual_stride", None)
    stride = dataset.frame_stride or own_stride or FRAME_STRIDE
    asked = {"sampling": dataset.sampling, "short_side": dataset.short_side}
    if sampling in NEAR:
        asked["frame_stride"] = dataset.frame_stride
    for key, value in asked.items():
        trained = getattr(read, key)
        if None not in (value, trained) and value != trained:
            said = f"dataset.{key}={value}: the weights were trained with {trained}"
            warn(f"{said}; leave it out to read clips alike")
    size = 0 if backbone is None else min(backbone.frame_size)
    trained_side = read.short_side if read.short_side is not None and read.short_side >= size else None
    side = dataset.short_side or trained_side
    return replace(dataset, sampling=sampling, frame_stride=stride, short_side=side)


def read_config(
    dataset: DatasetConfig, num_frames: int, input_size: int | tuple[int, int], **others: Any
) -> ReadConfig:
    """How clips were read, for the file of weights; `dataset` has its keys filled in, see `read_as_trained`."""
    stride = dataset.frame_stride if dataset.sampling in NEAR else None
    return ReadConfig(dataset.sampling, stride, num_frames, input_size, **others)


def cache_dir(dataset: DatasetConfig) -> Path:
    """`dataset.cache_dir`, or that of the user."""
    return Path(dataset.cache_dir).expanduser() if dataset.cache_dir else default_cache_dir()


def limits_of(dataset: DatasetConfig) -> Limits:
    """What is refused before it is decoded."""
    return Limits(max_pixels=dataset.max_pixels, max_frames=dataset.max_frames)


def frame_sampler(dataset: DatasetConfig, clips: int, num_frames: int) -> Callable:
    """Returns (frames of the video) -> (clips, num_frames) frame indices."""
    dataset = read_as_trained(dataset)
    assert dataset.sampling is not None and dataset.frame_stride is not None  # filled in
    return choose_sampler(
        dataset.sampling, num_frames=num_frames, num_clips=clips, frame_stride=dataset.frame_stride
    )


def view_cutter(dataset: DatasetConfig, views: ViewsConfig, backbone: Backbone) -> partial[torch.Tensor]:
    """Returns (clips, T, H, W, 3) uint8 of one video -> its views, as the backbone reads them.

    Raises ConfigError: the shorter side is below the backbone's.
    """
    size = min(backbone.frame_size)
    short_side = dataset.short_side or backbone.short_side or size
    if short_side < size:
        raise ConfigError(
            f"dataset.short_side={short_side} must be at least {size}, which the backbone reads"
        )
    how: dict[str, Any] = {"num_crops": views.crops, "mode": backbone.interpolation}
    return partial(resize_and_crop, size=backbone.frame_size, short_side=short_side, **how)


def frame_reducer(
    dataset: DatasetConfig, views: ViewsConfig, backbone: Backbone
) -> partial[tuple[int, int]] | None:
    """Returns (height, width) of a video -> the size in which it is decoded; None: its own.

    Raises ConfigError: the backbone's frames are not resized as decoders do it.
    """
    if dataset.decode_size == "full":
        return None
    if backbone.interpolation != "bilinear":
        raise ConfigError(
            f"dataset.decode_size={dataset.decode_size}: decoders resize bilinearly, this backbone reads "
            f"{backbone.interpolation} frames; use dataset.decode_size=full"
        )
    cutter = view_cutter(dataset, views, backbone).keywords
    return partial(reduced_size, size=cutter["size"], short_side=cutter["short_side"])


def build_dataset(
    dataset: DatasetConfig,
    views: ViewsConfig,
    pipeline: Pipeline,
    videos: VideoList,
    *,
    cache: ClipCache | None = None,
    whole: bool = False,
) -> VideoDataset:
    """The decoded clips of a list; `whole`: in the videos' own size, whatever `dataset.decode_size` says."""
    return VideoDataset(
        videos,
        frame_sampler(dataset, views.clips, pipeline.backbone.num_frames),
        decoder=dataset.decoder,
        limits=limits_of(dataset),
        cache=cache,
        reduce=None if whole else frame_reducer(dataset, views, pipeline.backbone),
        memory_mb=dataset.memory_mb,
        motion=pipeline.reads_motion and not whole,
    )


def picture(decoded: VideoDataset, cutter: partial[torch.Tensor], example: Example) -> torch.Tensor:
    """The view of an example, (T, k S, k S, 3) uint8, from the video's own pixels; k S is large enough to be looked at.

    What the model read, where it is as large, or where the video is gone by now.
    """
    size, short_side = cutter.keywords["size"], cutter.keywords["short_side"]
    scale = picture_scale(size)
    seen = example.frames[..., :3]
    if scale == 1:
        return seen
    names = [record.name for record in decoded.videos.records]
    sample = decoded[names.index(example.answer.name)]
    if sample.frames is None:
        return seen
    larger = tuple(scale * side for side in size)
    return cutter(sample.frames[:1], size=larger, short_side=scale * short_side)[0]


def build_shared_maps(
    dataset: DatasetConfig, views: ViewsConfig, pipeline: Pipeline, *, wanted: bool
) -> SharedMaps | None:
    """One map for the crops of each clip, with share_maps=true.

    Raises ConfigError: there are no crops to share it, nothing scores frames, or the scorer cannot.
    """
    if not wanted or pipeline.pruner is None:  # the dense model may be one of a sweep
        return None
    if views.crops == 1:
        raise ConfigError(
            f"share_maps=true: views={views} has one crop of each clip; use 3 crops or share_maps=false"
        )
    if pipeline.pruner.spec.reads_tokens:
        raise ConfigError(
            f"share_maps=true: pruner={pipeline.pruner.name} compares the tokens of one view; use one of "
            f"{', '.join(pruner_names(lambda spec: spec.shares_crops))}"
        )
    if pipeline.backbone.stage_grids:
        raise ConfigError("share_maps=true: this backbone needs a map for each stage; use share_maps=false")
    places = partial(crop_places, **view_cutter(dataset, views, pipeline.backbone).keywords)
    return SharedMaps(pipeline.pruner, pipeline.backbone.grid, places, pipeline.backbone.parts)


def build_clip_cache(
    dataset: DatasetConfig, views: ViewsConfig, pipeline: Pipeline, engine: Engine
) -> ClipCache | None:
    """The folder that keeps decoded views between runs; None with dataset.clip_cache=off.

    Raises ConfigError: the folder cannot be made.
    """
    if dataset.clip_cache is None:
        return None
    backbone, folder = pipeline.backbone, Path(dataset.clip_cache).expanduser()
    if dataset.clip_cache == "auto":
        folder = cache_dir(dataset) / "views"
    # Devices differ in rounding.
    device = torch.backends.cpu.get_cpu_capability()
    if engine.device.type == "cuda":
        device = torch.cuda.get_device_name(engine.device)
    recipe = {
        "sampler": frame_sampler(dataset, views.clips, backbone.num_frames),
        "decoder": dataset.decoder,
        "motion": pipeline.reads_motion,
        "limits": limits_of(dataset),
        "reduce": frame_reducer(dataset, views, backbone),
        "cut": view_cutter(dataset, views, backbone),
        "device": device,
    }
    return ClipCache(folder, limit_bytes=int(dataset.clip_cache_gb * 1e9), recipe=recipe)
