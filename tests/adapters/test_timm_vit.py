"""`prune` on timm's VisionTransformer against the same model with dropped tokens masked out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import video_papr as vp
from video_papr.core.errors import ConfigError

Build = Callable[..., Any]
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"},
}


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def masked_logits(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """All tokens go through every block; dropped ones are barred from attention as keys and from the mean."""
    kept = torch.zeros(len(pixels), 16, dtype=torch.bool).scatter_(1, keep_idx, True)
    kept = torch.cat([torch.ones(len(pixels), model.num_prefix_tokens, dtype=torch.bool), kept], 1)
    bar = torch.zeros(kept.shape).masked_fill_(~kept, float("-inf"))[:, None, None]
    tokens = model._pos_embed(model.patch_embed(pixels))
    for block in model.blocks:
        tokens = block(tokens, attn_mask=bar)
    tokens = model.norm(tokens)
    if model.global_pool == "token":
        return model.head(tokens[:, 0])
    own, tokens = kept[:, model.num_prefix_tokens :], tokens[:, model.num_prefix_tokens :]
    return model.head(model.fc_norm((tokens * own[..., None]).sum(1) / own.sum(1, keepdim=True)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pruner", ["brightness", "random"])
@torch.no_grad()
def test_logits_are_those_of_the_masked_model(vit: Build, kind: str, pruner: str) -> None:
    model, pixels = vit(**KINDS[kind]), images()
    reference = copy.deepcopy(model)
    dense = model(pixels)
    vp.prune(model, pruner, 0.3)
    keep_idx = vp.kept_tokens(model, pixels).keep_idx
    assert keep_idx.shape == (2, 4)
    logits = model(pixels)
    assert torch.allclose(logits, masked_logits(reference, pixels, keep_idx), atol=1e-5)
    assert (logits - dense).abs().max() > 1e-3
    assert torch.allclose(model(pixels[1:]), logits[1:], atol=1e-5)
    assert model.forward_features(pixels).shape == (2, model.num_prefix_tokens + 4, 24)


def test_training(vit: Build) -> None:
    model = vp.prune(vit(), "brightness").train()
    model(images()).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_threads_and_failed_passes_do_not_meet(vit: Build) -> None:
    """A thread fails between choosing and dropping, others wait there; each still gets its own tokens."""
    model = vp.prune(vit(), "random")
    expected = [model(images(seed=seed)) for seed in range(4)]
    barrier = threading.Barrier(4)
    place = model._pos_embed

    def wait(tokens: Tensor) -> Tensor:
        barrier.wait(timeout=60)
        if threading.current_thread().name == "bad":
            raise RuntimeError("on purpose")
        return place(tokens)

    answers: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        try:
            answers[seed] = model(images(seed=seed))
        except RuntimeError:
            return

    model._pos_embed = wait
    threads = [
        threading.Thread(target=work, args=(seed,), name="bad" if seed == 3 else f"{seed}")
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    del model._pos_embed
    assert sorted(answers) == [0, 1, 2]
    assert all(torch.allclose(answers[seed], expected[seed], atol=1e-6) for seed in answers)
    assert model.patch_drop(torch.zeros(1, 17, 24)).shape == (1, 17, 24)  # nothing is left to be dropped


@torch.no_grad()
def test_intermediate_features_are_lists_of_tokens_and_never_maps(vit: Build) -> None:
    model, pixels = vit(), images()
    dense = model.forward_intermediates(pixels, indices=1, intermediates_only=True)
    everything = vp.prune(model, "brightness", 1.0).forward_intermediates(
        pixels, indices=1, intermediates_only=True
    )
    assert torch.equal(everything[0], dense[0])
    vp.prune(vp.unprune(model), "brightness", 0.5)  # 8 tokens of 24 channels would fill a map of 4 x 4
    for scrambled in (
        lambda: model.forward_intermediates(pixels),
        lambda: model.get_intermediate_layers(pixels, n=1, reshape=True),
    ):
        with pytest.raises(ValueError, match=r"^a pruned model has no full grid .* use output_fmt='NLC'"):
            scrambled()
    (tokens,) = model.forward_intermediates(pixels, indices=1, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(model.norm(tokens), model.forward_features(pixels)[:, 1:])
    assert model.get_intermediate_layers(pixels, n=1)[0].shape == (2, 8, 24)


def test_what_cannot_be_pruned(vit: Build) -> None:
    for pruner in ("x3d_s", "motion", "similarity"):
        with pytest.raises(
            ConfigError, match=rf"^pruner={pruner} cannot be used here \(VisionTransformer reads im"
        ):
            vp.prune(vit(), pruner)
    with pytest.raises(ConfigError, match="dynamic_img_size=True has no fixed token grid"):
        vp.prune(vit(dynamic_img_size=True), "center")
    with pytest.raises(ConfigError, match="use patch_drop_rate=0"):
        vp.prune(vit(patch_drop_rate=0.5), "center")
    with pytest.raises(ValueError, match=r"^pixels must be \(B, 3, 32, 32\), got"):
        vp.prune(vit(), "center")(images()[:, :1])
