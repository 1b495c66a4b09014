"""What is drawn on the frames of an annotated film: kept tubelets, the answer with the time, a timeline of the windows.

Letters: H x W pixels of the film, C clips of T frames, T' x H' x W' the token grid.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.escape import printable, shorten
from ..evaluation.visualize import fade

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, bottom, right

LINE = (230, 159, 0)  # round what was kept; with CLASSES of Okabe and Ito, told apart by colour-blind eyes
CLASSES = ((86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
OTHERS = (150, 150, 150)  # classes that come after as many
DARK, LIGHT = (16, 16, 16), (255, 255, 255)
LONGEST_NAME = 40  # letters


@dataclass(frozen=True)
class Seen:
    """What was read of one window.

    Attributes:
        seconds: (C, T) float64, when the frames of each clip are shown.
        kept: (C, T', H', W') bool, of the middle crop of each clip.
    """

    seconds: NDArray[np.float64]
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: Tensor | None, seconds: NDArray[np.float64] | None, crops: int) -> Seen | None:
        """From the mask (V, T', H', W') of all views, `crops` of each clip; None where one of the two is unknown."""
        if mask is None or seconds is None:
            return None
        return cls(seconds, mask[crops // 2 :: crops].numpy())

    def slice_at(self, time: float) -> tuple[int, int] | None:
        """(clip, slice of the token grid) on display at a time; None between clips, of which nothing was read."""
        for clip, shown in enumerate(self.seconds):
            step = float(np.median(np.diff(shown))) if len(shown) > 1 else np.inf
            if shown[0] - step <= time <= shown[-1] + step:
                frame = int(np.searchsorted(shown, time + 1e-6, side="right")) - 1
                return clip, max(frame, 0) * self.kept.shape[1] // len(shown)
        return None


@dataclass(frozen=True)
class Scene:
    """A window of the video in the film: its times, its best class with the probability, and what was read of it."""

    start_seconds: float
    end_seconds: float
    name: str
    probability: float
    seen: Seen | None


class Overlay:
    """Draws on the frames of one video, in the order in which they are shown.

    Args:
        size: (H, W) of the frames.
        box: what the middle crop covers of a frame.
    """

    def __init__(self, size: tuple[int, int], scenes: Sequence[Scene], box: Box) -> None:
        self.size, self.scenes, self.box = size, scenes, box
        self.starts = [scene.start_seconds for scene in scenes]
        self.letters = max(12, size[0] // 26)  # height of the text in pixels
        self.line = max(1, size[0] // 360)
        self.strip = self._draw_strip() if len(scenes) > 1 else None
        self._cells: tuple[object, Pixels, Pixels, Pixels] | None = None

    def draw(self, pixels: Pixels, time: float) -> None:
        """Draws on a frame (H, W, 3) that is shown at `time`, in place."""
        place = max(bisect_right(self.starts, time + 1e-6) - 1, 0)
        scene = self.scenes[place]
        where = None if scene.seen is None else scene.seen.slice_at(time)
        if scene.seen is not None and where is not None:
            self._draw_tubelets(pixels, scene.seen.kept[where], key=(place, where))
        text = (
            f"{shorten(printable(scene.name), LONGEST_NAME)}  {100 * scene.probability:.0f} %   {clock(time)}"
        )
        label = write(text, self.letters)[:, : pixels.shape[1]]
        pixels[: label.shape[0], : label.shape[1]] = label[: pixels.shape[0]]
        if self.strip is not None:
            self._draw_cursor(pixels, self.strip, time)

    def _draw_tubelets(self, pixels: Pixels, kept: NDArray[np.bool_], key: object) -> None:
        """Fades dropped places towards white, and outlines the others."""
        top, left, bottom, right = self.box
        region = pixels[top:bottom, left:right]
        if self._cells is None or self._cells[0] != key:
            found = masks(kept, (bottom - top, right - left), self.line)
            gone, edges = map(_bytes, found)
            self._cells = key, gone, ~(gone | edges), edges & np.array(LINE, np.uint8)
        _, dropped, untouched, lines = self._cells
        faded = fade(region)
        faded &= dropped
        region &= untouched
        region |= faded
        region |= lines

    def _draw_strip(self) -> Pixels:
        """The timeline: a bar in the colour of each window's class, and the class's name where there is room."""
        height, width = max(8, self.letters), self.size[1]
        strip = np.empty((height, width, 3), np.uint8)
        names = list(dict.fromkeys(scene.name for scene in self.scenes))
        colors = dict(zip(names, CLASSES, strict=False))
        borders = [self._column(scene.start_seconds) for scene in self.scenes] + [width]
        borders[0] = 0
        for scene, first, last in zip(self.scenes, borders, borders[1:], strict=False):
            strip[:, first:last] = colors.get(scene.name, OTHERS)
        begun = 0
        for place, scene in enumerate(self.scenes):
            if place + 1 < len(self.scenes) and self.scenes[place + 1].name == scene.name:
                continue
            name = write(shorten(printable(scene.name), LONGEST_NAME), max(8, height - 4))[:height]
            if name.shape[1] < borders[place + 1] - borders[begun]:
                strip[: len(name), borders[begun] : borders[begun] + name.shape[1]] = name
            begun = place + 1
        return strip

    def _draw_cursor(self, pixels: Pixels, strip: Pixels, time: float) -> None:
        below = pixels[-len(strip) :]
        below[:] = strip[-len(below) :]
        place, wide = self._column(time), 1 + self.line
        below[:, max(place - wide, 0) : place + 2 * wide] = DARK
        below[:, place : place + wide] = LIGHT

    def _column(self, time: float) -> int:
        end = self.scenes[-1].end_seconds or 1.0
        return min(int(time / end * self.size[1]), self.size[1] - 1)


def masks(
    kept: NDArray[np.bool_], size: tuple[int, int], line: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """kept (H', W') bool -> the pixels (height, width) that are dropped, and those of a line inside what is kept."""
    rows, columns = (
        np.arange(length) * cells // length for length, cells in zip(size, kept.shape, strict=True)
    )
    inside = kept[np.ix_(rows, columns)]  # row by row in memory; kept[rows][:, columns] is column by column
    core = inside.copy()
    for axis in (0, 1):
        for shift in (line, -line):
            moved = np.roll(inside, shift, axis)
            border = [slice(None)] * 2
            border[axis] = slice(None, line) if shift > 0 else slice(shift, None)
            moved[tuple(border)] = False  # the line closes at the edge of what was read
            core &= moved
    return ~inside, inside & ~core


def _bytes(mask: NDArray[np.bool_]) -> Pixels:
    """mask (H, W) -> (H, W, 3), all bits or none: numpy masks bytes many times faster than it copies by a mask."""
    every: Pixels = np.repeat(mask * np.uint8(255), 3).reshape(*mask.shape, 3)
    return every


def clock(seconds: float) -> str:
    """12.3 -> "0:12.3"; hours where there are some."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


@lru_cache(maxsize=64)
def write(text: str, height: int) -> Pixels:
    """A line of text, light on dark, (height and some margin, width, 3)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(str(file), max(6, round(height * 0.8)))
    margin = max(2, height // 5)
    width = round(font.getlength(text)) + 2 * margin
    picture = Image.new("RGB", (width, height + margin), DARK)
    ImageDraw.Draw(picture).text((margin, (height + margin) // 2), text, LIGHT, font=font, anchor="lm")
    return np.array(picture)
