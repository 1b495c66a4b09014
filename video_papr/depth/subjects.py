"""What can be pruned: a backbone, or an X3D whose trunk scores tubelets. How each is run, taught and judged.

Letters: B clips of T frames of S x S pixels, N tokens of the grid, t x h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.builders import Backbone
from ..core.pixels import normalize_pixels, resample_clip
from ..core.types import TokenGrid
from ..pruning.budget import keep_count
from ..pruning.scorers.channels_last import channels_last_stages
from ..pruning.scorers.fusion import standardize
from ..pruning.scorers.x3d import MEAN, STD
from ..pruning.scorers.x3d_trunk import STAGES
from ..pruning.select import resize_map
from ..training.dropping import ALL_STAY, Dropping
from ..training.store import Batch


class Answer(NamedTuple):
    """What a network says about a batch: logits (B, classes), and of a scorer its map (B, t, h, w)."""

    logits: Tensor
    cells: Tensor | None = None


@dataclass(frozen=True)
class Teaching:
    """What a student is to learn: loss = cross-entropy + distill * distillation + map * distance of maps."""

    distill: float = 1.0  # weight of the divergence from the unpruned model's answers
    temperature: float = 2.0  # of both answers in it
    map: float = 1.0  # weight of the distance from the unpruned scorer's map

    def loss(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """A scalar; labels (B,)."""
        value = F.cross_entropy(student.logits.float(), labels)
        if self.distill:
            value = value + self.distill * divergence(student.logits, teacher.logits, self.temperature)
        if self.map and student.cells is not None:
            assert teacher.cells is not None
            value = value + self.map * map_distance(student.cells, teacher.cells)
        return value


@dataclass(frozen=True)
class Subject:
    """One kind of network, from frames to answers.

    Attributes:
        last_stage: the last stage of an X3D whose blocks may be pruned; None: all blocks of a backbone.
        answer: (network, batch, kept tokens (B, K) or None) -> answer.
        kept: (batch, generator) -> the tokens that are trained on; None: all.
    """

    name: str  # of the model, as in `build_backbone` or `build_pruner`
    last_stage: str | None
    answer: Callable[[Any, Tensor, Tensor | None], Answer]
    kept: Callable[[Batch, torch.Generator], Tensor | None]
    timed: Callable[[Any, Tensor], Any]  # (network, frames) runs what an evaluation runs

    def logits(self, net: nn.Module, frames: Tensor) -> Tensor:
        """frames (B, T, S, S, 3) uint8 -> logits (B, classes), with all tokens."""
        return self.answer(net, frames, None).logits


def backbone_subject(name: str, backbone: Backbone, dropping: Dropping = ALL_STAY) -> Subject:
    """A backbone that is taught on the tokens that `training.targets.backbone_target` would train it on."""

    def answer(net: Any, frames: Tensor, kept: Tensor | None) -> Answer:
        return Answer(net(normalize_pixels(frames, mean=net.mean, std=net.std), kept))

    def kept(batch: Batch, generator: torch.Generator) -> Tensor | None:
        return dropping.choose(batch, backbone.grid, generator)

    return Subject(name, None, answer, kept, lambda net, frames: answer(net, frames, None))


def scorer_subject(
    name: str, *, frames: int, size: int, stage: str, timed_frames: int, timed_size: int
) -> Subject:
    """A whole X3D classifier whose map is read at `stage`.

    Args:
        frames, size: what it sees in training, resampled from the backbone's clip.
        timed_frames, timed_size: what it sees as a scorer.
    """

    def pixels(clips: Tensor, count: int, side: int) -> Tensor:
        seen = resample_clip(normalize_pixels(clips, mean=MEAN, std=STD), num_frames=count, size=side)
        return seen.contiguous(memory_format=torch.channels_last_3d)

    def answer(net: Any, clips: Tensor, kept: Tensor | None) -> Answer:
        features, head = pixels(clips, frames, size), net.blocks[-1]
        cells = None
        for number, block in enumerate(net.blocks[:-1]):
            features = block(features)
            if number and STAGES[number - 1] == stage:  # the first is the stem
                cells = features.mean(1, dtype=torch.float32)
        if stage == "head":
            pool = head.pool
            cells = pool.pre_act(pool.pre_norm(pool.pre_conv(features))).mean(1, dtype=torch.float32)
        return Answer(head(features), cells)

    def timed(net: Any, clips: Tensor) -> Tensor:
        features = pixels(clips, timed_frames, timed_size)
        last = 5 if stage == "head" else STAGES.index(stage) + 2
        if features.device.type == "cpu" and isinstance(net.blocks[0].norm, nn.Identity):  # folded, as in use
            return list(channels_last_stages(list(net.blocks[:last]), features))[-1][1].movedim(-1, 1)
        for block in net.blocks[:last]:
            features = block(features)
        return features

    return Subject(name, stage, answer, lambda batch, generator: None, timed)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation (Hinton et al., 2015): T^2 KL(teacher || student) of logits (B, classes), a scalar."""
    wanted = F.log_softmax(teacher.float() / temperature, 1)
    said = F.log_softmax(student.float() / temperature, 1)
    return temperature**2 * F.kl_div(said, wanted, reduction="batchmean", log_target=True)


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps (B, t, h, w), each brought to mean 0 and deviation 1 in its clip; a scalar.

    Only the order of a map's cells decides what is kept; its level and contrast do not. (Our choice.)
    """
    return F.mse_loss(standardize(student), standardize(teacher))


def kept_alike(
    student: Tensor, teacher: Tensor, grid: TokenGrid, share: float, options: Mapping[str, Any]
) -> Tensor:
    """The part of the tokens kept by the teacher's map that the student's map keeps too, (B,).

    Args:
        student, teacher: maps (B, t, h, w).
        options: `align_corners` and `cell_center` of `selection.resize_map`.
    """
    count = keep_count(share, grid.num_tokens)
    kept = []
    for cells in (student, teacher):
        scores = resize_map(cells, grid, **options).flatten(1)
        places = scores.topk(count, dim=1).indices
        kept.append(torch.zeros_like(scores, dtype=torch.bool).scatter(1, places, True))
    return (kept[0] & kept[1]).sum(1) / count
