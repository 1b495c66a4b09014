"""File signatures: recognises what a failed download leaves in place of weights or a video."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = 4096  # bytes that are looked at
TITLE = re.compile(rb"<title[^>]*>\s*([^<]{1,80})", re.IGNORECASE)
BINARY = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"%PDF": "a PDF document",
}


def foreign_content(path: Path) -> str | None:
    """What the file is when it is plainly no weights and no video, with what to do about it; None: nobody can tell.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file: download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run git lfs pull"
    for signature, what in BINARY.items():
        if head.startswith(signature):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<(!doctype\s+html|html|head|body)", text, re.IGNORECASE):
        title = TITLE.search(head)
        named = f" ({' '.join(title[1].decode(errors='replace').split())})" if title else ""
        return f"an HTML page{named}: download the file itself"
    if text.startswith((b"<?xml", b"<Error")):
        return "an XML document, such as a storage service's error: download it again"
    if re.match(rb"\{\s*[\"}]|\[\s*[\[{\"\d\]]", text) and _is_text(head):
        return "JSON text: download the file itself"
    return None


def _is_text(head: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0e-\x1f]", head)
