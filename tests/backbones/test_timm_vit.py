"""timm's VisionTransformer as a backbone: its own logits with all tokens, those of the masked model with some.

`image_vit` gives a clip the mean over its frames of the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
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
from video_papr.core.types import TokenSelection
from video_papr.evaluation.cost import gmacs_per_view, mean_gmacs
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
    "attention": {"class_token": False, "global_pool": "map"},
    "headless": {"num_classes": 0, "reg_tokens": 1},
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
    if model.attn_pool is not None:
        pairs = zip(tokens, kept, strict=True)
        return model.head(torch.cat([model.attn_pool(clip[own][None]) for clip, own in pairs]))
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
        **{"distilled": 2, "attention": 0, "headless": 2},
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
        "vit_tiny_patch16_22": r"^backbone.model=vit_tiny_patch16_22: timm .* has no such model. Did you mean 'vit",
        "resnet18": r"^backbone.model=resnet18, img_size=32: timm cannot build it",
        "vit_tiny_patch16_224.nope": "timm cannot build it .*Invalid pretrained tag",
    }
    for name, line in wrong.items():
        with pytest.raises(vp.ConfigError, match=line):
            build(model=name)
    with pytest.raises(vp.ConfigError, match=r"^backbone.num_frames=2: timm_vit reads images"):
        build(num_frames=2)
    with pytest.raises(vp.ConfigError, match=r"^backbone.model=x: only timm_vit, .*, image_vit take a model"):
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
        ({"global_pool": "max"}, "pooled by 'max'"),
        ({"in_chans": 1}, "reads 1 channels"),
    ],
)
def test_models_that_answer_otherwise_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(vp.ConfigError, match=reason):
        TimmViT(VisionTransformer(**{**SMALL, **changes}), name="x")


FRAMES = 3
GRID = (FRAMES, 2, 4)  # of clips of 3 x 16 x 32 pixels
VIDEO = {kind: TimmViT(model, name=kind, num_frames=FRAMES).double().eval() for kind, model in MODELS.items()}


def clips(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, FRAMES, 16, 32, 3), dtype=torch.uint8, generator=generator)


def some(batch: int, seed: int) -> TokenSelection:
    """A random selection whose frames keep unequal numbers of tokens; some frames keep none."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, *GRID, generator=generator) < torch.rand(batch, 1, 1, 1, generator=generator)
    mask[:, 1] &= torch.rand(batch, 1, 1, generator=generator) < 0.5
    mask[:, 0, 0, 0] = True
    return TokenSelection.from_mask(mask)


def by_timm(kind: str, frames: Tensor, mask: Tensor) -> list[Tensor]:
    """The answers of timm's model to the frames of one clip (T, H, W, 3) that keep something, each (C,)."""
    pixels = VIDEO[kind].normalize(frames[:, None])[:, :, 0]
    kept = [own.flatten().nonzero()[:, 0] for own in mask]
    return [
        masked_logits(MODELS[kind], pixels[t : t + 1], kept[t][None])[0]
        for t in range(FRAMES)
        if len(kept[t])
    ]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 999), packing=st.sampled_from(["packed", "bucketed"]))
@torch.no_grad()
def test_answers_are_the_mean_of_timms_own_frame_by_frame(kind: str, seed: int, packing: str) -> None:
    pipeline, frames = vp.Pipeline(VIDEO[kind], packing=packing), clips(4, seed)
    pixels = VIDEO[kind].normalize(frames.flatten(0, 1)[:, None])[:, :, 0]
    dense = MODELS[kind](pixels).unflatten(0, (4, FRAMES)).mean(1)
    assert torch.allclose(pipeline(frames), dense, atol=1e-9, rtol=0)
    selection = some(4, seed)
    answers = pipeline.classify(frames, selection)
    for clip, mask, answer in zip(frames, selection.mask(), answers, strict=True):
        expected = torch.stack(by_timm(kind, clip, mask)).mean(0)
        assert torch.allclose(answer, expected, atol=1e-9, rtol=0)
    alone = pipeline.classify(frames[2:3], selection.rows(torch.tensor([2])))
    assert torch.allclose(alone, answers[2:3], atol=1e-9, rtol=0)


@torch.no_grad()
def test_pools() -> None:
    frames, selection = clips(2), some(2, 5)
    for pool in ("max", "concat"):
        backbone = TimmViT(MODELS["mean"], name="mean", num_frames=FRAMES, pool=pool).double().eval()
        found = vp.Pipeline(backbone).classify(frames, selection)
        for clip, mask, answer in zip(frames, selection.mask(), found, strict=True):
            each = iter(by_timm("mean", clip, mask))
            ran = [next(each) if own.any() else torch.zeros(5).double() for own in mask]
            kept = [value for value, own in zip(ran, mask, strict=True) if own.any()]
            expected = torch.cat(ran) if pool == "concat" else torch.stack(kept).amax(0)
            assert torch.allclose(answer, expected, atol=1e-9, rtol=0)
    assert backbone.num_classes == 0
    with pytest.raises(vp.ConfigError, match="no classifier"):
        backbone.check_classifies()


