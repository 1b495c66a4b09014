"""Errors that a user can mend: the command line prints their one line and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class VideoPaprError(ValueError):
    """Base of all errors below. The text names the key or file, its value, and what would be right."""


class ConfigError(VideoPaprError):
    """An option has a value that cannot work."""


class DataError(VideoPaprError):
    """A dataset's root, annotation file or label is wrong."""


class VideoDecodeError(VideoPaprError):
    """One video cannot be decoded. Evaluation counts it as failed and goes on."""


class LogitsError(VideoPaprError):
    """Logits of a network are not finite: NaN or infinite."""


class TooLargeError(VideoDecodeError):
    """The frames of a video take more memory than it may have: `num_bytes`."""

    def __init__(self, num_bytes: int, text: str) -> None:
        super().__init__(text)
        self.num_bytes = num_bytes


class StorageError(VideoPaprError):
    """What a run found cannot be written, for example because the disk is full."""


class TrainingError(VideoPaprError):
    """A training cannot go on."""


class MergeError(VideoPaprError):
    """A layer cannot be merged with its neighbours. The text names the layer."""


class RankError(VideoPaprError):
    """Of several processes of one run, one is lost or cannot be reached."""


class ExportError(VideoPaprError):
    """A pipeline cannot be written as a graph, or the graph does not do what the pipeline does."""


class CheckpointError(VideoPaprError):
    """A file of weights is missing, damaged, or made for another model."""


class CheckpointWarning(UserWarning):
    """Weights were loaded, but not simply as they are. The text says what was changed."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_known(key: str, value: Any, known: Iterable[str]) -> Any:
    """Returns the value of an option, or raises ConfigError unless it is one of those that are known."""
    known = list(known)
    if value in known:
        return value
    hint = did_you_mean(str(value), known)
    raise ConfigError(f"{key}={value!r} is unknown; use one of {', '.join(known)}{hint and '.'}{hint}")
