"""`prune` on ConvNeXt and Swin against the same models with every place computed and the same masks applied."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import video_papr as vp
from video_papr.core.errors import ConfigError
from video_papr.pruning.builders import build_pruner

from .conftest import build_convnext, build_swin, draw_large_images

Kept = dict[int, Any]  # stage -> selection
SIDES = (16, 8, 4, 2)


def masks(kept: Kept, stage: int, pixels: Tensor) -> Tensor:
    """(B, H, W) float of a stage, 1 where a place is kept."""
    if stage not in kept:
        return pixels.new_ones(len(pixels), SIDES[stage], SIDES[stage])
    mask: Tensor = kept[stage].mask()[:, 0].to(pixels.dtype)
    return mask


def masked_convnext(model: Any, pixels: Tensor, kept: Kept) -> Tensor:
    """Block by block, from the layers' weights; V2's global norm is over the kept places."""
    x = model.stem(pixels)
    for index, stage in enumerate(model.stages):
        x, mask = stage.downsample(x), masks(kept, index, pixels)[..., None]
        for block in stage.blocks:
            y = block.conv_dw(x).permute(0, 2, 3, 1)
            mlp, norm = block.mlp, block.norm
            y = torch.nn.functional.layer_norm(y, y.shape[-1:], norm.weight, norm.bias, norm.eps)
            y = torch.nn.functional.gelu(y @ mlp.fc1.weight.flatten(1).T + mlp.fc1.bias)
            if hasattr(mlp, "grn"):
                size = (y * mask).pow(2).sum((1, 2), keepdim=True).sqrt()
                size = size / (size.mean(-1, keepdim=True) + mlp.grn.eps)
                y = y + mlp.grn.weight * y * size + mlp.grn.bias
            y = y @ mlp.fc2.weight.flatten(1).T + mlp.fc2.bias
            if block.gamma is not None:
                y = y * block.gamma
            x = x + (y * mask).permute(0, 3, 1, 2)
    return model.forward_head(model.norm_pre(x))


def masked_swin(model: Any, pixels: Tensor, kept: Kept) -> Tensor:
    x = model.patch_embed(pixels)
    second = type(model).__name__.endswith("V2")
    for index, stage in enumerate(model.layers):
        x, mask = stage.downsample(x), masks(kept, index, pixels)[..., None]
        for block in stage.blocks:
            x = x + (block.norm1(block._attn(x)) if second else block._attn(block.norm1(x)))
            x = x + mask * (block.norm2(block.mlp(x)) if second else block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x))


CASES: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "ConvNeXt": (build_convnext, {}, masked_convnext),
    "with convolutions": (build_convnext, {"conv_mlp": True}, masked_convnext),
    "V2": (build_convnext, {"use_grn": True, "ls_init_value": None}, masked_convnext),
    "V2 with convolutions": (build_convnext, {"use_grn": True, "conv_mlp": True}, masked_convnext),
    "Swin": (build_swin, {}, masked_swin),
    "Swin V2": (build_swin, {"name": "SwinTransformerV2"}, masked_swin),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stages", [None, [1, 2]])
@torch.no_grad()
def test_logits_are_those_of_the_masked_model(case: str, stages: list[int] | None) -> None:
    build, options, masked = CASES[case]
    model, pixels = build(**options).double(), draw_large_images().double()
    reference, dense = copy.deepcopy(model), model(pixels)
    vp.prune(model, "brightness", stages=stages)
    kept = vp.kept_tokens(model, pixels)
    assert isinstance(kept, dict)
    chosen = stages or [0, 1, 2, 3]
    assert {stage: found.num_kept for stage, found in kept.items()} == {
        stage: int(0.65 * SIDES[stage] ** 2) for stage in chosen
    }
    logits = model(pixels)
    assert torch.allclose(logits, masked(reference, pixels, kept), atol=1e-9)
    assert (logits - dense).abs().max() > 1e-3
    assert torch.allclose(model(pixels[1:]), logits[1:], atol=1e-9)
    assert model.forward_features(pixels).shape == reference.forward_features(pixels).shape
    for ours, theirs in zip(
        model.forward_intermediates(pixels, intermediates_only=True),
        reference.forward_intermediates(pixels, intermediates_only=True),
        strict=True,
    ):
        assert ours.shape == theirs.shape  # a full grid, for detectors


@torch.no_grad()
def test_the_network_looks_once_and_its_map_is_resized_for_each_stage() -> None:
    model, pixels = build_convnext(), draw_large_images()
    options: dict[str, Any] = {"model": "mobilenetv3_small_050", "weights": None}
    vp.prune(model, keep_ratio=0.5, **options)
    selector = model.stem.video_papr_pruning.selector
    passes: list[None] = []
    network = selector.pruners[""].scorer.reader.network
    network.blocks.register_forward_hook(lambda *_: passes.append(None))
    kept = vp.kept_tokens(model, pixels)
    assert isinstance(kept, dict)
    assert len(passes) == 1
    alone = build_pruner("image_convnet", keep_ratio=0.5, **options)
    assert alone is not None
    for found in kept.values():
        expected = alone.choose(alone.scorer(selector.frames(pixels), found.grid))
        assert torch.equal(found.keep_idx, expected.keep_idx)


@torch.no_grad()
def test_convnext_reads_other_sizes() -> None:
    model = vp.prune(build_convnext(), "center", 0.5)
    pixels = torch.rand(1, 3, 96, 64)
    kept = vp.kept_tokens(model, pixels)
    assert isinstance(kept, dict)
    assert [found.grid.shape for found in kept.values()] == [(1, 24, 16), (1, 12, 8), (1, 6, 4), (1, 3, 2)]
    assert model(pixels).shape == (1, 5)
    with pytest.raises(
        ValueError, match=r"^pixels must be \(B, 3, H, W\), H and W multiples of 32, got \(1, 3, 80"
    ):
        model(torch.rand(1, 3, 80, 64))


def test_training_and_what_cannot_be() -> None:
    model, pixels = vp.prune(build_swin(), "brightness").train(), draw_large_images()
    model(pixels).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match=r"^a pruned hierarchical model cannot recompute its blocks"):
        model(pixels)
    with pytest.raises(ConfigError, match=r"^stages=\[4\] must be some of ConvNeXt's 0, 1, 2, 3$"):
        vp.prune(build_convnext(), "center", stages=[4])
    with pytest.raises(ConfigError, match=r"^pruner=x3d_s cannot be used here \(ConvNeXt reads images\)"):
        vp.prune(build_convnext(), "x3d_s")
    with pytest.raises(ConfigError, match=r"^cannot prune this SwinTransformer: it reads 1 channels"):
        vp.prune(build_swin(in_chans=1), "center")
