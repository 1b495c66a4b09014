"""`prune` where attention over space and over time are apart, against the same models with dropped places barred."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import video_papr as vp
from video_papr.core.errors import ConfigError

from .conftest import draw_colors

transformers = pytest.importorskip("transformers")

Build = Callable[..., Any]
FRAMES, PLACES = 4, 16
TIMESFORMER, VIDEOPRISM = "TimesformerForVideoClassification", "VideoPrismForVideoClassification"


def same_places(keep_idx: Tensor) -> Tensor:
    """keep_idx (B, K) of a selection -> (B, places) bool, which every frame keeps."""
    kept = torch.zeros(len(keep_idx), FRAMES * PLACES, dtype=torch.bool).scatter_(1, keep_idx, True)
    frames = kept.unflatten(1, (FRAMES, PLACES))
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    return frames[:, 0]


def masked_timesformer(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """Dropped tokens are computed, and barred as keys from every attention that they are in with others."""
    dense = copy.deepcopy(model)
    if dense.config.attention_type == "joint_space_time":
        kept = torch.zeros(len(pixels), FRAMES * PLACES, dtype=torch.bool).scatter_(1, keep_idx, True)
        kept = kept.unflatten(1, (FRAMES, PLACES)).transpose(1, 2).flatten(1)  # place by place
    else:
        kept = same_places(keep_idx).repeat_interleave(FRAMES, 0)  # of each frame
    bar = torch.zeros(kept.shape, dtype=pixels.dtype).masked_fill(~kept, float("-inf"))
    bar = torch.cat([bar[:, :1] * 0, bar], 1).nan_to_num(nan=0.0)[:, None, None]

    def attend(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        batch, length, width = args[0].shape
        query, key, value = (
            module.qkv(args[0]).view(batch, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        answer = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bar)
        return (answer.transpose(1, 2).reshape(batch, length, width),)

    for layer in dense.timesformer.encoder.layer:
        layer.attention.attention.register_forward_hook(attend)
    return dense(pixels).logits


def masked_videoprism(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    places = same_places(keep_idx)

    def barred(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Any:
        scale, cap = options["scaling"], options["softcap"]
        weights = query @ key.transpose(-1, -2) * scale
        weights = weights if cap is None else cap * torch.tanh(weights / cap)
        length = key.shape[2]
        if length != FRAMES:  # over space, frame by frame, or the pooling over everything
            kept = places.repeat_interleave(FRAMES, 0) if length == PLACES else places.repeat(1, FRAMES)
            weights = weights.masked_fill(~kept[:, None, None], float("-inf"))
        return (weights.softmax(-1) @ value).transpose(1, 2).contiguous(), weights

    transformers.AttentionInterface.register("barred", barred)
    dense = copy.deepcopy(model)
    dense.set_attn_implementation("barred")
    return dense(pixels).logits


CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "divided": (TIMESFORMER, {}, masked_timesformer),
    "joint": (TIMESFORMER, {"attention_type": "joint_space_time"}, masked_timesformer),
    "VideoPrism": (VIDEOPRISM, {}, masked_videoprism),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pruner", ["motion", "brightness"])
@torch.no_grad()
def test_logits_are_those_of_the_masked_model(host: Build, case: str, pruner: str) -> None:
    name, changes, masked = CASES[case]
    model, pixels = host(name, **changes).double(), draw_colors().double()
    reference, dense = copy.deepcopy(model), model(pixels).logits
    vp.prune(model, pruner, 0.3, mean=[0, 0, 0], std=[1, 1, 1])
    keep_idx = vp.kept_tokens(model, pixels).keep_idx
    assert keep_idx.shape == (2, 19 if case == "joint" else 4 * FRAMES)  # 0.3 of 64 tokens, or of 16 places
    logits = model(pixels).logits
    atol = 1e-6 if case == "VideoPrism" else 1e-9  # its softmax is in fp32
    assert torch.allclose(logits, masked(reference, pixels, keep_idx), atol=atol)
    assert (logits - dense).abs().max() > 1e-3


@torch.no_grad()
def test_places_are_the_best_of_the_map_averaged_over_time(host: Build) -> None:
    model, pixels = vp.prune(host(VIDEOPRISM), "brightness", 0.3), draw_colors()
    brightness = pixels.mean((1, 2)).unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4)).flatten(1)
    best = brightness.topk(4).indices.sort(1).values
    assert torch.equal(vp.kept_tokens(model, pixels).keep_idx[:, :4], best)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.5, 0.97])  # 1, 8 and 15 places: no rows of 4 places either
@torch.no_grad()
def test_any_number_of_places(host: Build, keep_ratio: float) -> None:
    model, pixels = vp.prune(host(TIMESFORMER), "center", keep_ratio), draw_colors()
    tokens = model.timesformer(pixels).last_hidden_state
    assert tokens.shape == (2, 1 + int(keep_ratio * PLACES) * FRAMES, 24)
    assert model.config.image_size == 32  # the layers alone count in another way


@pytest.mark.parametrize("name", ["VideoPrismVisionModel", "VideoPrismVideoModel"])
@torch.no_grad()
def test_bare_videoprism(host: Build, name: str) -> None:
    assert vp.prune(host(name), "motion")(draw_colors()).last_hidden_state.shape == (2, 4 * FRAMES, 24)


def test_what_cannot_be_pruned(host: Build) -> None:
    with pytest.raises(ConfigError, match=r"^pruner.scope=global cannot be used here: .* scope='place'$"):
        vp.prune(host(TIMESFORMER), "center", scope="global")
    with pytest.raises(ConfigError, match=r"^pruner=papr_plus cannot be used here: .* same places of every"):
        vp.prune(host(VIDEOPRISM), "papr_plus", weights=None)
    with pytest.raises(ConfigError, match=r"'space_only' it gives one answer for each frame$"):
        vp.prune(host(TIMESFORMER, attention_type="space_only"), "center")
    with pytest.raises(ConfigError, match=r"its tubelets are 2 frames deep instead of 1$"):
        vp.prune(host("VideoPrismVisionModel", tubelet_size=[2, 8, 8]), "center")
