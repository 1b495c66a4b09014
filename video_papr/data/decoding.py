"""From a path and wanted frame indices to uint8 RGB frames: decord, with PyAV for the files that decord cannot read.

Whatever is asked for, a video is decoded in *one* forward pass: the indices of all clips are merged, sorted
and freed of repeats, and the frames are scattered to the clips afterwards. (Asking decord clip by clip takes
three times as long, because it seeks back.)

Both readers number the frames in the order in which they are shown, turn them upright when the file says that
the camera was turned by a multiple of 90 degrees, keep the stored size (the pixel aspect ratio is ignored),
and convert with FFmpeg's default to full-range RGB. Of several video streams they read the one that FFmpeg
ranks best.

A video is refused rather than shown wrong: truncated files, damaged streams (FFmpeg patches damage over and
goes on; both readers notice), and frames that change size all raise `VideoDecodeError`. What FFmpeg cannot tell
from a healthy file passes: an MPEG-TS or raw stream that was cut off, a flipped bit that decodes to some picture.

Both libraries are imported inside the functions that use them: readers must be opened in the worker process
that uses them, after the fork. This module alone imports decord.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, VideoDecodeError, printable
from .images import read_image
from .limits import DEFAULT_LIMITS, Limits
from .streams import (
    VideoStream,
    best_video_stream,
    listen_to_ffmpeg,
    open_container,
    read_stream,
)

DECODERS = ("auto", "decord", "pyav", "pillow")
REDUCING = ("auto", "pyav")  # those that can hand over smaller frames than the file holds

Frames = NDArray[np.uint8]
Indices = NDArray[np.int64]
Resize = Callable[[int, int], tuple[int, int]]

# Seeking costs PyAV about as much as decoding some frames; below this gain the plain pass is as fast.
_SEEK_GAIN_FRAMES = 50
# decord can spin for ever on a damaged file. This time plus the length of the video is ample for a healthy one.
_DECORD_PATIENCE_SECONDS = 30.0
_LONGEST_VIDEO_SECONDS = 3600.0
# Any recovered frame is an error. decord reads 0 as "no limit", so a share that is below one frame says it.
_DECORD_FAULT_TOLERANCE = 1e-9
# What decord reads as PyAV does, to the bit. In AVI, MPEG-PS and WMV its seeks were seen to return wrong frames
# without an error; pixels of more than 8 bits per channel come out up to 97 grey levels off.
_DECORD_CONTAINERS = frozenset(["mp4", "matroska", "webm"])
_DECORD_PIXEL_FORMATS = frozenset(
    ["yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"]
)
# Errors of the H.264 decoder that tell of unusual or freshly cut streams rather than of damage.
_HARMLESS_ERRORS = ("mmco:", "co located POCs", "number of reference frames", "Missing reference", "SEI")
_AV_LOG_ERROR = 16
# [23:03:11] /github/workspace/src/video/video_reader.cc:270: [take 2.mp4]
_DECORD_PREFIX = re.compile(r"\[[\d:]+\] \S+\.(cc|h):\d+: (\[.*?\] ?)?")


@dataclass(frozen=True)
class DecodedClips:
    """The clips of one video.

    Attributes:
        frames: (C, T, H, W, 3) uint8, RGB, upright.
        frame_indices: (C, T) int64, which frames of the video these are.
        num_video_frames: frames in the whole video.
        fps: average frames per second, 0.0 when the file does not say.
        decoder: "decord", "pyav" or "pillow", the one that made `frames`.
    """

    frames: Frames
    frame_indices: Indices
    num_video_frames: int
    fps: float
    decoder: str


def decode_clips(
    path: Path | str,
    choose: Callable[[int], NDArray[np.integer[Any]]],
    *,
    decoder: str = "auto",
    limits: Limits = DEFAULT_LIMITS,
    reduce: Resize | None = None,
) -> DecodedClips:
    """Decodes the clips that `choose` asks for.

    Args:
        path: a video file.
        choose: called with the number of frames of the video, returns (C, T) frame indices. It is called again
            when the next reader is asked, and when decoding shows that there are fewer frames than packets.
        decoder: "decord" or "pyav"; "auto" asks decord and, if it refuses the file, PyAV. "pillow" reads an image,
            which is a video of one frame.
        limits: what is refused before it is decoded.
        reduce: from the (height, width) of an upright frame to those in which it is handed over; FFmpeg scales
            (bilinear, antialiased) as it converts to RGB. PyAV alone does so, hence "auto" means "pyav" here: decord
            wants the size before it says whether the video is turned.

    Raises:
        VideoDecodeError: the file cannot be decoded; one line that names the path, the decoders tried and the
            reason.
        ConfigError: `decoder` is unknown, or cannot `reduce`.
        ValueError: `choose` returned something other than (C, T) indices inside the video.
    """
    if decoder not in DECODERS:
        raise ConfigError(f"dataset.decoder={decoder!r} is unknown; use one of {', '.join(DECODERS)}")
    if reduce is not None and decoder not in REDUCING:
        raise ConfigError(
            f"dataset.decode_size=short_side: dataset.decoder={decoder} reads whole frames; use {' or '.join(REDUCING)}"
        )
    if decoder == "pillow":
        image = read_image(path, limits)
        wanted = _checked_indices(choose(1), 1)
        return DecodedClips(
            np.broadcast_to(image, (*wanted.shape, *image.shape)).copy(), wanted, 1, 0.0, decoder
        )
    try:
        stream = read_stream(path, limits)
    except Exception as error:
        raise VideoDecodeError(f"cannot decode {printable(path)} ({decoder}): {_reason(error)}") from None

    reasons = []
    if reduce is not None:
        decoder = "pyav"
    for name in ("decord", "pyav") if decoder == "auto" else (decoder,):
        read = _read_with_decord if name == "decord" else partial(_read_with_pyav, reduce=reduce)
        try:
            return _decode_with(read, name, path, stream, choose)
        except _Refused as refusal:
            reasons.append(f"{name}: {refusal}")
    hint = "; decoder=auto or pyav may read it" if decoder == "decord" else ""
    raise VideoDecodeError(f"cannot decode {printable(path)} ({'; '.join(reasons)}){hint}")


class _Refused(Exception):
    """A reader cannot decode the file; the text is the reason."""


class _EndedEarly(Exception):
    """The decoder showed only `num_frames` frames."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(f"only {num_frames} frames can be decoded")
        self.num_frames = num_frames


