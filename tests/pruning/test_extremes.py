"""Clips without contrast, for every pruner, merger and compensation: exact counts, no NaN, one answer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import video_papr as vp
from video_papr.backbones.blocks import run_blocks
from video_papr.backbones.builders import Backbone
from video_papr.pruning.budget import keep_count
from video_papr.pruning.builders import SPECS
from video_papr.pruning.protocol import Pruner
from video_papr.pruning.scorers.similarity import SimilarityPruner
from video_papr.pruning.scorers.token_similarity import mean_similarity

FRAMES, SIZE = 8, 32  # a grid of 2 x 4 x 4
SMALL = {
    "x3d_xs": {"frames": 4, "size": 32},
    "x3d_s": {"frames": 4, "size": 64, "stage": "res4"},
    "x3d_m": {"frames": 4, "size": 32, "stage": "res5"},
    "papr_plus": {"frames": 4, "size": 32, "stages": ["res2", "res3"], "motion": 0.5},
    "image_convnet": {"model": "resnet10t"},
    "video_convnet": {"size": 32, "stage": "layer2"},
}
colors = st.tuples(*[st.integers(0, 255)] * 3)


@cache
def backbone() -> Backbone:
    return vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)


@cache
def pruner(name: str) -> Pruner:
    made = vp.build_pruner(name, **SMALL.get(name, {}))
    assert made is not None
    return made


def flat_clips(color: tuple[int, int, int]) -> Tensor:
    """Black, white, one colour, two colours one after the other, and two side by side."""
    clips = torch.zeros(5, FRAMES, SIZE, SIZE, 3, dtype=torch.uint8)
    clips[1] = 255
    clips[2:] = torch.tensor(color, dtype=torch.uint8)
    clips[3, FRAMES // 2 :] = 0
    clips[4, :, :, SIZE // 2 :] = 0
    return clips


@pytest.mark.parametrize("compensation", ["none", "pool", "merge"])
@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=3, deadline=None)
@given(color=colors)
def test_clips_without_contrast_have_answers(
    name: str, compensation: str, color: tuple[int, int, int]
) -> None:
    chosen, frames = pruner(name), flat_clips(color)
    chosen.compensation = compensation
    for r in (None, 2) if compensation != "pool" else (None,):
        flow = vp.Pipeline(backbone(), chosen, None if r is None else vp.build_merger("tome", r=r))
        selection, significance = flow.select(frames), flow.significance(frames)
        assert selection is not None and significance is not None
        assert significance.isfinite().all()
        assert flow.classify(frames, selection).isfinite().all()
        for kept, count in zip(selection.keep_idx.tolist(), selection.counts().tolist(), strict=True):
            assert kept[:count] == sorted(set(kept[:count]))
            assert kept[0] >= 0 and kept[-1] < 32
        if not chosen.budget.variable:
            assert selection.counts().tolist() == [keep_count(0.3, 32)] * 5


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 40),
    dim=st.integers(1, 9),
    seed=st.integers(0, 999),
    kept=st.integers(1, 100),
)
def test_moving_tokens_moves_their_similarity_and_the_choice(
    batch: int, count: int, dim: int, seed: int, kept: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)
    order = torch.randperm(count, generator=generator)
    scores, moved = mean_similarity(tokens), mean_similarity(tokens[:, order])
    torch.testing.assert_close(moved, scores[:, order], rtol=0, atol=1e-9)
    if dim > 1 and count != 2:  # one dimension, or two tokens: equals, which have no order
        choose = SimilarityPruner(keep_ratio=kept / 100).choose
        grid = type(backbone().grid)(1, 1, count)
        mask = choose(tokens, grid).mask().flatten(1)
        assert torch.equal(choose(tokens[:, order], grid).mask().flatten(1), mask[:, order])
        assert mask.sum(1).tolist() == [keep_count(kept / 100, count)] * batch


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 32),
    r=st.integers(0, 20),
    prefix=st.integers(0, 2),
    schedule=st.sampled_from(["constant", "decreasing"]),
)
def test_merged_tokens_stand_for_all_tubelets_behind_every_block(
    count: int, r: int, prefix: int, schedule: str
) -> None:
    tokens = torch.randn(2, prefix + count, 192, generator=torch.Generator().manual_seed(count))
    tome = vp.build_merger("tome", r=r, schedule=schedule)
    blocks = backbone().blocks
    plain = run_blocks(blocks, tokens, num_prefix=prefix)[0]
    for stop in range(1, len(blocks) + 1):
        merged, sizes = run_blocks(blocks, tokens, merger=tome, num_prefix=prefix, stop=stop)
        if r == 0 or (count == 1 and sizes is None):
            assert sizes is None  # the identity
            continue
        assert sizes is None or sizes.sum(1).tolist() == [prefix + count] * 2
        assert merged.shape[1] >= prefix + 1
    if r == 0:
        torch.testing.assert_close(merged, plain, rtol=0, atol=1e-5)
