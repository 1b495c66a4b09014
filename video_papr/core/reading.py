"""How a model reads its clips: frame sampling, size and normalisation, stored with the weights that learned it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import CheckpointError

COUNTS = ("frame_stride", "num_frames", "short_side")


@dataclass(frozen=True)
class ReadConfig:
    """What weights say about the clips that they were trained on; None is not known.

    Attributes:
        sampling, frame_stride, short_side: the keys of the config group dataset, with their meaning.
        num_frames, input_size: frames of a clip, and their size in pixels: S, or (H, W).
        mean, std: of the pixels, RGB in 0..1.
    """

    sampling: str | None = None
    frame_stride: int | None = None
    num_frames: int | None = None
    input_size: int | tuple[int, int] | None = None
    short_side: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def to_metadata(self) -> dict[str, Any]:
        """What is known, as plain values for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_metadata(cls, stored: Any, *, source: str) -> ReadConfig:
        """What `to_metadata` gave; keys of later versions are left out.

        Raises CheckpointError: a value is wrong; `source` names the file.
        """
        if not isinstance(stored, Mapping):
            raise CheckpointError(f"{source}: its reading recipe is {stored!r:.80}, not a JSON object")
        given = {
            field.name: stored[field.name] for field in fields(cls) if stored.get(field.name) is not None
        }
        for key, value in given.items():
            right, given[key] = _checked(key, value)
            if not right:
                raise CheckpointError(f"{source}: its reading recipe says {key}={value!r:.80}")
        return cls(**given)


def _checked(key: str, value: Any) -> tuple[bool, Any]:
    if key == "sampling":
        return isinstance(value, str), value
    if key in COUNTS or (key == "input_size" and not isinstance(value, list | tuple)):
        return type(value) is int and 0 < value < 1 << 20, value
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if key == "input_size":
        return len(numbers) == 2 and all(type(side) is int and side > 0 for side in numbers), numbers
    right = len(numbers) == 3 and all(type(n) in (int, float) and abs(n) < 1e3 for n in numbers)
    return right and (key == "mean" or all(n > 0 for n in numbers)), numbers
