"""Which clips run together: every one once, little padding, no more values at a time than a processor's caches hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from video_papr.backbones.grouping import run_in_groups, similar_lengths, split_for_processor
from video_papr.core.types import TokenGrid, TokenSelection


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_clips_of_similar_length_stand_together_and_ties_keep_their_order(counts: list[int]) -> None:
    expected: list[list[int]] = []
    for clip in sorted(range(len(counts)), key=lambda clip: -counts[clip]):
        if expected and 8 * counts[clip] >= 7 * counts[expected[-1][0]]:
            expected[-1].append(clip)
        else:
            expected.append([clip])
    assert [group.tolist() for group in similar_lengths(torch.tensor(counts))] == expected


@pytest.mark.parametrize(
    ("clips", "tokens", "dim", "sizes"),
    [
        (4, 1568, 768, [1, 1, 1, 1]),  # one clip of VideoMAE-B is 1,204,224 values, and 1,572,864 fit
        (3, 2048, 768, [1, 1, 1]),  # as many as fit
        (5, 1024, 768, [2, 2, 1]),
        (5, 1025, 768, [1, 1, 1, 1, 1]),
        (4, 1024, 768, [2, 2]),
        (5, 512, 768, [3, 2]),
        (4, 512, 768, [4]),
        (1, 9999, 9999, [1]),
        (7, 1, 1, [7]),
    ],
)
def test_parts_that_fit_a_processors_caches(clips: int, tokens: int, dim: int, sizes: list[int]) -> None:
    rows = torch.arange(10, 10 + clips)
    parts = split_for_processor(rows, tokens, dim)
    assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), rows)


@pytest.mark.parametrize("device", ["cpu", "elsewhere"])
@pytest.mark.parametrize("lengths", [None, [4, 4, 4, 4], [1, 8, 7, 8], [8, 2, 2, 1]])
def test_rows_come_back_in_their_order_from_few_runs(
    lengths: list[int] | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anywhere but on a processor only clips of unequal length are parted; `is_compiling` stands in for that here."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: device != "cpu")
    frames, grid = torch.tensor([[3.0], [1.0], [4.0], [2.0]]), TokenGrid(2, 2, 2)
    selection = None
    if lengths is not None:
        mask = torch.arange(8).expand(4, 8) < torch.tensor(lengths)[:, None]
        selection = TokenSelection.from_mask(mask.view(-1, *grid.shape))
    seen: list[tuple[int, list[int] | None]] = []

    def run(part: Tensor, chosen: TokenSelection | None) -> Tensor:
        counts = None if chosen is None else chosen.counts().tolist()
        seen.append((len(part), counts))
        own = torch.zeros(len(part)) if counts is None else torch.tensor(counts)
        return torch.stack([part[:, 0], own], 1)

    dim = 2**17  # 1.5 million values are 12 tokens
    found = run_in_groups(run, frames, selection, num_tokens=8, dim=dim)
    assert found[:, 0].tolist() == [3, 1, 4, 2]
    assert found[:, 1].tolist() == (lengths or [0, 0, 0, 0])
    unequal = {
        (1, 8, 7, 8): {"cpu": [[8], [8], [7], [1]], "elsewhere": [[8, 8, 7], [1]]},
        (8, 2, 2, 1): {"cpu": [[8], [2, 2], [1]], "elsewhere": [[8], [2, 2], [1]]},
    }
    if lengths is None:
        assert seen == ([(1, None)] * 4 if device == "cpu" else [(4, None)])
    elif tuple(lengths) in unequal:
        assert [counts for _, counts in seen] == unequal[tuple(lengths)][device]
    else:
        assert [counts for _, counts in seen] == ([[4, 4], [4, 4]] if device == "cpu" else [[4] * 4])
