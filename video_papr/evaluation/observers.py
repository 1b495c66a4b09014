"""Observers (callbacks) of an evaluation: progress bar, clip cache, pictures and extra metrics. `Journal` is one too.

Letters: V views of a video, T frames, S x S pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from ..core.console import warn
from ..core.pixels import frames_without_vectors
from ..core.types import TokenSelection
from ..data.clip_cache import CachedViews, ClipCache
from ..data.datasets import VideoSample
from .answers import Evaluation, Example, VideoAnswer


@dataclass(frozen=True)
class AnsweredVideo:
    """One video that was answered: its sample, its views (V, T, S, S, 3) uint8 on the device, what each of them kept
    (None: all), and the answer."""

    sample: VideoSample
    views: Tensor
    selection: TokenSelection | None
    answer: VideoAnswer


class Observer:
    """Sees an evaluation as it goes on, video by video in the order of the dataset. Override what you need."""

    def on_views(self, sample: VideoSample, views: Tensor, preprocess_ms: float) -> None:
        """A video was decoded and cut into views (V, T, S, S, 3) uint8, which took so many milliseconds."""

    def on_video(self, video: AnsweredVideo, part: Evaluation) -> None:
        """A video was answered; `part` is the batch that it belongs to."""

    def on_batch(self, part: Evaluation) -> None:
        """A batch is finished, with the answers to all its videos, failed ones too."""

    def on_smaller_batch(self, asked: int, size: int) -> None:
        """Memory ran out with `asked` views at a time; the evaluation goes on with `size`."""


class Progress(Observer):
    """A progress bar with running top-1 and the number of failed videos, and a line where memory ran out."""

    def __init__(self, total: int, *, show: bool = True, what: str | None = None) -> None:
        quiet = not sys.stderr.isatty()  # in a log file a line every ten seconds is enough
        self._bar = tqdm(
            total=total, desc=what, unit="video", disable=not show, mininterval=10 if quiet else 0.2
        )
        self._correct = self._failed = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def on_batch(self, part: Evaluation) -> None:
        for answer in part.answers:
            self._failed += answer.top5 is None
            self._correct += answer.top5 is not None and answer.top5[0] == answer.label
            self._bar.update()
        top1 = 100 * self._correct / max(self._bar.n, 1)
        self._bar.set_postfix_str(f"top-1 {top1:.1f} %, failed {self._failed}", refresh=False)

    def on_smaller_batch(self, asked: int, size: int) -> None:
        warn(f"runtime.batch_size={asked}: out of memory; the run goes on with {size} views at a time")


class KeepViews(Observer):
    """Stores the views of decoded videos in a clip cache."""

    def __init__(self, cache: ClipCache) -> None:
        self.cache = cache

    def on_views(self, sample: VideoSample, views: Tensor, preprocess_ms: float) -> None:
        if sample.cache_key is None:
            return
        assert sample.frame_indices is not None and sample.size is not None
        entry = CachedViews(
            views=views.cpu().numpy(),
            frame_indices=sample.frame_indices,
            num_video_frames=sample.num_video_frames,
            fps=sample.fps,
            video_size=sample.size,
            decode_ms=sample.decode_ms,
            preprocess_ms=preprocess_ms,
        )
        self.cache.store(sample.cache_key, entry)


class Pictures(Observer):
    """Keeps the first view of some videos (places in the dataset) for the picture of kept tubelets."""

    def __init__(self, places: Collection[int]) -> None:
        self.places = places

    def on_video(self, video: AnsweredVideo, part: Evaluation) -> None:
        if video.selection is not None and video.sample.index in self.places:
            mask = video.selection.mask()[0]
            part.examples.append(Example(video.answer, video.views[0].cpu(), mask.cpu()))


class ExtraMetric(Observer):
    """A metric of your own: a number for each video, whose mean stands in results.json under its name.

    Args:
        name: key in results.json.
        measure: (sample, what each view kept) -> the number; None where there is none.
        dense: the value of the dense model, which keeps everything.
    """

    def __init__(
        self,
        name: str,
        measure: Callable[[VideoSample, TokenSelection], float | None],
        *,
        dense: float | None = None,
    ) -> None:
        self.name, self.measure, self.dense = name, measure, dense

    def on_video(self, video: AnsweredVideo, part: Evaluation) -> None:
        if video.selection is not None:
            video.answer.extra[self.name] = self.measure(video.sample, video.selection)


class WithoutVectors(ExtraMetric):
    """How many frames of a view had no motion vectors, for a pruner that reads them; the mean over a video's views."""

    def __init__(self) -> None:
        super().__init__("frames_without_vectors", lambda sample, selection: None)

    def on_video(self, video: AnsweredVideo, part: Evaluation) -> None:
        video.answer.extra[self.name] = frames_without_vectors(video.views)