_Reader = Callable[[Path | str, VideoStream, Indices], Frames]


def _decode_with(
    read: _Reader,
    name: str,
    path: Path | str,
    stream: VideoStream,
    choose: Callable[[int], NDArray[np.integer[Any]]],
) -> DecodedClips:
    """Runs one reader; raises _Refused. A second pass follows when the video proves shorter than its packets."""
    num_frames = stream.num_frames
    for _ in range(2):
        wanted = _checked_indices(choose(num_frames), num_frames)
        unique, inverse = np.unique(wanted, return_inverse=True)
        try:
            frames = read(path, stream, unique)
        except _EndedEarly as early:
            # Packed and field-coded streams hold up to two packets per frame. Less than that is a loss.
            if not num_frames <= 2 * early.num_frames < 2 * num_frames:
                raise _Refused(f"only {early.num_frames} of {num_frames} frames can be decoded") from None
            num_frames = early.num_frames
        except Exception as error:
            raise _Refused(_reason(error)) from None
        else:
            return DecodedClips(frames[inverse.reshape(wanted.shape)], wanted, num_frames, stream.fps, name)
    raise _Refused("the number of frames differs between two passes")


def _checked_indices(indices: NDArray[np.integer[Any]], num_frames: int) -> Indices:
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.size == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices must be integers (clips, frames), got {indices.dtype} {indices.shape}")
    if indices.min() < 0 or indices.max() >= num_frames:
        raise ValueError(f"indices {indices.min()}..{indices.max()} leave the video (0..{num_frames - 1})")
    return indices.astype(np.int64)


# PyAV


def _read_with_pyav(
    path: Path | str, stream: VideoStream, wanted: Indices, *, reduce: Resize | None
) -> Frames:
    """Returns (len(wanted), H, W, 3) for ascending indices."""
    if len(stream.keyframes):
        try:
            return _pyav_pass(path, stream, wanted, reduce, seek=True)
        except _Missed:
            pass
    return _pyav_pass(path, stream, wanted, reduce, seek=False)


