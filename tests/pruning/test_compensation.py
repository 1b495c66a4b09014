"""What becomes of the dropped tubelets' mass, against plain loops and against tokens that stand there many times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import video_papr as vp
from video_papr.backbones.builders import Backbone
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import ConfigError
from video_papr.core.pixels import normalize_pixels
from video_papr.core.types import CELL, Cell, TokenGrid, TokenSelection
from video_papr.evaluation.cost import gmacs_per_view, mean_gmacs
from video_papr.pruning.compensation import append_tokens, num_regions, pool_weights, region_shares

FRAMES, SIZE = 16, 48  # a grid of 4 x 6 x 6
CELLS = [CELL, (3, 4, 4), (4, 1, 9)]  # smaller ones at the borders
PRUNERS: list[tuple[str, dict[str, object]]] = [
    ("x3d_s", {"frames": 4, "size": 64, "stage": "res4"}),
    ("papr_plus", {"frames": 4, "size": 64, "motion": 0.5}),
    ("similarity", {}),
    ("similarity", {"after_block": 1}),
    ("random", {}),
    ("random", {"scope": "frame", "keep_ratio": 0.9}),
]
VARIABLE: list[tuple[str, dict[str, object]]] = [
    ("run_length", {"min_keep": 0.05}),
    ("motion", {"budget": "top_p", "top_p": 0.6}),
    ("similarity", {"mode": "adaptive", "after_block": 1}),
]
grids = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


def masks(grid: tuple[int, int, int], batch: int, seed: int) -> Tensor:
    """Random masks that keep something in every clip, from a single token to all of them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, *grid, generator=generator)
    level = torch.rand(batch, 1, 1, 1, generator=generator)
    return (scores >= level) | (scores == scores.amax((1, 2, 3), keepdim=True))


def clips(batch: int = 4) -> Tensor:
    """Noise, a black clip, a clip of one colour, and one whose half stands still."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (batch, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    frames[1] = 0
    frames[2] = torch.tensor([200, 30, 90], dtype=torch.uint8)
    frames[3, :, :30] = frames[3, :1, :30]
    return frames


def backbone(kind: str) -> Backbone:
    """Small, in double precision, and far from uniform attention."""
    if kind == "vivit":
        made: Backbone = ViViT(
            num_classes=5,
            dim=24,
            depth=3,
            num_heads=3,
            num_frames=FRAMES,
            input_size=SIZE,
            tubelet=(4, 8, 8),
        )
    else:
        made = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)
    for value in made.requires_grad_(False).double().eval().parameters():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
        value.add_(0.15 * noise.double())
    return made


@settings(deadline=None, max_examples=60)
@given(grid=grids, cell=grids, batch=st.integers(1, 3), seed=st.integers(0, 999))
def test_weights_and_regions_equal_plain_loops(grid: Cell, cell: Cell, batch: int, seed: int) -> None:
    kept = masks(grid, batch, seed)
    selection = replace(TokenSelection.from_mask(kept), cell=cell)
    weights, (shares, sizes) = pool_weights(selection), region_shares(selection)
    count = TokenGrid(*grid).num_tokens
    assert shares.shape == (batch, num_regions(selection.grid, cell), count)
    assert (weights.sum(1) == count).all()
    assert (sizes.sum(1) + selection.counts() == count).all()
    places = [(t, y, x) for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]
    for clip in range(batch):
        flat = kept[clip].flatten().tolist()
        own = [place for place, stays in zip(places, flat, strict=True) if stays]
        expected = [0] * weights.shape[1]
        regions: dict[tuple[int, ...], list[int]] = {}
        for number, place in enumerate(places):
            region = tuple(a // b for a, b in zip(place, cell, strict=True))
            regions.setdefault(region, [])
            far = [sum((a - b) ** 2 for a, b in zip(place, other, strict=True)) for other in own]
            expected[far.index(min(far))] += 1
            if not flat[number]:
                regions[region].append(number)
        assert weights[clip].tolist() == expected
        assert sizes[clip].tolist() == [len(regions[key]) for key in sorted(regions)]
        for row, key in enumerate(sorted(regions)):
            share = torch.zeros(count)
            share[regions[key]] = 1 / max(len(regions[key]), 1)
            torch.testing.assert_close(shares[clip, row], share, rtol=0, atol=1e-6)


def test_what_counts_nothing_comes_last() -> None:
    kept, merged = torch.arange(8.0).view(1, 4, 2), 10 + torch.arange(6.0).view(1, 3, 2)
    valid = torch.tensor([[True, True, False]])
    tokens, sizes = append_tokens(kept, merged, torch.tensor([[2.0, 0, 5]]), valid=valid, num_prefix=1)
    assert sizes.tolist() == [[1, 1, 2, 5, 0, 0]]
    assert tokens[0, :, 0].tolist() == [0, 2, 4, 10, 14, 6, 12]


@pytest.mark.parametrize(
    ("kind", "cell"), [("videomae", CELLS[0]), ("videomae", CELLS[1]), ("vivit", CELLS[2])]
)
@pytest.mark.parametrize(("name", "options"), PRUNERS)
def test_merged_tokens_equal_all_dropped_ones_replaced_by_their_mean(
    kind: str, cell: Cell, name: str, options: dict[str, object]
) -> None:
    """A sequence of all N tokens, where each dropped one has become its region's mean, must give the same logits."""
    model = backbone(kind)
    flow = vp.Pipeline(model, vp.build_pruner(name, **options, compensation="merge", compensation_cell=cell))
    frames = clips()
    selection = flow.select(frames)
    assert selection is not None and selection.compensation == "merge"
    pixels = normalize_pixels(frames, mean=model.mean, std=model.std, dtype=torch.float64)
    everything = model.encode(model.embed(pixels), stop=selection.block)
    kept = selection.mask()
    rows = []
    for clip in range(len(frames)):
        tokens = everything[clip].clone()
        body = tokens[model.num_prefix :].view(*model.grid.shape, -1)
        for t in range(0, model.grid.frames, cell[0]):
            for y in range(0, model.grid.height, cell[1]):
                for x in range(0, model.grid.width, cell[2]):
                    part = body[t : t + cell[0], y : y + cell[1], x : x + cell[2]]
                    gone = ~kept[clip, t : t + cell[0], y : y + cell[1], x : x + cell[2]]
                    if gone.any():
                        part[gone] = part[gone].mean(0)
        rows.append(model(None, tokens=tokens[None], block=selection.block))
    expected = torch.cat(rows)
    assert expected.std(0).max() > 1e-2
    torch.testing.assert_close(flow(frames), expected, rtol=0, atol=1e-9)
    plain = vp.Pipeline(model, vp.build_pruner(name, **options))
    assert not torch.allclose(plain(frames), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), [*PRUNERS, *VARIABLE])
