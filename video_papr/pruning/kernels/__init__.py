"""Kernels of our own for X3D, for inference: a Triton one on a GPU, C++ on a processor.

Off unless `runtime.kernels` asks for them: both are built on the machine that uses them. Each is compared with torch
before it is used, and where it does not work torch's own operators stay.
"""

from __future__ import annotations

import torch

from ..protocol import Pruner
from ..scorers.channels_last import ChannelsLastTrunk
from ..scorers.x3d import X3DScorer


def use_kernels(pruner: Pruner | None, device: torch.device) -> str | None:
    """Gives an X3D with `use_channels_last` the kernels for `device`, in place; other pruners stay as they are.

    Call it last: later changes of the weights may not count.

    Returns:
        why it was left alone, where the kernels do not work on this device; otherwise None.
    """
    scorer = _fast_scorer(pruner)
    if scorer is None:
        return None
    if device.type == "cuda":
        return _use_triton(scorer, device)
    return _use_cpp(scorer) if device.type == "cpu" else None


def takes_a_while(pruner: Pruner | None, device: torch.device) -> bool:
    """Whether `use_kernels` will have to run a C++ compiler first, for some ten seconds."""
    if device.type != "cpu" or _fast_scorer(pruner) is None:
        return False
    from .compiler import BuildError, library_of
    from .x3d_cpp import SOURCE

    try:
        return not library_of(SOURCE).is_file()
    except BuildError:
        return False


def _fast_scorer(pruner: Pruner | None) -> X3DScorer | None:
    scorer = getattr(pruner, "scorer", None)
    return scorer if isinstance(scorer, X3DScorer) and isinstance(scorer.trunk, ChannelsLastTrunk) else None


def _use_triton(scorer: X3DScorer, device: torch.device) -> str | None:
    try:
        from .depthwise_triton import fault
    except ImportError as error:
        return " ".join(str(error).split())
    found = fault(device)
    if found is None:
        from .depthwise import fuse_depthwise

        fuse_depthwise(scorer.trunk)
    return found


def _use_cpp(scorer: X3DScorer) -> str | None:
    from .x3d_cpp import fault, pack
    from .x3d_pixels import fast_clip_of

    found = fault()
    if found is None:
        pack(scorer.trunk)
        scorer.clip_of = fast_clip_of
    return found
