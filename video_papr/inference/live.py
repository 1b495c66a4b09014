"""Inference on live sources: the newest full window is answered, and windows that nobody has time for are skipped.

    source -> thread: decode, resize -> frames of the last window -> the newest window that is full -> Answer

The delay is bounded by one window's answer, and memory by the small frames of a window and a stride. Windows are those
of `windows`: where none is skipped the answers are those to a file with the same frames.

Letters: as in `predict`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from threading import Condition, Thread
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from ..core.errors import ConfigError
from ..data.readers.answers import Frames
from ..data.recipe import Recipe
from ..pipeline import Pipeline
from .overlay import Overlay, Pixels, Scene, Seen
from .predict import Answer, ClipReader, middle_crop, recipe_of
from .windows import check_lengths

HAIR = 1e-6  # seconds; times of frames are rounded


class LiveWindows:
    """The answers to a live source while it runs.

    Args:
        frames: (seconds, frame (H, W, 3) uint8) each, ascending, such as `data.readers.live.read_live` gives them.
        stride_seconds: from one window to the next; None: they lie side by side.

    Attributes:
        skipped: windows that were not answered, because answers took longer than the stride.
        newest: the last frame as it came, (seconds, (H, W, 3)); None before the first one.

    Raises:
        ConfigError: a length is not above 0.
        LogitsError: the logits of a window are not finite.
        What `frames` raises, after the answers to what came before.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        frames: Iterable[tuple[float, Frames]],
        *,
        window_seconds: float,
        stride_seconds: float | None = None,
        top_k: int = 5,
        recipe: Recipe | None = None,
    ) -> None:
        self.reader = ClipReader(pipeline, recipe_of(pipeline, recipe), top_k)
        self.length = window_seconds
        self.stride = window_seconds if stride_seconds is None else stride_seconds
        check_lengths(window_seconds=self.length, stride_seconds=self.stride)
        self.frames, self.skipped = frames, 0
        self.newest: tuple[float, Frames] | None = None
        self._due = self.length  # the end of the next window
        self._held: deque[tuple[float, Tensor]] = deque()  # (seconds, (R, S, S, 3))
        self._changed, self._ended, self._stopped = Condition(), False, False
        self._clock = 0.0
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Answer]:
        thread = Thread(target=self._fill, daemon=True)
        thread.start()
        try:
            while (window := self._next()) is not None:
                yield self._answer(*window)
        finally:
            self._stopped = True
        if self._error is not None:
            raise self._error

    def _fill(self) -> None:
        try:
            for seconds, pixels in self.frames:
                if self._stopped:
                    return
                small = self.reader.shrink(pixels)
                with self._changed:
                    self._add(seconds, small)
                    self.newest = seconds, pixels
                    self._changed.notify()
        except Exception as error:  # raised where the answers are read
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _add(self, seconds: float, small: Tensor) -> None:
        self._held.append((seconds, small))
        while seconds >= self._due + self.stride - HAIR:  # a newer window is full before this one was begun
            self._due += self.stride
            self.skipped += 1
        while self._held[0][0] < self._due - self.length - self.stride - HAIR:
            self._held.popleft()
        self._clock = perf_counter()

    def _next(self) -> tuple[list[tuple[float, Tensor]], float, float] | None:
        """Waits for the next window: its frames, and its start and end in seconds; None behind the last one."""
        with self._changed:
            while not self._ended and (self.newest is None or self.newest[0] < self._due - HAIR):
                self._changed.wait()
            if self.newest is None or self._due == np.inf:
                return None
            last, end = self.newest[0], self._due
            if last >= end - HAIR:
                self._due += self.stride
            else:  # the source has ended; a last window ends with it
                times = [seconds for seconds, _ in self._held]
                step = float(np.median(np.diff(times))) if len(times) > 1 else self.length
                end, self._due = last + step, np.inf
            start = max(end - self.length, 0.0)
            window = [held for held in self._held if start - HAIR <= held[0] < end - HAIR]
            return window, start, end

    def _answer(self, window: list[tuple[float, Tensor]], start: float, end: float) -> Answer:
        views, chosen = self.reader.window_views([small for _, small in window])
        answer = self.reader.answer(views, start, end, self._clock)
        return replace(answer, seconds=np.array([seconds for seconds, _ in window])[chosen])


class Display:
    """A window on the screen that shows the newest frame with the answer and the kept tubelets drawn on it.

    Raises ConfigError: there is no display, or no toolkit for it.
    """

    def __init__(self) -> None:
        from matplotlib import pyplot

        self.pyplot: Any = pyplot
        self.figure = pyplot.figure("video_papr")
        if not getattr(type(self.figure.canvas), "required_interactive_framework", None):
            raise ConfigError(
                "show=true: there is no display, or none of matplotlib's toolkits for it (Tk, Qt, GTK)"
            )
        self.image: Any = None

    def show(self, seconds: float, pixels: Pixels, answer: Answer, reader: ClipReader) -> bool:
        """Draws the frame that came at `seconds`; False once the window was closed."""
        best, shown = answer.guesses[0], pixels.copy()
        seen = Seen.of(answer.mask, answer.seconds, reader.recipe.crops)
        scene = Scene(answer.start_seconds, answer.end_seconds, best.name, best.probability, seen)
        size = shown.shape[0], shown.shape[1]
        Overlay(size, [scene], middle_crop(size, reader.pipeline, reader.recipe)).draw(shown, seconds)
        if self.image is None:
            self.image = self.figure.add_axes(
                (0.0, 0.0, 1.0, 1.0), frameon=False, xticks=[], yticks=[]
            ).imshow(shown)
        self.image.set_data(shown)
        self.pyplot.pause(0.03)  # toolkits draw meanwhile
        return bool(self.pyplot.fignum_exists(self.figure.number))
