"""What the app says about a video: answers of the dense and of the pruned model, what was read, and what it cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ...backbones.builders import Backbone
from ...core.errors import ConfigError, VideoDecodeError
from ...data.readers.packets import VideoStream, read_stream
from ...data.transforms import reduced_size
from ...evaluation.cost import gmacs_per_view
from ...pipeline import Pipeline
from ...pruning.protocol import Pruner
from ..files import Outcome, PredictionWriter, Window
from ..film import write_film
from ..overlay import Scene
from ..predict import Answer, ClipReader, Recipe
from ..segments import merge_windows
from ..windows import Timeline

MAX_FPS = 240  # a video that claims to be faster is as long as its frames would be at this speed
RAW_FPS = 25  # of a stream without times; FFmpeg's own guess
# Pixels; larger videos are made smaller as they are decoded, where the backbone reads such frames.
LARGE_SIDE = 2048
FILM, TABLE = "film.mp4", "predictions.csv"
FILM_SIDE = 1280  # pixels of its longer side, at most
TOP_K = 5
RUNS = 5  # of the first window behind one that warms up; its time is their median
Tell = Callable[[str], None]


class Looker:
    """A backbone with several pruners to choose from.

    Args:
        backbone: on its device, in eval mode.
        pruners: name -> pruner of fixed budget, on the same device.
        window_seconds: a video of more than two windows is answered window by window.
    """

    def __init__(
        self,
        backbone: Backbone,
        pruners: Mapping[str, Pruner],
        recipe: Recipe,
        *,
        max_seconds: float,
        window_seconds: float,
    ) -> None:
        for name, pruner in pruners.items():
            if pruner.budget.variable:
                raise ConfigError(f"pruners: {name} has no keep ratio to choose; take another one")
        self.backbone, self.pruners, self.recipe = backbone, dict(pruners), recipe
        self.max_seconds, self.window_seconds = max_seconds, window_seconds
        self._gmacs: dict[tuple[str, float], dict[str, float]] = {}
        self._dense: tuple[object, list[Window]] = (None, [])  # of the last video, for other keep ratios

    def look(
        self,
        video: Path,
        *,
        pruner: str,
        keep_ratio: float,
        out: Path,
        named: bool = True,
        tell: Tell = print,
    ) -> dict[str, Any]:
        """Answers a video, and writes FILM and TABLE into `out`.

        Args:
            named: whether the backbone's classes say anything about the video; the film names none otherwise.
            tell: is told what is being done, for people who wait.

        Returns:
            `dense` and `pruned`, each with `top` (name, probability), `segments` (see `Segment`), `tokens`, `gmacs` and
            `milliseconds` of all windows; `scorer_gmacs`, part of the pruned ones; `agree`, windows with the same best
            class; `video` (name, seconds, windows); `words`, what `predict` has to be told beside the pruner; `named`,
            `pruner` and `keep_ratio` as asked.

        Raises:
            VideoDecodeError: the video cannot be decoded, or is too long.
            ConfigError: the pruner is not on offer, or the ratio is out of range.
        """
        flow = Pipeline(self.backbone, self._pruner(pruner, keep_ratio))
        stream, seconds = self._open(video)
        recipe, cut, words = self._how(stream, seconds)
        try:
            timeline = Timeline(flow, video, window_seconds=cut, top_k=TOP_K, recipe=recipe)
            dense, pruned = self._answer(timeline, video, tell)
            tell("Drawing the film")
            outcome = self._outcome(video, timeline, pruned)
            with PredictionWriter(out, flow, recipe) as writer:
                writer.add(0, outcome)
            scenes = [window.scene if named else _nameless(window, outcome.num_tokens) for window in pruned]
            write_film(video, out / FILM, scenes, flow, recipe, max_side=FILM_SIDE)
        except VideoDecodeError as error:
            raise VideoDecodeError(str(error).replace(f"{video.parent}/", "")) from None
        views = recipe.clips * recipe.crops * len(pruned)
        gmacs = self._count(flow, pruner, keep_ratio)
        return {
            "video": {"name": video.name, "seconds": seconds, "windows": len(pruned)},
            **{"pruner": pruner, "keep_ratio": keep_ratio, "named": named, "words": words},
            "dense": _said(self._outcome(video, timeline, dense), views * gmacs["dense"]),
            "pruned": _said(outcome, views * gmacs["total"]),
            "scorer_gmacs": views * gmacs["scorer"],
            "agree": sum(
                a.guesses[0].label == b.guesses[0].label for a, b in zip(dense, pruned, strict=True)
            ),
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

    def _open(self, video: Path) -> tuple[VideoStream, float]:
        """What the file says, and how many seconds that makes."""
        try:
            stream = read_stream(video, self.recipe.limits)
        except VideoDecodeError as error:
            reason = str(error).replace(f"{video.parent}/", "")
            raise VideoDecodeError(f"{video.name} cannot be read as a video: {reason}") from None
        seconds = stream.duration_seconds or stream.num_frames / RAW_FPS
        seconds = max(seconds, stream.num_frames / MAX_FPS)
        if seconds > self.max_seconds:
            raise VideoDecodeError(
                f"{video.name} is {seconds:.0f} s long; at most {self.max_seconds:g} s are taken. Cut it and try again."
            )
        return stream, seconds

    def _how(self, stream: VideoStream, seconds: float) -> tuple[Recipe, float | None, list[str]]:
        """The recipe for a video, the seconds of its windows, and both in words of the command line."""
        recipe, backbone, cut, words = self.recipe, self.backbone, None, []
        large = max(stream.size) > LARGE_SIDE and recipe.reduce is None and recipe.decoder in ("auto", "pyav")
        if large and backbone.interpolation == "bilinear":
            short_side = recipe.short_side or backbone.short_side
            recipe = replace(
                recipe, reduce=partial(reduced_size, size=backbone.frame_size, short_side=short_side)
            )
            words.append("dataset.decode_size=short_side")
        if seconds > 2 * self.window_seconds and stream.times.fps:
            cut = self.window_seconds
            words.append(f"window_seconds={cut:g}")
        return recipe, cut, words

    def _answer(self, timeline: Timeline, video: Path, tell: Tell) -> tuple[list[Window], list[Window]]:
        """The answers of the dense and of the pruned model to each window.

        What the dense model said about the last video is not asked again.
        """
        reader, crops, status = timeline.reader, timeline.reader.recipe.crops, video.stat()
        dense_reader = ClipReader(Pipeline(self.backbone), reader.recipe, TOP_K)
        key = status.st_ino, status.st_mtime_ns, status.st_size
        known = self._dense[1] if self._dense[0] == key else []
        dense: list[Window] = list(known)
        pruned: list[Window] = []

        def ask(views: Tensor, start: float, end: float, clock: float) -> Answer:
            resized = perf_counter() - clock

            def timed(by: ClipReader, views: Tensor) -> Answer:
                spent = [
                    by.answer(views, start, end, perf_counter() - resized)
                    for _ in range(1 if pruned else 1 + RUNS)
                ]
                return replace(spent[0], latency_ms=median(one.latency_ms for one in spent[1:] or spent))

            if not known:
                dense.append(Window.of(timed(dense_reader, views[..., :3]), crops))
            return timed(reader, views)

        timeline.ask = ask
        tell("By both models")
        for answer in timeline:
            pruned.append(Window.of(answer, crops))
            tell(f"{len(pruned)} of {len(timeline)} windows")
        self._dense = key, dense
        return dense, pruned

    def _outcome(self, video: Path, timeline: Timeline, windows: list[Window]) -> Outcome:
        outcome = Outcome(video.name, num_tokens=self.backbone.grid.num_tokens, windows=windows)
        outcome.num_frames, outcome.fps = timeline.num_frames, timeline.fps
        outcome.summarise(self.backbone.class_names, TOP_K, 1)
        return outcome

    def _count(self, flow: Pipeline, name: str, keep_ratio: float) -> dict[str, float]:
        """Of a view; counted once for each pruner and ratio, as it depends on shapes only."""
        if (name, keep_ratio) not in self._gmacs:
            shape = 1, self.backbone.num_frames, *self.backbone.frame_size, 4 if flow.reads_motion else 3
            device = next(self.backbone.parameters()).device
            frames = torch.zeros(shape, dtype=torch.uint8, device=device)
            self._gmacs[name, keep_ratio] = gmacs_per_view(flow, frames)
        return self._gmacs[name, keep_ratio]


def _nameless(window: Window, num_tokens: int) -> Scene:
    """A scene whose headline in the film is how much was read."""
    return replace(window.scene, name="read", probability=(window.kept_tokens or num_tokens) / num_tokens)


def _said(outcome: Outcome, gmacs: float) -> dict[str, Any]:
    """What the page shows of one model."""
    windows = outcome.windows
    return {
        "top": [{"name": guess.name, "probability": guess.probability} for guess in outcome.guesses],
        "segments": [asdict(segment) for segment in merge_windows(windows)],
        "tokens": sum(outcome.num_tokens if w.kept_tokens is None else w.kept_tokens for w in windows),
        "milliseconds": sum(window.latency_ms for window in windows),
        "gmacs": gmacs,
    }
