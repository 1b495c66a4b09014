"""What the app offers, and the model that answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .look import Looker


@dataclass(frozen=True)
class Example:
    """A clip to pick: what it shows, and its file."""

    title: str
    path: Path


@dataclass(frozen=True)
class Model:
    """What answers.

    Attributes:
        pruner, keep_ratio: chosen at first.
        about: pruner -> one sentence.
        said: what the page says about it: `backbone`, `device`, `classes`, and whether these are `synthetic`.
        words: pruner -> what `predict` has to be told to answer alike, but for the pruner and its keep ratio.
    """

    looker: Looker
    pruner: str
    keep_ratio: float
    about: Mapping[str, str]
    said: Mapping[str, Any]
    words: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Offer:
    """What the page offers.

    Attributes:
        examples: clips to pick; all are synthetic.
        models: name -> makes a model that may take the place of the first one.
        hosts: names by which a browser may call the server, in lower case, IPv6 in brackets; "*": any.
    """

    examples: Sequence[Example]
    models: Mapping[str, Callable[[], Model]]
    max_upload_mb: float
    hosts: Sequence[str]
