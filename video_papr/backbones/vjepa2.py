"""V-JEPA 2's encoder with its attentive pooler as a classifier (Assran et al., 2025), on a subset of its tubelets.

Its positions are rotations of queries and keys, by the tubelet's place along time, height and width. The place travels
with its token, as three more channels that every layer hands on: whatever drops, merges or packs tokens takes the
places along. A merged token has the mean place of its parts.

Letters: B clips, N tokens of the grid, K kept tokens, D channels, H heads of C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from .blocks import joined, projected, run_blocks, size_bias
from .encoder import Encoder
from .layers import ACTIVATIONS, Block, LayerNorm, Mlp, init_weights

AXES = 3
# Of a place in its channel: small beside features wherever whole tokens are compared, and exact in half precision.
UNIT = 2.0**-10


class VJEPA2(Encoder):
    """A vision transformer over tubelets with rotary positions, and a pooler of its own blocks and one query.

    Tokens are (B, K, D + 3): the last channels are their places.

    Args:
        pooler_depth: blocks of the pooler.
        transformer: of `Encoder`, as the others.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    mean_pooled = False
    usual_sampling = "vjepa2"

    def __init__(
        self,
        *,
        num_frames: int = 64,
        input_size: int = 256,
        dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_dim: int | None = None,
        activation: str = "gelu",
        pooler_depth: int = 3,
        **transformer: Any,
    ) -> None:
        super().__init__(
            num_frames=num_frames,
            input_size=input_size,
            dim=dim,
            depth=0,  # the blocks are of another kind
            num_heads=num_heads,
            **transformer,
        )
        self.usual_stride = 2 if num_frames >= 64 else 4  # of the published classifiers: 64 x 2 and 16 x 4
        act = ACTIVATIONS[activation]
        self.blocks = nn.ModuleList(
            RotaryBlock(dim, num_heads, mlp_dim or 4 * dim, act) for _ in range(depth)
        )
        self.norm = LayerNorm(dim)
        self.pooler = AttentivePooler(dim, num_heads, pooler_depth, act)
        self.head = nn.Linear(dim, self.num_classes)
        with torch.device("cpu"):  # arithmetic on the meta device would import torch's compiler
            places = torch.cartesian_prod(*(torch.arange(float(side)) for side in self.grid.shape))
        table = UNIT * places.view(1, -1, AXES)
        self.register_buffer("positions", table.to(torch.get_default_device()), persistent=False)
        self.apply(init_weights)

    def add_pos_embed(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """tokens (B, K, D), keep_idx (B, K), None: all N -> (B, K, D + 3), with their places behind them."""
        places = self.positions.to(tokens.dtype)
        places = places.expand(tokens.shape[0], -1, -1) if keep_idx is None else places[0, keep_idx]
        return torch.cat([tokens, places], -1)

    def embed_means(self, pixels: Tensor, shares: Tensor) -> Tensor:
        """As `Encoder.embed_means`: (B, R, D + 3), each with its mean place."""
        return torch.cat(
            [self.patch_embed.means(pixels, shares), shares @ self.positions.to(shares.dtype)], -1
        )

    def forward_head(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, K, D + 3) -> logits (B, classes); sizes (B, K): how often each counts in attention, None: once."""
        return self.head(self.pooler(self.norm(tokens[..., :-AXES]), sizes))


class RotaryBlock(nn.Module):
    """A block whose parts are named as in timm's, on tokens (B, K, D + 3) that carry their places."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(dim), _Norm(dim)
        self.attn, self.mlp = _Attention(dim, num_heads), _Mlp(dim, mlp_dim, act)
        self.ls1, self.ls2 = nn.Identity(), nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D + 3) -> the same."""
        mixed = F.scaled_dot_product_attention(*projected(self.attn, self.norm1(tokens)))
        tokens = tokens + joined(self.attn, mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class _Norm(LayerNorm):
    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([super().forward(tokens[..., :-AXES]), tokens[..., -AXES:]], -1)


class _Mlp(Mlp):
    """Adds nothing to a place."""

    def forward(self, tokens: Tensor) -> Tensor:
        return F.pad(super().forward(tokens[..., :-AXES]), (0, AXES))


class _Linear(nn.Linear):
    """Adds nothing to a place."""

    def forward(self, tokens: Tensor) -> Tensor:
        return F.pad(super().forward(tokens), (0, AXES))


class _RotaryQKV(nn.Linear):
    """tokens (B, K, D + 3) -> queries, keys and values (B, K, 3 D), the first two turned by their places."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, 3 * dim)
        self.num_heads = num_heads

    def forward(self, tokens: Tensor) -> Tensor:
        heads = super().forward(tokens[..., :-AXES]).unflatten(-1, (3, self.num_heads, -1))
        exact = torch.promote_types(tokens.dtype, torch.float32)
        angles = rotary_angles(tokens[..., -AXES:].to(exact) / UNIT, heads.shape[-1])[:, :, None, None]
        both, values = heads[:, :, :2], heads[:, :, 2:]
        turned = both * angles.cos().to(both.dtype) + quarter_turn(both) * angles.sin().to(both.dtype)
        return torch.cat([turned, values], 2).flatten(2)


class _Attention(nn.Module):
    """What `blocks.projected` and `blocks.joined` ask of timm's attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = _RotaryQKV(dim, num_heads), _Linear(dim, dim)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()


class AttentivePooler(nn.Module):
    """Blocks over the tokens, and a learned query that attends to what they give."""

    def __init__(self, dim: int, num_heads: int, depth: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, 4 * dim, act) for _ in range(depth))
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.num_heads = num_heads
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.mlp = Mlp(dim, 4 * dim, act)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, K, D), sizes (B, K) how often each counts, 0 is padding, None: once -> (B, D)."""
        tokens, sizes = run_blocks(self.blocks, tokens, sizes=sizes)
        query, seen = self.query.to(tokens.dtype).expand(tokens.shape[0], -1, -1), self.norm1(tokens)
        heads = (self.q(query), self.k(seen), self.v(seen))
        bias = None if sizes is None else size_bias(sizes, tokens.dtype)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        answer = query + mixed.transpose(1, 2).flatten(2)
        return (answer + self.mlp(self.norm2(answer)))[:, 0]


def rotary_angles(places: Tensor, channels: int) -> Tensor:
    """places (..., 3) -> angles (..., C): a third of a head's channels, rounded down to pairs, for each axis.

    As the model was trained: along an axis the frequencies follow one another twice, though a turn is of neighbouring
    channels. What is left over is not turned.
    """
    half = channels // AXES // 2
    frequency = 10000.0 ** -(torch.arange(half, dtype=places.dtype, device=places.device) / half)
    angles = places[..., None] * frequency  # (..., 3, C / 6)
    return F.pad(torch.cat([angles, angles], -1).flatten(-2), (0, channels - 2 * AXES * half))


def quarter_turn(features: Tensor) -> Tensor:
    """(a, b) -> (-b, a) of every pair of neighbouring channels."""
    first, second = features.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-second, first], -1).flatten(-2)
