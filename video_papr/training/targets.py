"""What can be trained: a backbone, or an X3D classifier whose trunk becomes a scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.builders import Backbone, build_backbone
from ..backbones.depth_pruned import check_blocks, depth_prune_backbone
from ..backbones.encoder import Encoder
from ..checkpoints.files import load_exactly, read_weights, write_weights
from ..core.pixels import normalize_pixels, resample_clip
from ..pruning.scorers.x3d import CLIPS, MEAN, STD
from ..pruning.scorers.x3d_depth_pruned import check_blocks as check_x3d_blocks
from ..pruning.scorers.x3d_depth_pruned import depth_prune_x3d
from ..pruning.scorers.x3d_network import X3D
from ..synthetic.tracks import MOTION, actor_motion, actor_tokens
from .augment import unchanged
from .dropping import ALL_STAY, Dropping
from .store import Batch


@dataclass(frozen=True)
class Target:
    """A network in training.

    Attributes:
        loss: (batch, generator) -> scalar; the generator drives what is random.
        blocks: what depth pruning made of its blocks, where it starts from such weights.
        plan: (batch, generator) -> the batch with what its loss would draw for each clip, so that clips can be shared
            out among ranks afterwards.
    """

    name: str  # of the model, as in `build_backbone` or `build_pruner`
    model: nn.Module  # everything that learns, heads included that only training needs
    weights: nn.Module  # the part of `model` that is kept afterwards
    loss: Callable[[Batch, torch.Generator], Tensor]
    predict: Callable[[Tensor], Tensor]  # frames (B, T, S, S, 3) uint8 -> logits (B, classes)
    blocks: tuple[str, ...] | None = None
    plan: Callable[[Batch, torch.Generator], Batch] = unchanged

    def save(self, path: Path, class_names: tuple[str, ...], described: dict[str, Any]) -> None:
        """Writes the weights in our own format (fp16), with the classes and a description."""
        own = {} if self.blocks is None else {"blocks": self.blocks}
        described = {"model": self.name, "class_names": class_names, **own, **described}
        write_weights(path, self.weights.state_dict(), described)


class ActorProbes(nn.Module):
    """A backbone with two linear probes that tell where the actor is, and how it moves.

    Small transformers need very many clips to find a small moving actor from class labels alone, and more to tell
    clockwise from counterclockwise, which no single tubelet shows. The probes' losses show them where to look and what
    to compare; after training they are thrown away. (Our choice; VideoMAE pre-trains on masked pixels instead.)
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.where = nn.Linear(backbone.dim, 1)
        self.motion = nn.Linear(backbone.dim, len(MOTION))

    def forward(self, pixels: Tensor, keep_idx: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """pixels (B, 3, T, S, S), keep_idx (B, K) or None -> class logits (B, classes), and of every token the logit
        that it is the actor's (B, K), read in the middle, and its motion (B, K, 6), read a block later.
        """
        backbone, blocks = self.backbone, self.backbone.blocks
        tokens = backbone.embed(pixels, keep_idx)
        middle = max(1, len(blocks) // 2)
        for number, block in enumerate(blocks, start=1):
            tokens = block(tokens)
            own = tokens[:, backbone.num_prefix :]  # class tokens have no place
            if number == middle:
                where = self.where(own).squeeze(-1)
            if number == min(middle + 1, len(blocks)):
                motion = self.motion(own)
        return backbone.forward_head(tokens), where, motion

    def loss(
        self, where: Tensor, motion: Tensor, tracks: Tensor, keep_idx: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The losses of both probes, scalars.

        Args:
            where, motion: (B, K) and (B, K, 6), as `forward` gives them.
            tracks: (B, T, 5), see `data.tracks`.
            keep_idx: (B, K) or None for all tokens.

        Returns:
            binary cross-entropy over all tokens, and the smooth L1 distance over those of the actor.
        """
        grid = self.backbone.grid
        actor = actor_tokens(tracks, grid).flatten(1)
        moves = actor_motion(tracks, grid.frames).repeat_interleave(grid.height * grid.width, dim=1)
        if keep_idx is not None:
            actor = actor.gather(1, keep_idx)
            moves = moves.gather(1, keep_idx[..., None].expand(-1, -1, moves.shape[2]))
        found = F.binary_cross_entropy_with_logits(where.float(), actor.float())
        apart = F.smooth_l1_loss(motion.float(), moves, reduction="none").mean(-1)
        return found, (apart * actor).sum() / actor.sum().clamp(min=1)


@dataclass(frozen=True)
class Losses:
    """What the loss of a backbone is made of; batches without tracks have no losses of `ActorProbes`."""

    label_smoothing: float = 0.0
    locate: float = 0.0  # weight of the loss that asks for the actor's tokens
    follow: float = 0.0  # and for its motion


def backbone_target(
    name: str,
    *,
    num_classes: int,
    weights: str | None = None,
    num_frames: int | None = None,
    input_size: int | None = None,
    dropping: Dropping = ALL_STAY,
    losses: Losses = Losses(),
    seed: int = 0,
) -> Target:
    """A backbone, from random weights or fine-tuned from `weights`, with a fresh head for other classes."""
    backbone = build_backbone(
        name, num_classes=num_classes, num_frames=num_frames, input_size=input_size, seed=seed
    )
    blocks = None if weights is None else _load_with_own_head(backbone, weights, head="head")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ActorProbes(backbone).requires_grad_(True)

    def predict(frames: Tensor) -> Tensor:
        return backbone(normalize_pixels(frames, mean=backbone.mean, std=backbone.std))

    def plan(batch: Batch, generator: torch.Generator) -> Batch:
        return batch._replace(kept=dropping.choose(batch, backbone.grid, generator))

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        kept = plan(batch, generator).kept if batch.kept is None else batch.kept
        kept = None if kept is None else kept.to(batch.frames.device)
        pixels = normalize_pixels(batch.frames, mean=backbone.mean, std=backbone.std)
        logits, where, motion = model(pixels, kept)
        value = F.cross_entropy(logits.float(), batch.labels, label_smoothing=losses.label_smoothing)
        if batch.tracks is None or not (losses.locate or losses.follow):
            return value + 0 * (where.mean() + motion.mean())  # ranks wait for a gradient of every parameter
        found, followed = model.loss(where, motion, batch.tracks, kept)
        return value + losses.locate * found + losses.follow * followed

    return Target(name, model, backbone, loss, predict, blocks, plan)


def scorer_target(
    name: str,
    *,
    num_classes: int,
    weights: str | None = None,
    frames: int | None = None,
    size: int | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> Target:
    """A whole X3D classifier that sees what it will see as a scorer: the backbone's clip, resampled.

    Args:
        name: x3d_xs, x3d_s or x3d_m.
        weights: start from these, with a fresh head when the number of classes differs.
        frames, size: what X3D sees; the published recipe's when None.
    """
    paper_frames, paper_size = CLIPS[name]
    seen: dict[str, Any] = {"num_frames": frames or paper_frames, "size": size or paper_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = X3D(num_classes).to(memory_format=torch.channels_last_3d)
    blocks = None if weights is None else _load_with_own_head(model, weights, head="blocks.5.proj")

    def predict(clips: Tensor) -> Tensor:
        pixels = resample_clip(normalize_pixels(clips, mean=MEAN, std=STD), **seen)
        return model(pixels.contiguous(memory_format=torch.channels_last_3d))

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(predict(batch.frames).float(), batch.labels, label_smoothing=label_smoothing)

    return Target(name, model, model, loss, predict, blocks)


def _load_with_own_head(model: nn.Module, weights: str, *, head: str) -> tuple[str, ...] | None:
    """Loads `weights`; the layer `head` keeps its fresh weights where theirs are absent or of another size.

    Returns what depth pruning made of the blocks, which `model` then has too; None: nothing.
    """
    state, described = read_weights(weights, key="train.weights")
    source = f"train.weights={weights}"
    blocks = None
    if "blocks" in described:
        if isinstance(model, Encoder):
            blocks = check_blocks(described["blocks"], len(model.blocks), source=source)
            depth_prune_backbone(model, blocks)
        else:
            blocks = check_x3d_blocks(described["blocks"], source=source)
            depth_prune_x3d(model, blocks)
    fresh = {key: value for key, value in model.state_dict().items() if key.startswith(f"{head}.")}
    if any(key not in state or state[key].shape != value.shape for key, value in fresh.items()):
        state = {**state, **fresh}
    load_exactly(model, state, source=source)
    return blocks