KEEP = {"keep_ratio": 0.4}
CASES: list[tuple[str, dict[str, Any], bool]] = [
    *[(name, KEEP, False) for name in ("random", "uniform", "center", "x3d_s", "papr_plus", "similarity")],
    ("image_convnet", {**KEEP, "model": "mobilenetv3_small_050"}, False),
    ("run_length", {"tau": 84.0}, False),
    ("motion", KEEP, True),
    *[("motion", {**KEEP, "scope": scope}, scope == "global") for scope in ("global", "frame", "place")],
    ("brightness", {"budget": "top_p", "top_p": 0.5}, False),
    ("motion", {**KEEP, "compensation": "pool", "scope": "global"}, False),
    ("motion", {**KEEP, "compensation": "merge", "scope": "global"}, True),
    ("similarity", {**KEEP, "compensation": "merge", "after_block": 1}, True),
    ("similarity", {"mode": "adaptive", "after_block": [0, 1]}, False),
]


@pytest.mark.parametrize(("name", "options", "tome"), CASES)
@torch.no_grad()
def test_every_pruner_gives_what_images_pruned_alike_give(
    name: str, options: dict[str, Any], tome: bool
) -> None:
    """The same model as `timm_vit`, given the clip's frames and each frame's share of the clip's selection."""
    merger, model = build_merger("tome", r=1) if tome else None, MODELS["mean with prefix"]
    pruner = vp.build_pruner(name, **options)
    pipeline = vp.Pipeline(VIDEO["mean with prefix"], pruner, merger).eval()
    image = vp.Pipeline(TimmViT(model, name=name).double().eval(), None, merger).eval()
    frames = clips(2, seed=7)
    selection, answers = pipeline.select(frames), pipeline(frames)
    assert selection is not None and selection.grid.shape == GRID
    assert pipeline.significance(frames).shape == (2, *GRID)
    for row, (clip, mask) in enumerate(zip(frames, selection.mask(), strict=True)):
        assert torch.allclose(pipeline(frames[row : row + 1]), answers[row : row + 1], atol=1e-9, rtol=0)
        each = []
        for t in range(FRAMES):
            if name == "similarity":  # which compares the tokens of a frame with each other
                own = vp.Pipeline(image.backbone, pruner, merger)
                chosen = own.select(clip[None, t : t + 1])
                assert torch.equal(chosen.mask()[0, 0], mask[t])
                each.append(own.classify(clip[None, t : t + 1], chosen)[0])
            elif mask[t].any():
                kept = TokenSelection.from_mask(mask[None, t : t + 1])
                kept = replace(kept, compensation=pruner.compensation, cell=pruner.compensation_cell)
                each.append(image.classify(clip[None, t : t + 1], kept)[0])
        assert torch.allclose(answers[row], torch.stack(each).mean(0), atol=1e-9, rtol=0)


@torch.no_grad()
def test_cost_is_that_of_the_frames_that_run() -> None:
    image, video = (
        TimmViT(MODELS["class token"], name="x", num_frames=count).eval().float() for count in (1, FRAMES)
    )
    pruner = vp.build_pruner("motion", keep_ratio=0.5, scope="global")
    frame, clip = clips(1)[:, :1], clips(1)
    dense = gmacs_per_view(vp.Pipeline(video, pruner), clip)
    assert dense["dense"] == pytest.approx(FRAMES * gmacs_per_view(vp.Pipeline(image), frame)["dense"])
    image_pruner = vp.build_pruner("uniform", keep_ratio=0.5)
    four = gmacs_per_view(vp.Pipeline(image, image_pruner), frame)["backbone"]
    found = mean_gmacs(vp.Pipeline(video, pruner), dense, Counter({4: 2, 0: 1}))
    assert found["backbone"] == pytest.approx(2 * four)


def test_wrong_clips_give_one_line() -> None:
    for options, line in {
        ("timm_vit", "mean"): "only backbone=image_vit answers frame by frame",
        ("image_vit", "median"): "backbone.pool='median' is unknown; use one of mean, max, concat",
    }.items():
        with pytest.raises(vp.ConfigError, match=line):
            vp.build_backbone(options[0], model="vit_tiny_patch16_224", input_size=32, pool=options[1])
