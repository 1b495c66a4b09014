"""Renaming of the keys of a state dict by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

State = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]


def renamed(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> State:
    """The state dict with every pattern of `names` replaced in its keys, one after the other."""
    mapped = {}
    for key, value in state.items():
        for old, new in names:
            key = re.sub(old, new, key)
        mapped[key] = value
    return mapped
