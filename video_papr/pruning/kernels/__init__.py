"""Kernels of our own for X3D, for inference: a Triton one on a GPU, C++ on a processor.

Off unless `runtime.kernels` asks for them: both are built on the machine that uses them. Each is compared with torch
before it is used, and where it does not work torch's own operators stay.
"""

from __future__ import annotations

import torch

from ..builders import Pruner
from ..fast import FastTrunk
from ..similarity import SimilarityPruner
from ..x3d import X3DScorer


def use_kernels(pruner: Pruner | SimilarityPruner | None, device: torch.device) -> str | None:
    """Gives an X3D that `speed_up` has seen the kernels for `device`, in place; other pruners stay as they are.

    Call it last: later changes of the weights may not count.

    Returns:
        why it was left alone, where the kernels do not work on this device; otherwise None.
    """
    scorer = getattr(pruner, "scorer", None)
    if not isinstance(scorer, X3DScorer) or not isinstance(scorer.trunk, FastTrunk):
        return None
    if device.type == "cuda":
        return _use_triton(scorer.trunk, device)
    return _use_cpp(scorer.trunk) if device.type == "cpu" else None


def _use_triton(trunk: FastTrunk, device: torch.device) -> str | None:
    try:
        from .depthwise_triton import fault
    except ImportError as error:
        return " ".join(str(error).split())
    found = fault(device)
    if found is None:
        from .depthwise import fuse_depthwise

        fuse_depthwise(trunk)
    return found


def _use_cpp(trunk: FastTrunk) -> str | None:
    from .x3d_block import fault, pack_blocks

    found = fault()
    if found is None:
        pack_blocks(trunk)
    return found
