"""Counts against sums done by hand and published figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from video_papr.backbones.builders import build_backbone
from video_papr.backbones.videomae import VideoMAE
from video_papr.benchmark.flops import count_gmacs
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner


def test_layers_counted_by_hand() -> None:
    assert count_gmacs(nn.Linear(30, 20), torch.zeros(7, 30)) == pytest.approx(7 * 30 * 20 / 1e9)
    convolution = nn.Conv3d(4, 6, 3, padding=1, groups=2)
    macs = 6 * (4 // 2) * 27 * 5 * 8 * 8
    assert count_gmacs(convolution, torch.zeros(1, 4, 5, 8, 8)) == pytest.approx(macs / 1e9)


def transformer_macs(tokens: int, dim: int, depth: int, classes: int, tubelet: int) -> int:
    """Embedding, then per block the four projections, both halves of attention and the MLP, then the head."""
    block = 4 * tokens * dim**2 + 2 * tokens**2 * dim + 8 * tokens * dim**2
    return tokens * tubelet * dim + depth * block + dim * classes


@pytest.mark.parametrize("count", [None, 1, 76, 256])
def test_attention_is_counted_and_dropped_tokens_are_not(count: int | None) -> None:
    model = VideoMAE(
        num_classes=12, num_frames=16, input_size=64, tubelet=(4, 8, 8), dim=96, depth=3, num_heads=3
    )
    pixels = torch.zeros(1, 3, 16, 64, 64)
    kept = None if count is None else torch.arange(count)[None]
    expected = transformer_macs(count or 256, 96, 3, 12, 3 * 4 * 8 * 8)
    assert count_gmacs(model, pixels, kept) == pytest.approx(expected / 1e9, rel=1e-9)


def test_published_figures() -> None:
    """VideoMAE-B and L at 16 x 224 x 224: 180 and 597 GMACs; X3D-S's trunk at 8 x 160 x 160: 1.2, 2.09 M parameters."""
    dense, pruned = {}, {}
    with torch.device("meta"):  # shapes without arithmetic
        pixels, kept = torch.empty(1, 3, 16, 224, 224), torch.empty(1, 470, dtype=torch.int64)
        for name in ("videomae_b", "videomae_l"):
            model = build_backbone(name)
            dense[name], pruned[name] = count_gmacs(model, pixels), count_gmacs(model, pixels, kept)
    pruner = build_pruner("x3d_s")
    assert pruner is not None
    trunk: nn.Module = pruner.scorer.trunk  # type: ignore[assignment]
    scorer = count_gmacs(trunk, torch.zeros(1, 3, 8, 160, 160))
    assert dense == pytest.approx({"videomae_b": 180.5, "videomae_l": 597.2}, rel=0.002)
    assert scorer == pytest.approx(1.25, rel=0.05)
    assert sum(p.numel() for p in trunk.parameters()) == pytest.approx(2.09e6, rel=0.005)
    assert (
        dense["videomae_b"] / (pruned["videomae_b"] + scorer) > 3.83
    )  # keep 0.3; only kept tubelets are embedded
    assert dense["videomae_l"] / (pruned["videomae_l"] + scorer) > 3.81


def test_parts_of_a_pipeline_add_up_and_nothing_is_left_switched_on() -> None:
    flow = Pipeline(
        build_backbone("videomae_tiny", num_frames=4, input_size=32),
        build_pruner("x3d_s", frames=4, size=32),
    )
    frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    before = flow(frames)
    select = count_gmacs(flow.select, frames)
    classify = count_gmacs(flow.classify, frames, flow.select(frames))
    assert select > 0
    assert count_gmacs(flow, frames) == pytest.approx(select + classify, rel=1e-12)
    assert torch.equal(flow(frames), before)
    assert torch.is_grad_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
