"""Class names: comparing them in the spellings in which data sets and folders carry them."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from ...core.escape import shorten


def plain_name(name: str) -> str:
    """A class name as it is compared first: "_" is a blank, case plays no part."""
    return name.replace("_", " ").strip().casefold()


def _letters(name: str) -> str:
    """Letters and digits alone: torchvision and others leave out brackets, quotes and commas."""
    return "".join(char for char in unicodedata.normalize("NFKC", name).casefold() if char.isalnum())


def class_lookup(names: Sequence[str]) -> Callable[[str], int | None]:
    """Returns a function from a name to its label, or None: regardless of case, "_" and punctuation.

    Names that differ in punctuation alone are told apart by it.
    """
    exact = {plain_name(name): label for label, name in enumerate(names)}
    counts = Counter(_letters(name) for name in names)
    loose = {_letters(name): label for label, name in enumerate(names) if counts[_letters(name)] == 1}
    loose.pop("", None)

    def label_of(name: str) -> int | None:
        label = exact.get(plain_name(name))
        return label if label is not None else loose.get(_letters(name))

    return label_of


def unknown_class(name: str, names: Sequence[str]) -> str:
    """What to say of a name that is none of the classes."""
    near = difflib.get_close_matches(
        plain_name(name), [plain_name(known) for known in names], n=1, cutoff=0.75
    )
    meant = next((known for known in names if near and plain_name(known) == near[0]), None)
    shown = (
        f"did you mean {meant!r}?" if meant else ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    )
    return f"{shorten(name, 60)!r} is none of the {len(names)} classes ({shown})"


def label_parser(num_classes: int | None, names: Sequence[str] | None) -> Callable[[str], int]:
    """Returns a function from text to label; it raises ValueError with the reason."""
    label_of = class_lookup(names or ())

    def parse(text: str) -> int:
        named = label_of(text)
        if named is not None:
            return named
        try:
            label = int(text.removesuffix(".0"))  # tables of pandas with a gap hold floats
        except ValueError:
            if names and not text.lstrip("+-").replace(".", "").isdecimal():
                raise ValueError(unknown_class(text, names)) from None
            raise ValueError(f"label {shorten(text, 60)!r} must be an integer from 0") from None
        if label < 0 or (num_classes is not None and label >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
            hint = "; does the list count from 1?" if label == num_classes else ""
            raise ValueError(f"label {label} is out of range, allowed: {allowed}{hint}")
        return label

    return parse
