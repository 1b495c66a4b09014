"""`backbone=timm_convnext` and `timm_swin`: timm's logits with everything kept, those of the masked model with less."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import video_papr as vp
from video_papr.cli.eval import main
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenSelection
from video_papr.evaluation.cost import gmacs_per_view

CASES = {
    "convnext_atto": ("timm_convnext", 64),
    "convnextv2_atto": ("timm_convnext", 64),
    "swin_tiny_patch4_window7_224": ("timm_swin", 64),
    "swinv2_tiny_window8_256": ("timm_swin", 64),
}


def built(model: str, stages: tuple[int, ...] | None = None) -> Any:
    """The backbone in float64, with norms and scales under which every part matters."""
    name, size = CASES[model]
    backbone = vp.build_backbone(name, model=model, input_size=size, stages=stages).double()
    generator = torch.Generator().manual_seed(0)
    for key, value in backbone.named_parameters():
        if value.ndim < 2 or "gamma" in key or "grn" in key:
            value.copy_(1 + torch.randn(value.shape, generator=generator) / 4)
    return backbone


def frames() -> Tensor:
    return torch.randint(
        0, 256, (2, 1, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def pixels_of(backbone: Any, clip: Tensor) -> Tensor:
    mean, std = (torch.tensor(value, dtype=torch.float32) for value in (backbone.mean, backbone.std))
    return ((clip[:, 0] / 255 - mean) / std).movedim(-1, 1).double()


def masked(body: Any, pixels: Tensor, kept: dict[int, TokenSelection]) -> Tensor:
    """timm's own layers on every place; what a block adds behind the mixing of places is multiplied by the masks."""
    convnext, second = hasattr(body, "stem"), type(body).__name__.endswith("V2")
    x = (body.stem if convnext else body.patch_embed)(pixels)
    for number, stage in enumerate(body.stages if convnext else body.layers):
        mask = kept[number].mask()[:, 0, ..., None].to(x.dtype) if number in kept else 1.0
        x = stage.downsample(x)
        for block in stage.blocks:
            if not convnext:
                x = x + (block.norm1(block._attn(x)) if second else block._attn(block.norm1(x)))
                x = x + mask * (block.norm2(block.mlp(x)) if second else block.mlp(block.norm2(x)))
                continue
            y, mlp = block.conv_dw(x), block.mlp
            if block.use_conv_mlp:
                y = mlp.act(mlp.fc1(block.norm(y))).movedim(1, -1)
            else:
                y = mlp.act(mlp.fc1(block.norm(y.movedim(1, -1))))
            if hasattr(mlp, "grn"):
                size = (y * mask).pow(2).sum((1, 2), keepdim=True).sqrt()
                y = y + mlp.grn.weight * y * size / (size.mean(-1, keepdim=True) + mlp.grn.eps) + mlp.grn.bias
            y = mlp.fc2(y.movedim(-1, 1)).movedim(1, -1) if block.use_conv_mlp else mlp.fc2(y)
            y = y * block.gamma if block.gamma is not None else y
            x = x + (mask * y).movedim(-1, 1)
    return body.forward_head(body.norm_pre(x) if convnext else body.norm(x))


