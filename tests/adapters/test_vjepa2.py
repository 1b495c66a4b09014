"""`prune` on V-JEPA 2 against the same model with dropped tokens barred from attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import video_papr as vp

transformers = pytest.importorskip("transformers")

Build = Callable[..., Any]
NAME = "VJEPA2ForVideoClassification"


def masked_logits(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """Every token goes through every layer of encoder and pooler; dropped ones are barred from attention as keys."""
    kept = torch.zeros(len(pixels), 8 * pixels.shape[1], dtype=torch.bool).scatter_(1, keep_idx, True)

    def barred(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        weights = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        weights = weights.masked_fill(~kept[:, None, None], float("-inf")).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    transformers.AttentionInterface.register("barred", barred)
    dense = copy.deepcopy(model)
    dense.set_attn_implementation("barred")
    return dense(pixels).logits


@pytest.mark.parametrize("pruner", ["motion", "random"])
@torch.no_grad()
def test_logits_are_those_of_the_masked_model(host: Build, clip: Build, pruner: str) -> None:
    model, pixels = host(NAME).double(), clip().double()
    reference, dense = copy.deepcopy(model), model(pixels).logits
    vp.prune(model, pruner, 0.3)
    keep_idx = vp.kept_tokens(model, pixels).keep_idx
    assert keep_idx.shape == (2, 9)
    logits = model(pixels).logits
    assert torch.allclose(logits, masked_logits(reference, pixels, keep_idx), atol=1e-9)
    assert (logits - dense).abs().max() > 1e-3
    assert torch.allclose(model(pixels[1:]).logits, logits[1:], atol=1e-9)


@torch.no_grad()
def test_longer_and_shorter_clips(host: Build) -> None:
    """Its rotary positions know no last frame."""
    model = host(NAME).double()
    reference = copy.deepcopy(model)
    vp.prune(model, "motion", 0.3)
    for frames in (2, 8):
        pixels = torch.rand(2, frames, 3, 32, 32, dtype=torch.float64) * 2 - 1
        found = vp.kept_tokens(model, pixels)
        assert (found.grid.shape, found.num_kept) == ((frames // 2, 4, 4), int(0.3 * 8 * frames))
        assert torch.allclose(
            model(pixels).logits, masked_logits(reference, pixels, found.keep_idx), atol=1e-9
        )


@torch.no_grad()
def test_positions_are_those_of_the_kept_places(host: Build, clip: Build) -> None:
    """Counted anew, 0 to K - 1, they give another answer."""
    model, pixels = vp.prune(host(NAME), "motion", 0.3), clip()
    logits = model(pixels).logits
    for layer in model.vjepa2.encoder.layer:
        layer.attention.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "position_mask": None}), with_kwargs=True
        )
    assert (model(pixels).logits - logits).abs().max() > 1e-3


def test_gradient_checkpointing_gives_the_same_gradients(host: Build, clip: Build) -> None:
    """Layers run a second time in the backward pass, when the choice has to be there still."""
    gradients = []
    for checkpointing in (False, True):
        model = vp.prune(host(NAME), "motion").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(clip(), labels=torch.tensor([1, 3])).loss.backward()
        gradients.append({key: value.grad for key, value in model.named_parameters()})
    assert [key for key, value in gradients[0].items() if value is None and "predictor" not in key] == []
    for key, value in gradients[0].items():
        assert value is None or torch.allclose(value, gradients[1][key], atol=1e-6)


@torch.no_grad()
def test_bare_model_gives_the_kept_tokens_and_skips_its_predictor(host: Build, clip: Build) -> None:
    model, pixels = host("VJEPA2Model"), clip()
    predicted = model(pixels).predictor_output.last_hidden_state
    everything = vp.prune(model, "motion", 1.0)(pixels)
    assert torch.equal(everything.predictor_output.last_hidden_state, predicted)
    vp.prune(vp.unprune(model), "motion", 0.3)
    out = model(pixels, output_hidden_states=True)
    assert {tuple(state.shape) for state in (out.last_hidden_state, *out.hidden_states)} == {(2, 9, 24)}
    assert out.predictor_output is None
    assert torch.equal(model.get_vision_features(pixels), out.last_hidden_state)
    with pytest.raises(ValueError, match=r"^a pruned model takes no context_mask"):
        model(pixels, context_mask=[torch.arange(32).expand(2, -1)])
    with pytest.raises(ValueError, match=r"^pixels must be \(B, 4, 3, 32, 32\), got"):
        model(pixels[:, :3])


def test_processor_says_how_pixels_were_normalised(host: Build) -> None:
    processor = transformers.VJEPA2VideoProcessor(
        crop_size=32, image_mean=[0.3, 0.4, 0.5], image_std=[0.2] * 3
    )
    model = vp.prune(host(NAME), "center", processor=processor)
    selector = model.vjepa2.encoder.embeddings.video_papr_pruning.selector
    assert np.allclose((*selector.mean, *selector.std), (0.3, 0.4, 0.5, 0.2, 0.2, 0.2), atol=1e-3)
