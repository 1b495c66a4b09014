"""Token merging (ToMe: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023): pure functions and a schedule.

In every block, between attention and MLP, the tokens are split alternately into A and B; each token of A draws one edge
to the token of B with the most similar attention key (cosine, mean over the heads), the r strongest edges are kept, and
the tokens that they join become their mean, weighted by how many tubelets each stands for (section 3 of the paper).
"Proportional attention" counts a merged token as often as it has tubelets: log(size) is added to its logits. The tokens
that are left stay in the order of the grid, so that neighbours go on alternating between A and B.

Letters: B clips, K tokens, P protected ones at the front (class tokens), D channels, C channels of a key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError

MERGERS = ("none", "tome")
SCHEDULES = ("constant", "decreasing")


def merge_schedule(r: int, depth: int, schedule: str = "constant") -> tuple[int, ...]:
    """Tokens to merge in each of `depth` blocks.

    "constant": r in every block. "decreasing": from 2 r in the first block, linearly, to 0 in the last: about as many
    altogether, merged earlier, which saves more (section 4.1 of the paper).
    """
    if schedule == "constant" or depth == 1:
        return (r,) * depth
    return tuple(2 * r * (depth - 1 - block) // (depth - 1) for block in range(depth))


def match_tokens(keys: Tensor, sizes: Tensor, r: int, *, num_prefix: int = 0) -> tuple[Tensor, int]:
    """Bipartite soft matching: where every token goes.

    Args:
        keys: (B, K, C), compared by their cosine.
        sizes: (B, K), how many tubelets a token stands for; 0 marks padding, which only follows all other tokens. The
            longest clip of a batch has none.
        r: tokens to merge, at most; never more than half of the clip's unprotected ones.
        num_prefix: P tokens at the front that are never merged.

    Returns:
        target: (B, K) int64, each token's place in the shorter sequence; what merges has one place.
        length: of the shorter sequence, in the longest clip.
    """
    batch, count, _ = keys.shape
    goes_to = torch.arange(count, device=keys.device).repeat(batch, 1)
    length = count - min(r, (count - num_prefix) // 2)
    if length == count:
        return goes_to, count
    keys, present = keys[:, num_prefix:], sizes[:, num_prefix:] > 0
    unit = F.normalize(keys, dim=-1)
    near = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # A x B
    near = near.masked_fill(~present[:, None, 1::2], float("-inf"))
    nearness, partner = near.max(2)
    nearness = nearness.float().masked_fill(~present[:, ::2], float("-inf"))
    rank = nearness.argsort(dim=1, descending=True, stable=True).argsort(1)
    edges = (present.sum(1) // 2).clamp(max=r)
    leaves = torch.zeros(batch, count, dtype=torch.bool, device=keys.device)
    leaves[:, num_prefix::2] = rank < edges[:, None]
    goes_to[:, num_prefix::2] = torch.where(
        leaves[:, num_prefix::2], num_prefix + 1 + 2 * partner, goes_to[:, num_prefix::2]
    )
    place = (~leaves & (sizes > 0)).cumsum(1) - 1  # of those that stay
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

    Raises:
        ConfigError: a value is out of range.
    """

    r: int
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 0:
            raise ConfigError(
                f"merger.r={self.r} must be a whole number of at least 0 (tokens merged per block)"
            )
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"merger.schedule={self.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}"
            )

    def __call__(
        self, tokens: Tensor, keys: Tensor, sizes: Tensor, *, block: int, depth: int, num_prefix: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The tokens between attention and MLP of one block, after merging.

        Args:
            tokens: (B, K, D).
            keys: (B, H, K, C) of the block's H heads.
            sizes: (B, K) float32, how many tubelets each token stands for; 0 marks padding.
            block, depth: number of the block, and how many there are.
            num_prefix: tokens at the front that are never merged.

        Returns:
            tokens (B, K', D) and sizes (B, K').
        """
        r = merge_schedule(self.r, depth, self.schedule)[block]
        target, length = match_tokens(keys.mean(1), sizes, r, num_prefix=num_prefix)
        return (tokens, sizes) if length == tokens.shape[1] else merge_tokens(tokens, sizes, target, length)


def build_merger(name: str, *, r: int = 16, schedule: str = "constant") -> ToMe | None:
    """A merger by name; "none" gives None.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    if name not in MERGERS:
        raise ConfigError(f"merger={name} is unknown; use one of {', '.join(MERGERS)}")
    return None if name == "none" else ToMe(r, schedule)
