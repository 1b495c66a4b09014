"""timm's VisionTransformer (ViT, DeiT, CLIP, DINOv2, SigLIP, ...) as a backbone of images and of videos.

An image is a clip of one frame. A video's frames run side by side, each by itself, and their answers are pooled.

Its own blocks, norms and classifier are used, with its weights. The patch embedding becomes one that embeds kept
patches only; the positions, and whatever stands in front of the patches (class, distillation, register tokens), are
read off the model once.
"""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.timm_models import Convert, build_timm, imagenet_names, pretrained_cfg
from ..core.errors import ConfigError, check_known
from ..core.parts import POOLS
from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from .blocks import pooled, size_bias
from .depth_pruned import BLOCK_KINDS, PrunedTimm, read_pruned_timm
from .encoder import Encoder
from .layers import frame_size

DEFAULT_MODEL = "deit_small_patch16_224"


def read_as_tested(backbone: Encoder, network: Any) -> None:
    """Gives a backbone the normalisation, size and interpolation with which timm tests the network's weights."""
    cfg = pretrained_cfg(network)
    backbone.mean = tuple(cfg.get("mean") or IMAGENET_MEAN)
    backbone.std = tuple(cfg.get("std") or IMAGENET_STD)
    # timm's test transform: a crop of this share of the resized picture.
    backbone.short_side = math.floor(min(backbone.frame_size) / (cfg.get("crop_pct") or 0.875))
    backbone.interpolation = "bicubic" if cfg.get("interpolation") == "bicubic" else "bilinear"


class TimmViT(Encoder):
    """A VisionTransformer of timm that can run on a subset of its patches.

    Args:
        vit: a VisionTransformer in eval mode; its modules are shared, not copied.
        num_frames: of a clip; each is one of `Encoder.parts`.
        pool: what becomes of the frames' answers, one of `core.parts.POOLS`.

    Attributes: see `Encoder`. Class, distillation and register tokens are the prefix: never dropped, never counted.
        Without a classifier, and with pool="concat", `num_classes` is 0 and the answer are features.

    Raises ConfigError: the model's answer or its blocks are made in a way that cannot be pruned, or the pool is
    unknown.
    """

    positions: Tensor

    def __init__(self, vit: Any, *, name: str, num_frames: int = 1, pool: str = "mean") -> None:
        _check_vit(vit, name)
        embed = vit.patch_embed
        super().__init__(
            num_classes=0 if pool == "concat" else vit.num_classes,
            num_frames=num_frames,
            parts=num_frames,
            input_size=tuple(embed.img_size),
            tubelet=(1, *embed.patch_size),
            dim=vit.embed_dim,
            depth=0,  # the blocks are timm's own
            num_heads=1,
        )
        self.pool = check_known("backbone.pool", pool, POOLS)
        self.usual_sampling = "uniform" if num_frames > 1 else None
        self.num_prefix, self.blocks = vit.num_prefix_tokens, nn.ModuleList(vit.blocks)
        self.norm_pre, self.norm, self.fc_norm = vit.norm_pre, vit.norm, vit.fc_norm
        distilled = hasattr(vit, "head_dist")
        self.head: nn.Module = _TwoHeads(vit.head, vit.head_dist) if distilled else vit.head
        self.attn_pool = vit.attn_pool
        # timm's distilled models read two tokens, unlike what their setting says.
        self.reads = "both" if distilled else vit.global_pool
        self.mean_pooled = self.reads not in ("both", "token")
        self.pooled_from = 0 if getattr(vit, "pool_include_prefix", False) else self.num_prefix
        with torch.no_grad():
            weight = embed.proj.weight
            self.patch_embed.proj.weight.copy_(weight.flatten(1))
            bias = weight.new_zeros(len(weight)) if embed.proj.bias is None else embed.proj.bias
            self.patch_embed.proj.bias.copy_(bias)
            # Patches of zeros leave what is added to them, and the prefix with its own positions.
            zeros, grid = torch.zeros(1, self.part_grid.num_tokens, vit.embed_dim), self.part_grid.shape[1:]
            placed = vit._pos_embed(zeros.unflatten(1, grid) if vit.dynamic_img_size else zeros)
        self.register_buffer("positions", placed.detach().clone(), persistent=False)  # (1, P + N, D)
        read_as_tested(self, vit)

    def add_pos_embed(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """tokens (B, K, D), keep_idx (B, K), None: all N -> (B, P + K, D) with positions, behind the prefix."""
        positions = self.positions.to(tokens.dtype)
        prefix, rest = positions[:, : self.num_prefix], positions[:, self.num_prefix :]
        placed = tokens + (rest if keep_idx is None else rest[0, keep_idx])
        # Not len(): a tracer takes that for a constant.
        return self.norm_pre(torch.cat([prefix.expand(tokens.shape[0], -1, -1), placed], 1))

    def embed_means(self, pixels: Tensor, shares: Tensor) -> Tensor:
        """As `Encoder.embed_means`; a model that normalises its tokens first normalises the means."""
        return self.norm_pre(super().embed_means(pixels, shares))

    def forward_head(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, P + K, D) -> logits (B, classes), from class token, mean or attention, as the model was trained.

        `sizes` (B, P + K) says how often each token counts in a mean, or in the pooling's attention; None: once.
        Without a classifier: what it would read, (B, D).
        """
        tokens = self.norm(tokens)
        if self.reads == "both":
            return self.head(tokens[:, :2].flatten(1))
        if self.reads == "token":
            return self.head(self.fc_norm(tokens[:, 0]))
        tokens = tokens[:, self.pooled_from :]
        sizes = None if sizes is None else sizes[:, self.pooled_from :]
        if self.attn_pool is None:
            return self.head(self.fc_norm(pooled(tokens, sizes)))
        bias = {} if sizes is None else {"attn_mask": size_bias(sizes, tokens.dtype)}
        return self.head(self.fc_norm(self.attn_pool(tokens, **bias)))


class _TwoHeads(nn.Module):
    """The mean of what the classifiers of class and distillation token say (Touvron et al., ICML 2021, section 4)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, both: Tensor) -> Tensor:
        """both (B, 2 D) -> logits (B, classes)."""
        first, second = both.chunk(2, dim=1)
        return (self.first(first) + self.second(second)) / 2


