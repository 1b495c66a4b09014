"""`prune` on timm's Hiera against the masked pass of its own pretraining."""

from __future__ import annotations

import copy

import pytest
import torch

import video_papr as vp
from video_papr.core.errors import ConfigError

from .conftest import build_hiera, draw_large_images


@pytest.mark.parametrize("pruner", ["brightness", "random"])
@torch.no_grad()
def test_features_are_those_of_its_own_masked_pass(pruner: str) -> None:
    """Its own pass blackens the pixels of masked units too, which its overlapping patches would see; not here."""
    model, pixels = build_hiera().double(), draw_large_images().double()
    reference, dense = copy.deepcopy(model), model(pixels)
    reference.patch_embed.forward = lambda x, mask=None: type(model.patch_embed).forward(
        reference.patch_embed, x
    )
    vp.prune(model, pruner, 0.3)
    kept = vp.kept_tokens(model, pixels)
    assert kept.keep_idx.shape == (2, 4)
    features = reference.forward_features(pixels, mask=kept.mask().flatten(1))
    assert torch.allclose(model.forward_features(pixels), features, atol=1e-9)
    logits = model(pixels)
    assert torch.allclose(logits, reference.forward_head(features), atol=1e-9)
    assert (logits - dense).abs().max() > 1e-3


@torch.no_grad()
def test_what_numbers_dropped_units_is_refused() -> None:
    model, pixels = build_hiera(), draw_large_images()
    dense = model.forward_intermediates(pixels, intermediates_only=True)
    everything = vp.prune(model, "center", 1.0).forward_intermediates(pixels, intermediates_only=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(everything, dense, strict=True))
    vp.prune(vp.unprune(model), "center", 0.25)  # 4 units of 16 would fill a smaller map
    with pytest.raises(ValueError, match=r"^a pruned model has no full grid .* use forward_features"):
        model.forward_intermediates(pixels)
    with pytest.raises(ValueError, match=r"^a pruned model takes no mask"):
        model.forward_features(pixels, mask=torch.ones(2, 16, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"^cannot prune this Hiera: it drops tokens itself"):
        vp.prune(build_hiera(patch_drop_rate=0.5), "center")
