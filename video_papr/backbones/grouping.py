"""Bucketing: which clips of a batch run together, where they keep unequal numbers of tokens or memory is near.

Letters: B clips, P class tokens, K kept tokens, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.types import TokenSelection

MIN_FILL = 0.875  # in a bucket each clip has at least this share of the longest one's tokens
# Values (tokens x channels) of the clips that run side by side on a processor. Activations of more are too large for
# its caches, and a large dense batch would look slow beside a pruned one.
SIDE_BY_SIDE = 3 << 19


def similar_lengths(counts: Tensor) -> list[Tensor]:
    """Groups clips by the number of their tokens: counts (B,) -> indices of each group, longest clips first.

    In a group nobody is shorter than `MIN_FILL` of the longest, so at most an eighth of what runs is padding.
    """
    lengths, order = counts.sort(descending=True, stable=True)
    starts: list[int] = []
    longest = math.inf
    for place, length in enumerate(lengths.tolist()):
        if not starts or length < MIN_FILL * longest:
            starts.append(place)
            longest = length
    ends = [*starts[1:], len(lengths)]
    return list(order.split([end - start for start, end in zip(starts, ends, strict=True)]))


def split_for_processor(rows: Tensor, tokens: int, dim: int) -> list[Tensor]:
    """Clips rows (n,) of `tokens` tokens of `dim` channels -> parts that a processor should run at once."""
    parts = -(-len(rows) // max(1, SIDE_BY_SIDE // (tokens * dim)))
    return list(rows.tensor_split(parts)) if parts > 1 else [rows]


def run_in_groups(
    run: Callable[[Tensor, TokenSelection | None], Tensor],
    frames: Tensor,
    selection: TokenSelection | None,
    *,
    num_tokens: int,
    dim: int,
) -> Tensor:
    """`run` over buckets of clips of similar length, on a processor a few clips at a time.

    Args:
        run: (frames (n, ...), selection of these clips) -> one row for each clip, (n, ...).
        frames, selection: of all clips; None: every clip keeps all of its `num_tokens`.
        num_tokens, dim: of the whole grid, and D.

    Returns:
        the rows of all clips in their order.
    """
    on_processor = frames.device.type == "cpu" and not torch.compiler.is_compiling()
    unequal = selection is not None and selection.valid is not None
    if not unequal and not on_processor:
        return run(frames, selection)
    if selection is not None and unequal:
        counts = selection.counts()
        groups = similar_lengths(counts)
        lengths = [int(counts[rows[0]]) for rows in groups]
    else:
        groups = [torch.arange(frames.shape[0], device=frames.device)]
        lengths = [num_tokens if selection is None else selection.num_kept]
    if on_processor:
        pairs = zip(groups, lengths, strict=True)
        groups = [part for rows, length in pairs for part in split_for_processor(rows, length, dim)]
    if len(groups) == 1 and not unequal:
        return run(frames, selection)
    found = [run(frames[rows], None if selection is None else selection.rows(rows)) for rows in groups]
    return torch.cat(found)[torch.cat(groups).argsort()]
