"""The rules that the values of a configuration obey; the modules beside it say which key obeys which.

A rule takes (dotted key, raw value) and returns the value to use, or raises ConfigError with one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field
from itertools import pairwise
from math import isfinite
from typing import Any

from ..core.errors import ConfigError

Rule = Callable[[str, Any], Any]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option most like `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def wrong(key: str, value: Any, allowed: str, hint: str = "") -> ConfigError:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return ConfigError(f"{key}={shown}: {allowed}.{hint}")


def integer(low: int, what: str) -> Rule:
    def rule(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise wrong(key, value, f"must be {what}")
        return value

    return rule


def one_of(*options: str | int | None) -> Rule:
    listed = ["null" if option is None else str(option) for option in options]

    def rule(key: str, value: Any) -> Any:
        if isinstance(value, bool) or value not in options:
            raise wrong(key, value, f"must be one of {', '.join(listed)}", did_you_mean(str(value), listed))
        return value

    return rule


KEEP_BY = one_of("random", "actor", "map", "blobs", "actor_blobs")  # names of training.dropping.SCORES


def some_of(*options: str) -> Rule:
    """A list of one or more of the options, each once; a single option means a list of it."""
    allowed = f"must be a list of one or more of {', '.join(options)}"

    def rule(key: str, value: Any) -> tuple[str, ...]:
        if value in options:
            return (value,)
        if not isinstance(value, (list, tuple)) or not value or len(set(map(str, value))) < len(value):
            raise wrong(key, value, allowed)
        for one in value:
            if one not in options:
                raise wrong(key, value, allowed, did_you_mean(str(one), options))
        return tuple(value)

    return rule


def list_of(rule: Rule, *, empty: bool = False) -> Rule:
    """A list without repetitions whose entries obey `rule`; one or more of them unless it may be `empty`."""

    def listed(key: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not (value or empty):
            raise wrong(
                key,
                value,
                "must be a list, as in [A,B]" if empty else "must be a list of one or more, as in [A,B]",
            )
        entries = tuple(rule(key, one) for one in value)
        if any(entries[place] in entries[:place] for place in range(len(entries))):
            raise wrong(key, value, "must not name anything twice")
        return entries

    return listed


def flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(key, value, "must be true or false")
    return value


def flag_or(*words: str) -> Rule:
    """True, false or one of the words."""
    allowed = f"must be true, false, {', '.join(words[:-1])} or {words[-1]}"

    def rule(key: str, value: Any) -> bool | str:
        if not isinstance(value, bool) and value not in words:
            raise wrong(key, value, allowed, did_you_mean(str(value), words))
        return value

    return rule


def anything(key: str, value: Any) -> Any:
    return value


def mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(key, value, "must be a mapping of names to values")
    return {str(name): entry for name, entry in value.items()}


def text(key: str, value: Any) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or not str(value).strip():
        raise wrong(key, value, "must be a name or a path")
    return str(value)


def ratio(key: str, value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not isfinite(value)
        or not 0 < value <= 1
    ):
        raise wrong(key, value, "must be a number above 0 and at most 1 (share of the tubelets that is kept)")
    return float(value)


def number(what: str, allowed: Callable[[float], bool]) -> Rule:
    def rule(key: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not isfinite(value)
            or not allowed(value)
        ):
            raise wrong(key, value, f"must be {what}")
        return float(value)

    return rule


def frame_size(key: str, value: Any) -> int | tuple[int, int]:
    """A side in pixels, or [height, width]."""
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides):
        raise wrong(key, value, "must be a whole number of at least 1, or [height, width]")
    return value if isinstance(value, int) else (sides[0], sides[1])


def cell(key: str, value: Any) -> tuple[int, int, int]:
    """[frames, height, width] in tokens."""
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)
    ):
        raise wrong(key, value, "must be [frames, height, width], three whole numbers of at least 1")
    return value[0], value[1], value[2]


def places(key: str, value: Any) -> int | tuple[int, ...]:
    """A number of blocks, or several in ascending order."""
    if not isinstance(value, (list, tuple)):
        return natural(key, value)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    if not whole or not value or any(one >= two for one, two in pairwise(value)):
        raise wrong(
            key,
            list(value),
            "must be a whole number of at least 0, or ascending ones, as in [3,6,9]",
        )
    return tuple(value)


def ratio_range(key: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise wrong(key, value, "must be [low, high]")
    low, high = ratio(key, value[0]), ratio(key, value[1])
    if low > high:
        raise wrong(key, value, "must be [low, high] with low <= high")
    return low, high


def stages(key: str, value: Any) -> tuple[tuple[float, int], ...]:
    """A list of [clutter, videos]."""
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(v, (list, tuple)) and len(v) == 2 for v in value
    ):
        raise wrong(key, value, "must be a list of [clutter, number of videos]")
    return tuple((non_negative(key, clutter), positive(key, videos)) for clutter, videos in value)


def off_or_place(key: str, value: Any) -> str | None:
    """ "off" (None), "auto" or a path. YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else text(key, value)


def or_else(word: str | None, rule: Rule) -> Rule:
    """Lets `word` ("auto" or None for null) pass, and names it in the message for everything else."""

    def either(key: str, value: Any) -> Any:
        if value == word and isinstance(value, type(word)):
            return word
        try:
            return rule(key, value)
        except ConfigError as error:
            raise ConfigError(f"{str(error).rstrip('.')}, or {word or 'null'}.") from None

    return either


positive = integer(1, "a whole number of at least 1")
natural = integer(0, "a whole number of at least 0")
positive_number = number("a number above 0", lambda x: x > 0)
non_negative = number("a number of at least 0", lambda x: x >= 0)
any_number = number("a number", lambda x: True)
from_0_to_1 = number("a number from 0 to 1", lambda x: 0 <= x <= 1)
share = number("a number above 0 and at most 1", lambda x: 0 < x <= 1)


def setting(rule: Rule, default: Any = MISSING) -> Any:
    return (
        field(metadata={"rule": rule})
        if default is MISSING
        else field(default=default, metadata={"rule": rule})
    )
