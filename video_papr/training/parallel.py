"""Training in several ranks: each takes its rows of every batch, and the gradients are averaged.

Letters: B clips in a batch, R ranks. The mean over ranks of the mean over B / R clips is the mean over B clips, so the
steps are those of one process, to rounding. Two things are not means over clips: batch norm, which is made to see the
whole batch on GPUs (torch has no such thing on the CPU, where each rank normalises its own rows), and the loss
`train.motion_loss`, a mean over the actor's tokens of each rank's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.errors import ConfigError
from ..core.processes import Ranks
from .store import Batch

Loss = Callable[[Batch, torch.Generator], Tensor]


@dataclass(frozen=True)
class Shared:
    """How this rank takes part in the steps.

    Attributes:
        loss: (this rank's rows of a batch, generator) -> scalar; `backward` averages its gradients over the ranks.
        apart: a context in which they are not yet, for all but the last part of an accumulated batch.
    """

    loss: Loss
    apart: Callable[[], AbstractContextManager[None]] = nullcontext


class _LossOf(nn.Module):
    """The loss of a model as the forward pass of a module, which is what torch wraps."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.loss(batch, generator)


def share_steps(model: nn.Module, loss: Loss, ranks: Ranks) -> Shared:
    """Makes the steps of all ranks one. Call it before the optimiser is built.

    Args:
        model: the same on all ranks; its batch norms are replaced in place where they have to be.
        loss: runs `model`; every parameter has a part in it.
    """
    if ranks.size == 1:
        return Shared(loss)
    group = None
    if next(model.parameters()).is_cuda:
        group = ranks.gpu_group()
        nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    wrapped = DistributedDataParallel(_LossOf(model, loss), process_group=group)
    return Shared(wrapped, wrapped.no_sync)


def check_split(batch_size: int, accumulate: int, ranks: Ranks) -> None:
    """Raises ConfigError unless a batch splits into equal rows for each part and rank."""
    if batch_size % (accumulate * ranks.size):
        raise ConfigError(
            f"train.batch_size={batch_size} must be a multiple of {accumulate * ranks.size}: of train.accumulate="
            f"{accumulate} times {ranks.size} ranks"
        )


def own_rows(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's part of a batch: B / R neighbours."""
    rows = len(batch.labels) // ranks.size
    own = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
    return Batch(*(None if values is None else values[own] for values in batch))  # type: ignore[arg-type]
