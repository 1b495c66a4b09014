"""Videos as samples: a torch dataset that decodes one video per item and never stops a run over a bad one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..core.errors import ConfigError, VideoDecodeError, check_known
from .annotations import (
    OnInvalid,
    VideoList,
    inside_root,
    read_csv,
    read_folder,
    read_hmdb51,
    read_kinetics,
    read_ssv2,
    read_ucf101,
    refuse,
)
from .clip_cache import ClipCache
from .decoding import DECODERS, check_exports_vectors, decode_clips
from .limits import DEFAULT_LIMITS, Limits
from .readers.answers import Resize


@dataclass
class VideoSample:
    """One decoded video, or the reason why there is none.

    Letters: C clips, T frames per clip, H x W the size of the video.

    Attributes:
        frames: (C, T, H, W, 3 or, with motion, 4) uint8.
        decode_ms: time that opening, decoding and handing frames over took, of failed attempts too; with `views`, when
            they were made.
        frame_indices: (C, T) int64, which frames of the video `frames` holds, or None. A numpy array, because every
            tensor that a worker sends takes one more open file.
        views: (V, T, S, S, 3) uint8, resized and cropped, where a clip cache had them; otherwise None.
    """

    index: int  # place in the dataset
    name: str  # path as users see it
    label: int  # index of the class
    frames: Tensor | None  # None when `error` is set or `views` are there
    error: str | None  # why the video could not be decoded, one line, or None
    decode_ms: float
    frame_indices: NDArray[np.int64] | None
    num_video_frames: int  # frames in the whole video, 0 when unknown
    fps: float  # average frames per second of the video, 0.0 when unknown
    views: Tensor | None = None
    preprocess_ms: float = 0.0  # with `views`, what resizing and cropping took when they were made
    video_size: tuple[int, int] | None = None  # with `views`, the (H, W) of the video; see `size`
    cache_key: str | None = None  # under which the views may be kept; None without a clip cache
    needed_bytes: int = 0  # what decoding it takes, where it failed for that; otherwise 0

    @property
    def num_bytes(self) -> int:
        """What its frames or views take in memory."""
        return sum(part.nbytes for part in (self.frames, self.views) if part is not None)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the video, as it was decoded; None when `error` is set."""
        if self.frames is None:
            return self.video_size
        return self.frames.shape[2], self.frames.shape[3]

    def pin_memory(self) -> VideoSample:
        """Copies the frames to page-locked memory; the data loader calls this."""
        frames, views = (None if part is None else part.pin_memory() for part in (self.frames, self.views))
        return replace(self, frames=frames, views=views)


class VideoDataset(Dataset[VideoSample]):
    """Decodes the clips of one video per item.

    A video that cannot be decoded (also one that is deleted while the run goes on) gives a sample with
    `error` set. It is never replaced by another video, and never raised.

    Args:
        videos: what to decode; `videos.missing` plays no part here. What `videos.unreadable` holds is not tried: its
            samples carry the reason.
        sampler: from the number of frames of a video to (C, T) frame indices. To go to spawned workers it
            must pickle: use functools.partial, not a lambda.
        reduce: in which size frames are decoded, see `decode_clips`; it must pickle too. None: their own.
        memory_mb: MiB for all decoded frames that `iter_samples` has in memory at once; a video whose frames take
            more than half of it fails with that reason. None: no limit.
        motion: frames have a fourth channel, the motion plane, see `decode_clips`.
    """

    def __init__(
        self,
        videos: VideoList,
        sampler: Callable[[int], NDArray[np.int64]],
        *,
        decoder: str = "auto",
        cache: ClipCache | None = None,
        limits: Limits = DEFAULT_LIMITS,
        reduce: Resize | None = None,
        memory_mb: int | None = None,
        motion: bool = False,
    ) -> None:
        check_known("dataset.decoder", decoder, DECODERS)
        self.videos, self.sampler, self.decoder, self.cache = videos, sampler, decoder, cache
        if motion:
            check_exports_vectors(decoder)
        self.limits, self.reduce, self.memory_mb, self.motion = limits, reduce, memory_mb, motion

    def __len__(self) -> int:
        return len(self.videos.records)

    def __getitem__(self, index: int) -> VideoSample:
        return self.read(index)

    @property
    def max_video_bytes(self) -> int | None:
        """What the frames of one video may take."""
        return None if self.memory_mb is None else self.memory_mb * 2**19

    def read(self, index: int, max_bytes: int | None = None) -> VideoSample:
        """The sample of a video, with less memory (bytes) than that of the dataset."""
        record = self.videos.records[index]
        nothing = VideoSample(index, record.name, record.label, None, None, 0.0, None, 0, 0.0)
        if record.name in self.videos.unreadable:
            return replace(nothing, error=self.videos.unreadable[record.name])
        key = None if self.cache is None else self.cache.key(record.path)
        cached = self.cache.load(key) if self.cache is not None and key is not None else None
        if cached is not None:
            return replace(nothing, **{**vars(cached), "views": torch.from_numpy(cached.views)})
        start = time.perf_counter()
        try:
            clips = decode_clips(
                record.path,
                self.sampler,
                decoder=self.decoder,
                limits=self.limits,
                reduce=self.reduce,
                motion=self.motion,
                max_bytes=self.max_video_bytes if max_bytes is None else max_bytes,
            )
        except VideoDecodeError as error:
            elapsed_ms, needed = 1e3 * (time.perf_counter() - start), getattr(error, "num_bytes", 0)
            return replace(nothing, error=str(error), decode_ms=elapsed_ms, needed_bytes=needed)
        return replace(
            nothing,
            frames=torch.from_numpy(clips.frames),
            decode_ms=1e3 * (time.perf_counter() - start),
            frame_indices=clips.frame_indices,
            num_video_frames=clips.num_video_frames,
            fps=clips.fps,
            cache_key=key,
        )


