"""How the pixels of a model were normalised: said in numbers, or measured on what its processor does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from .host import Colors, Host

# Two grey levels tell a linear normalisation. Black alone would look to some processors as if it were scaled already.
GREYS = (51, 204)


def given_colors(key: str, given: Sequence[float] | None, default: Colors) -> Colors:
    """Mean or standard deviation, as `key` says; `default` where none is given.

    Raises ConfigError: not three numbers, or a deviation that is not above 0.
    """
    if given is None:
        return default
    if len(given) != 3 or (key == "std" and min(given) <= 0):
        raise ConfigError(
            f"{key}={given!r} must be three numbers{' above 0' if key == 'std' else ''}, for R, G and B"
        )
    red, green, blue = map(float, given)
    return red, green, blue


def measure_colors(processor: Callable[..., Any], host: Host) -> tuple[Colors, Colors]:
    """Mean and std that undo what a processor does, measured on two grey clips: it maps v in 0..1 to (v - mean) / std.

    Its settings would not do: some processors shift after scaling, and no setting says so.

    Raises ConfigError: it does not take frames, or turns bright and dark around.
    """
    frames, height, width = host.clip
    found = []
    for grey in GREYS:
        image = np.full((height, width, 3), grey, np.uint8)
        try:
            given = processor([image] * frames, return_tensors="pt")
            pixels = given["pixel_values" if "pixel_values" in given else "pixel_values_videos"]
            if pixels.ndim == 2:  # flattened patches, channels first
                pixels = pixels.unflatten(1, (3, -1, 1))
            found.append(pixels.float().movedim(-3, -1).flatten(0, -2).mean(0))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(
                f"processor={type(processor).__name__} does not take frames ({reason})"
            ) from error
    low, high = GREYS[0] / 255, GREYS[1] / 255
    std = (high - low) / (found[1] - found[0])
    mean = low - found[0] * std
    if not (std > 0).all():
        raise ConfigError(f"processor={type(processor).__name__} does not keep bright pixels above dark ones")
    return given_colors("mean", mean.tolist(), host.mean), given_colors("std", std.tolist(), host.std)