class _Missed(Exception):
    """A seek led to frames that their times do not identify."""


def _pyav_pass(
    path: Path | str, stream: VideoStream, wanted: Indices, reduce: Resize | None, *, seek: bool
) -> Frames:
    """One forward pass. With `seek` it jumps to the key frame before a wanted frame when that skips enough."""
    from av.video.reformatter import VideoReformatter

    out: Frames | None = None
    size: tuple[int, int] | None = None
    scaler = VideoReformatter()  # one for all frames: it keeps what it has worked out
    with listen_to_ffmpeg() as log, open_container(path) as container:
        video = best_video_stream(container)
        video.thread_type, video.codec_context.thread_count = "NONE", 1  # the workers are the parallelism
        if stream.limits.max_pixels is not None:
            video.codec_context.options = {"max_pixels": str(stream.limits.max_pixels)}
        frames = container.decode(video)
        position, jumped = 0, False  # position: index of the frame that comes next
        for slot, target in enumerate(wanted):
            if seek:
                key = int(stream.keyframes[np.searchsorted(stream.keyframes, target, side="right") - 1])
                if key - position >= _SEEK_GAIN_FRAMES:
                    container.seek(int(stream.pts[key]), stream=video, backward=True)
                    frames, jumped = container.decode(video), True
            frame: Any = None
            while position <= target:
                frame = next(frames, None)
                if frame is None:
                    raise _Missed if jumped else _EndedEarly(position)
                if jumped:
                    position = _index_of(frame, stream, at_most=int(target))
                size = size or (frame.width, frame.height)
                _check_frame(frame, size)
                position += 1
            pixels = _upright(_rgb(frame, scaler, reduce), frame.rotation)
            if out is None:
                out = np.empty((len(wanted), *pixels.shape), dtype=np.uint8)
            out[slot] = pixels
        _check_log(log, video.codec_context.codec)
    assert out is not None  # `wanted` is never empty
    return out


def _check_frame(frame: Any, size: tuple[int, int]) -> None:
    """Refuses a damaged frame and a change of size, also in frames that are only passed on the way."""
    if frame.is_corrupt:
        raise _Refused(f"damaged frame at {_seconds(frame)}")
    if (frame.width, frame.height) != size:
        old, new = f"{size[0]}x{size[1]}", f"{frame.width}x{frame.height}"
        raise _Refused(f"the frame size changes from {old} to {new} at {_seconds(frame)}")


def _check_log(log: list[tuple[int, str, str]], codec: Any) -> None:
    """Refuses a stream whose decoder reported damage; some decoders do not mark the frame."""
    for _, who, text in log:
        if who.startswith((codec.name, codec.canonical_name)) and not text.startswith(_HARMLESS_ERRORS):
            raise _Refused(f"damaged stream ({text.strip()})")


def _seconds(frame: Any) -> str:
    return "an unknown time" if frame.time is None else f"{frame.time:.2f} s"


def _index_of(frame: Any, stream: VideoStream, *, at_most: int) -> int:
    """The index of a frame by its time, after a seek. Raises _Missed if it is none, or lies behind the wanted one."""
    if frame.pts is None:
        raise _Missed
    index = int(np.searchsorted(stream.pts, frame.pts))
    if index > at_most or stream.pts[index] != frame.pts:
        raise _Missed
    return index


def _rgb(frame: Any, scaler: Any, reduce: Resize | None) -> Frames:
    """A frame as it is stored, in the size that `reduce` asks for once it is upright."""
    if reduce is not None:
        step = -1 if frame.rotation % 180 == 90 else 1
        stored = (frame.height, frame.width)
        asked = reduce(*stored[::step])[::step]
        if asked != stored:
            scaled = scaler.reformat(frame, asked[1], asked[0], "rgb24", interpolation="BILINEAR")
            return scaled.to_ndarray()
    return frame.to_ndarray(format="rgb24")


