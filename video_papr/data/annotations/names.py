"""Files of class names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...core.errors import DataError
from .records import numbered_lines, plain_name, read_text

_NUMBERED = re.compile(r"(\d+)[\s,]+(\S.*)")


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """Reads class names in the order of the labels.

    - a text file with one name in each line;
    - the same with numbers in front, from 0 or from 1 (UCF101's classInd.txt);
    - a JSON list of names, or a JSON object of names and numbers (labels.json of Something-Something v2).

    Raises:
        DataError: the file is absent, empty or malformed, a number is missing, or a name is there twice. The text
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
    matches = [match for _, line in lines if (match := _NUMBERED.fullmatch(line))]
    if not matches or len(matches) < len(lines):
        return tuple(line for _, line in lines)
    first = int(matches[0][1])
    if first not in (0, 1):
        raise DataError(f"{path}:{lines[0][0]}: the first class has the number {first}, expected 0 or 1")
    for expected, ((number, line), match) in enumerate(zip(lines, matches, strict=True), start=first):
        if int(match[1]) != expected:
            raise DataError(f"{path}:{number}: expected class number {expected}, got {line!r}")
    return tuple(match[2] for match in matches)


def _from_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        stored = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no JSON ({error.msg})") from None
    if isinstance(stored, list) and all(isinstance(name, str) and name.strip() for name in stored):
        return tuple(stored)
    if not isinstance(stored, dict):
        raise DataError(f'{path}: expected a list of names or an object of {{"name": number}}')
    by_label: dict[int, str] = {}
    for name, number in stored.items():
        label = int(number) if isinstance(number, int) or str(number).isdigit() else -1
        if label in by_label or not 0 <= label < len(stored):
            raise DataError(
                f"{path}: class {name!r} has the number {number!r}; expected each of 0..{len(stored) - 1} once"
            )
        by_label[label] = name
    return tuple(by_label[label] for label in range(len(by_label)))
