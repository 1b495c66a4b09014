"""Inference window by window, over a long video file or a stream of frames: one answer for each window.

    file    -> windows, a few at a time -> decode -> views -> pipeline -> Answer
    stream  -> frames are resized as they come -> a window of them is full -> views -> ... -> Answer

Each window is treated as a video of its own:

    frame        0  1  2  3  4  5  6  7  8  9  10        length 4, stride 3
    windows      x  x  x  x
                          x  x  x  x
                                   x  x  x  x
                                      x  x  x  x         the last one ends with the video

Letters: as in `predict`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, TooLargeError, VideoDecodeError
from ..core.escape import printable
from ..data.readers.packets import read_stream
from ..data.readers.timing import FrameTimes
from ..data.recipe import Recipe
from ..pipeline import Pipeline
from .predict import Answer, ClipReader, recipe_of

FRAMES_AT_ONCE = 64  # frames that the windows of one pass over a file may ask for; decoded frames are large


def window_starts(num_frames: int, length: int, stride: int) -> list[int]:
    """First frames of the windows of a video; see the drawing above. A video that is too short is one window."""
    if num_frames <= length:
        return [0]
    starts = list(range(0, num_frames - length + 1, stride))
    return starts if starts[-1] + length == num_frames else [*starts, num_frames - length]


def window_frames(fps: float, window_seconds: float, stride_seconds: float | None) -> tuple[int, int]:
    """(length, stride) of windows in frames; without a stride they lie side by side.

    Raises ConfigError: a number is not above 0.
    """
    stride_seconds = window_seconds if stride_seconds is None else stride_seconds
    check_lengths(fps=fps, window_seconds=window_seconds, stride_seconds=stride_seconds)
    return max(1, round(window_seconds * fps)), max(1, round(stride_seconds * fps))


def check_lengths(**lengths: float) -> None:
    """Raises ConfigError: a number is not above 0."""
    for name, value in lengths.items():
        if not value > 0:
            raise ConfigError(f"{name}={value} must be a number above 0")


def cut_windows(
    times: FrameTimes, window_seconds: float, stride_seconds: float | None
) -> list[tuple[int, int | None]]:
    """Windows of a video as (first frame, frame behind the last one), by the times at which frames are shown.

    At a constant frame rate all windows have the same number of frames. Otherwise each border lies at the frame whose
    time is nearest, and where no frame begins inside a window, the one that is on display is all there is.

    Raises ConfigError: a length is not above 0.
    """
    length, stride = window_frames(times.fps, window_seconds, stride_seconds)
    count = len(times.borders) - 1
    if times.constant:
        return [(start, min(start + length, count)) for start in window_starts(count, length, stride)]
    step = window_seconds if stride_seconds is None else stride_seconds
    last = max(times.seconds - window_seconds, 0.0)
    starts = np.append(np.arange(0.0, last - 1e-9, step), last)  # the last one ends with the video
    first = np.minimum(times.nearest(starts), count - 1)
    behind = np.maximum(times.nearest(starts + window_seconds), first + 1)
    return list(dict.fromkeys(zip(first.tolist(), behind.tolist(), strict=True)))


class Timeline:
    """The answers to the windows of a video file, computed while it is iterated over. `len` tells how many there are.

    Windows are decoded a few at a time, so that the length of the video does not matter to memory.

    Args:
        window_seconds: length of a window; None: the whole video is one.
        stride_seconds: from one window to the next; None: they lie side by side.

    Attributes:
        shortest: frames of the shortest window, once it was read.
        pictured: numbers of the windows whose answers have a picture; none unless set.
        ask: answers the views of a window, as `ClipReader.answer` does.

    Raises:
        VideoDecodeError: the file cannot be decoded, or does not say how fast it runs.
        ConfigError: an argument is out of range.
        LogitsError: the logits of a window are not finite.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        path: Path | str,
        *,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        top_k: int = 5,
        recipe: Recipe | None = None,
    ) -> None:
        self.reader = ClipReader(pipeline, recipe_of(pipeline, recipe), top_k)
        self.path = path
        self.ask: Callable[[Tensor, float, float, float], Answer] = self.reader.answer
        self.num_frames, self.fps = 0, 0.0
        self.shortest = 0
        self.pictured: set[int] = set()
        self.windows: list[tuple[int, int | None]] = [(0, None)]  # first frame, and the one behind the last
        if window_seconds is None:
            if stride_seconds is not None:
                raise ConfigError(f"stride_seconds={stride_seconds} needs window_seconds")
            return
        try:
            stream = read_stream(path, self.reader.recipe.limits)
        except VideoDecodeError as error:
            raise VideoDecodeError(f"cannot decode {printable(path)}: {error}") from None
        if not stream.times.fps:
            raise VideoDecodeError(
                f"cannot cut {printable(path)} into windows: it does not say its frames per second"
            )
        self.num_frames, self.fps = stream.num_frames, stream.times.fps
        self.windows = cut_windows(stream.times, window_seconds, stride_seconds)

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Answer]:
        reader, recipe = self.reader, self.reader.recipe
        at_once = max(1, FRAMES_AT_ONCE // (recipe.clips * reader.num_frames))
        for first in range(0, len(self.windows), at_once):
            windows = self.windows[first : first + at_once]
            yield from self._answers(windows)

    def _answers(self, windows: list[tuple[int, int | None]]) -> Iterator[Answer]:
        """The answers to windows that are decoded together; one by one where memory does not hold all of them."""
        reader, recipe = self.reader, self.reader.recipe
        try:
            choose, motion = partial(self._indices, windows=windows), reader.pipeline.reads_motion
            decoded = recipe.decode(self.path, choose, motion=motion)
        except TooLargeError:
            if len(windows) == 1:
                raise
            for window in windows:
                yield from self._answers([window])
            return
        self.num_frames, self.fps = decoded.num_video_frames, decoded.fps
        clips = torch.from_numpy(decoded.frames).split(recipe.clips)
        shown = None if decoded.seconds is None else np.split(decoded.seconds, len(windows))
        pictured = {self.windows[number] for number in self.pictured}
        for place, ((start, end), frames) in enumerate(zip(windows, clips, strict=True)):
            clock, span = perf_counter(), decoded.times.span(start, end)
            answer = self.ask(reader.views(frames), *span, clock)
            picture = reader.picture(frames) if (start, end) in pictured else None
            yield replace(answer, seconds=None if shown is None else shown[place], picture=picture)

    def _indices(self, num_frames: int, *, windows: list[tuple[int, int | None]]) -> np.ndarray:
        """(windows * C, T): the frames of several windows, in a video that turns out to have `num_frames`."""
        chosen = []
        for start, end in windows:
            length = min(num_frames if end is None else end - start, num_frames)
            self.shortest = min(self.shortest or length, length)
            one = self.reader.recipe.indices(length, self.reader.num_frames)
            chosen.append(np.minimum(start + one, num_frames - 1))
        return np.concatenate(chosen)


def predict_stream(
    pipeline: Pipeline,
    frames: Iterable[np.ndarray | Tensor],
    *,
    fps: float,
    window_seconds: float,
    stride_seconds: float | None = None,
    top_k: int = 5,
    recipe: Recipe | None = None,
) -> Iterator[Answer]:
    """Answers while frames come in, from a camera for example: one answer whenever a window is full.

    Frames are resized as they come, so only small ones are kept, as many as a window holds. When the stream ends, the
    frames that no window has covered yet are answered in a last one: the windows and the answers are those of
    `Timeline`.

    Args:
        frames: (H, W, 3) uint8 each, RGB, all of one size.
        window_seconds, stride_seconds, top_k, recipe: see `Timeline`.

    Raises:
        ConfigError: an argument is out of range.
        ValueError: a frame has another shape or type.
    """
    length, stride = window_frames(fps, window_seconds, stride_seconds)
    return _stream(ClipReader(pipeline, recipe_of(pipeline, recipe), top_k), frames, fps, length, stride)


def _stream(
    reader: ClipReader, frames: Iterable[np.ndarray | Tensor], fps: float, length: int, stride: int
) -> Iterator[Answer]:
    window: deque[Tensor] = deque(maxlen=length)  # (R, S, S, 3) each
    count = answered = 0
    clock = perf_counter()

    def answer() -> Answer:
        views, _ = reader.window_views(window)
        return reader.answer(views, (count - len(window)) / fps, count / fps, clock)

    for frame in frames:
        clock = perf_counter()
        window.append(reader.shrink(frame))
        count += 1
        if count >= length and (count - length) % stride == 0:
            answered = count
            yield answer()
    if count > answered:
        yield answer()
