"""Demuxing: what a video file contains, found by reading its packets without decoding them.

Metadata lies: frame counts are wrong or absent, edit lists hide frames, a truncated file still promises its
full length. Reading every packet once takes some milliseconds, tells the true count, and lets the decoders
agree on the meaning of "frame 17" before either of them starts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import VideoDecodeError
from ...core.forks import collect_nothing_inherited
from ..limits import CONTAINER_OPTIONS, DEFAULT_LIMITS, Limits
from .answers import reason
from .file_head import check_file, check_whole, missing_bytes, why_unreadable
from .integrity import Packet, check_damage, check_log, check_promises, irregularity, is_transport
from .orientation import AS_STORED, Orientation, orientation_of
from .timing import FrameTimes, frame_times, joints

collect_nothing_inherited()  # a process that is forked from now on might free PyAV's objects

_ATTACHED_PICTURE = 0x400  # FFmpeg's flag of a stream that holds a cover


@dataclass(frozen=True)
class VideoStream:
    """The video stream of a file, as its packets show it.

    Attributes:
        num_frames: packets that are shown, which is the number of frames unless the decoder merges or drops some.
        pts: (num_frames,) int64 presentation times, ascending, in units of the stream. Empty when they cannot be
            trusted to name the frames; `irregular` then says why.
        keyframes: ascending int64 indices of the frames at which decoding can start. Empty when `pts` is.
        skipped: numbers of the packets that come before a key frame, from which nothing can be decoded.
    """

    index: int  # number of the stream in the file
    is_best: bool  # whether FFmpeg, and so decord, ranks this stream first
    num_frames: int
    container: str  # FFmpeg's name of the file format; several names, separated by commas, for families
    codec: str  # FFmpeg's name of the codec
    pixel_format: str  # FFmpeg's name of the layout of the decoded pixels
    size: tuple[int, int]  # (height, width) of the frames as they are shown
    times: FrameTimes  # when the frames are shown
    pts: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    irregular: str | None  # why frames can only be told apart by counting them from the start, or None
    skipped: frozenset[int]
    orientation: Orientation  # how frames are turned and mirrored when shown; the first says it for all
    interlaced: bool  # whether the first frame consists of two fields
    limits: Limits = DEFAULT_LIMITS  # under which it was read, and is to be decoded

    @property
    def duration_seconds(self) -> float:
        """From the first frame shown to the end of the last one, 0.0 when nothing tells."""
        return self.times.seconds


def open_container(path: Path | str) -> Any:
    """Opens a file with PyAV; the caller closes it.

    The path is made absolute, so that FFmpeg never takes "take2:final.mp4" for an address of the protocol
    "take2". Raises VideoDecodeError: FFmpeg takes the file for something else than a video, such as a playlist.
    """
    import av

    try:
        return av.open(os.path.abspath(path), metadata_errors="ignore", container_options=CONTAINER_OPTIONS)
    except av.error.ArgumentError:
        raise VideoDecodeError(
            "FFmpeg takes it for a format that is not read here (playlists and scripts are not followed)"
        ) from None


def prepare_decoder(stream: Any, limits: Limits) -> None:
    """Sets one thread, as the workers are the parallelism, and FFmpeg's own limit of pixels."""
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    if limits.max_pixels is not None:
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}


@contextmanager
def listen_to_ffmpeg() -> Iterator[list[tuple[int, str, str]]]:
    """Collects the errors that PyAV's FFmpeg logs: (level, who, text). Its decoders patch damage over and go on."""
    import av.logging

    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else the second damaged file in a row would seem healthy
    try:
        with av.logging.Capture() as log:
            yield log
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def read_stream(path: Path | str, limits: Limits = DEFAULT_LIMITS) -> VideoStream:
    """Reads all packets of a video file, as far as `limits` allow.

    Raises VideoDecodeError: the file is absent, empty, no video, damaged, truncated or beyond the limits. The text is
    the bare reason.
    """
    missing = 0
    try:
        check_file(path)
        missing = missing_bytes(path)
        check_whole(path)
        with listen_to_ffmpeg() as log, open_container(path) as container:
            stream = _choose_stream(container, path)
            return _read_packets(container, stream, limits, missing, log)
    except Exception as error:  # FFmpeg's errors are of many kinds, and it calls everything "invalid data"
        if not isinstance(error, VideoDecodeError) or "FFmpeg takes it" in str(error):
            with suppress(OSError):
                if why := why_unreadable(path, missing):
                    raise VideoDecodeError(why) from None
        raise VideoDecodeError(reason(error)) from None


