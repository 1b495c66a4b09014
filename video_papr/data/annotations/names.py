"""Files of class names, in the forms in which public projects hand them out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from .classes import plain_name
from .files import words
from .records import numbered_lines, read_text, short

_NUMBERED = (
    re.compile(r"(?P<number>\d+)[\s,;:]+(?P<name>\S.*)"),
    re.compile(r"(?P<name>.*\S)\s*[\t,;]\s*(?P<number>\d+)"),
)
# "jump 1" may be a name, so this form counts only where the numbers are those of the classes, each once.
_NUMBERED_BEHIND = re.compile(r"(?P<name>.*\S)\s+(?P<number>\d+)")
_HEADERS = words("id index label class class_id name class_name label_name number category")


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """Reads class names in the order of the labels.

    - a text file with one name in each line, also as a list of YAML;
    - the same with numbers from 0 or from 1, in any order, in front (UCF101's classInd.txt, tables of "id,name") or
      behind a tab, comma (UniFormer's lists) or blank;
    - a JSON list of names, or a JSON object of names and numbers, either way round (labels.json of
      Something-Something v2, PySlowFast's kinetics_classnames.json), also as `id2label` in a config.json.

    Raises DataError: the file is absent, empty or malformed, a number is missing, or a name is there twice. The text
    names file and line where there is one.
    """
    path = Path(path)
    text = read_text(path, key="dataset.class_names", what="a list of class names")
    names = _from_json(path, text) if text.lstrip().startswith(("[", "{")) else _from_lines(path, text)
    if not names:
        raise DataError(f"{path}: the file is empty; expected one class name in each line")
    seen: dict[str, int] = {}
    for label, name in enumerate(names):
        other = seen.setdefault(plain_name(name), label)
        if other != label:
            raise DataError(f"{path}: the classes {other} and {label} have the same name {name!r}")
    return names


def _from_lines(path: Path, text: str) -> tuple[str, ...]:
    lines = numbered_lines(text)
    if all(line.startswith("- ") for _, line in lines):  # a list of YAML
        lines = [(place, line[2:].strip()) for place, line in lines]
    fields = {field.strip(' "').lower() for field in re.split(r"[,;\t]", lines[0][1])} if lines else set()
    if len(fields) == 2 and fields <= _HEADERS:
        lines = lines[1:]
    for form in _NUMBERED:
        matches = [form.fullmatch(line) for _, line in lines]
        if lines and all(matches):
            break
    else:
        matches = [_NUMBERED_BEHIND.fullmatch(line) for _, line in lines]
        numbers = sorted(int(match["number"]) for match in matches if match)
        names = {plain_name(match["name"]) for match in matches if match}
        if len(numbers) < max(len(lines), 2) or len(names) < len(lines) or numbers[0] > 1:
            return tuple(_unquoted(line) for _, line in lines)
        if numbers != list(range(numbers[0], numbers[0] + len(lines))):
            return tuple(_unquoted(line) for _, line in lines)
    found = [int(match["number"]) for match in matches if match]
    if min(found) not in (0, 1):
        raise DataError(f"{path}:{lines[0][0]}: the first class has the number {min(found)}, expected 0 or 1")
    by_number: dict[int, str] = {}
    wanted = range(min(found), min(found) + len(lines))
    for (place, line), match in zip(lines, matches, strict=True):
        number = int(match["number"]) if match else -1
        if number not in wanted or number in by_number:
            lacking = next(n for n in wanted if n not in found) if number not in by_number else number
            what = "is there twice" if number in by_number else f"but no {lacking}"
            raise DataError(
                f"{path}:{place}: class number {number} {what}; expected each of "
                f"{wanted[0]}..{wanted[-1]} once, got {short(line)!r}"
            )
        by_number[number] = _unquoted(match["name"] if match else "")
    return tuple(by_number[number] for number in wanted)


def _unquoted(name: str) -> str:
    """A name without the quotes around it, doubled ones inside made single."""
    name = name.strip()
    return next(csv.reader([name]))[0] if len(name) > 2 and name[0] == name[-1] == '"' else name


def _from_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter, and long numbers, have no line
        raise DataError(
            f"{path}:{getattr(error, 'lineno', 1)}: no JSON ({getattr(error, 'msg', error)})"
        ) from None
    if isinstance(stored, dict):
        stored = next((stored[key] for key in ("id2label", "label2id") if stored.get(key)), stored)
    if isinstance(stored, list) and all(isinstance(name, str) and name.strip() for name in stored):
        return tuple(_unquoted(name) for name in stored)
    if not isinstance(stored, dict):
        raise DataError(f'{path}: expected a list of names or an object of {{"name": number}}')
    return _from_object(path, stored)


def _from_object(path: Path, stored: Mapping[str, Any]) -> tuple[str, ...]:
    if all(
        key.isdecimal() and isinstance(name, str) and not name.isdecimal() for key, name in stored.items()
    ):
        stored = {name: number for number, name in stored.items()}
    by_label: dict[int, str] = {}
    for name, number in stored.items():
        label = int(number) if str(number).isdecimal() and len(str(number)) < 10 else -1
        if label in by_label or not 0 <= label < len(stored):
            raise DataError(
                f"{path}: class {short(name)!r} has the number {number!r}; expected each of 0..{len(stored) - 1} once"
            )
        by_label[label] = _unquoted(name)
    return tuple(by_label[label] for label in range(len(by_label)))
