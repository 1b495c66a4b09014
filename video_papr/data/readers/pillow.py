"""Image files as frames, with Pillow, which image models were trained and tested with. This module alone imports it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...core.errors import VideoDecodeError
from ...core.escape import printable
from ..limits import DEFAULT_LIMITS, Limits


def read_image(path: Path | str, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Returns (H, W, 3) uint8, RGB, upright as the camera says (EXIF); the first picture of an animation.

    Transparent parts lie on white. 16 bits per channel are scaled to 8, not cut off.

    Raises VideoDecodeError: the file is missing, damaged, cut short, of unknown kind, or larger than `limits` allow.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at 90 million pixels, and raises at twice as many; the first is a large photograph.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                limits.check_size(*image.size)
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_as_rgb(upright), np.uint8)
    except VideoDecodeError as error:
        raise VideoDecodeError(f"cannot decode {printable(path)} (pillow): {error}") from None
    except Exception as error:  # damaged bytes raise whatever the reader of the format stumbles over
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise VideoDecodeError(f"cannot decode {printable(path)} (pillow): {reason}") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would cut 16 bits at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