def _choose_stream(container: Any, path: Path | str) -> Any:
    """The stream that FFmpeg ranks first; but a still picture, such as a cover or thumbnail, yields to a film."""
    best = container.streams.best("video")
    if best is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise VideoDecodeError(f"no video stream (streams: {kinds})")
    others = [s for s in container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
    if len(container.streams.video) == 1 or best.frames > 1 or not others:
        return best
    with open_container(path) as again:
        streams = [again.streams[stream.index] for stream in {best, *others}]
        counts = Counter(packet.stream.index for packet in again.demux(*streams) if packet.size)
    film = max(others, key=lambda stream: counts[stream.index])
    return film if counts[best.index] <= 1 < counts[film.index] else best


def _read_packets(
    container: Any, stream: Any, limits: Limits, missing: int, log: list[tuple[int, str, str]]
) -> VideoStream:
    limits.check_size(stream.codec_context.width, stream.codec_context.height)
    prepare_decoder(stream, limits)
    is_best = stream.index == container.streams.best("video").index
    everything, first = _demux(container, stream, limits)
    clock = [packet.dts for packet in everything] if is_transport(container) else []
    starts = joints(clock, float(stream.time_base))
    check_damage(everything, starts, container)
    skipped = _before_key_frames(everything, [0, *starts], container)
    packets = [packet for packet in everything if packet.number not in skipped]
    if 2 * len(packets) < len(everything):
        raise VideoDecodeError(
            f"starts between key frames: only {len(packets)} of {len(everything)} frames can be decoded"
        )
    shown = [packet for packet in packets if not packet.is_discard]
    times = _frame_times(stream, shown, [packet.number for packet in (everything[k] for k in starts)])
    check_promises(missing, container, stream, everything, times.seconds)
    if not shown:
        raise VideoDecodeError("the video stream holds no frames")
    check_log(log, container)
    irregular = irregularity(container, stream, packets, shown, skipped=bool(skipped), joined=bool(starts))
    pts = np.array([] if irregular else [packet.pts for packet in shown], dtype=np.int64)
    keys = np.array(
        [] if irregular else [packet.pts for packet in shown if packet.is_keyframe], dtype=np.int64
    )
    frame = _decode_one(stream, first)
    orientation = AS_STORED if frame is None else orientation_of(frame)
    height, width = stream.codec_context.height, stream.codec_context.width
    return VideoStream(
        index=stream.index,
        is_best=is_best,
        num_frames=len(shown),
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=str(stream.codec_context.pix_fmt),
        size=(width, height) if orientation.transpose else (height, width),
        times=times,
        pts=np.sort(pts),
        keyframes=np.searchsorted(np.sort(pts), keys).astype(np.int64),
        irregular=irregular,
        skipped=skipped,
        orientation=orientation,
        interlaced=frame is not None and frame.interlaced_frame,
        limits=limits,
    )


def _demux(container: Any, stream: Any, limits: Limits) -> tuple[list[Packet], Any]:
    """All packets of the stream, and the first from which a frame can be decoded, as PyAV has it."""
    packets: list[Packet] = []
    first = None
    for number, packet in enumerate(container.demux(stream)):
        if not packet.size:  # the flush packet at the end
            continue
        limits.check_count(number + 1)
        if first is None or (packet.is_keyframe and not first.is_keyframe):
            first = packet
        marks = packet.is_keyframe, packet.is_discard, packet.is_corrupt
        packets.append(Packet(number, packet.pts, packet.dts, packet.duration or 0, *marks))
    return packets, first


def _decode_one(stream: Any, packet: Any) -> Any:
    """The first frame, which knows how it is turned and whether it is interlaced; None when it cannot be decoded."""
    with suppress(Exception):
        context = stream.codec_context
        return next(iter([*context.decode(packet), *context.decode(None)]), None)
    return None


def _before_key_frames(packets: list[Packet], starts: list[int], container: Any) -> frozenset[int]:
    """The packets of a recording that come before its first key frame, or are shown before it: nothing decodes them.

    Captures and segments of a stream begin anywhere. A recording without any marked key frame is left as it is.
    """
    skipped: set[int] = set()
    for start, end in zip(starts, [*starts[1:], len(packets)], strict=True):
        key = next((k for k in range(start, end) if packets[k].is_keyframe), start)
        skipped.update(packet.number for packet in packets[start:key])
        shown = packets[key].pts if is_transport(container) and key > start else None
        if shown is not None:
            skipped.update(p.number for p in packets[key:end] if p.pts is not None and p.pts < shown)
    return frozenset(skipped)


def _frame_times(stream: Any, shown: list[Packet], starts: list[int]) -> FrameTimes:
    """When frames are shown; a recording that was joined on goes on where the one before it ended."""
    unit = float(stream.time_base)
    by_pts = all(packet.pts is not None for packet in shown)
    times = [packet.pts if by_pts else packet.dts for packet in shown]
    known = [time for time in times if time is not None]
    if starts and len(known) == len(shown):
        end, moved = 0, []
        cuts = [0, *(next((k for k, p in enumerate(shown) if p.number >= n), len(shown)) for n in starts)]
        for first, last in zip(cuts, [*cuts[1:], len(shown)], strict=True):
            part = known[first:last]
            moved += [time - min(part) + end for time in part]
            end = max(moved, default=0) + (shown[last - 1].duration or 1)
        times = list(moved)
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    return frame_times(times, [packet.duration for packet in shown], time_base=unit, rates=rates)