def test_pooling_equals_a_mean_with_tokens_that_stand_there_many_times(
    name: str, options: dict[str, object]
) -> None:
    model = backbone("videomae")
    flow = vp.Pipeline(model, vp.build_pruner(name, **options, compensation="pool"))
    frames = clips()
    together = flow.select(frames)
    assert together is not None
    logits = flow.classify(frames, together)
    pixels = normalize_pixels(frames, mean=model.mean, std=model.std, dtype=torch.float64)
    tokens = model.encode(model.embed(pixels), stop=together.block)
    for clip in range(len(frames)):
        selection = together.rows(torch.tensor([clip]))
        (kept,), (times,) = selection.keep_idx, pool_weights(selection).long()
        assert int(times.sum()) == model.grid.num_tokens
        read = tokens[clip, kept][None]
        for block in model.blocks[selection.block :]:
            read = block(read)
        mean = read[0].repeat_interleave(times, 0).mean(0, keepdim=True)
        expected = model.head(model.fc_norm(mean))[0]
        torch.testing.assert_close(logits[clip], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("compensation", ["pool", "merge"])
@pytest.mark.parametrize(("name", "options"), [PRUNERS[0], PRUNERS[3], *VARIABLE])
@pytest.mark.parametrize("merger", [0, 3])
def test_an_answer_does_not_depend_on_the_batch(
    name: str, options: dict[str, object], compensation: str, merger: int
) -> None:
    if compensation == "pool" and merger:
        return  # refused, see below
    model = backbone("videomae").float()
    tome = vp.build_merger("tome", r=merger) if merger else None
    flow = vp.Pipeline(model, vp.build_pruner(name, **options, compensation=compensation), tome)
    frames = clips()
    alone = torch.cat([flow(frames[i : i + 1]) for i in range(4)])
    assert alone.isfinite().all()
    torch.testing.assert_close(flow(frames), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(flow(frames.flip(0)).flip(0), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compensation", ["pool", "merge"])
@pytest.mark.parametrize("name", ["random", "similarity"])
def test_nothing_dropped_is_the_dense_model(name: str, compensation: str) -> None:
    model, frames = backbone("videomae").float(), clips()
    flow = vp.Pipeline(model, vp.build_pruner(name, keep_ratio=1, compensation=compensation))
    torch.testing.assert_close(flow(frames), vp.Pipeline(model)(frames), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"), [("random", {"keep_ratio": 0.3}), ("similarity", {"after_block": 1})]
)
def test_cost_counts_the_tokens_of_the_regions(name: str, options: dict[str, object]) -> None:
    """What is counted without arithmetic for clips of unequal length agrees with what a run takes."""
    model = backbone("videomae").float()
    pruners = {
        compensation: vp.build_pruner(name, **options, compensation=compensation)
        for compensation in ("none", "pool", "merge")
    }
    frames = clips(4)[:1]
    run = {
        compensation: gmacs_per_view(vp.Pipeline(model, pruner), frames)
        for compensation, pruner in pruners.items()
    }
    assert run["none"] == run["pool"]
    assert run["none"]["backbone"] < run["merge"]["backbone"] < run["merge"]["dense"]
    flow = vp.Pipeline(model, pruners["merge"])
    selection = flow.select(frames)
    assert selection is not None
    counted = mean_gmacs(flow, run["merge"], {selection.num_kept: 1})
    assert counted["backbone"] == pytest.approx(run["merge"]["backbone"], rel=0.02)


def test_what_cannot_be_combined_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^pruner\.compensation='all' is unknown; use one of none, pool, merge$"
    ):
        vp.build_pruner("random", compensation="all")
    pruner = vp.build_pruner("random", compensation="pool")
    with pytest.raises(
        ConfigError, match=r"^pruner\.compensation=pool: this backbone answers from its class token"
    ):
        vp.Pipeline(backbone("vivit"), pruner)
    with pytest.raises(ConfigError, match=r"^pruner\.compensation=pool: cannot be combined with merger=tome"):
        vp.Pipeline(backbone("videomae"), pruner, vp.build_merger("tome"))
    with pytest.raises(
        ConfigError, match=r"^pruner\.compensation_cell=\[2, 0, 2\] must be three whole numbers"
    ):
        vp.build_pruner("random", compensation_cell=[2, 0, 2])
    with pytest.raises(ValueError, match=r"^compensation must be one of none, pool, merge, got 'all'"):
        TokenSelection(torch.zeros(1, 1, dtype=torch.int64), TokenGrid(1, 1, 1), compensation="all")
