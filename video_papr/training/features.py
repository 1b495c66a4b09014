"""Features of videos on disk, one file for each way of computing them, so that a frozen backbone runs once per video.

Letters: F features of a video.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..core.files import atomic_write

PACKAGE = Path(__file__).resolve().parents[1]
_CODE = ("core", "data", "adapters", "backbones", "pruning", "pipeline.py")  # decides about features
_PACKAGES = ("torch", "timm", "numpy", "av", "pillow")


class FeatureStore:
    """Features by video, in memory and in one file.

    Args:
        folder: of the files; made when something is written.
        recipe: all that decides about the features beside the video, as plain values: weights, pruner, frames, size.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        text = json.dumps([_code(), dict(recipe)], sort_keys=True, default=str)
        self._recipe = hashlib.sha256(text.encode()).hexdigest()
        self._path = folder / f"features-{self._recipe[:24]}.safetensors"
        self._new = False
        try:
            self._found: dict[str, Tensor] = load_file(self._path)
        except (OSError, SafetensorError):  # there is none, or it is damaged: it is written anew
            self._found = {}

    def get(self, video: Path) -> Tensor | None:
        """The features (F,) of a file as it is now; None when they are not there."""
        return self._found.get(_key(video))

    def add(self, video: Path, features: Tensor) -> None:
        """Keeps features (F,) float32 on the CPU."""
        self._found[_key(video)] = features.contiguous().clone()  # not a view of its batch
        self._new = True

    def save(self) -> None:
        """Writes what was added.

        Raises:
            StorageError: the disk is full, or fails.
        """
        if self._new:
            atomic_write(self._path, save(self._found))
            self._new = False


def _key(video: Path) -> str:
    try:
        status = video.stat()
    except OSError:
        return ""
    own = [str(video.resolve()), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(own).encode("utf-8", "backslashreplace")).hexdigest()[:32]


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for part in _CODE:
        files = [PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py"))
        for path in files:
            digest.update(path.read_bytes())
    digest.update(" ".join(f"{name} {version(name)}" for name in _PACKAGES).encode())
    return digest.hexdigest()
