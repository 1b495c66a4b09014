"""Counting, resizing and choosing, against brute force."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid, TokenSelection
from video_papr.pruning.budget import check_ratio, keep_count
from video_papr.pruning.select import lattice, ranks, resize_map, select_counts, select_tokens

grids = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
ratios = st.integers(1, 1000).map(lambda n: n / 1000)
floors = st.sampled_from([0.0, 0.5, 1.0])
shares = st.sampled_from([0.0, 0.3, 1.0])


def distinct(batch: int, grid: tuple[int, int, int], seed: int) -> Tensor:
    """(batch, *grid) float32 without two equal scores in a clip."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = math.prod(grid)
    order = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(batch)])
    return (order.float() - num_tokens / 2).view(batch, *grid)


# ---- K ----


@settings(deadline=None)
@given(st.decimals("0.0001", "1", places=4), st.integers(1, 20_000))
@example(Decimal("0.29"), 100)
def test_count_is_the_exact_floor(ratio: Decimal, num_tokens: int) -> None:
    assert keep_count(float(ratio), num_tokens) == max(1, math.floor(ratio * num_tokens))


@pytest.mark.parametrize(
    ("ratio", "num_tokens", "count"),
    [(0.29, 100, 29), (0.3, 1568, 470), (0.35, 3136, 1097), (0.001, 256, 1), (1.0, 1568, 1568), (1, 1, 1)],
)
def test_counts_worked_by_hand(ratio: float, num_tokens: int, count: int) -> None:
    assert keep_count(ratio, num_tokens) == count


@pytest.mark.parametrize(
    "ratio", [0, 0.0, -0.1, 1.5, 1 + 1e-9, float("nan"), float("inf"), "abc", "0.3", True, None, [0.3]]
)
def test_ratio_out_of_range(ratio: object) -> None:
    for call in (
        lambda r: check_ratio("keep_ratio", r),
        lambda r: select_tokens(torch.zeros(1, 1, 2, 2), keep_ratio=r),
    ):
        with pytest.raises(ConfigError) as caught:
            call(ratio)
        line = f"pruner.keep_ratio={ratio} must be a number with 0 < keep_ratio <= 1, e.g. 0.3"
        assert str(caught.value) == line


# ---- resizing ----


def stretch(values: np.ndarray, out: tuple[int, ...], *, align_corners: bool) -> np.ndarray:
    """Trilinear, one output value at a time."""

    def source(index: int, size: int, new: int) -> float:
        if align_corners:
            return index * (size - 1) / (new - 1) if new > 1 else 0.0
        return min(max((index + 0.5) * size / new - 0.5, 0.0), size - 1.0)

    result = np.zeros(out)
    for place in np.ndindex(*out):
        at = [source(i, size, new) for i, size, new in zip(place, values.shape, out, strict=True)]
        for corner in product((0, 1), repeat=3):
            weight, cell = 1.0, []
            for position, side, size in zip(at, corner, values.shape, strict=True):
                low = int(position)
                weight *= position - low if side else 1 - (position - low)
                cell.append(min(low + side, size - 1))
            result[place] += weight * values[tuple(cell)]
    return result


@settings(deadline=None, max_examples=40)
@given(cells=grids, grid=grids, align_corners=st.booleans(), seed=st.integers(0, 9))
def test_resizing_is_trilinear(
    cells: tuple[int, int, int], grid: tuple[int, int, int], align_corners: bool, seed: int
) -> None:
    significance = torch.randn(2, *cells, generator=torch.Generator().manual_seed(seed))
    resized = resize_map(significance, TokenGrid(*grid), align_corners=align_corners)
    expected = np.stack([stretch(one.numpy(), grid, align_corners=align_corners) for one in significance])
    np.testing.assert_allclose(resized.numpy(), expected, rtol=0, atol=1e-5)


def test_unaligned_corners_keep_a_cell_over_its_own_tokens() -> None:
    """The reason for the key: a peak in the cell (1, 1) of 5 x 5 has its centre over the tokens 2.8 to 5.6 of 14."""
    cells = torch.zeros(1, 1, 5, 5)
    cells[0, 0, 1, 1] = 1
    own, moved = (resize_map(cells, TokenGrid(1, 14, 14), align_corners=flag)[0, 0] for flag in (False, True))
    centre = [(m.sum(0) * (torch.arange(14) + 0.5)).sum() / m.sum() for m in (own, moved)]
    assert abs(centre[0] - 4.2) < 0.15
    assert abs(centre[1] - 4.2) > 0.4  # 5 / 4 cells of 13 / 4 tokens each: the published map lies elsewhere


