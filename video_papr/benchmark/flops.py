"""Counting the arithmetic of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_gmacs(call: Callable[..., Any], *args: Any) -> float:
    """Runs `call(*args)` once and returns its multiply-accumulates in units of 1e9 (what papers call GFLOPs).

    Convolutions and matrix products are counted, those of attention included; element-wise work is not. Attention runs
    through its plain kernel meanwhile, because torch's counter does not know all the fused ones.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*args)
    return counter.get_total_flops() / 2 / 1e9
