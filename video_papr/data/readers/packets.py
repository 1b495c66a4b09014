"""What a video file holds, found by reading its packets without decoding any: frames, key frames, promises kept.

Metadata lies: frame counts are wrong or absent, edit lists hide frames, a truncated file still promises its
full length. Reading every packet once takes some milliseconds, tells the true count, and lets the decoders
agree on the meaning of "frame 17" before either of them starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...core.errors import VideoDecodeError
from ..limits import CONTAINER_OPTIONS, DEFAULT_LIMITS, Limits

_MP4_FIRST_BOXES = frozenset(
    [b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot"]
)
_CANDID_CONTAINERS = frozenset(["matroska,webm", "avi"])
_AVFMT_NOTIMESTAMPS = 0x80  # FFmpeg's flag of raw streams
_EBML_HEADER, _EBML_SEGMENT = 0x1A45DFA3, 0x18538067


@dataclass(frozen=True)
class VideoStream:
    """The best video stream of a file, as its packets show it.

    Attributes:
        num_frames: packets that are shown, which is the number of frames unless the decoder merges or drops
            some.
        container: FFmpeg's name of the file format; several names, separated by commas, for families.
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name of the layout of the decoded pixels.
        fps: average frames per second, 0.0 when the file does not say.
        duration_seconds: from the first frame shown to the end of the last one, 0.0 when the packets carry no
            times.
        pts: (num_frames,) int64 presentation times, ascending, in units of the stream. Empty when they cannot
            be trusted to name the frames; `irregular` then says why.
        keyframes: ascending int64 indices of the frames at which decoding can start. Empty when `pts` is.
        irregular: why frames can only be told apart by counting them from the start, or None.
        limits: under which it was read, and is to be decoded.
    """

    num_frames: int
    container: str
    codec: str
    pixel_format: str
    fps: float
    duration_seconds: float
    pts: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    irregular: str | None
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    end: int | None
    is_keyframe: bool
    is_discard: bool


def open_container(path: Path | str) -> Any:
    """Opens a file with PyAV; the caller closes it.

    The path is made absolute, so that FFmpeg never takes "take2:final.mp4" for an address of the protocol
    "take2".

    Raises:
        VideoDecodeError: FFmpeg takes the file for something else than a video, such as a playlist.
    """
    import av

    try:
        return av.open(os.path.abspath(path), metadata_errors="ignore", container_options=CONTAINER_OPTIONS)
    except av.error.ArgumentError:
        raise VideoDecodeError(
            "FFmpeg takes it for a format that is not read here (playlists and scripts are not followed)"
        ) from None


def best_video_stream(container: Any) -> Any:
    """Returns the stream that FFmpeg ranks first, which is also the one that decord reads. Raises VideoDecodeError."""
    stream = container.streams.best("video")
    if stream is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise VideoDecodeError(f"no video stream (streams: {kinds})")
    return stream


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

    Raises:
        VideoDecodeError: the file is absent, empty, no video, damaged, truncated or beyond the limits. The text is
            the bare reason.
        Exception: FFmpeg's errors, which come as OSError, ValueError, EOFError, UnicodeError and others.
    """
    check_file(path)
    missing = missing_bytes(path)
    try:
        with listen_to_ffmpeg() as log, open_container(path) as container:
            stream = best_video_stream(container)
            limits.check_size(stream.codec_context.width, stream.codec_context.height)
            packets = list(_packets(container, stream, limits))
            shown = [packet for packet in packets if not packet.is_discard]
            _check_promises(missing, container, stream, packets, shown)
            if not shown:
                raise VideoDecodeError("the video stream holds no frames")
            _check_log(log, container)
            irregular = _irregularity(container, stream, packets, shown)
            times = [] if irregular else [packet.pts for packet in shown if packet.pts is not None]
            keyframe_times = [time for time, packet in zip(times, shown, strict=False) if packet.is_keyframe]
            pts = np.sort(np.array(times, dtype=np.int64))
            return VideoStream(
                num_frames=len(shown),
                container=container.format.name,
                codec=stream.codec_context.codec.canonical_name,
                pixel_format=str(stream.codec_context.pix_fmt),
                fps=float(stream.average_rate or stream.guessed_rate or 0),
                duration_seconds=_shown_seconds(stream, shown),
                pts=pts,
                keyframes=np.searchsorted(pts, keyframe_times).astype(np.int64),
                irregular=irregular,
                limits=limits,
            )
    except VideoDecodeError:
        raise
    except Exception:
        if missing:  # FFmpeg calls a file without its end "invalid data"
            raise VideoDecodeError(f"truncated: {missing} bytes are missing") from None
        raise


