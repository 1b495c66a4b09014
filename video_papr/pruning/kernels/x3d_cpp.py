"""X3D's operators in C++ on a processor: built, compared with torch, and given to a trunk. See `x3d.cpp`."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..scorers.x3d import X3DTrunk, fold_norms
from ..scorers.x3d_depth_pruned import MergedBlock
from . import x3d_block, x3d_stem
from .compiler import BuildError, load

SOURCE = Path(__file__).with_name("x3d.cpp")
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest value


def pack(trunk: Any) -> None:
    """Gives the parts of a trunk on the processor their packed weights; blocks merged to a convolution stay."""
    stem, *stages = trunk.blocks
    stem.packed = x3d_stem.PackedStem(stem)
    for stage in stages:
        for block in stage.res_blocks:
            if not isinstance(block, MergedBlock):
                block.packed = x3d_block.PackedBlock(block)


@cache
def fault() -> str | None:
    """Why the operators are not to be used here, in a few words; None: they are loaded and give what torch gives.

    They are built if they were not built before, and compared once: the stem, and blocks with and without stride,
    shortcut and squeeze, in both types of numbers.
    """
    try:
        load(SOURCE)
        x3d_stem.register()
        x3d_block.register()
        trunk = random_trunk()
        pack(trunk)
        stem, stage = list(trunk.blocks)
        blocks: Any = stage.res_blocks
        parts = {"the stem": stem, **{f"block {place}": block for place, block in enumerate(blocks)}}
        for dtype, tolerance in TOLERANCES.items():
            for name, part in parts.items():
                apart = _difference(part, 3 if part is stem else 24, dtype)
                if not apart <= tolerance:
                    return f"{name} differs from torch by {apart:.1g} in {dtype}"
    except BuildError as error:
        return str(error)
    except RuntimeError as error:  # of torch, whatever it may say
        return " ".join(str(error).splitlines()[0].split())[:200]
    return None


def random_trunk() -> X3DTrunk:
    """The stem and res2's blocks, two with squeeze-and-excitation and one without, of which every weight matters."""
    trunk = X3DTrunk("res2").eval()
    fold_norms(trunk)
    generator = torch.Generator().manual_seed(0)
    for value in trunk.parameters():
        scale = math.sqrt(2 / value[0].numel()) if value.ndim > 1 else 0.3
        value.data = scale * torch.randn(value.shape, generator=generator)
    return trunk


def _difference(part: Any, channels: int, dtype: torch.dtype) -> float:
    """How far a packed part is from torch in float64, as a share of the largest value."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 48, 41, channels, generator=generator).to(dtype)
    with torch.no_grad():
        found = part.packed(x).double()
        wide = copy.deepcopy(part).double()
        expected = wide(x.double().movedim(-1, 1)).movedim(1, -1)
    return ((found - expected).abs().max() / expected.abs().max()).item()
