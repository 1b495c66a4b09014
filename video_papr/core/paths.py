"""Where the package keeps what it can make again: synthetic videos, decoded clips, graphs."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$VIDEO_PAPR_CACHE`, or `video_papr` in the user's cache directory."""
    named = os.environ.get("VIDEO_PAPR_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "video_papr"
    return Path(named) if named else base
