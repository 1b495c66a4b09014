"""Damage that only FFmpeg's log tells of, for readers that patch damaged frames over and say nothing.

100 flipped bits in a file of 303 frames came back from decord as 303 frames that were up to 84 grey levels off on
average. The FFmpeg inside knows, and tells its log: one per process and library, so one reader listens at a time.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .answers import Refused

_AV_LOG_ERROR = 16
_COMPLAINTS_BELOW_ERROR = (b"concealing", b"Changing frame properties", b"Changing video frame properties")
_lock = threading.Lock()
_complaints: list[str] = []


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _listen(_context: int, level: int, template: bytes, _arguments: int) -> None:
    if level <= _AV_LOG_ERROR or template.startswith(_COMPLAINTS_BELOW_ERROR):
        _complaints.append(template.split(b"%")[0].decode("ascii", "replace").strip(" :,\n"))


@contextmanager
def refusing_damage(library: Any) -> Iterator[None]:
    """Refuses what is read meanwhile if FFmpeg complains, whose log does not go to stderr from now on.

    Args:
        library: of ctypes, linked to an FFmpeg.
    """
    try:
        set_callback = library.av_log_set_callback  # found in the libraries to which this one is linked
    except AttributeError:
        raise Refused("this build hides damage to a stream") from None
    with _lock:
        _complaints.clear()
        set_callback(_listen)
        yield
        if _complaints:
            raise Refused(f"damaged stream ({_complaints[0]})")
