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


def fvcore_gmacs(model: nn.Module, inputs: torch.Tensor) -> float:
    from fvcore.nn import FlopCountAnalysis

    counts = FlopCountAnalysis(model, inputs)  # multiply-accumulates, in spite of its name
    counts.unsupported_ops_warnings(False)
    counts.uncalled_modules_warnings(False)
    return counts.total() / 1e9


@pytest.mark.parametrize(("name", "num_frames"), [("videomae_s", 16), ("videomae_b", 16), ("vivit_b", 32)])
def test_dense_models_agree_with_fvcore(name: str, num_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1 %. fvcore also counts norms, and does not know fused attention."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value

    with torch.device("meta"):
        model, pixels = build_backbone(name), torch.empty(1, 3, num_frames, 224, 224)
        ours = count_gmacs(model, pixels)
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)
        theirs = fvcore_gmacs(model, pixels)
    assert 0.99 < ours / theirs <= 1


def test_scorer_agrees_with_fvcore() -> None:
    """fvcore counts batch norms too: 3.4 % of X3D-S's trunk. Without them both counts are the same."""
    from fvcore.nn import FlopCountAnalysis

    pruner = build_pruner("x3d_s")
    assert pruner is not None
    trunk, pixels = pruner.scorer.trunk, torch.zeros(1, 3, 8, 160, 160)
    counts = FlopCountAnalysis(trunk, pixels).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counts.total() / 1e9 == pytest.approx(1.25, rel=0.01)  # the figure that papers give
    assert counts.by_operator()["conv"] / 1e9 == pytest.approx(count_gmacs(trunk, pixels), rel=1e-9)


# backbone: published GMACs of the dense model, and with X3D-S (8 x 160 x 160) at keep 0.3
PUBLISHED = {"videomae_b": (180.5, 47.1), "videomae_l": (597.2, 156.6)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gmacs_of_pruned_models(name: str) -> None:
    """The published recipe embeds all tubelets and drops tokens afterwards; we embed the kept ones only.

    With what that saves added back, the figures are the same; as the model runs here, it costs less.
    """
    dense, pruned = PUBLISHED[name]
    num_tokens, kept, tubelet = 8 * 14 * 14, 470, 3 * 2 * 16 * 16
    scorer = 1.207  # the test above holds it against fvcore
    with torch.device("meta"):
        model, pixels = build_backbone(name), torch.empty(1, 3, 16, 224, 224)
        ours = count_gmacs(model, pixels, torch.empty(1, kept, dtype=torch.int64)) + scorer
        assert count_gmacs(model, pixels) == pytest.approx(dense, rel=0.002)
    saved = (num_tokens - kept) * tubelet * model.head.in_features / 1e9
    assert ours + saved == pytest.approx(pruned, rel=0.002)
    assert ours < pruned