def in_groups(
    samples: Iterable[VideoSample], size: int, full: float = math.inf
) -> Iterator[list[VideoSample]]:
    """Takes `size` videos at a time, or fewer once their frames take `full` bytes; the last group may be smaller."""
    group: list[VideoSample] = []
    for sample in samples:
        group.append(sample)
        del sample
        if len(group) == size or sum(held.num_bytes for held in group) >= full:
            yield group
            group = []  # nothing here may keep frames that the caller has done with
    if group:
        yield group


def build_video_list(
    name: str,
    *,
    root: Path | str,
    annotations: Path | str | None = None,
    class_names: Sequence[str] | None = None,
    split: str = "test",
    fold: int = 1,
    allow_outside_root: bool = True,
    on_invalid: OnInvalid = refuse,
) -> VideoList:
    """Reads the videos of a dataset.

    Args:
        name: "folder", "csv", "k400", ...; the readers in `annotations/` say what each of them understands.
        annotations: the list; "csv" and "ssv2" need it, "folder" has none, the others may have it.
        split, fold: which of the split files of "hmdb51".
        allow_outside_root: whether paths and links may lead out of `root`.

    Raises:
        ConfigError: `name` is unknown, or an argument does not go with it.
        DataError: the dataset is absent or wrong.
    """
    named: dict[str, Any] = {"class_names": class_names, "on_invalid": on_invalid}

    def read_list() -> VideoList:
        return read_csv(annotations or "", root, **named)

    readers: dict[str, Callable[[], VideoList]] = {
        "folder": lambda: read_folder(root, **named),
        "csv": read_list,
        "k400": lambda: read_kinetics(root, annotations, **named),
        "ssv2": lambda: read_ssv2(root, annotations or "", **named),
        "ucf101": lambda: read_ucf101(root, annotations, **named),
        "hmdb51": lambda: read_hmdb51(root, annotations, split=split, fold=fold, **named),
        "images": lambda: read_folder(root, images=True, **named) if annotations is None else read_list(),
    }
    check_known("dataset", name, readers)
    if name in ("csv", "ssv2") and annotations is None:
        raise ConfigError(f"dataset.annotations is not set; dataset={name} needs a list of videos and labels")
    if name == "folder" and annotations is not None:
        raise ConfigError(
            f"dataset.annotations={annotations} has no use with dataset=folder; use dataset=csv"
        )
    videos = readers[name]()
    return videos if allow_outside_root else inside_root(videos, Path(root), on_invalid)


def limit_videos(videos: VideoList, limit: int) -> VideoList:
    """Keeps a random subset of `limit` videos, always the same one, in the order of the list.

    The first `limit` videos would not do: lists are often sorted by class. Missing videos are not drawn from.

    Raises ConfigError: `limit` is below 1.
    """
    if limit < 1:
        raise ConfigError(f"dataset.limit={limit} must be at least 1, or null for all videos")
    if limit >= len(videos.records):
        return videos
    chosen = np.sort(np.random.default_rng(0).permutation(len(videos.records))[:limit])
    return replace(videos, records=tuple(videos.records[i] for i in chosen))