def open_timm(
    model: str,
    convert: Convert,
    *,
    weights: str | Path | None,
    replace_head: bool,
    num_classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    any_size: bool = False,
) -> tuple[Any, PrunedTimm | None, tuple[int, int] | None]:
    """A network of timm, whole; what a file of `tools/depth_prune.py` says it is to become, and the (H, W) asked for.

    Args:
        any_size: its layers read images of every size, so it is not told one.
        model, convert, weights, num_classes, input_size, replace_head, seed: see `build_timm_vit` and `build_timm`.

    Raises: see `build_timm_vit`.
    """
    asked = {"num_classes": num_classes, "input_size": input_size, "replace_head": replace_head}
    pruned = read_pruned_timm(weights, {"model": model, **asked})
    size = pruned.read.input_size if pruned else input_size
    options: dict[str, Any] = {} if size is None or any_size else {"img_size": size}
    network = build_timm(
        model,
        group="backbone",
        weights=None if pruned else weights,
        num_classes=len(pruned.names) if pruned else num_classes,
        fresh_head=replace_head,
        convert=convert,
        seed=seed,
        **options,
    )
    return network, pruned, None if size is None else frame_size(size)


def build_timm_vit(
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    replace_head: bool = False,
    num_frames: int = 1,
    pool: str = "mean",
    **asked: Any,
) -> TimmViT:
    """Builds a VisionTransformer of timm in eval mode.

    Args:
        model: timm's name, with or without the tag of its weights; None: `DEFAULT_MODEL`.
        weights: "pretrained", a file, or None for random ones; see `timm_models.build_timm`.
        replace_head: a new, untrained classifier in place of the one that the weights have.
        num_frames, pool: see `TimmViT`.
        asked: `num_classes`, `input_size` and `seed` as of `build_backbone`.

    Raises:
        ConfigError: timm has no such model, or it cannot be pruned.
        CheckpointError: the weights are missing, damaged or of another model.
    """
    # It takes seconds, so only where it is needed.
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = DEFAULT_MODEL if model is None else model
    vit, pruned, _ = open_timm(
        model,
        checkpoint_filter_fn,
        weights=weights,
        replace_head=replace_head,
        **asked,
    )
    backbone = TimmViT(vit, name=model, num_frames=num_frames, pool=pool).eval().requires_grad_(False)
    if pruned is not None:
        pruned.rebuild(backbone, BLOCK_KINDS)
        pruned.load(backbone, backbone)
    elif weights is not None and not replace_head:
        backbone.class_names = imagenet_names(vit, backbone.num_classes)
    return backbone


def _check_vit(vit: Any, name: str) -> None:
    """Raises ConfigError unless every step of the model is one that `TimmViT` takes."""
    import timm
    from timm.models.vision_transformer import Block, VisionTransformer

    reason = None
    known = isinstance(vit, VisionTransformer)
    if not known:
        reason = f"it is a {type(vit).__name__}; supported are timm's ViT and DeiT (VisionTransformer)"
    elif type(vit.patch_embed).__name__ != "PatchEmbed" or not isinstance(vit.patch_embed.norm, nn.Identity):
        reason = f"its patches come from a {type(vit.patch_embed).__name__} with more than one linear layer"
    elif vit.patch_embed.proj.in_channels != 3:
        reason = f"it reads {vit.patch_embed.proj.in_channels} channels instead of RGB"
    elif vit.global_pool not in ("token", "avg", "map"):
        reason = f"its answer is pooled by {vit.global_pool!r}; supported are 'token', 'avg' and 'map'"
    elif vit.attn_pool is not None and "attn_mask" not in signature(vit.attn_pool.forward).parameters:
        reason = (
            f"timm {timm.__version__} cannot leave tokens out of its pooling by attention; a newer timm can"
        )
    elif not all(type(block) is Block for block in vit.blocks):
        reason = f"its blocks are of the kind {type(vit.blocks[0]).__name__}; supported is Block"
    elif any(getattr(block.attn, "gate", None) is not None for block in vit.blocks):
        reason = "its attention is gated"
    if reason is not None:
        raise ConfigError(f"backbone.model={name} cannot be used: {reason}.")