def _packets(container: Any, stream: Any, limits: Limits) -> Iterator[_Packet]:
    for number, packet in enumerate(container.demux(stream)):
        if not packet.size:  # the flush packet at the end
            continue
        limits.check_count(number + 1)
        if packet.is_corrupt:
            raise VideoDecodeError(f"packet {number} is damaged or cut off")
        end = None if packet.pts is None else packet.pts + (packet.duration or 0)
        yield _Packet(packet.pts, end, packet.is_keyframe, packet.is_discard)


def check_file(path: Path | str) -> None:
    """Raises VideoDecodeError, with the bare reason, unless `path` is a file that holds at least one byte."""
    if not os.path.exists(path):
        raise VideoDecodeError("no such file")
    if os.path.isdir(path):
        raise VideoDecodeError("is a directory, not a video file")
    if os.path.getsize(path) == 0:
        raise VideoDecodeError("the file is empty (0 bytes)")


def missing_bytes(path: Path | str) -> int:
    """Returns how many bytes the container promises beyond the end of the file; 0 when complete or unknown.

    MP4 and its kin, Matroska / WebM and AVI state their sizes; MPEG-TS, raw streams and most others do not.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _MP4_FIRST_BOXES:
            return max(_end_of_mp4_boxes(file, size) - size, 0)
        if head[:4] == b"RIFF":
            return max(8 + int.from_bytes(head[4:8], "little") - size, 0)
        if int.from_bytes(head[:4], "big") == _EBML_HEADER:
            return max(_end_of_matroska_segment(file) - size, 0)
    return 0


def _end_of_mp4_boxes(file: BinaryIO, size: int) -> int:
    """Walks the boxes of the top level; returns where the last one ends."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the true length follows as 64 bits
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file; other values are no box at all
            return position
        position += length
    return (
        position + 8 if position < size else position
    )  # a rest of 1 to 7 bytes is the head of a box, cut off


def _end_of_matroska_segment(file: BinaryIO) -> int:
    """Returns where the segment ends, or 0 when its length is unknown (a live recording)."""
    file.seek(4)
    header_length, _ = _ebml_length(file)
    file.seek(header_length, os.SEEK_CUR)
    if int.from_bytes(file.read(4), "big") != _EBML_SEGMENT:
        return 0
    length, known = _ebml_length(file)
    return file.tell() + length if known else 0


def _ebml_length(file: BinaryIO) -> tuple[int, bool]:
    """Reads a variable-length integer; all data bits set means "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return 0, False
    extra = 8 - first[0].bit_length()  # leading zero bits count the bytes that follow
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
    return value, value != (1 << (7 * (extra + 1))) - 1


def _check_promises(
    missing: int, container: Any, stream: Any, packets: list[_Packet], shown: list[_Packet]
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
    found, promised = _shown_seconds(stream, shown), float((stream.duration or 0) * stream.time_base)
    if "mp4" in container.format.name and len(packets) < stream.frames and found < 0.95 * promised:
        raise VideoDecodeError(f"damaged: {left}")


def _check_log(log: list[tuple[int, str, str]], container: Any) -> None:
    """Refuses files inside which FFmpeg skipped damage, where it tells. (Its MP4 reader reports trifles too.)"""
    if container.format.name in _CANDID_CONTAINERS:
        for _, who, text in log:
            if who == container.format.name:
                raise VideoDecodeError(f"damaged file ({text.strip()})")


def _shown_seconds(stream: Any, shown: list[_Packet]) -> float:
    starts = [packet.pts for packet in shown if packet.pts is not None]
    ends = [packet.end for packet in shown if packet.end is not None]
    return float((max(ends) - min(starts)) * stream.time_base) if starts else 0.0


def _irregularity(container: Any, stream: Any, packets: list[_Packet], shown: list[_Packet]) -> str | None:
    """Says why presentation times do not name the frames of this file, or None.

    Such files are read from the start to the last frame that is wanted. decord is not asked: it finds frames by
    these times and by the places of key frames, and where the two disagree it returns other frames than those
    asked for, without an error.
    """
    if len(shown) < len(packets):
        return f"an edit list hides {len(packets) - len(shown)} of {len(packets)} frames"

    times = [packet.pts for packet in shown if packet.pts is not None]
    if len(times) < len(shown) or len(set(times)) < len(times):
        return "frames without presentation times of their own"
    if container.format.flags & _AVFMT_NOTIMESTAMPS:
        return "a raw stream stores no presentation times"
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return "AVI stores no presentation times for reordered frames"
    if not shown[0].is_keyframe:
        return "the first frame is no key frame"
    # In closed groups the k-th packet that holds a key frame is also the k-th frame shown, B-frames or not.
    ranks = np.argsort(np.argsort(np.array(times)))
    if any(packet.is_keyframe and ranks[place] != place for place, packet in enumerate(shown)):
        return "frames before a key frame depend on it (open groups of pictures)"
    return None