@torch.inference_mode()
@pytest.mark.parametrize("model", CASES)
def test_logits_are_timms_and_those_of_the_masked_model(model: str) -> None:
    backbone = built(model)
    plain, clip = copy.deepcopy(backbone.body), frames()
    pixels = pixels_of(backbone, clip)
    dense = plain(backbone.normalize(clip)[:, :, 0])
    for pruner in (None, vp.build_pruner("center", keep_ratio=1.0)):
        assert torch.equal(vp.Pipeline(backbone, pruner).eval()(clip), dense)
    pruner = vp.build_pruner("image_convnet", model="resnet18", keep_ratio=0.65)
    pipeline = vp.Pipeline(backbone, pruner).eval()
    selection = pipeline.select(clip)
    assert selection is not None
    assert [found.num_kept for found in selection.stages] == [int(0.65 * n * n) for n in (16, 8, 4, 2)]
    logits = pipeline(clip)
    assert (logits - dense).abs().max() > 1e-3
    expected = masked(plain, pixels, dict(enumerate(selection.stages)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pipeline(clip[1:]), logits[1:], rtol=0, atol=1e-9)
    again = pickle.loads(pickle.dumps(pipeline))
    torch.testing.assert_close(again(clip), logits, rtol=0, atol=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("model", CASES)
def test_only_the_chosen_stages_drop_places(model: str) -> None:
    backbone, clip = built(model, stages=(3, 1)), frames()
    plain, pixels = copy.deepcopy(backbone.body), pixels_of(backbone, clip)
    pipeline = vp.Pipeline(
        backbone, vp.build_pruner("image_convnet", model="resnet18", keep_ratio=0.65)
    ).eval()
    selection = pipeline.select(clip)
    assert selection is not None and [found.grid.height for found in selection.stages] == [8, 2]
    assert selection.grid == backbone.grid == selection.stages[0].grid
    expected = masked(plain, pixels, dict(zip((1, 3), selection.stages, strict=True)))
    torch.testing.assert_close(pipeline(clip), expected, rtol=0, atol=1e-6)
    gmacs = gmacs_per_view(pipeline, clip[:1])
    every = gmacs_per_view(vp.Pipeline(built(model), pipeline.pruner).eval(), clip[:1])
    assert every["backbone"] < gmacs["backbone"] < gmacs["dense"] == every["dense"]


@torch.inference_mode()
def test_the_same_places_as_prune_and_what_they_cost() -> None:
    backbone, clip = (
        vp.build_backbone("timm_convnext", model="convnext_atto"),
        torch.zeros(1, 1, 224, 224, 3).byte(),
    )
    clip[..., 64:160, 32:96, :] = 200
    options: dict[str, Any] = {"model": "resnet18", "weights": None, "keep_ratio": 0.65}
    pipeline = vp.Pipeline(backbone, vp.build_pruner("image_convnet", **options)).eval()
    model = vp.prune(timm.create_model("convnext_atto").eval(), "image_convnet", **options)
    pixels = backbone.normalize(clip)[:, :, 0]
    selection, kept = pipeline.select(clip), vp.kept_tokens(model, pixels)
    assert selection is not None and isinstance(kept, dict)
    for stage, found in enumerate(selection.stages):
        assert torch.equal(found.keep_idx, kept[stage].keep_idx)
    gmacs = gmacs_per_view(pipeline, clip)
    block_share = gmacs["backbone"] / gmacs["dense"]
    assert 0.65 < block_share < 0.75  # depthwise convolutions, stem and downsampling are left
    assert pipeline.backbone.body.training is False


def test_weights_of_a_file_and_what_is_refused(tmp_path: Path) -> None:
    network = timm.create_model("convnext_atto", num_classes=7)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    backbone = vp.build_backbone("timm_convnext", model="convnext_atto", weights=tmp_path / "net.safetensors")
    assert backbone.num_classes == 7
    name: dict[str, Any] = {"model": "convnext_atto"}
    refused: list[tuple[Callable[[], object], str]] = [
        (
            lambda: vp.build_backbone("timm_swin", **name),
            r"^backbone\.model=convnext_atto: backbone=timm_swin takes a SwinTransformer or SwinTransformerV2",
        ),
        (
            lambda: vp.build_backbone("timm_convnext", input_size=80, **name),
            r"sides that are multiples of 32$",
        ),
        (
            lambda: vp.build_backbone("timm_convnext", stages=[4], **name),
            r"^backbone\.stages=\[4\] must be some of ConvNeXt's 0, 1, 2, 3$",
        ),
        (
            lambda: vp.build_backbone("timm_hiera", model="hiera_tiny_224", stages=[1]),
            r"^backbone\.stages=\[1\]: Hiera has no stages, it drops tokens once$",
        ),
        (
            lambda: vp.build_backbone("videomae_tiny", stages=[1]),
            r"^backbone\.stages=\[1\]: videomae_tiny drops tokens once; leave it out$",
        ),
        (
            lambda: vp.Pipeline(backbone, vp.build_pruner("similarity")),
            r"^pruner=similarity: this backbone keeps",
        ),
        (
            lambda: vp.Pipeline(backbone, vp.build_pruner("center", budget="top_p")),
            r"^pruner\.budget=top_p: this",
        ),
        (
            lambda: vp.Pipeline(backbone, vp.build_pruner("center", compensation="pool")),
            r"^pruner\.compensation=pool",
        ),
        (
            lambda: vp.Pipeline(backbone, merger=vp.build_merger("tome")),
            r"^merger=tome: this backbone keeps the grid",
        ),
    ]
    for call, line in refused:
        with pytest.raises(ConfigError, match=line):
            call()


@pytest.mark.parametrize("backbone", ["timm_convnext", "timm_swin"])
def test_the_command(
    backbone: str, run_in_process: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for number in range(4):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 64), 90).convert("RGB").save(path)
    words = [
        f"backbone={backbone}",
        "backbone.input_size=64",
        "backbone.weights=null",
        "pruner=image_convnet",
    ]
    counts = (256, 166)
    words += ["pruner.model=resnet18", "pruner.weights=null", "pruner.keep_ratio=0.65", "runtime=cpu"]
    if backbone == "timm_convnext":
        words += ["backbone.model=convnext_atto", "backbone.stages=[2,3]"]
        counts = (16, 10)  # of the first stage that drops places
    out = tmp_path / "out"
    status, _, errors = run_in_process(
        "eval.py",
        main,
        "task=image",
        f"dataset.root={tmp_path / 'images'}",
        f"output_dir={out}",
        "progress=false",
        *words,
    )
    assert status == 0, errors
    results = json.loads((out / "results.json").read_text())
    assert results["num_evaluated"] == 4
    assert (results["num_tokens"], results["mean_kept_tokens"]) == counts
    assert results["gmacs_per_view"]["backbone"] < results["gmacs_per_view"]["dense"]
