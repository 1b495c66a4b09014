"""Inference on a video file or on frames at hand: class names with probabilities. Long videos: `windows`.

    file -> which frames (data/sampling) -> decode -> views -> pipeline -> softmax, mean over the views -> Answer

Letters: n frames of a video or window, C clips, R crops, V = C R views, T frames of a clip, S x S pixels of a view,
T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, LogitsError
from ..core.reading import ReadConfig
from ..data.recipe import Recipe
from ..data.transforms import crop_box, resize_and_crop
from ..evaluation.answers import NOT_FINITE
from ..evaluation.cost import Engine, StageTimes
from ..evaluation.evaluator import classify_views
from ..evaluation.views import aggregate_views
from ..evaluation.visualize import picture_scale
from ..pipeline import Pipeline

Video = Path | str | Tensor | np.ndarray


class Guess(NamedTuple):
    """One class: its number, its name and its probability."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a pipeline says about a video, or about a window of it.

    Attributes:
        start_seconds, end_seconds: of the window; 0 and the end for a whole video, 0 and 0 where its speed is unknown.
        guesses: the most probable classes, best first.
        probabilities: (classes,) float32, on the CPU; the mean over the views.
        latency_ms: from the last frame, decoded, to the answer: resizing it, choosing tokens, classifying.
        views: (V, T, S, S, 3, or 4 with a motion plane) uint8, on the CPU: what was read.
        mask: (V, T', H', W') bool, the tokens that were kept; None for all of them.
        seconds: (C, T) float64, when the frames of each clip are shown; None where nothing tells.
        picture: (T, k S, k S, 3) uint8, the first view with more of the video's own pixels; None where nobody asked.
    """

    start_seconds: float
    end_seconds: float
    guesses: tuple[Guess, ...]
    probabilities: Tensor
    latency_ms: float
    views: Tensor
    mask: Tensor | None
    seconds: np.ndarray | None = None
    picture: Tensor | None = None


def best_guesses(probabilities: Tensor, names: tuple[str, ...] | None, top_k: int) -> tuple[Guess, ...]:
    """probabilities (classes,) -> the `top_k` best classes, or all of them if there are fewer.

    Raises LogitsError: they are NaN, because a logit is not finite.
    """
    if not bool(probabilities.isfinite().all()):
        raise LogitsError(f"{NOT_FINITE}; check the weights, and the precision where it is fp16")
    values, labels = probabilities.topk(min(top_k, len(probabilities)))
    name = names.__getitem__ if names else "class {}".format
    pairs = zip(labels.tolist(), values.tolist(), strict=True)
    return tuple(Guess(label, name(label), value) for label, value in pairs)


def recipe_of(pipeline: Pipeline, recipe: Recipe | None = None) -> Recipe:
    """How a pipeline reads videos: as asked, as `Pipeline.from_config` was told, as its weights say, or as
    `Recipe` says by itself."""
    backbone, read = pipeline.backbone, pipeline.backbone.read or ReadConfig()
    own: dict[str, Any] = {
        "sampling": read.sampling or backbone.usual_sampling,
        "frame_stride": read.frame_stride or backbone.usual_stride,
        "short_side": read.short_side,
    }
    known = {key: value for key, value in own.items() if value}
    return recipe or getattr(pipeline, "recipe", None) or Recipe(**known)


def cut_of(pipeline: Pipeline, recipe: Recipe) -> dict[str, Any]:
    """How `resize_and_crop` cuts a pipeline's views."""
    backbone = pipeline.backbone
    short_side = recipe.short_side or backbone.short_side
    size, mode = backbone.frame_size, backbone.interpolation
    return {"size": size, "short_side": short_side, "num_crops": recipe.crops, "mode": mode}


class ClipReader:
    """A pipeline with its recipe and its device."""

    def __init__(self, pipeline: Pipeline, recipe: Recipe, top_k: int) -> None:
        if top_k < 1:
            raise ConfigError(f"top_k={top_k} must be at least 1")
        self.pipeline, self.recipe, self.top_k = pipeline, recipe, top_k
        self.num_frames = pipeline.backbone.num_frames
        self.engine = Engine(next(pipeline.backbone.parameters()).device, recipe.dtype)

    def views(self, frames: Tensor, scale: int = 1) -> Tensor:
        """frames (C, T, H, W, 3) uint8 -> views (V, T, S, S, 3) uint8 on the device, crops of one clip adjacent.

        Args:
            scale: S is so many times what the backbone reads, for pictures.
        """
        cut = cut_of(self.pipeline, self.recipe)
        cut["size"] = tuple(scale * side for side in cut["size"])
        cut["short_side"] = cut["short_side"] and scale * cut["short_side"]
        with torch.inference_mode():
            return resize_and_crop(frames.to(self.engine.device), **cut)

    def shrink(self, frame: np.ndarray | Tensor) -> Tensor:
        """A frame (H, W, 3) uint8 -> its crops (R, S, S, 3), which are kept of a stream."""
        return self.views(torch.as_tensor(np.ascontiguousarray(frame))[None, None])[:, 0]

    def window_views(self, frames: Sequence[Tensor]) -> tuple[Tensor, np.ndarray]:
        """Frames of a window, n of (R, S, S, 3) -> its views (V, T, S, S, 3), and which frames they hold, (C, T)."""
        chosen = self.recipe.indices(len(frames), self.num_frames)
        crops = torch.stack(list(frames), 1)  # (R, n, S, S, 3)
        return crops[:, torch.from_numpy(chosen)].transpose(0, 1).flatten(0, 1), chosen

    def picture(self, frames: Tensor) -> Tensor:
        """frames (C, T, H, W, 3) uint8 -> the first view, (T, k S, k S, 3), large enough to be looked at."""
        return self.views(frames[:1, ..., :3], picture_scale(self.pipeline.backbone.frame_size))[0].cpu()

    def read(self, video: Video) -> Tensor:
        """A file, or frames (n, H, W, 3) uint8 -> views (V, T, S, S, 3) uint8 on the device."""
        if not isinstance(video, Tensor | np.ndarray):
            decoded = self.recipe.decode(
                video, lambda n: self.recipe.indices(n, self.num_frames), motion=self.pipeline.reads_motion
            )
            return self.views(torch.from_numpy(decoded.frames))
        frames = torch.as_tensor(video)
        if frames.ndim != 4 or not len(frames):
            raise ValueError(f"frames must be uint8 (n, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
        return self.views(frames[torch.from_numpy(self.recipe.indices(len(frames), self.num_frames))])

    def answer(self, views: Tensor, start_seconds: float, end_seconds: float, clock: float) -> Answer:
        """Classifies the views of a window; `clock` is when its last frame was there."""
        self.pipeline.backbone.check_classifies()
        logits, mask = classify_views(
            self.pipeline, views, batch_size=self.recipe.batch_size, engine=self.engine, times=StageTimes()
        )
        probabilities = aggregate_views(logits, len(views))[0].cpu()
        mask = None if mask is None else mask.cpu()
        latency_ms = (perf_counter() - clock) * 1000
        return Answer(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            guesses=best_guesses(probabilities, self.pipeline.backbone.class_names, self.top_k),
            probabilities=probabilities,
            latency_ms=latency_ms,
            views=views.cpu(),
            mask=mask,
        )


def middle_crop(size: tuple[int, int], pipeline: Pipeline, recipe: Recipe) -> tuple[int, int, int, int]:
    """What the middle crop covers of a frame (H, W): top, left, bottom, right."""
    backbone = pipeline.backbone
    short_side = recipe.short_side or backbone.short_side
    return crop_box(*size, size=backbone.frame_size, short_side=short_side, num_crops=recipe.crops)


def warm_up(pipeline: Pipeline, recipe: Recipe) -> None:
    """Runs a pipeline on black frames: kernels are chosen and graphs made, so the first answer takes no longer."""
    backbone, engine = pipeline.backbone, Engine(next(pipeline.backbone.parameters()).device, recipe.dtype)
    views = min(recipe.batch_size, recipe.clips * recipe.crops)
    shape = (views, backbone.num_frames, *backbone.frame_size, 3)
    frames = torch.zeros(shape, dtype=torch.uint8, device=engine.device)
    classify_views(pipeline, frames, batch_size=views, engine=engine, times=StageTimes())


def predict(
    pipeline: Pipeline, video: Video, *, top_k: int = 5, recipe: Recipe | None = None
) -> tuple[Guess, ...]:
    """`api.predict` of one video; the views of `recipe` are averaged."""
    reader = ClipReader(pipeline, recipe_of(pipeline, recipe), top_k)
    return reader.answer(reader.read(video), 0.0, 0.0, perf_counter()).guesses
