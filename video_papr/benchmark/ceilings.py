"""What the device can do at best, measured: matrix products and copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

REPEATS = 5
# Sides of the square matrices: the fastest counts. Copies are larger than most caches.
SIDES = {"cpu": (768, 1536, 2304), "cuda": (4096, 8192)}
COPY_MIB = {"cpu": 256, "cuda": 1024}


@dataclass(frozen=True)
class Ceilings:
    """The fastest matrix product in one precision, and the fastest copy (bytes read + bytes written)."""

    flops_per_s: float
    bytes_per_s: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures both, in a few seconds; takes the memory of two `COPY_MIB`."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    best = 0.0
    for side in SIDES[kind]:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = _least_seconds(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), kind)  # type: ignore[misc]
        best = max(best, 2 * side**3 / seconds)
    source = torch.ones(COPY_MIB[kind] * 2**18, device=device)  # float32
    target = torch.empty_like(source)
    seconds = _least_seconds(lambda: target.copy_(source), kind)
    return Ceilings(best, 2 * source.numel() * source.element_size() / seconds)


def _least_seconds(call: Callable[[], object], kind: str) -> float:
    """The shortest of some calls: whatever else runs can only lengthen one."""
    times = []
    for _ in range(REPEATS + 1):  # the first warms up, and is never the shortest
        if kind == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        call()
        if kind == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return min(times)