@pytest.mark.parametrize("align_corners", [True, False])
def test_channel_mean_may_come_before_resizing(align_corners: bool) -> None:
    features = torch.rand(2, 432, 8, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = TokenGrid(8, 14, 14)
    before = resize_map(features.mean(1), grid, align_corners=align_corners)
    after = F.interpolate(features, grid.shape, mode="trilinear", align_corners=align_corners).mean(1)
    torch.testing.assert_close(before.double(), after, rtol=0, atol=1e-6)
    kept = [select_tokens(m, keep_ratio=0.3).keep_idx for m in (before, after)]
    assert torch.equal(*kept)


# ---- choosing ----


@settings(deadline=None)
@given(grid=grids, ratio=ratios, floor=floors, ground=shares, seed=st.integers(0, 99))
def test_selection_with_and_without_floor_and_ground_equals_brute_force(
    grid: tuple[int, int, int], ratio: float, floor: float, ground: float, seed: int
) -> None:
    scores = distinct(3, grid, seed)
    selection = select_tokens(scores, keep_ratio=ratio, min_per_frame=floor, uniform_share=ground)
    spread = lattice(TokenGrid(*grid), torch.device("cpu")).flatten().tolist()
    count = keep_count(ratio, math.prod(grid))
    assert selection.grid == TokenGrid(*grid)
    assert selection.keep_idx.shape == (3, count)
    per_frame = grid[1] * grid[2]
    for row, found in zip(scores.flatten(1).tolist(), selection.keep_idx.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda token: -row[token])
        even = math.floor(Fraction(ground).limit_denominator(10) * count)
        first = sorted(range(len(row)), key=lambda token: -spread[token])[:even]
        if floor:
            quota = math.floor(Fraction(floor) * (count - even) / grid[0])
            for frame in range(grid[0]):
                own = [t for t in ranked if t // per_frame == frame and t not in first]
                first += own[:quota]
        rest = [token for token in ranked if token not in first]
        assert found == sorted(first + rest[: count - len(first)])


values = st.one_of(
    st.floats(-3, 3, width=32), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf, 1e38, -1e38])
)


@settings(deadline=None)
@given(grid=grids, ratio=ratios, floor=floors, ground=shares, data=st.data())
def test_every_map_gives_a_sorted_unique_selection_in_range(
    grid: tuple[int, int, int], ratio: float, floor: float, ground: float, data: st.DataObject
) -> None:
    num_tokens = math.prod(grid)
    flat = data.draw(st.lists(values, min_size=num_tokens, max_size=num_tokens))
    scores = torch.tensor(flat).view(1, *grid)
    keep_idx = select_tokens(scores, keep_ratio=ratio, min_per_frame=floor, uniform_share=ground).keep_idx
    row = keep_idx[0].tolist()
    assert row == sorted(set(row))
    assert row[0] >= 0 and row[-1] < num_tokens
    if (
        floor == ground == 0
    ):  # the worst that is kept is no worse than the best that is dropped, NaN below everything
        rank = [-math.inf if math.isnan(value) else value for value in flat]
        dropped = [rank[token] for token in range(num_tokens) if token not in row]
        assert not dropped or min(rank[token] for token in row) >= max(dropped)


def test_nan_is_kept_only_when_nothing_else_is_left() -> None:
    scores = torch.tensor([math.nan, -math.inf, math.nan, -5.0, math.inf, 0.0]).view(1, 1, 2, 3)
    kept = [select_tokens(scores, keep_ratio=n / 6).keep_idx[0].tolist() for n in range(1, 5)]
    assert kept == [[4], [4, 5], [3, 4, 5], [1, 3, 4, 5]]


def test_constant_map_keeps_k_tokens_the_same_in_every_batch() -> None:
    kept = select_tokens(torch.zeros(5, 8, 14, 14), keep_ratio=0.3).keep_idx
    assert kept.shape == (5, 470)
    assert (kept == kept[0]).all()
    alone = select_tokens(torch.zeros(1, 8, 14, 14), keep_ratio=0.3).keep_idx
    assert torch.equal(kept[:1], alone)


