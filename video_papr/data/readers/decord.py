"""decord: a reader for the files in which it finds the same frames as PyAV, to the bit.

decord is imported inside the functions that use it: readers must be opened in the worker process that uses them, after
the fork. This module alone imports it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Frames, Indices, Refused, reason, scattered
from .damage import refusing_damage
from .orientation import AS_STORED
from .packets import VideoStream

# decord can spin for ever on a damaged file. This time plus the length of the video is ample for a healthy one.
_PATIENCE_SECONDS = 30.0
_LONGEST_VIDEO_SECONDS = 3600.0
# Any recovered frame is an error. decord reads 0 as "no limit", so a share that is below one frame says it.
_FAULT_TOLERANCE = 1e-9
# What decord reads as PyAV does, to the bit. In AVI, MPEG-PS and WMV its seeks were seen to return wrong frames
# without an error; pixels of more than 8 bits per channel come out up to 97 grey levels off.
_CONTAINERS = frozenset(["mp4", "matroska", "webm"])
_PIXEL_FORMATS = frozenset(["yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"])


def read_with_decord(path: Path | str, stream: VideoStream, wanted: Indices, places: Indices) -> Frames:
    """Returns (C, T, H, W, 3), or refuses where decord would return wrong frames.

    Args:
        wanted: (n,), ascending indices.
        places: (C, T), which of them the clips consist of.
    """
    if stream.irregular:
        raise Refused(stream.irregular)
    if not stream.is_best:
        raise Refused("reads a still picture instead of the film")
    if stream.interlaced:
        raise Refused("not trusted with the colours of interlaced frames")
    # It knows quarter turns in the head of an MP4, not those in the stream.
    if stream.orientation != AS_STORED:
        raise Refused("not trusted to turn frames")
    if not _CONTAINERS & set(stream.container.split(",")):
        raise Refused(f"not trusted to find frames in {stream.container} files")
    if stream.pixel_format not in _PIXEL_FORMATS:
        raise Refused(f"not trusted with the pixel format {stream.pixel_format}")
    result: list[Frames | str] = []

    def work() -> None:
        try:
            result.append(_frames(path, stream, wanted))
        except Exception as error:
            # Only the text: the error's traceback would keep the reader until the garbage is collected. If that
            # happened in a forked worker, the worker would wait for ever for a thread that was not forked.
            result.append(reason(error))

    with refusing_damage(_library()):
        thread = threading.Thread(target=work, daemon=True, name="decord")
        thread.start()
        patience_seconds = _PATIENCE_SECONDS + min(stream.duration_seconds, _LONGEST_VIDEO_SECONDS)
        thread.join(patience_seconds)
        if not result:
            raise Refused(f"gave no answer within {patience_seconds:.0f} s")
        if isinstance(result[0], str):
            raise Refused(result[0])
    return scattered(result[0], places)


def _library() -> Any:
    try:
        from decord._ffi.base import _LIB
    except (ImportError, OSError) as error:  # no wheel for this machine, or one that does not load
        raise Refused(f"not installed ({reason(error)})") from None
    return _LIB


def _frames(path: Path | str, stream: VideoStream, wanted: Indices) -> Frames:
    import decord

    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=_FAULT_TOLERANCE)
    except decord.DECORDError as error:
        if "cannot find video stream" in str(error):  # there is one, so decord lacks the codec
            raise Refused(f"has no decoder for {stream.codec}") from None
        raise
    if len(reader) != stream.num_frames:
        raise Refused(f"finds {len(reader)} frames where the file holds {stream.num_frames}")
    batch = reader.get_batch(wanted.tolist())
    # The process may have set another bridge than decord's own, which then returns its own kind of tensor.
    return np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)
