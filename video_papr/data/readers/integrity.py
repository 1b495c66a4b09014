"""Stream integrity: damage and losses that the packets of a file show, and whether their times name the frames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import VideoDecodeError

_CANDID_CONTAINERS = frozenset(["matroska,webm", "avi", "ogg"])
# FFmpeg's flags of raw streams, and of formats whose clock may jump.
_AVFMT_NOTIMESTAMPS, _AVFMT_TS_DISCONT = 0x80, 0x200


@dataclass(frozen=True)
class Packet:
    """A packet of the stream; `number` counts them from the start of the file."""

    number: int
    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


def is_transport(container: Any) -> bool:
    """Whether the format was made for broadcasts: it may begin anywhere, and its clock may jump."""
    return bool(container.format.flags & _AVFMT_TS_DISCONT)


def check_damage(packets: Sequence[Packet], starts: Collection[int], container: Any) -> None:
    """Refuses packets that are marked as damaged, except where recordings were joined.

    In a transport stream, FFmpeg marks what comes before a gap in the packets' counters. When a key frame or another
    recording follows, nothing else depends on it, and the decoder is left to say whether it is whole.
    """
    for place, packet in enumerate(packets):
        if packet.is_corrupt:
            follow = range(place + 1, min(place + 3, len(packets)))
            joined = any(packets[k].is_keyframe or k in starts for k in follow)
            if not (joined and is_transport(container)):
                raise VideoDecodeError(f"packet {packet.number} is damaged or cut off")


def check_promises(
    missing: int, container: Any, stream: Any, packets: Sequence[Packet], found_seconds: float
) -> None:
    """Refuses a file that lost frames.

    A file that lacks bytes did, unless its table of frames says that all are there. A wrong count alone, in a
    file that is complete, is damaged metadata, and what is there counts; but in MP4 the count comes from the table
    that finds the frames, so when the duration falls short as well, frames cannot be found.
    """
    left = f"{len(packets)} of {stream.frames} promised frames are left"
    if missing and len(packets) < stream.frames:
        raise VideoDecodeError(f"truncated: {missing} bytes are missing, {left}")
    if missing and not stream.frames:
        raise VideoDecodeError(f"truncated: {missing} bytes are missing")
    promised = float((stream.duration or 0) * stream.time_base)
    if "mp4" in container.format.name and len(packets) < stream.frames and found_seconds < 0.95 * promised:
        raise VideoDecodeError(f"damaged: {left}")


def check_log(log: list[tuple[int, str, str]], container: Any) -> None:
    """Refuses files inside which FFmpeg skipped damage, where it tells. (Its MP4 reader reports trifles too.)"""
    if container.format.name in _CANDID_CONTAINERS:
        for _, who, text in log:
            if who == container.format.name:
                raise VideoDecodeError(f"damaged file ({text.strip()})")


def irregularity(
    container: Any,
    stream: Any,
    packets: Sequence[Packet],
    shown: Sequence[Packet],
    *,
    skipped: bool,
    joined: bool,
) -> str | None:
    """Says why presentation times do not name the frames of this file, or None.

    Such files are read from the start to the last frame that is wanted. decord is not asked: it finds frames by
    these times and by the places of key frames, and where the two disagree it returns other frames than those
    asked for, without an error.
    """
    if len(shown) < len(packets):
        return f"an edit list hides {len(packets) - len(shown)} of {len(packets)} frames"
    if joined:
        return "several recordings were joined"
    times = [packet.pts for packet in shown if packet.pts is not None]
    if len(times) < len(shown) or len(set(times)) < len(times):
        return "frames without presentation times of their own"
    if container.format.flags & _AVFMT_NOTIMESTAMPS:
        return "a raw stream stores no presentation times"
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return "AVI stores no presentation times for reordered frames"
    if skipped or not shown[0].is_keyframe:
        return "the first frame is no key frame"
    # In closed groups the k-th packet that holds a key frame is also the k-th frame shown, B-frames or not.
    ranks = np.argsort(np.argsort(np.array(times)))
    if any(packet.is_keyframe and ranks[place] != place for place, packet in enumerate(shown)):
        return "frames before a key frame depend on it (open groups of pictures)"
    return None