@settings(deadline=None)
@given(grid=grids, ratio=ratios, seed=st.integers(0, 99))
def test_moving_the_scores_moves_the_selection(grid: tuple[int, int, int], ratio: float, seed: int) -> None:
    scores = distinct(4, grid, seed)
    mask = select_tokens(scores, keep_ratio=ratio).mask()
    clips = torch.randperm(4)
    assert torch.equal(select_tokens(scores[clips], keep_ratio=ratio).mask(), mask[clips])
    tokens = torch.randperm(math.prod(grid))
    moved = scores.flatten(1)[:, tokens].view_as(scores)
    assert torch.equal(
        select_tokens(moved, keep_ratio=ratio).mask(), mask.flatten(1)[:, tokens].view_as(mask)
    )
    stretched = select_tokens(3 * scores + 7, keep_ratio=ratio).mask()
    assert torch.equal(stretched, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_other_precisions(dtype: torch.dtype) -> None:
    scores = distinct(2, (2, 5, 5), 0)
    expected = select_tokens(scores, keep_ratio=0.4).keep_idx
    assert torch.equal(select_tokens(scores.to(dtype), keep_ratio=0.4).keep_idx, expected)


# ---- each clip its own number ----


@settings(deadline=None)
@given(grid=grids, floor=floors, ground=shares, seed=st.integers(0, 99), data=st.data())
def test_unequal_counts_equal_one_clip_at_a_time(
    grid: tuple[int, int, int], floor: float, ground: float, seed: int, data: st.DataObject
) -> None:
    num_tokens = math.prod(grid)
    counts = data.draw(st.lists(st.integers(1, num_tokens), min_size=1, max_size=4))
    scores = distinct(len(counts), grid, seed)
    selection = select_counts(scores, torch.tensor(counts), min_per_frame=floor, uniform_share=ground)
    assert selection.counts().tolist() == counts
    assert selection.num_kept == max(counts)
    assert (selection.valid is None) == (len(set(counts)) == 1)
    for row, count in enumerate(counts):
        alone = select_tokens(
            scores[row : row + 1], keep_ratio=count / num_tokens, min_per_frame=floor, uniform_share=ground
        )
        own = selection.keep_idx[row]
        assert own[:count].tolist() == alone.keep_idx[0].tolist()
        assert (own[count:] == own[count - 1]).all()  # padding names no other token
        assert torch.equal(selection.mask()[row], alone.mask()[0])
        trimmed = selection.rows(torch.tensor([row]))
        assert (trimmed.valid, trimmed.keep_idx.tolist()) == (None, alone.keep_idx.tolist())


@settings(deadline=None)
@given(grid=grids, seed=st.integers(0, 99), batch=st.integers(1, 4))
def test_every_mask_comes_back(grid: tuple[int, int, int], seed: int, batch: int) -> None:
    mask = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[:, 0, 0, 0] = True
    selection = TokenSelection.from_mask(mask)
    assert torch.equal(selection.mask(), mask)
    rows = torch.arange(batch - 1, -1, -1)
    assert torch.equal(selection.rows(rows).mask(), mask.flip(0))


def test_mask_that_keeps_nothing_and_valid_of_another_shape() -> None:
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0] = True
    with pytest.raises(ValueError, match="at least one token"):
        TokenSelection.from_mask(mask)
    for valid in (torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2)):
        with pytest.raises(ValueError, match="valid must be bool of shape"):
            TokenSelection(torch.tensor([[0, 1]]), TokenGrid(1, 2, 2), valid)


# ---- the value that crosses the border ----


def test_mask_and_indices_agree() -> None:
    selection = select_tokens(distinct(2, (2, 3, 4), 3), keep_ratio=0.3)
    assert selection.num_kept == 7
    mask = selection.mask()
    assert mask.shape == (2, 2, 3, 4)
    assert [row.nonzero().flatten().tolist() for row in mask.flatten(1)] == selection.keep_idx.tolist()


@pytest.mark.parametrize(
    "keep_idx",
    [torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2), torch.zeros(1, 0, dtype=torch.int64)],
)
def test_selection_of_another_shape_or_type(keep_idx: Tensor) -> None:
    with pytest.raises(ValueError, match="keep"):
        TokenSelection(keep_idx, TokenGrid(1, 2, 2))


def test_more_tokens_than_the_grid_has_and_a_grid_without_tokens() -> None:
    with pytest.raises(ValueError, match="keeps 5 of 4 tokens"):
        TokenSelection(torch.arange(5)[None], TokenGrid(1, 2, 2))
    with pytest.raises(ValueError, match=r"\(2, 0, 3\)"):
        TokenGrid(2, 0, 3)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_a_cell_looks_where_it_is_told(height: int, width: int, times_y: int, times_x: int) -> None:
    """A map of positions comes out as positions, moved by what the cell's centre is moved, up to the borders."""
    rows = torch.arange(height).float().view(1, 1, -1, 1).expand(1, 2, height, width)
    grid = TokenGrid(2, height * times_y, width * times_x)
    middle = (torch.arange(grid.height) + 0.5) / times_y
    for center in (0.0, 0.25, 1.0):
        stretched = resize_map(rows, grid, align_corners=False, cell_center=center)
        expected = (middle - center).clamp(0, height - 1).view(1, 1, -1, 1).expand_as(stretched)
        torch.testing.assert_close(stretched, expected)
    plain = resize_map(rows, grid, align_corners=False)
    nearly = resize_map(rows, grid, align_corners=False, cell_center=0.5 + 1e-7)
    torch.testing.assert_close(nearly, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("center", "corners"), [(-0.1, False), (1.5, False), (0.0, True)])
