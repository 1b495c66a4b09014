"""Former spellings of keys and values, read for one release with a warning that names the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.console import warn
from ..core.renamed import RENAMED_OPTIONS, RENAMED_VALUES

KEYS = {
    "dataset.decode_memory_mb": "dataset.memory_mb",
    **{f"pruner.{old}": f"pruner.{new}" for old, new in RENAMED_OPTIONS.items()},
    "train.follow": "train.motion_loss",
    "train.locate": "train.location_loss",
    "runtime.kernels": "runtime.engine",
}
_FLIPS = {"mirror": "hflip", "mirror_actions": "hflip_actions"}
VALUES = {
    **{f"pruner.{key}": words for key, words in RENAMED_VALUES.items()},
    "train.augment": _FLIPS,
    "depth.augment": _FLIPS,
    "runtime.engine": {"true": "auto", "false": "torch"},
}


def rename_word(word: str) -> str:
    """One word of the command line, `key=value`; the values of a sweep are renamed one by one."""
    given, equals, value = word.partition("=")
    key = given.lstrip("+~")
    if not equals or (key not in KEYS and key not in VALUES):
        return word
    new = KEYS.get(key, key)
    values = ",".join(VALUES.get(new, {}).get(one, one) for one in value.split(","))
    renamed = f"{given[: len(given) - len(key)]}{new}={values}"
    if renamed != word:
        _tell(word, renamed)
    return renamed


def rename_values(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a composed configuration: files of options of the user's own may hold former names."""
    renamed = {name: dict(part) if isinstance(part, Mapping) else part for name, part in values.items()}
    for old, new in KEYS.items():
        group, key = old.split(".")
        section = renamed.get(group)
        if isinstance(section, dict) and key in section:
            _tell(old, new)
            section[new.split(".")[1]] = section.pop(key)
    for name, words in VALUES.items():
        group, key = name.split(".")
        section = renamed.get(group)
        given = section.get(key) if isinstance(section, dict) else None
        former = str(given).lower() if isinstance(given, bool) else given
        if isinstance(section, dict) and isinstance(former, str) and former in words:
            _tell(f"{name}={former}", f"{name}={words[former]}")
            section[key] = words[former]
    return renamed


def _tell(old: str, new: str) -> None:
    warn(f"{old} is the former spelling of {new}; it will be read for one more release")
