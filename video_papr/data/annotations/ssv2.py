"""Something-Something v2: lists in JSON and labels.json, as the dataset's page hands them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from .classes import class_lookup, unknown_class
from .lists import read_csv
from .names import read_class_names
from .records import Listing, OnInvalid, VideoList, checked_root, read_text, refuse

LABEL_FILES = ("labels.json", "something-something-v2-labels.json")


def read_ssv2(
    root: Path | str,
    annotations: Path | str,
    *,
    class_names: Sequence[str] | None = None,
    on_invalid: OnInvalid = refuse,
) -> VideoList:
    """Reads Something-Something v2.

    - `something-something-v2-{train,validation}.json`: a list of objects with `id` and `template`. The template is a
      name of labels.json with brackets around the placeholders ("Putting [something] on [something]"). Videos are
      `root/<id>.webm`, or re-encoded with another extension;
    - a text list of paths and labels, as VideoMAE's users have it: see `read_csv`.

    Args:
        annotations: the list. The list of the test split has no labels.
        class_names: the 174 names; by default those of labels.json, or something-something-v2-labels.json, beside
            the list.

    Raises:
        DataError: a file is absent or no JSON, the list is empty, or no video exists.
        whatever `on_invalid` raises: an entry lacks id or template, has an unknown template, or is there twice. The
            text names file and line.
    """
    annotations = Path(annotations)
    text = read_text(annotations)
    names = _names_beside(annotations) if class_names is None else tuple(class_names)
    if not text.lstrip().startswith(("[", "{")):
        return read_csv(annotations, root, class_names=names, on_invalid=on_invalid)
    root = checked_root(root)
    if names is None:
        raise DataError(
            f"{annotations}: the class names are missing; put {LABEL_FILES[0]} beside it, or set "
            "dataset.class_names=FILE"
        )
    label_of = class_lookup(names)
    listing = Listing(str(annotations), on_invalid)
    for line, entry in _entries(annotations, text):
        problem = _problem(entry, label_of, names)
        if problem:
            on_invalid(f"{annotations}:{line}: {problem}")
            continue
        name = f"{entry['id']}.webm"
        listing.add(f"{annotations}:{line}", name, root / name, label_of(_bare(entry["template"])) or 0)
    return listing.finish(root, names, expected='objects with "id" and "template"')


def _names_beside(annotations: Path) -> tuple[str, ...] | None:
    for name in LABEL_FILES:
        if (annotations.parent / name).is_file():
            return read_class_names(annotations.parent / name)
    return None


def _bare(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _problem(entry: Any, label_of: Callable[[str], int | None], names: tuple[str, ...]) -> str | None:
    """What is wrong with an entry of the list, or None."""
    if not isinstance(entry, dict):
        return f'expected an object with "id" and "template", got {json.dumps(entry)[:80]}'
    identity, template = entry.get("id"), entry.get("template")
    if isinstance(identity, bool) or not str(identity if identity is not None else "").isalnum():
        return f'"id" is {identity!r}, expected the name of a video without its extension'
    if template is None:
        return f'video {identity} has no "template"; lists of the test split carry no labels, use the validation list'
    if not isinstance(template, str) or label_of(_bare(template)) is None:
        return f"template of video {identity}: {unknown_class(str(template), names)}"
    return None


def _entries(annotations: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yields (line number, entry) for each entry of a JSON list."""
    decoder = json.JSONDecoder()
    position, line, counted = _skip(text, 0), 1, 0
    if text[position] != "[":
        raise DataError(f'{annotations}:1: expected a JSON list of objects with "id" and "template"')
    position = _skip(text, position + 1)
    try:
        while text[position : position + 1] != "]":
            entry, end = decoder.raw_decode(text, position)
            line, counted = line + text.count("\n", counted, position), position
            yield line, entry
            position = _skip(text, end)
            if text[position : position + 1] == ",":
                position = _skip(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("expected , or ] after an entry", text, position)
    except (ValueError, RecursionError) as error:  # the latter, and long numbers, have no line
        raise DataError(
            f"{annotations}:{getattr(error, 'lineno', line)}: no JSON ({getattr(error, 'msg', error)})"
        ) from None


def _skip(text: str, position: int) -> int:
    """The position of the next character that is no white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
