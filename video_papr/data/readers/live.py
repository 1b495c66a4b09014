"""Live sources: a webcam, the screen, a network stream or a pipe, opened with FFmpeg and read frame by frame."""

from __future__ import annotations

import os
import platform
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from ...core.errors import ConfigError, VideoDecodeError
from ...core.escape import printable
from ..limits import CONTAINER_OPTIONS, DEFAULT_LIMITS, Limits
from .answers import Frames, reason
from .packets import prepare_decoder

TIMEOUT_SECONDS = 10.0  # for an address to answer, and for its next packet
LONGEST_GAP = 10.0  # seconds between two frames; what is longer, or negative, is a clock that was set
ADDRESS = r"(rtsps?|rtmps?|rtp|udp|tcp|mmsh?)://|https?://[^?#]*\.(m3u8|mpd)\b"


@dataclass(frozen=True)
class LiveSource:
    """What FFmpeg opens: an address or device, the format where it cannot tell, and options of that format."""

    url: str
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def live_source(video: str) -> LiveSource | None:
    """What a word names: a webcam (`0`, `/dev/video0`), `screen`, an address (rtsp://...), a pipe; None: none of these.

    Raises ConfigError: this system has no such source.
    """
    if re.fullmatch(r"\d{1,3}", video) and not os.path.exists(video):
        if platform.system() == "Linux":
            return live_source(f"/dev/video{video}")
        if platform.system() == "Darwin":
            return LiveSource(video, "avfoundation", {"framerate": "30"})
        raise ConfigError(
            f"video={video}: webcams are opened on Linux and macOS; elsewhere use Pipeline.stream()"
        )
    if video.startswith("/dev/video"):
        if not os.path.exists(video):
            raise ConfigError(f"video={video}: there is no such webcam")
        return LiveSource(video, "v4l2")
    if video == "screen" and not os.path.exists(video):
        if not (display := os.environ.get("DISPLAY")):
            raise ConfigError("video=screen: needs an X display, and DISPLAY is not set")
        return LiveSource(display, "x11grab", {"framerate": "15"})
    if re.match(ADDRESS, video):
        return LiveSource(video)
    with suppress(OSError, ValueError):
        if stat.S_ISFIFO(os.stat(video).st_mode):
            return LiveSource(video, options=CONTAINER_OPTIONS)  # what comes through it names no other files
    return None


def read_live(source: LiveSource, limits: Limits = DEFAULT_LIMITS) -> Iterator[tuple[float, Frames]]:
    """Yields (seconds since the first frame, frame (H, W, 3) uint8 RGB) as they come; damaged frames are left out.

    Raises VideoDecodeError: the source cannot be opened, has no picture, or ends with an error.
    """
    import av

    try:
        container = av.open(
            source.url,
            format=source.format,
            options=source.options,
            timeout=TIMEOUT_SECONDS,
            metadata_errors="ignore",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoDecodeError(f"cannot open {printable(source.url)}: {reason(error)}") from None
    with container:
        if not container.streams.video:
            raise VideoDecodeError(f"{printable(source.url)} has no video stream")
        stream = container.streams.video[0]
        limits.check_size(stream.width, stream.height)
        prepare_decoder(stream, limits)
        try:
            yield from _timed(_decoded(container, stream), limits)
        except (av.FFmpegError, OSError) as error:
            raise VideoDecodeError(f"{printable(source.url)} ended: {reason(error)}") from None


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    import av

    for packet in container.demux(stream):
        with suppress(av.error.InvalidDataError):  # the next key frame mends it
            yield from (frame for frame in packet.decode() if not frame.is_corrupt)


def _timed(frames: Iterator[Any], limits: Limits) -> Iterator[tuple[float, Frames]]:
    last, shift = 0.0, None
    for frame in frames:
        limits.check_size(frame.width, frame.height)
        told = perf_counter() if frame.time is None else frame.time
        if shift is None:
            shift = -told
        elif not 0 < told + shift - last < LONGEST_GAP:
            shift = last + 0.04 - told
        last = told + shift
        yield last, frame.to_ndarray(format="rgb24")
