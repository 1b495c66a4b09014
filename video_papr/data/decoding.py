"""From a path and wanted frame indices to uint8 RGB frames: PyAV, or another reader that is asked for by name.

Whatever is asked for, a video is decoded in *one* forward pass: the indices of all clips are merged, sorted
and freed of repeats, and the frames are scattered to the clips afterwards. (Asking decord clip by clip takes
three times as long, because it seeks back.)

All readers number the frames in the order in which they are shown, turn and mirror them by quarter turns as the
display matrix says, keep the stored size (the pixel aspect ratio is ignored), and convert with FFmpeg's default to
full-range RGB. Of several video streams they read the one that FFmpeg ranks best; a still picture yields to a film.
A stream that begins between key frames is read from the first key frame on.

A video is refused rather than shown wrong: truncated files, damaged streams (FFmpeg patches damage over and
goes on; the readers notice), and frames that change size all raise `VideoDecodeError`. What FFmpeg cannot tell
from a healthy file passes: an MPEG-TS or raw stream that was cut off, changed bytes that decode to some picture.

The readers themselves are in `data.readers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, TooLargeError, VideoDecodeError, check_known
from ..core.escape import printable
from .limits import DEFAULT_LIMITS, Limits
from .readers.answers import EndedEarly, Frames, Indices, Refused, Resize, reason
from .readers.decord import read_with_decord
from .readers.packets import VideoStream, read_stream
from .readers.pillow import read_image
from .readers.pyav import read_with_pyav
from .readers.timing import NO_TIMES, FrameTimes
from .readers.torchcodec import read_with_torchcodec

DECODERS = ("auto", "pyav", "decord", "torchcodec", "pillow")
REDUCING = ("auto", "pyav")  # those that can hand over smaller frames than the file holds, and motion vectors


@dataclass(frozen=True)
class DecodedClips:
    """The clips of one video."""

    frames: Frames  # (C, T, H, W, 3) uint8, RGB, upright; (C, T, H, W, 4) with a motion plane
    frame_indices: Indices  # (C, T) int64, which frames of the video these are
    num_video_frames: int  # frames in the whole video
    times: FrameTimes  # when the frames of the whole video are shown
    decoder: str  # "pyav", "decord", "torchcodec" or "pillow", the one that made `frames`

    @property
    def fps(self) -> float:
        """Average frames per second, 0.0 when the file does not say."""
        return self.times.fps

    @property
    def seconds(self) -> NDArray[np.float64] | None:
        """When the frames of each clip are shown, (C, T); None where the file does not say."""
        borders = self.times.borders
        return borders[self.frame_indices] if len(borders) else None


def decode_clips(
    path: Path | str,
    choose: Callable[[int], NDArray[np.integer[Any]]],
    *,
    decoder: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    reduce: Resize | None = None,
    max_bytes: int | None = None,
    motion: bool = False,
) -> DecodedClips:
    """Decodes the clips that `choose` asks for.

    Args:
        choose: called with the number of frames of the video, returns (C, T) frame indices. It is called again
            when decoding shows that there are fewer frames than packets.
        decoder: "pyav" reads every file and was never dearer than decord, so "auto" means it; "decord" and
            "torchcodec" refuse files in which they might find other frames. "pillow" reads an image, which is a video
            of one frame.
        reduce: from the (height, width) of an upright frame to those in which it is handed over; FFmpeg scales
            (bilinear, antialiased) as it converts to RGB. PyAV alone does so.
        max_bytes: of the decoded frames; asked before anything is decoded. None: no limit.
        motion: frames get a fourth channel, how far the codec's vectors say that a pixel moved against the camera; see
            `readers.vectors`. PyAV alone exports vectors.

    Raises:
        TooLargeError: the frames would take more than `max_bytes`.
        VideoDecodeError: the file cannot be decoded; one line that names the path, the decoder and the reason.
        ConfigError: `decoder` is unknown, or cannot `reduce`, or has no `motion`.
        ValueError: `choose` returned something other than (C, T) indices inside the video.
    """
    check_known("dataset.decoder", decoder, DECODERS)
    if reduce is not None and decoder not in REDUCING:
        raise ConfigError(
            f"dataset.decode_size=short_side: dataset.decoder={decoder} reads whole frames; use {' or '.join(REDUCING)}"
        )
    if motion:
        check_exports_vectors(decoder)
    if decoder == "pillow":
        image, wanted = read_image(path, limits), _checked_indices(choose(1), 1)
        clips = np.broadcast_to(image, (*wanted.shape, *image.shape)).copy()
        return DecodedClips(clips, wanted, 1, NO_TIMES, decoder)
    try:
        stream = read_stream(path, limits)
    except VideoDecodeError as error:
        raise VideoDecodeError(f"cannot decode {printable(path)} ({decoder}): {error}") from None

    affordable = partial(_affordable, choose, stream, reduce, max_bytes, motion)
    name = "pyav" if decoder == "auto" else decoder
    readers = {"decord": read_with_decord, "torchcodec": read_with_torchcodec}
    read = readers.get(name, partial(read_with_pyav, reduce=reduce, motion=motion))
    try:
        return _decode_with(read, name, path, stream, affordable)
    except TooLargeError as error:
        raise TooLargeError(error.num_bytes, f"cannot decode {printable(path)}: {error}") from None
    except Refused as refusal:
        hint = "; decoder=auto may read it" if name in readers else ""
        raise VideoDecodeError(f"cannot decode {printable(path)} ({name}: {refusal}){hint}") from None


def check_exports_vectors(decoder: str) -> None:
    """Raises ConfigError unless a decoder may export motion vectors."""
    if decoder not in REDUCING:
        raise ConfigError(
            f"dataset.decoder={decoder}: exports no motion vectors, which the pruner reads; use {' or '.join(REDUCING)}"
        )


def _affordable(
    choose: Callable[[int], NDArray[np.integer[Any]]],
    stream: VideoStream,
    reduce: Resize | None,
    max_bytes: int | None,
    motion: bool,
    num_frames: int,
) -> NDArray[np.integer[Any]]:
    """What `choose` returns. Raises TooLargeError when its frames take too much memory."""
    indices = np.asarray(choose(num_frames))
    height, width = stream.size if reduce is None else reduce(*stream.size)
    unique = np.unique(indices).size
    copies = 0 if unique == indices.size else indices.size  # frames that clips share are copied
    num_bytes = height * width * (4 * indices.size if motion else 3 * (unique + copies))
    if max_bytes is not None and num_bytes > max_bytes:
        raise TooLargeError(
            num_bytes,
            f"its {indices.size} frames of {width}x{height} take {num_bytes // 2**20} MiB, dataset.memory_mb allows "
            f"{max_bytes // 2**20} for one video; dataset.decode_size=short_side takes less",
        )
    return indices


def _decode_with(
    read: Callable[[Path | str, VideoStream, Indices, Indices], Frames],
    name: str,
    path: Path | str,
    stream: VideoStream,
    choose: Callable[[int], NDArray[np.integer[Any]]],
) -> DecodedClips:
    """Runs one reader; raises Refused. A second pass follows when the video proves shorter than its packets."""
    num_frames = stream.num_frames
    for _ in range(2):
        wanted = _checked_indices(choose(num_frames), num_frames)
        unique, inverse = np.unique(wanted, return_inverse=True)
        try:
            clips = read(path, stream, unique, inverse.reshape(wanted.shape))
        except EndedEarly as early:
            # Packed and field-coded streams hold up to two packets per frame. Less than that is a loss.
            if not num_frames <= 2 * early.num_frames < 2 * num_frames:
                raise Refused(f"only {early.num_frames} of {num_frames} frames can be decoded") from None
            num_frames = early.num_frames
        except Exception as error:
            raise Refused(reason(error)) from None
        else:
            times = stream.times.for_frames(num_frames)
            return DecodedClips(clips, wanted, num_frames, times, name)
    raise Refused("the number of frames differs between two passes")


def _checked_indices(indices: NDArray[np.integer[Any]], num_frames: int) -> Indices:
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.size == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices must be integers (clips, frames), got {indices.dtype} {indices.shape}")
    if indices.min() < 0 or indices.max() >= num_frames:
        raise ValueError(f"indices {indices.min()}..{indices.max()} leave the video (0..{num_frames - 1})")
    return indices.astype(np.int64)