def _upright(pixels: Frames, rotation: int) -> Frames:
    """Turns a frame by FFmpeg's `rotation` (degrees counterclockwise); other angles than quarter turns are ignored."""
    return np.rot90(pixels, rotation // 90 % 4) if rotation % 90 == 0 else pixels


# decord


def _read_with_decord(path: Path | str, stream: VideoStream, wanted: Indices) -> Frames:
    """Returns (len(wanted), H, W, 3) for ascending indices, or refuses where decord would return wrong frames."""
    if stream.irregular:
        raise _Refused(stream.irregular)
    if not _DECORD_CONTAINERS & set(stream.container.split(",")):
        raise _Refused(f"not trusted to find frames in {stream.container} files")
    if stream.pixel_format not in _DECORD_PIXEL_FORMATS:
        raise _Refused(f"not trusted with the pixel format {stream.pixel_format}")
    result: list[Frames | str] = []

    def work() -> None:
        try:
            result.append(_decord_frames(path, stream, wanted))
        except Exception as error:
            # Only the text: the error's traceback would keep the reader until the garbage is collected. If that
            # happened in a forked worker, the worker would wait for ever for a thread that was not forked.
            result.append(_reason(error))

    with _decord_lock:
        _decord_complaints.clear()
        thread = threading.Thread(target=work, daemon=True, name="decord")
        thread.start()
        patience_seconds = _DECORD_PATIENCE_SECONDS + min(stream.duration_seconds, _LONGEST_VIDEO_SECONDS)
        thread.join(patience_seconds)
        complaints = list(_decord_complaints)
    if not result:
        raise _Refused(f"gave no answer within {patience_seconds:.0f} s")
    if isinstance(result[0], str):
        raise _Refused(result[0])
    if complaints:
        raise _Refused(f"damaged stream ({complaints[0]})")
    return result[0]


def _decord_frames(path: Path | str, stream: VideoStream, wanted: Indices) -> Frames:
    try:
        import decord
    except (ImportError, OSError) as error:  # no wheel for this machine, or one that does not load
        raise _Refused(f"not installed ({_reason(error)})") from None

    _listen_to_decord()
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=_DECORD_FAULT_TOLERANCE)
    except decord.DECORDError as error:
        if "cannot find video stream" in str(
            error
        ):  # there is one, so it must be the codec that decord lacks
            raise _Refused(f"has no decoder for {stream.codec}") from None
        raise
    if len(reader) != stream.num_frames:
        raise _Refused(f"finds {len(reader)} frames where the file holds {stream.num_frames}")
    batch = reader.get_batch(wanted.tolist())
    # The process may have set another bridge than decord's own, which then returns its own kind of tensor.
    return np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)


# decord patches damaged frames over and says nothing: 100 flipped bits in a file of 303 frames came back as
# 303 frames that were up to 84 grey levels off on average. The FFmpeg inside decord knows, and tells its log;
# so listen to that log. It is one log per process, hence the lock.
_decord_lock = threading.Lock()
_decord_complaints: list[str] = []
_decord_listener: list[Any] = []  # keeps the callback alive as long as FFmpeg may call it
_COMPLAINTS_BELOW_ERROR = (b"concealing", b"Changing frame properties", b"Changing video frame properties")


def _listen_to_decord() -> None:
    """Sends the log of decord's FFmpeg to `_decord_complaints` instead of stderr."""
    if _decord_listener:
        return
    from decord._ffi.base import _LIB

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def listen(_context: int, level: int, template: bytes, _arguments: int) -> None:
        if level <= _AV_LOG_ERROR or template.startswith(_COMPLAINTS_BELOW_ERROR):
            _decord_complaints.append(template.split(b"%")[0].decode("ascii", "replace").strip(" :,\n"))

    try:
        set_callback = _LIB.av_log_set_callback  # found in the libraries to which decord's own is linked
    except AttributeError:
        raise _Refused("this build of decord hides damage to a stream") from None
    set_callback(listen)
    _decord_listener.append(listen)


# Reasons


def _reason(error: BaseException) -> str:
    """What went wrong, in one short line, without the path that FFmpeg repeats and decord's place in its source."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = _DECORD_PREFIX.sub("", " ".join(str(text).split()))
    return text if len(text) <= 200 else text[:197] + "..."
