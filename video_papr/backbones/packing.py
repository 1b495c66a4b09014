"""Clips of unequal length in one row: the tokens of all of them behind each other, and no padding.

Norms and linear layers look at one token at a time, so the row runs through them as it is. Attention alone looks
around, and stays within each clip: on a GPU all clips in one call over jagged tensors (torch.nested), for which torch
has fused kernels of variable length; elsewhere one call for each clip, which is as exact and needs no padding either.

Letters: B clips, P class tokens, K kept tokens of the longest clip, S tokens of the row with class tokens, H heads, C
channels of a head, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import feed_forward, joined, projected

# The oldest torch that this package takes has no documented way to make a jagged tensor from a row.
JAGGED = hasattr(torch.nested, "nested_tensor_from_jagged")


@dataclass(frozen=True)
class Packing:
    """Where the tokens of each clip lie in the row: its class tokens, then its kept ones, clip after clip.

    Attributes:
        mask: (B, P + K) bool, False where the batch has padding.
        places: (S,) int64, where the row's tokens stand in the batch, row-major.
        lengths: P + kept tokens of each clip.
        offsets: (B + 1,) int64, where each clip begins in the row, and S.
    """

    mask: Tensor
    places: Tensor
    lengths: tuple[int, ...]
    offsets: Tensor
    num_prefix: int

    @classmethod
    def of(cls, valid: Tensor, num_prefix: int) -> Packing:
        """valid (B, K) bool, False where a kept token is padding."""
        mask = F.pad(valid, (num_prefix, 0), value=True)
        lengths = mask.sum(1)
        return cls(
            mask=mask,
            places=mask.flatten().nonzero()[:, 0],
            lengths=tuple(lengths.tolist()),
            offsets=F.pad(lengths.cumsum(0), (1, 0)),
            num_prefix=num_prefix,
        )

    def pack(self, tokens: Tensor) -> Tensor:
        """tokens (B, P + K, D) -> (1, S, D)."""
        return tokens.flatten(0, 1)[self.places][None]

    def unpack(self, row: Tensor) -> Tensor:
        """row (1, S, D) -> tokens (B, P + K, D), zero where there is padding."""
        tokens = row.new_zeros(self.mask.numel(), row.shape[2])
        return tokens.index_copy(0, self.places, row[0]).view(*self.mask.shape, -1)

    def with_prefixes(self, placed: Tensor) -> Tensor:
        """placed (1, P + S - B P, D), the class tokens once and all kept tokens -> (1, S, D)."""
        if self.num_prefix == 0:
            return placed
        column = self.places % self.mask.shape[1]
        body = column >= self.num_prefix
        return placed[:, torch.where(body, self.num_prefix - 1 + body.cumsum(0), column)]


def run_packed(
    blocks: nn.ModuleList, row: Tensor, packing: Packing, *, first: int = 0, stop: int | None = None
) -> Tensor:
    """Runs timm's blocks `first` to `stop` - 1 over row (1, S, D), None: up to the last -> (1, S, D)."""
    chosen: list[Any] = list(blocks)[first:stop]
    for block in chosen:
        heads = projected(block.attn, block.norm1(row))
        query, key, value = (part[0].transpose(0, 1) for part in heads)  # (S, H, C)
        # A norm of query and key may have left them in another precision than autocast's.
        mixed = attend_within(query.to(value.dtype), key.to(value.dtype), value, packing)
        row = row + block.ls1(joined(block.attn, mixed.flatten(1)[None]))
        row = feed_forward(block, row)
    return row


def attend_within(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """Attention of every clip of the row to itself: query, key, value (S, H, C) -> (S, H, C)."""
    attend = attend_jagged if JAGGED and query.is_cuda else attend_clip_by_clip
    return attend(query, key, value, packing)


def attend_jagged(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """All clips in one call; see `attend_within`."""
    shortest, longest = min(packing.lengths), max(packing.lengths)

    def jagged(part: Tensor) -> Tensor:
        made = torch.nested.nested_tensor_from_jagged(
            part.contiguous(), packing.offsets, min_seqlen=shortest, max_seqlen=longest
        )
        return made.transpose(1, 2)  # (B, H, clip's own, C)

    return F.scaled_dot_product_attention(jagged(query), jagged(key), jagged(value)).transpose(1, 2).values()


def attend_clip_by_clip(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """One call for each clip; see `attend_within`."""
    parts = (part.transpose(0, 1)[None].split(packing.lengths, 2) for part in (query, key, value))
    mixed = [F.scaled_dot_product_attention(*clip) for clip in zip(*parts, strict=True)]
    return torch.cat(mixed, 2)[0].transpose(0, 1)
