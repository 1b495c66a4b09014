"""Container sizes read from the file itself: whether bytes are missing, and why FFmpeg finds no video in it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...core.errors import VideoDecodeError
from ...core.file_kinds import file_kind

_MP4_FIRST_BOXES = frozenset(
    [b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot"]
)
_EBML_HEADER, _EBML_SEGMENT, _EBML_CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_EBML_CRC = b"\xbf\x84"  # and four bytes, the first child of an element that has one


def check_file(path: Path | str) -> None:
    """Raises VideoDecodeError, with the bare reason, unless `path` is a file that holds at least one byte."""
    if not os.path.lexists(path):
        raise VideoDecodeError("no such file")
    if not os.path.exists(path):
        raise VideoDecodeError("is a link to a file that does not exist")
    if os.path.isdir(path):
        raise VideoDecodeError("is a directory, not a video file")
    if not os.path.isfile(path):
        raise VideoDecodeError("is a device or pipe, not a video file")
    if os.path.getsize(path) == 0:
        raise VideoDecodeError("the file is empty (0 bytes)")


def why_unreadable(path: Path | str, missing: int) -> str | None:
    """What is wrong with a file that FFmpeg cannot open or finds no frames in; None: it looks like a video."""
    kind = file_kind(path)
    if kind is not None:
        return f"is {kind}" if ":" in kind else f"is {kind}, not a video"
    index = ""
    with open(path, "rb") as file:
        if file.read(8)[4:] in _MP4_FIRST_BOXES:
            boxes = {kind for kind, _ in _mp4_boxes(file, os.path.getsize(path))}
            if not boxes & {b"moov", b"moof"}:
                index = "the index (moov) is missing"
    if missing:
        return f"truncated: {missing} bytes are missing" + (f", and {index}" if index else "")
    return f"{index}: the recording was not finished" if index else None


def missing_bytes(path: Path | str) -> int:
    """Returns how many bytes the container promises beyond the end of the file; 0 when complete or unknown.

    MP4 and its kin, Matroska / WebM and AVI state their sizes; MPEG-TS, raw streams and most others do not.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _MP4_FIRST_BOXES:
            return max(*(end for _, end in _mp4_boxes(file, size)), size) - size
        if head[:4] == b"RIFF":
            return max(8 + int.from_bytes(head[4:8], "little") - size, 0)
        if int.from_bytes(head[:4], "big") == _EBML_HEADER:
            return max(_end_of_matroska_segment(file) - size, 0)
    return 0


def check_whole(path: Path | str) -> None:
    """Raises VideoDecodeError where FFmpeg would show a part of an MP4, or damage inside a Matroska file as pictures.

    Of MP4 files that were joined byte by byte it reads the first one. Matroska has a CRC-32 of each cluster of frames;
    FFmpeg writes it and does not look at it. Files without checksums pass.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(8)[4:] in _MP4_FIRST_BOXES:
            movies = sum(kind == b"moov" for kind, _ in _mp4_boxes(file, size))
            if movies > 1:
                raise VideoDecodeError(f"holds {movies} indexes (moov): files that were joined byte by byte")
            return
        file.seek(0)
        if int.from_bytes(file.read(4), "big") != _EBML_HEADER or not (end := _end_of_matroska_segment(file)):
            return
        while file.tell() < min(end, size):
            first = file.read(1)
            # Zero bits count what follows.
            kind = int.from_bytes(first + file.read(8 - first[0].bit_length()), "big")
            (length, known), start = _ebml_length(file), file.tell()
            if not known or start + length > size:  # unknown, or cut off
                return
            if kind == _EBML_CLUSTER and file.read(2) == _EBML_CRC and length > 6:
                stored, found = int.from_bytes(file.read(4), "little"), 0
                while rest := start + length - file.tell():
                    found = zlib.crc32(file.read(min(rest, 2**20)), found)
                if found != stored:
                    raise VideoDecodeError(
                        f"damaged: its bytes {start} to {start + length} contradict their checksum"
                    )
            file.seek(start + length)


def _mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Walks the boxes of the top level: (kind, where it ends). A rest of 1 to 7 bytes is the head of a box, cut off."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the true length follows as 64 bits
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file; other values are no box at all
            yield head[4:8] if length == 0 else b"", position
            return
        position += length
        yield head[4:8], position
    if position < size:
        yield b"", position + 8


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
