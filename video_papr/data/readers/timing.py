"""Presentation timestamps: when each frame is shown, from the times of the packets and not from an average.

Headers tell one frame rate, and are often wrong: FFmpeg guesses 1000 for what a browser records and 25 for most raw
streams, and phones, screen captures and surveillance cameras change their rate. The times of the packets are what
players go by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_JUMP_SECONDS = 10.0  # a longer pause in a transport stream is another clock, as for the program ffmpeg


@dataclass(frozen=True)
class FrameTimes:
    """When frames are shown.

    Attributes:
        borders: (n + 1,) float64 seconds: frame k is shown from borders[k] to borders[k + 1], the first from 0. Empty
            when nothing tells.
    """

    borders: NDArray[np.float64]
    fps: float  # average frames per second, 0.0 when nothing tells
    constant: bool  # all frames are shown equally long, as far as the clock of the file can say it

    @property
    def seconds(self) -> float:
        """From the first frame shown to the end of the last one; 0.0 when nothing tells."""
        return float(self.borders[-1]) if len(self.borders) else 0.0

    def span(self, first: int, behind: int | None) -> tuple[float, float]:
        """When a window begins and ends, in seconds: that of frames `first` to `behind` - 1; None: to the end."""
        if not len(self.borders):
            return 0.0, 0.0
        last = len(self.borders) - 1
        end = last if behind is None else min(behind, last)
        return float(self.borders[min(first, last)]), float(self.borders[end])

    def nearest(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """The borders that lie nearest to some times."""
        behind = np.clip(np.searchsorted(self.borders, seconds), 1, len(self.borders) - 1)
        before_is_nearer = seconds - self.borders[behind - 1] <= self.borders[behind] - seconds
        return (behind - before_is_nearer).astype(np.int64)

    def for_frames(self, num_frames: int) -> FrameTimes:
        """The times when the decoder shows fewer frames than there are packets: a few less, or one for each two."""
        count = len(self.borders) - 1
        if num_frames >= count or 2 * num_frames > count + 1:
            return FrameTimes(self.borders[: num_frames + 1], self.fps, self.constant)
        borders = self.borders[::2]
        if count % 2:  # the last field has no other
            borders = np.append(borders, 2 * borders[-1] - borders[-2])
        return FrameTimes(borders[: num_frames + 1], self.fps / 2, self.constant)


NO_TIMES = FrameTimes(np.empty(0), 0.0, constant=True)


def frame_times(
    times: Sequence[int | None], durations: Sequence[int], *, time_base: float, rates: Sequence[float]
) -> FrameTimes:
    """Works out when frames are shown.

    Args:
        times: of the packets, in any order, in units of `time_base`. Unless all are known, durations are added up.
        durations: of the packets, 0 where the file does not say.
        time_base: seconds.
        rates: frames per second that the header tells, best first. The first that fits the times is believed, so that
            times which were rounded to the file's clock (33, 67, 100 ms) do not make a constant rate a variable one.
    """
    count, steps = len(times), np.array(durations, dtype=np.float64)
    known = [time for time in times if time is not None]
    rates = [rate for rate in rates if rate > 0]
    if len(known) == count:
        order = np.argsort(known, kind="stable")
        ticks = np.array(known, dtype=np.float64)[order]
        steps = steps[order]
        ticks -= ticks[0]
    elif steps.all():
        ticks = np.cumsum(steps) - steps
    else:
        return FrameTimes(np.arange(count + 1) / rates[0], rates[0], constant=True) if rates else NO_TIMES
    for rate in rates:
        if np.abs(ticks * time_base - np.arange(count) / rate).max() <= 1.01 * time_base:
            return FrameTimes(np.arange(count + 1) / rate, rate, constant=True)
    gaps = np.diff(ticks)
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    last = float(steps[-1]) if steps[-1] >= usual / 10 else usual  # FFmpeg's guess of 1000 frames/s is none
    borders = np.append(ticks, ticks[-1] + last) * time_base
    fps = count / borders[-1] if borders[-1] > 0 else 0.0
    even_gaps = len(gaps) > 0 and float(np.abs(gaps - gaps.mean()).max()) <= 1.01
    return FrameTimes(borders, float(fps), constant=even_gaps) if fps else NO_TIMES


def joints(times: Sequence[int | None], time_base: float) -> list[int]:
    """Where another recording begins in packets in the order of decoding: their clock goes back, or far ahead."""
    found = []
    for place in range(1, len(times)):
        before, now = times[place - 1], times[place]
        if before is not None and now is not None and not 0 <= (now - before) * time_base <= _JUMP_SECONDS:
            found.append(place)
    return found
