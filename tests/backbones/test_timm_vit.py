"""timm's VisionTransformer as a backbone: its own logits with all tokens, those of the masked model with some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import video_papr as vp
from video_papr.backbones.timm_vit import TimmViT
from video_papr.checkpoints import timm_models
from video_papr.pruning.select import select_tokens
from video_papr.pruning.tome import build_merger

SMALL: dict[str, Any] = {
    **{"img_size": (16, 32), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "num_classes": 5,
}
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"class_token": False, "global_pool": "avg"},
    "mean with prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5, "qk_norm": True},
    "norm before": {"pre_norm": True, "reg_tokens": 1},
    "distilled": {},
}


def host(kind: str) -> VisionTransformer:
    """A model on a grid of 2 x 4 patches whose every parameter matters, in float64."""
    build = VisionTransformerDistilled if kind == "distilled" else VisionTransformer
    model = build(**{**SMALL, **KINDS[kind]})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.double().eval()


MODELS = {kind: host(kind) for kind in KINDS}
BACKBONES = {kind: TimmViT(model, name=kind).double().eval() for kind, model in MODELS.items()}


def images(batch: int, seed: int) -> Tensor:
    return torch.randn(batch, 3, 16, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked_logits(model: Any, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """All tokens go through timm's blocks; dropped ones are barred from attention as keys, and from the mean."""
    prefix = model.num_prefix_tokens
    kept = torch.zeros(len(pixels), 8, dtype=torch.bool).scatter_(1, keep_idx, True)
    kept = torch.cat([torch.ones(len(pixels), prefix, dtype=torch.bool), kept], 1)
    bar = torch.zeros(kept.shape, dtype=torch.float64).masked_fill_(~kept, float("-inf"))[:, None, None]
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    for block in model.blocks:
        tokens = block(tokens, attn_mask=bar)
    tokens = model.norm(tokens)
    if isinstance(model, VisionTransformerDistilled):
        return (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    if model.global_pool == "token":
        return model.head(model.fc_norm(tokens[:, 0]))
    first = 0 if model.pool_include_prefix else prefix
    own, tokens = kept[:, first:], tokens[:, first:]
    return model.head(model.fc_norm((tokens * own[..., None]).sum(1) / own.sum(1, keepdim=True)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), keep_ratio=st.floats(0.1, 1.0))
@torch.no_grad()
def test_logits_are_timms_own_and_those_of_the_masked_model(kind: str, seed: int, keep_ratio: float) -> None:
    model, backbone, pixels = MODELS[kind], BACKBONES[kind], images(3, seed)
    clip = pixels[:, :, None]
    assert torch.allclose(backbone(clip), model(pixels), atol=1e-12)
    scores = torch.rand(3, *backbone.grid.shape, generator=torch.Generator().manual_seed(seed))
    keep_idx = select_tokens(scores, keep_ratio=keep_ratio).keep_idx
    logits = backbone(clip, keep_idx)
    assert torch.allclose(logits, masked_logits(model, pixels, keep_idx), atol=1e-12)
    assert torch.allclose(backbone(clip[1:2], keep_idx[1:2]), logits[1:2], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_and_merging_do_not_change_what_they_should_not(kind: str) -> None:
    backbone, clip = BACKBONES[kind], images(2, 0)[:, :, None]
    short = torch.tensor([[1, 4, 6]])
    padded = torch.tensor([[1, 4, 6, 6, 6]])
    valid = torch.tensor([[True, True, True, False, False]])
    expected = backbone(clip[:1], short)
    assert torch.allclose(backbone(clip[:1], padded, valid=valid), expected, atol=1e-6)
    assert torch.allclose(backbone(clip, merger=build_merger("tome", r=0)), backbone(clip), atol=1e-6)


def test_what_stands_in_front_is_counted_as_prefix() -> None:
    counts = {kind: backbone.num_prefix for kind, backbone in BACKBONES.items()}
    assert counts == {
        **{"class token": 1, "mean": 0, "mean with prefix": 1, "registers": 3, "norm before": 2},
        "distilled": 2,
    }
    assert all(backbone.grid.shape == (1, 2, 4) for backbone in BACKBONES.values())


def build(**options: Any) -> Any:
    tiny = {"model": "vit_tiny_patch16_224", "input_size": 32}
    return vp.build_backbone("timm_vit", **{**tiny, **options})


@torch.no_grad()
def test_weights_from_a_file_and_seeds(tmp_path: Path) -> None:
    made = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7).eval()
    path = tmp_path / "vit.safetensors"
    save_file(made.state_dict(), path)
    loaded, clip = build(weights=path), torch.randn(1, 3, 1, 32, 32)
    assert torch.allclose(loaded(clip), made(clip[:, :, 0]), atol=1e-5)
    assert build(weights=path, num_classes=3, replace_head=True).num_classes == 3
    with pytest.raises(
        vp.CheckpointError, match=r"has 7 classes and backbone.num_classes=3; backbone.replace_h"
    ):
        build(weights=path, num_classes=3)
    same, other = build(seed=1), build(seed=2)
    assert torch.equal(same(clip), build(seed=1)(clip)) and not torch.equal(same(clip), other(clip))


@torch.no_grad()
def test_pretrained_weights_come_from_the_hub_and_know_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's folder is made here: timm's own names, 1000 classes, positions of another image size."""
    made = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def folder(hub_id: str, *, key: str) -> Path:
        asked.append(hub_id)
        return tmp_path

    monkeypatch.setattr(timm_models, "hub_folder", folder)
    same, smaller = build(weights="pretrained", input_size=64), build(weights="pretrained")
    clip = torch.randn(1, 3, 1, 64, 64)
    assert torch.allclose(same(clip), made(clip[:, :, 0]), atol=1e-5)
    assert (smaller.grid.shape, same.grid.shape) == ((1, 2, 2), (1, 4, 4))
    assert same.class_names is not None and same.class_names[:2] == ("n01440764", "n01443537")
    assert asked == [f"timm/{made.pretrained_cfg['architecture']}.{made.pretrained_cfg['tag']}"] * 2


def test_wrong_models_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "vit_tiny_patch16_22": r"^backbone.model=vit_tiny_patch16_22: timm .* has no such model. Did you mean vit_tiny",
        "resnet18": r"^backbone.model=resnet18, img_size=32: timm cannot build it",
        "vit_tiny_patch16_224.nope": "timm cannot build it .*Invalid pretrained tag",
    }
    for name, line in wrong.items():
        with pytest.raises(vp.ConfigError, match=line):
            build(model=name)
    with pytest.raises(vp.ConfigError, match=r"^backbone.num_frames=2: timm_vit reads images"):
        build(num_frames=2)
    with pytest.raises(vp.ConfigError, match=r"^backbone.model=x: only backbone=timm_vit takes a model"):
        vp.build_backbone("videomae_tiny", model="x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        vp.CheckpointError, match=r"^backbone.weights=timm/vit_tiny.* was not downloaded"
    ) as caught:
        build(weights="pretrained")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_pool": "map"}, "pooled by 'map'"),
        ({"num_classes": 0}, "it has no classifier"),
        ({"in_chans": 1}, "reads 1 channels"),
    ],
)
def test_models_that_answer_otherwise_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(vp.ConfigError, match=reason):
        TimmViT(VisionTransformer(**{**SMALL, **changes}), name="x")
