"""File type detection: what a download left in place of a video or of weights, told by its first bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

_HEAD_BYTES = 4096
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
}
_HTML = re.compile(r"\s*(<!doctype html|<html|<head|<\?xml[^>]*\?>\s*<html)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


def file_kind(path: Path | str) -> str | None:
    """Says in a few words what a file is that is neither a video nor weights, and what to do; None: not known.

    >>> file_kind("clip.mp4")
    'a Git LFS pointer: run `git lfs pull`'
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head and not head.strip(b"\0"):
        return "nothing but zero bytes"
    return _text_kind(head)


def _text_kind(head: bytes) -> str | None:
    code = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"  # as PowerShell writes it
    try:
        text = head.decode(code, "strict" if len(head) < _HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return None
    if any(not (letter.isprintable() or letter.isspace()) for letter in text):
        return None
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer: run `git lfs pull`"
    if _HTML.match(text):
        title = _TITLE.search(text)
        return f"an HTML page{f' ({_short(title[1])})' if title else ''}: download the file again"
    if text.lstrip().startswith("<"):
        return f"an XML text ({_short(text)}): download the file again"
    if text.lstrip().startswith(("{", "[")):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            if len(head) < _HEAD_BYTES:
                return f"a text ({_short(text)})"
        return f"a JSON text ({_short(text)}): download the file again"
    return f"a text ({_short(text)})" if text.strip() else None


def _short(text: str) -> str:
    """The first words, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
