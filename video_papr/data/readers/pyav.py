"""PyAV: reads nearly everything, and can hand over smaller frames than the file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .answers import EndedEarly, Frames, Indices, Refused, Resize
from .orientation import Orientation
from .packets import VideoStream, listen_to_ffmpeg, open_container, prepare_decoder
from .vectors import EXPORT, ClipMotion

# Seeking costs PyAV about as much as decoding some frames; below this gain the plain pass is as fast.
_SEEK_GAIN_FRAMES = 50
# Errors of the H.264 decoder that tell of unusual or freshly cut streams rather than of damage.
_HARMLESS_ERRORS = ("mmco:", "co located POCs", "number of reference frames", "Missing reference", "SEI")


def read_with_pyav(
    path: Path | str,
    stream: VideoStream,
    wanted: Indices,
    places: Indices,
    *,
    reduce: Resize | None,
    motion: bool = False,
) -> Frames:
    """Returns (C, T, H, W, 3), or 4 channels with `motion`, see `vectors.ClipMotion`.

    Args:
        wanted: (n,), ascending indices.
        places: (C, T), which of them the clips consist of.
    """
    moving = ClipMotion(places) if motion else None
    if len(stream.keyframes):
        try:
            return _pyav_pass(path, stream, wanted, places, reduce, moving, seek=True)
        except _Missed:
            pass
    return _pyav_pass(path, stream, wanted, places, reduce, moving, seek=False)


class _Missed(Exception):
    """A seek led to frames that their times do not identify."""


def _pyav_pass(
    path: Path | str,
    stream: VideoStream,
    wanted: Indices,
    places: Indices,
    reduce: Resize | None,
    motion: ClipMotion | None,
    *,
    seek: bool,
) -> Frames:
    """One forward pass. With `seek` it jumps to the key frame before a wanted frame when that skips enough."""
    from av.video.reformatter import VideoReformatter

    out: Frames | None = None
    size: tuple[int, int] | None = None
    scaler = VideoReformatter()  # one for all frames: it keeps what it has worked out
    with listen_to_ffmpeg() as log, open_container(path) as container:
        video = container.streams[stream.index]
        prepare_decoder(video, stream.limits)
        if motion is not None:
            video.codec_context.flags2 |= EXPORT
            motion.start()
        del log[:]  # opening a file decodes its first packets, also those that are skipped
        frames = _decoded(container, video, stream.skipped)
        position, jumped = 0, False  # position: index of the frame that comes next
        for slot, target in enumerate(wanted):
            if seek and not (motion is not None and motion.linked[slot]):
                key = int(stream.keyframes[np.searchsorted(stream.keyframes, target, side="right") - 1])
                if key - position >= _SEEK_GAIN_FRAMES:
                    container.seek(int(stream.pts[key]), stream=video, backward=True)
                    frames, jumped = container.decode(video), True
            frame: Any = None
            while position <= target:
                frame = next(frames, None)
                if frame is None:
                    raise _Missed if jumped else EndedEarly(position)
                if jumped:
                    position = _index_of(frame, stream, at_most=int(target))
                size = size or (frame.width, frame.height)
                _check_frame(frame, size)
                if motion is not None:
                    motion.add(frame)
                position += 1
            if motion is not None:
                motion.keep()
            pixels = _rgb(frame, stream.orientation, scaler, reduce)
            if out is None:
                channels = 3 if motion is None else 4
                out = np.empty((*places.shape, *pixels.shape[:2], channels), np.uint8)
            for clip, time in np.argwhere(places == slot):
                out[clip, time, ..., :3] = pixels
        _check_log(log, video.codec_context.codec)
    assert out is not None  # `wanted` is never empty
    if motion is not None:
        motion.fill(out[..., 3], stream.orientation)
    return out


def _check_frame(frame: Any, size: tuple[int, int]) -> None:
    """Refuses a damaged frame and a change of size, also in frames that are only passed on the way."""
    if frame.is_corrupt:
        raise Refused(f"damaged frame at {_seconds(frame)}")
    if (frame.width, frame.height) != size:
        old, new = f"{size[0]}x{size[1]}", f"{frame.width}x{frame.height}"
        raise Refused(f"the frame size changes from {old} to {new} at {_seconds(frame)}")


def _check_log(log: list[tuple[int, str, str]], codec: Any) -> None:
    """Refuses a stream whose decoder reported damage; some decoders do not mark the frame."""
    for _, who, text in log:
        if who.startswith((codec.name, codec.canonical_name)) and not text.startswith(_HARMLESS_ERRORS):
            raise Refused(f"damaged stream ({text.strip()})")


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


def _decoded(container: Any, video: Any, skipped: frozenset[int]) -> Iterator[Any]:
    for number, packet in enumerate(container.demux(video)):
        if number not in skipped:
            yield from packet.decode()


def _rgb(frame: Any, orientation: Orientation, scaler: Any, reduce: Resize | None) -> Frames:
    """A frame as it is shown: turned and mirrored, and in the size that `reduce` asks for."""
    size = None
    if reduce is not None:
        step = -1 if orientation.transpose else 1
        size = reduce(*(frame.height, frame.width)[::step])[::step]
    height, width = size or (frame.height, frame.width)
    return orientation.apply(
        scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
    )
