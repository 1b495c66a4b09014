"""What the demo says about a video: the answer of the dense and of the pruned model, what was read, and what it cost.

Letters: T frames of S x S pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backbones.builders import Backbone
from ...core.errors import ConfigError, VideoDecodeError
from ...data.decoding import decode_clips
from ...data.limits import Limits
from ...data.readers.packets import read_stream
from ...evaluation.cost import gmacs_per_view
from ...evaluation.views import aggregate_views
from ...pipeline import Pipeline
from ...pruning.protocol import Pruner
from ..film import write_film
from ..overlay import Scene, Seen
from ..predict import ClipReader, Recipe, best_guesses

MAX_FPS = 240  # a video that claims to be faster is as long as its frames would be at this speed
RAW_FPS = 25  # of a stream without times; FFmpeg's own guess
DECODED_MB = 128  # frames of one video in memory; larger ones are made smaller as they are decoded
FILM = "film.mp4"
FILM_SIDE = 1280  # pixels of its longer side, at most
TOP_K = 5
RUNS = 5  # of which the median is the time


class Looker:
    """A backbone with several pruners to choose from.

    Args:
        backbone: on its device, in eval mode.
        pruners: name -> pruner of fixed budget, on the same device.
        recipe: how videos are read; one view is answered, the middle one where there are several.
        max_seconds: longest video that is taken.
    """

    def __init__(
        self, backbone: Backbone, pruners: Mapping[str, Pruner], recipe: Recipe, *, max_seconds: float
    ) -> None:
        for name, pruner in pruners.items():
            if pruner.budget.variable:
                raise ConfigError(f"pruners: {name} has no keep ratio to choose; take another one")
        self.backbone, self.pruners, self.recipe = backbone, dict(pruners), recipe
        self.max_seconds = max_seconds
        self._gmacs: dict[tuple[str, float], dict[str, float]] = {}

    def look(self, video: Path, *, pruner: str, keep_ratio: float, folder: Path) -> dict[str, Any]:
        """Answers a video, and writes it with the answer and what was kept drawn on it into `folder`.

        Returns:
            `dense` and `pruned`, each with `top` (name, probability), `gmacs` and `milliseconds`; `tokens` (`all`,
            `kept`); `scorer` (`gmacs`, `milliseconds`), which are part of `pruned`; `film`, a file name;
            `video` (name, seconds, frames read); `runs` behind each time.

        Raises:
            VideoDecodeError: the video cannot be decoded, or is too long.
            ConfigError: the pruner is not on offer, or the ratio is out of range.
        """
        flow = Pipeline(self.backbone, self._pruner(pruner, keep_ratio))
        seconds = self._check_length(video)
        dense, reader = Pipeline(self.backbone), ClipReader(Pipeline(self.backbone), self.recipe, TOP_K)
        views, shown = self._read(reader, video, motion=flow.reads_motion)
        gmacs = self._count(flow, views[:1], pruner, keep_ratio)
        full, _, dense_ms = self._answer(dense, reader, views[..., :3])
        answer, mask, pruned_ms = self._answer(flow, reader, views)
        assert mask is not None
        seen = Seen.of(mask, shown, self.recipe.crops)
        scene = Scene(0.0, seconds, answer[0]["name"], answer[0]["probability"], seen)
        write_film(video, folder / FILM, [scene], flow, self.recipe, max_side=FILM_SIDE)
        return {
            "video": {"name": video.name, "seconds": seconds, "frames": views.shape[1], "views": len(views)},
            "pruner": pruner,
            "keep_ratio": keep_ratio,
            "tokens": {"all": mask[0].numel(), "kept": int(mask[0].sum())},
            "dense": {"top": full, "gmacs": gmacs["dense"], "milliseconds": dense_ms["total"]},
            "pruned": {"top": answer, "gmacs": gmacs["total"], "milliseconds": pruned_ms["total"]},
            "scorer": {"gmacs": gmacs["scorer"], "milliseconds": pruned_ms["score"]},
            "film": FILM,
            "runs": RUNS,
        }

    def _pruner(self, name: str, keep_ratio: float) -> Pruner:
        """The pruner with another keep ratio; it shares the weights."""
        if name not in self.pruners:
            raise ConfigError(f"pruner={name} is not on offer; choose one of {', '.join(self.pruners)}")
        if not 0 < keep_ratio <= 1:
            raise ConfigError(f"keep_ratio={keep_ratio} must be above 0 and at most 1")
        pruner = copy.copy(self.pruners[name])
        pruner.budget = copy.copy(pruner.budget)
        object.__setattr__(pruner.budget, "value", keep_ratio)  # frozen; this copy is ours
        return pruner

    def _check_length(self, video: Path) -> float:
        try:
            stream = read_stream(video)
        except VideoDecodeError as error:
            reason = str(error).replace(f"{video.parent}/", "")
            raise VideoDecodeError(f"{video.name} cannot be read as a video: {reason}") from None
        seconds = stream.duration_seconds or stream.num_frames / RAW_FPS
        seconds = max(seconds, stream.num_frames / MAX_FPS)
        if seconds > self.max_seconds:
            raise VideoDecodeError(
                f"{video.name} is {seconds:.0f} s long; at most {self.max_seconds:g} s are taken. Cut it and try again."
            )
        return seconds

    def _read(self, reader: ClipReader, video: Path, *, motion: bool) -> tuple[Tensor, np.ndarray | None]:
        """The views of a video, at most `DECODED_MB` of decoded frames in memory; and when the frames are shown."""
        pixels = DECODED_MB * 10**6 // (3 * self.recipe.clips * reader.num_frames)  # of a frame

        def smaller(height: int, width: int) -> tuple[int, int]:
            scale = min(1.0, math.sqrt(pixels / (height * width)))
            return max(1, int(height * scale)), max(1, int(width * scale))

        indices = partial(self.recipe.indices, num_frames=reader.num_frames)
        decode = partial(decode_clips, video, indices, motion=motion)
        try:
            try:
                clips = decode(decoder=self.recipe.decoder, limits=Limits(max_pixels=pixels))
            except VideoDecodeError:  # too large, or not to be read at all: then the second try says why
                clips = decode(reduce=smaller)
        except VideoDecodeError as error:
            raise VideoDecodeError(str(error).replace(f"{video.parent}/", "")) from None
        return reader.views(torch.from_numpy(clips.frames)), clips.seconds

    def _answer(
        self, flow: Pipeline, reader: ClipReader, views: Tensor
    ) -> tuple[list[dict[str, Any]], Tensor | None, dict[str, float]]:
        """The best classes, the mask of what was kept, and milliseconds of a view: `score`, `backbone`, `total`."""
        from ...evaluation.cost import StageTimes
        from ...evaluation.evaluator import classify_views

        runs = []  # the first one warms up: memory is allocated, kernels are chosen
        for _ in range(1 + RUNS):
            times = StageTimes()
            logits, mask = classify_views(
                flow, views, batch_size=self.recipe.batch_size, engine=reader.engine, times=times
            )
            runs.append(times)
        each = [run.per_view_ms() for run in runs[1:]]
        spent = {key: median(float(run[key] or 0) for run in each) for key in ("score", "backbone", "total")}
        probabilities = aggregate_views(logits, len(views))[0].cpu()
        guesses = best_guesses(probabilities, self.backbone.class_names, TOP_K)
        kept = None if mask is None else mask.cpu()
        return [{"name": g.name, "probability": g.probability} for g in guesses], kept, spent

    def _count(self, flow: Pipeline, view: Tensor, name: str, keep_ratio: float) -> dict[str, float]:
        """Counted once for each pruner and ratio: it depends on shapes only."""
        if (name, keep_ratio) not in self._gmacs:
            self._gmacs[name, keep_ratio] = gmacs_per_view(flow, view)
        return self._gmacs[name, keep_ratio]
