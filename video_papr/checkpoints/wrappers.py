"""Names in a state dict: renamed by regular expressions, and freed of the prefixes of wrappers.

DDP, Lightning, DeepSpeed, torch.compile, EMA and others put prefixes before names.

A prefix is whatever stands before the name of a network's first layer, so a wrapper need not be known to be taken off.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from ..core.errors import CheckpointError, CheckpointWarning

State = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]
# These also stand inside names: wrappers of single layers.
_LAYERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
INSIDE = re.compile(rf"(?:^|(?<=\.))(?:{_LAYERS})\.")
_AVERAGES = "ema|averaged?|avg|teacher|momentum|target|key_encoder|encoder_k"
AVERAGE = re.compile(rf"(^|[._])({_AVERAGES})(?=[._])", re.IGNORECASE)
COUNTERS = ("n_averaged", "num_updates")  # of torch's AveragedModel and others' averages


def renamed(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> State:
    """The state dict with every pattern of `names` replaced in its keys, one after the other."""
    mapped = {}
    for key, value in state.items():
        for old, new in names:
            key = re.sub(old, new, key)
        mapped[key] = value
    return mapped


def unwrap(
    state: Mapping[str, Tensor], anchors: Iterable[str], *, source: str, names: Collection[str] = ()
) -> dict[str, Tensor]:
    """The state dict without the prefix that a wrapper put before its names.

    Names outside the wrapper lose as much of the prefix as they begin with. Of a network and its running average, both
    in one state dict, the network is taken, with a warning.

    Args:
        anchors: names of the first layers that are looked for.
        names: all names of the network, where they are known: at least half of them must stand behind its prefix, since
            blocks inside a network may have layers that are called like its first one.

    Raises CheckpointError: there are several networks, and nothing says which is meant.
    """
    state = {INSIDE.sub("", name): value for name, value in state.items()}
    prefixes = {name[: -len(a)] for a in anchors for name in state if name == a or name.endswith(f".{a}")}
    if names:
        prefixes = {p for p in prefixes if 2 * sum(f"{p}{name}" in state for name in names) >= len(names)}
    if not prefixes:
        return state
    own = [prefix for prefix in prefixes if not AVERAGE.search(prefix)] or list(prefixes)
    if len(own) > 1:
        named = ", ".join(repr(prefix) for prefix in sorted(own))
        raise CheckpointError(f"{source} holds several networks, under {named}; store the one that is meant")
    prefix = own[0]
    others = tuple(sorted(prefixes - {prefix}))
    if others:
        warnings.warn(
            f"{source} also holds the weights under {', '.join(others)}; those under {prefix!r} are used",
            CheckpointWarning,
            stacklevel=4,
        )
    kept = {name: value for name, value in state.items() if not others or not name.startswith(others)}
    if not prefix:
        return kept
    return {
        _without(name, prefix.split(".")[:-1]): value for name, value in kept.items() if name not in COUNTERS
    }


def _without(name: str, prefix: list[str]) -> str:
    parts = name.split(".")
    common = 0
    while common < min(len(prefix), len(parts) - 1) and parts[common] == prefix[common]:
        common += 1
    return ".".join(parts[common:])
