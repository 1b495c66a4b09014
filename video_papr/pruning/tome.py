"""Token merging (ToMe: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023): pure functions and a schedule.

In every block, between attention and MLP, the tokens are split alternately into A and B; each token of A draws one edge
to the token of B with the most similar attention key (cosine, mean over the heads), the r strongest edges are kept, and
the tokens that they join become their mean, weighted by how many tubelets each stands for (section 3 of the paper).
"Proportional attention" counts a merged token as often as it has tubelets: log(size) is added to its logits. The tokens
that are left stay in the order of the grid, so that neighbours go on alternating between A and B; or, with
order="published", they stand as the authors' code leaves them, which decides about the pairs of the next block.

Letters: B clips, K tokens, P protected ones at the front (class tokens), D channels, C channels of a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError, check_known

MERGERS = ("none", "tome")
SCHEDULES = ("constant", "decreasing")
ORDERS = ("grid", "published")


def merge_schedule(r: int, depth: int, schedule: str = "constant") -> tuple[int, ...]:
    """Tokens to merge in each of `depth` blocks.

    "constant": r in every block. "decreasing": from 2 r in the first block, linearly, to 0 in the last: about as many
    altogether, merged earlier, which saves more (section 4.1 of the paper).
    """
    if schedule == "constant" or depth == 1:
        return (r,) * depth
    return tuple(2 * r * (depth - 1 - block) // (depth - 1) for block in range(depth))


def match_tokens(
    keys: Tensor, sizes: Tensor, r: int, *, num_prefix: int = 0, order: str = "grid"
) -> tuple[Tensor, int]:
    """Bipartite soft matching: where every token goes.

    Args:
        keys: (B, K, C), compared by their cosine.
        sizes: (B, K), how many tubelets a token stands for; 0 marks padding, which only follows all other tokens. The
            longest clip of a batch has none.
        r: tokens to merge, at most; never more than half of the clip's unprotected ones.
        num_prefix: P tokens at the front that are never merged.
        order: one of `ORDERS`. "grid": A and B alternate behind the prefix, and what is left stays in its order.
            "published": they alternate from the first token on, prefix included; what is left of A comes before B, by
            falling similarity where there is no prefix.

    Returns:
        target: (B, K) int64, each token's place in the shorter sequence; what merges has one place.
        length: of the shorter sequence, in the longest clip.
    """
    batch, count, _ = keys.shape
    number = torch.arange(count, device=keys.device)
    length = count - min(r, (count - num_prefix) // 2)
    if length == count:
        return number.repeat(batch, 1), count
    first = num_prefix if order == "grid" else 0
    present = sizes > 0
    free = (present & (number >= num_prefix))[:, first:]
    unit = F.normalize(keys[:, first:], dim=-1)
    near = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # A x B
    near = near.masked_fill(~free[:, None, 1::2], float("-inf"))
    nearness, partner = near.max(2)
    nearness = nearness.float().masked_fill(~free[:, ::2], float("-inf"))
    rank = nearness.argsort(dim=1, descending=True, stable=True).argsort(1)
    edges = (free.sum(1) // 2).clamp(max=r)
    leaves = torch.zeros(batch, count, dtype=torch.bool, device=keys.device)
    leaves[:, first::2] = rank < edges[:, None]
    goes_to = number.repeat(batch, 1)
    goes_to[:, first::2] = torch.where(leaves[:, first::2], first + 1 + 2 * partner, goes_to[:, first::2])
    stays = ~leaves & present
    if order == "grid":
        place = stays.cumsum(1) - 1
    else:
        turn = number.repeat(batch, 1)  # the smallest comes first
        turn[:, 1::2] += count
        if num_prefix:
            turn[:, :num_prefix] = number[:num_prefix]
        else:
            turn[:, ::2] = rank
        place = turn.masked_fill(~stays, 2 * count).argsort(1).argsort(1).masked_fill(~stays, 0)
    return place.clamp(min=0).gather(1, goes_to), length


def merge_tokens(tokens: Tensor, sizes: Tensor, target: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Carries out what `match_tokens` found.

    Args:
        tokens: (B, K, D).
        sizes, target, length: as there.

    Returns:
        tokens (B, length, D), means weighted by size; and their sizes (B, length), 0 where a clip is shorter.
    """
    weights = sizes.to(tokens.dtype)
    where = target[..., None].expand_as(tokens)
    sums = tokens.new_zeros(len(tokens), length, tokens.shape[2])
    sums = sums.scatter_add(1, where, tokens * weights[..., None])
    merged = sizes.new_zeros(len(sizes), length).scatter_add(1, target, sizes)
    return sums / merged.clamp(min=1)[..., None].to(tokens.dtype), merged


@dataclass(frozen=True)
class ToMe:
    """Merges tokens inside the blocks of a backbone; see the head of this file.

    Attributes:
        r: tokens merged per block, at most half of those that there are; 0 merges nothing.
        schedule: one of `SCHEDULES`.
        prop_attn: proportional attention; False: every token counts once there, as the authors advise for masked
            autoencoders. The mean before the head goes by size either way.
        order: one of `ORDERS`, see `match_tokens`.

    Raises ConfigError: a value is out of range.
    """

    r: int
    schedule: str = "constant"
    prop_attn: bool = True
    order: str = "grid"

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 0:
            raise ConfigError(
                f"merger.r={self.r} must be a whole number of at least 0 (tokens merged per block)"
            )
        check_known("merger.schedule", self.schedule, SCHEDULES)
        check_known("merger.order", self.order, ORDERS)

    def __call__(
        self, tokens: Tensor, keys: Tensor, sizes: Tensor, *, block: int, depth: int, num_prefix: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The tokens between attention and MLP of one block, after merging.

        Args:
            tokens: (B, K, D).
            keys: (B, H, K, C) of the block's H heads.
            sizes: (B, K) float32, how many tubelets each token stands for; 0 marks padding.
            block, depth: number of the block, and how many there are.

        Returns:
            tokens (B, K', D) and sizes (B, K').
        """
        r = merge_schedule(self.r, depth, self.schedule)[block]
        target, length = match_tokens(keys.mean(1), sizes, r, num_prefix=num_prefix, order=self.order)
        return (tokens, sizes) if length == tokens.shape[1] else merge_tokens(tokens, sizes, target, length)


def build_merger(name: str, *, r: int = 16, **options: Any) -> ToMe | None:
    """A merger by name, with options of `ToMe`; "none" gives None.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    check_known("merger", name, MERGERS)
    return None if name == "none" else ToMe(r, **options)
