"""torchcodec: the cheapest reader of many frames, for files whose frames have times of their own.

It needs FFmpeg's shared libraries, and importing it takes some two seconds of each process, so `decoder=auto` leaves it
alone. Frames are those of PyAV to the bit where both use the same FFmpeg (MPEG-4 part 2 may differ by 2 grey levels
between releases of FFmpeg).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

from .answers import Frames, Indices, Refused, reason, scattered
from .damage import refusing_damage
from .packets import VideoStream


def read_with_torchcodec(path: Path | str, stream: VideoStream, wanted: Indices, places: Indices) -> Frames:
    """Returns (C, T, H, W, 3), or refuses; see `read_with_decord` for the arguments."""
    if stream.irregular:
        raise Refused(stream.irregular)
    with refusing_damage(_library()):
        from torchcodec.decoders import VideoDecoder

        reader = VideoDecoder(
            os.path.abspath(path),
            stream_index=stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,  # the workers are the parallelism
        )
        if len(reader) != stream.num_frames:
            raise Refused(f"finds {len(reader)} frames where the file holds {stream.num_frames}")
        return scattered(reader.get_frames_at(wanted.tolist()).data.numpy(), places)


@cache
def _library() -> Any:
    """torchcodec's own library, which is linked to the release of FFmpeg that it found."""
    try:
        import torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        raise Refused(f"not installed ({reason(error)})") from None
    if torchcodec.core_library_path is None:
        raise Refused("finds no shared libraries of FFmpeg; install those of your system")
    return ctypes.CDLL(torchcodec.core_library_path)