def test_cell_center_out_of_range(center: float, corners: bool) -> None:
    with pytest.raises(ConfigError, match=r"pruner\.cell_center"):
        resize_map(torch.rand(1, 2, 3, 3), TokenGrid(2, 6, 6), align_corners=corners, cell_center=center)


# ---- equals: the first come first ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None, max_examples=60)
@given(
    grid=grids,
    ratio=ratios,
    min_per_frame=floors,
    uniform_share=shares,
    levels=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_of_equal_tokens_the_first_are_kept(
    dtype: torch.dtype,
    grid: tuple[int, int, int],
    ratio: float,
    min_per_frame: float,
    uniform_share: float,
    levels: int,
    seed: int,
) -> None:
    """Tiny differences that favour earlier tokens change nothing, and both ways to select agree."""
    scores = torch.randint(0, levels, (2, *grid), generator=torch.Generator().manual_seed(seed))
    num_tokens, options = math.prod(grid), {"min_per_frame": min_per_frame, "uniform_share": uniform_share}
    found = select_tokens(scores.to(dtype), keep_ratio=ratio, **options)
    favoured = scores.float() - torch.arange(num_tokens).view(grid) / 1024
    assert torch.equal(found.keep_idx, select_tokens(favoured, keep_ratio=ratio, **options).keep_idx)
    counts = torch.full((2,), found.num_kept)
    assert torch.equal(found.keep_idx, select_counts(scores.to(dtype), counts, **options).keep_idx)


def test_ranks_of_equals_and_infinities() -> None:
    inf = math.inf
    assert ranks(torch.tensor([[1.0, 2, 2, 0, 2]])).tolist() == [[3, 0, 1, 4, 2]]
    # +inf is no larger than what a frame is sure of, and -inf no smaller than NaN.
    flat = torch.tensor([inf, inf, inf, math.nan, 3.3e38, -inf, -inf, math.nan]).view(1, 2, 2, 2)
    kept = [select_tokens(flat, keep_ratio=n / 8, min_per_frame=1.0).keep_idx[0].tolist() for n in (2, 4, 8)]
    assert kept == [[0, 4], [0, 1, 4, 5], list(range(8))]
    assert select_tokens(flat, keep_ratio=4 / 8).keep_idx.tolist() == [[0, 1, 2, 4]]
    assert select_tokens(flat, keep_ratio=3 / 8).keep_idx.tolist() == [[0, 1, 2]]


def test_a_map_of_nan_keeps_the_first() -> None:
    nan = torch.full((1, 2, 2, 2), math.nan)
    assert select_tokens(nan, keep_ratio=0.4).keep_idx.tolist() == [[0, 1, 2]]
    assert select_tokens(nan, keep_ratio=0.5, min_per_frame=1.0).keep_idx.tolist() == [[0, 1, 4, 5]]
    assert select_counts(nan, torch.tensor([2])).keep_idx.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("ratio", "min_per_frame", "sure"), [(0.6, 0.5, 3), (0.6, 1.0, 6), (0.58, 0.25, 1), (0.28, 0.99, 2)]
)
def test_what_a_frame_is_sure_of_is_rounded_down(ratio: float, min_per_frame: float, sure: int) -> None:
    scores = torch.zeros(1, 5, 2, 5)
    scores[:, 0] = 1  # the first frame would take all that it can
    kept = select_tokens(scores, keep_ratio=ratio, min_per_frame=min_per_frame).mask()[0].flatten(1).sum(1)
    count = keep_count(ratio, 50)
    assert sure == math.floor(Fraction(str(min_per_frame)) * count / 5)
    assert kept[-1] == sure and kept.sum() == count and kept.min() == sure


def test_the_uniform_share_is_rounded_down_but_for_what_floating_point_misses() -> None:
    """0.29 * 100 is 28.999... there: 29 tokens of the lattice, and then the map's own, which begin at the other end."""
    even = lattice(TokenGrid(5, 10, 10), torch.device("cpu"))
    kept = select_tokens(-even[None], keep_ratio=0.2, uniform_share=0.29).mask()[0].flatten()
    assert kept[even.flatten().argsort(descending=True)].nonzero().flatten().tolist()[:30] == [
        *range(29),
        429,
    ]
