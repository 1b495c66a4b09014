"""Training for depth pruning: the supernet of all subnets, and the way from a whole network to a pruned one.

After UPDP (Liu et al., AAAI 2024). In the supernet every step prunes K blocks drawn at random. Progressive training
moves the chosen blocks from their baseline to their pruned branch by `mix` (the paper's lambda), which rises from 0 to
exactly 1; then the pruned network is fine-tuned. Our choices: `mix` rises linearly; progressive training starts from
the unpruned model, bit for bit, and takes from the supernet only the pruned branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..training.loop import Draw, Loss
from ..training.store import Batch, ClipStore
from .blocks import TwoBranch
from .calibrate import calibrate
from .places import Mask, set_mask, switches
from .subjects import Answer, Subject, Teaching, kept_alike


def mix_at(step: int, rising: int) -> float:
    """`mix` of a step counted from 0: 0 in the first, linearly up to exactly 1 in step `rising` - 1, and 1 from there.

    With `rising` <= 1 it is 1 from the start: pruning is abrupt.
    """
    return 1.0 if step >= rising - 1 else step / (rising - 1)


def random_subnet(blocks: int, count: int, generator: torch.Generator) -> Mask:
    """`count` of `blocks` places, each set as likely as any other."""
    return tuple(sorted(torch.randperm(blocks, generator=generator)[:count].tolist()))


def supernet_loss(
    net: nn.Module, teacher: nn.Module, subject: Subject, teaching: Teaching, count: int
) -> Loss:
    """A loss that prunes `count` blocks drawn anew for every batch."""
    found = switches(net)
    taught = student_loss(net, teacher, subject, teaching)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        set_mask(found, random_subnet(len(found), count, generator))
        return taught(batch, generator)

    return loss


def student_loss(net: nn.Module, teacher: nn.Module, subject: Subject, teaching: Teaching) -> Loss:
    """What `net` is taught; `teacher` is the unpruned model, in eval mode, on the same tokens."""

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        kept = subject.kept(batch, generator)
        with torch.no_grad():
            wanted: Answer = subject.answer(teacher, batch.frames, kept)
        return teaching.loss(subject.answer(net, batch.frames, kept), wanted, batch.labels)

    return loss


def rising_draw(draw: Draw, found: Sequence[TwoBranch], steps: int, rising: int) -> Draw:
    """`draw`, which also sets `mix` for the step that it draws for."""

    def drawn(progress: float, clips: int, generator: torch.Generator) -> Batch:
        mix = mix_at(round(progress * steps), rising)
        for switch in found:
            switch.mix = mix
        return draw(progress, clips, generator)

    return drawn


class Judge:
    """The fitness of masks: prunes the blocks of a mask, takes the norms' statistics again, and scores the rest.

    Args:
        net: a network with two branches in every block that may be pruned.
        examples: the split that scores; neither trained on nor part of the test.
        alike: None scores by top-1 in per cent. Otherwise by the tokens that stay the same as with the unpruned scorer,
            in per cent: the arguments of `kept_alike` behind the two maps.
        teacher: the unpruned model, for `alike`.
    """

    def __init__(
        self,
        net: nn.Module,
        subject: Subject,
        *,
        calibration: Sequence[Tensor],
        examples: ClipStore,
        batch_size: int,
        alike: tuple[Any, ...] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.net, self.subject, self.calibration = net, subject, calibration
        self.examples, self.batch_size, self.alike = examples, batch_size, alike
        self.found = switches(net)
        self.wanted = None if alike is None else self._cells(teacher)

    def __call__(self, mask: Mask) -> float:
        """A score in per cent, higher is better. Leaves the network pruned by `mask` and calibrated for it."""
        set_mask(self.found, mask)
        calibrate(self.net, lambda frames: self.subject.answer(self.net, frames, None), self.calibration)
        if self.alike is None:
            return self._top1()
        return 100 * kept_alike(self._cells(self.net), self.wanted, *self.alike).mean().item()  # type: ignore[arg-type]

    @torch.inference_mode()
    def _top1(self) -> float:
        device, correct = next(self.net.parameters()).device, 0
        for batch in self._batches():
            logits = self.subject.logits(self.net, batch.frames.to(device))
            correct += int((logits.argmax(1).cpu() == batch.labels).sum())
        return 100 * correct / len(self.examples)

    @torch.inference_mode()
    def _cells(self, net: Any) -> Tensor:
        device = next(self.net.parameters()).device
        maps = [self.subject.answer(net, batch.frames.to(device), None).cells for batch in self._batches()]
        return torch.cat([cells.cpu() for cells in maps if cells is not None])

    def _batches(self) -> Iterator[Batch]:
        for start in range(0, len(self.examples), self.batch_size):
            end = min(start + self.batch_size, len(self.examples))
            yield self.examples.batch(np.arange(start, end))
