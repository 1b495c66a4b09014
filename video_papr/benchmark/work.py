"""The work of each stage: its arithmetic, the bytes that its operators move, and how fast that could go at best.

The bound is that of the roofline model (Williams et al., "Roofline", CACM 2009), operator by operator: an operator
takes at least as long as its arithmetic at the speed of the best matrix product, and at least as long as reading its
inputs and writing its outputs at the speed of a copy. It is the bound of the operators as they are called. A compiler
that joins them moves fewer bytes, and data that stay in a cache move faster, so a stage may come out above 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ..pruning.scorers.x3d import X3DScorer
from ..pruning.scorers.x3d_trunk import X3DTrunk
from .ceilings import Ceilings
from .probes import Staged


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


# Fused attention on a processor is missing from the table of torch before 2.15.
FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops, **flop_registry}


@dataclass
class Work:
    """What operators do: (floating-point operations, bytes) of each."""

    operators: list[tuple[float, float]] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Floating-point operations of convolutions and matrix products; two for each multiply-accumulate."""
        return sum(flops for flops, _ in self.operators)

    @property
    def gmacs(self) -> float:
        """Multiply-accumulates / 1e9, what papers call GFLOPs."""
        return self.flops / 2e9

    @property
    def gigabytes(self) -> float:
        """What the operators read and write, in 1e9 bytes."""
        return sum(moved for _, moved in self.operators) / 1e9

    def bound_ms(self, ceilings: Ceilings) -> float:
        """The least time that the operators take, one after the other."""
        return 1000 * sum(
            max(flops / ceilings.flops_per_s, moved / ceilings.bytes_per_s) for flops, moved in self.operators
        )


class WorkProbe(TorchDispatchMode):
    """Counts what every operator does, by stage. As a mark it ends a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, Work] = {}
        self._open = Work()

    def __call__(self, stage: str) -> None:
        self.stages.setdefault(stage, Work()).operators.extend(self._open.operators)
        self._open = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if not func.is_view:
            count = FLOPS.get(func._overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count else 0
            # A jagged tensor is a view of the row that the operators within it read and write.
            leaves = tree_leaves((args, kwargs, result))
            moved = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_nested]
            self._open.operators.append((flops, sum(map(_size, moved))))
        return result


def count_work(run: Staged, frames: Tensor) -> dict[str, Work]:
    """The work of each stage of one run on `frames` (B, T, H, W, 3) uint8."""
    # Not inference mode: there torch hands over linear layers and the like whole, without the parts that are counted.
    with torch.no_grad(), WorkProbe() as probe:
        run(frames, probe)
    return probe.stages


def convolution_work(scorer: X3DScorer, frames: Tensor) -> Work:
    """What the convolutions of an X3D do on `frames` (B, T, H, W, 3) uint8: the rest when all else is joined to them.

    Each reads its input and its weights once and writes its output once; norms, activations and sums cost nothing.
    """
    work = Work()

    def count(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        assert isinstance(module, nn.Conv3d)
        flops = 2 * made.numel() * module.weight[0].numel()
        work.operators.append((flops, sum(map(_size, (given[0], made, module.weight)))))

    convolutions = [module for module in scorer.trunk.modules() if isinstance(module, nn.Conv3d)]
    handles = [module.register_forward_hook(count) for module in convolutions]
    try:
        with torch.no_grad():
            for _ in X3DTrunk.stages(scorer.trunk, scorer.pixels(frames)):
                pass  # module by module, so that hooks see them
    finally:
        for handle in handles:
            handle.remove()
    return work


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; a value that is repeated by its strides is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
