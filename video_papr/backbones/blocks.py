"""Running a transformer's blocks over tokens of which some may be padding, and some may be merged on the way.

Letters: B clips, P class tokens, K kept tokens, D channels.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Merger(Protocol):
    """What shortens the sequence inside a block, between attention and MLP.

    Attributes:
        prop_attn: whether attention counts a token as often as its size says, or once.
    """

    @property
    def prop_attn(self) -> bool: ...

    def __call__(
        self, tokens: Tensor, keys: Tensor, sizes: Tensor, *, block: int, depth: int, num_prefix: int
    ) -> tuple[Tensor, Tensor]:
        """tokens (B, K, D), keys (B, heads, K, D / heads), sizes (B, K) -> tokens (B, K', D), sizes (B, K')."""
        ...


def run_blocks(
    blocks: nn.ModuleList,
    tokens: Tensor,
    *,
    sizes: Tensor | None = None,
    merger: Merger | None = None,
    num_prefix: int = 0,
    first: int = 0,
    stop: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Runs timm's blocks over tokens of which some may be padding, and some may be merged on the way.

    Args:
        blocks: of one backbone, in eval mode where they drop anything at random.
        tokens: (B, P + K, D), P class tokens first.
        sizes: (B, P + K) float32, how many tubelets each token stands for, 0 where it is padding; None: one each.
        num_prefix: P, which are always valid and never merged.
        first, stop: the blocks `first` to `stop` - 1 run; None: up to the last.

    Returns:
        tokens (B, P + K', D), and what each counts in a mean, (B, P + K') float32: how many tubelets it stands for, 0
        where it is padding. None when every token counts 1.
    """
    chosen: list[tuple[int, Any]] = list(enumerate(blocks))[first:stop]
    if sizes is None and merger is None:
        for _, block in chosen:
            tokens = block(tokens)
        return tokens, None
    padded = sizes is not None
    for number, block in chosen:
        counted = sizes
        if merger is not None and not merger.prop_attn and sizes is not None:
            counted = (sizes > 0).to(sizes.dtype) if padded else None
        attended, keys = _attend(block.attn, block.norm1(tokens), counted)
        tokens = tokens + block.ls1(attended)
        if merger is not None:
            before = torch.ones(tokens.shape[:2], device=tokens.device) if sizes is None else sizes
            tokens, after = merger(
                tokens, keys, before, block=number, depth=len(blocks), num_prefix=num_prefix
            )
            sizes = sizes if after is before else after
        tokens = feed_forward(block, tokens)
    return tokens, sizes


def feed_forward(block: Any, tokens: Tensor) -> Tensor:
    """The part of a block behind attention, with its shortcut; depth pruning may have merged it into one module."""
    joint = getattr(block, "joint", None)
    return tokens + block.ls2(block.mlp(block.norm2(tokens))) if joint is None else joint(tokens)


def _attend(attention: Any, tokens: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Proportional attention: a key counts as often as its size says, and not at all with size 0.

    exp(q k + log s) = s exp(q k), so the sizes enter as a bias and torch's fused attention serves.

    Returns:
        the attended tokens (B, K, D), and the keys (B, heads, K, D / heads).
    """
    query, key, value = projected(attention, tokens)
    bias = None if sizes is None else size_bias(sizes, query.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return joined(attention, mixed.transpose(1, 2).flatten(2)), key


def size_bias(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """sizes (B, K) -> what counts each key so often, (B, 1, 1, K) of `dtype`, to be added before the softmax."""
    return sizes.to(torch.promote_types(dtype, torch.float32)).log().to(dtype)[:, None, None]


def projected(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tokens (B, K, D) -> query, key and value of timm's attention, (B, heads, K, D / heads) each."""
    packed = attention.qkv(tokens)
    each = packed.shape[2] // (3 * attention.num_heads)  # -1 would be ambiguous where there are no clips
    query, key, value = packed.unflatten(2, (3, attention.num_heads, each)).permute(2, 0, 3, 1, 4)
    return attention.q_norm(query), attention.k_norm(key), value


def joined(attention: Any, mixed: Tensor) -> Tensor:
    """What timm's attention does behind attention itself, with the heads side by side: (B, K, D) -> (B, K, D)."""
    norm = getattr(attention, "norm", None)  # of newer timm; an identity in most models
    return attention.proj(mixed if norm is None else norm(mixed))


def pooled(tokens: Tensor, sizes: Tensor | None) -> Tensor:
    """The mean over tokens (B, K, D), each counted as often as `sizes` (B, K) says; None: once. Returns (B, D)."""
    if sizes is None:
        return tokens.mean(1)
    sizes = sizes.to(torch.promote_types(tokens.dtype, torch.float32))
    share = (sizes / sizes.sum(1, keepdim=True)).to(tokens.dtype)
    return (tokens * share[..., None]).sum(1)
