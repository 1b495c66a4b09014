"""V-JEPA 2 against transformers' model with the same weights, whole and pruned; and through the command line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import video_papr as vp
from tests.adapters.conftest import build_host, draw_clip
from video_papr.backbones.builders import build_backbone
from video_papr.backbones.vjepa2 import VJEPA2
from video_papr.cli.eval import main
from video_papr.core.errors import CheckpointError, CheckpointWarning
from video_papr.inference.export import export_program, run_program, save_program
from video_papr.inference.export_check import check_clips, compare

NAMES = {0: "catch", 1: "throw", 2: "walk", 3: "run", 4: "jump"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small model of transformers, and the folder that it is saved in."""
    model = build_host("VJEPA2ForVideoClassification", num_pooler_layers=2, num_labels=5, id2label=NAMES)
    folder = tmp_path_factory.mktemp("vjepa2")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def backbone(published: tuple[Any, Path]) -> VJEPA2:
    with pytest.warns(CheckpointWarning, match="built as the weights say") as said:
        own = build_backbone("vjepa2_l", weights=published[1])
    assert said[0].filename == __file__  # where the user's own line is
    assert isinstance(own, VJEPA2)
    return own.double()


def chosen(count: int = 9) -> Tensor:
    return torch.rand(2, 32, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :count].sort(1).values


@torch.no_grad()
def test_logits_are_those_of_transformers(published: tuple[Any, Path], backbone: VJEPA2) -> None:
    reference, pixels = copy.deepcopy(published[0]).double(), draw_clip().double()
    planes = pixels.transpose(1, 2)
    assert backbone.class_names == tuple(NAMES.values())
    assert (backbone.grid.shape, backbone.num_classes) == ((2, 4, 4), 5)
    assert torch.allclose(backbone(planes), reference(pixels).logits, atol=1e-9)
    vp.prune(reference, "motion", 0.3)
    keep_idx = vp.kept_tokens(reference, pixels).keep_idx  # type: ignore[union-attr]
    assert torch.allclose(backbone(planes, keep_idx), reference(pixels).logits, atol=1e-9)


@torch.no_grad()
def test_padding_packing_and_sizes_are_as_for_other_backbones(backbone: VJEPA2) -> None:
    pixels, keep_idx = draw_clip().double().transpose(1, 2), chosen()
    alone = torch.cat([backbone(pixels[:1], keep_idx[:1]), backbone(pixels[1:], keep_idx[1:, :5])])
    padded = keep_idx.clone()
    padded[1, 5:] = padded[1, 4]
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 5:] = False
    assert torch.allclose(backbone(pixels, padded, valid=valid), alone, atol=1e-9)
    assert torch.allclose(backbone.forward_packed(pixels, padded, valid), alone, atol=1e-9)
    # A token that counts twice is that token, twice.
    twice = torch.cat([keep_idx, keep_idx[:, :1]], 1)
    sizes = torch.ones(2, 9).index_fill(1, torch.tensor([0]), 2.0)
    assert torch.allclose(backbone(pixels, keep_idx, sizes=sizes), backbone(pixels, twice), atol=1e-6)


@torch.no_grad()
def test_means_of_regions_have_their_mean_place(backbone: VJEPA2) -> None:
    pixels, shares = draw_clip().double().transpose(1, 2), torch.rand(2, 3, 32).double().softmax(-1)
    assert torch.allclose(backbone.embed_means(pixels, shares), shares @ backbone.embed(pixels), atol=1e-9)


@pytest.mark.parametrize("options", [("pruner=motion",), ("pruner=similarity",), ("merger=tome",)])
def test_evaluation(
    published: tuple[Any, Path],
    options: tuple[str, ...],
    write_video: Callable[..., Path],
    run_in_process: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    root = tmp_path / "videos"
    for number, name in enumerate(NAMES.values()):
        write_video(root / name / "a.mp4", 6 + number, seed=number)
    words = (
        "dataset=folder",
        f"dataset.root={root}",
        "backbone=vjepa2_l",
        f"backbone.weights={published[1]}",
    )
    small = (
        "runtime=cpu",
        "runtime.workers=0",
        "progress=false",
        "baseline=false",
        f"output_dir={tmp_path / 'out'}",
    )
    status, _, errors = run_in_process("eval.py", main, *words, *small, *options)
    assert status == 0, errors
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 5


def test_exported_graph(backbone: VJEPA2, tmp_path: Path) -> None:
    flow = vp.Pipeline(backbone.float(), vp.build_pruner("motion", keep_ratio=0.5)).eval()
    path = save_program(export_program(flow), tmp_path / "model.pt2")
    found = compare(flow, run_program(path), check_clips(flow, 2), source=str(path))
    assert found.clips == found.same_choice == found.same_answer


def test_weights_of_another_model(published: tuple[Any, Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds Hugging Face V-JEPA 2 weights, but backbone=vivit_b was"
    ):
        build_backbone("vivit_b", weights=published[1])


def test_defaults_are_those_of_the_published_large_model() -> None:
    with torch.device("meta"):
        model = VJEPA2(num_classes=174)
    assert (model.num_frames, model.frame_size, model.grid.shape) == (64, (256, 256), (32, 16, 16))
    assert (model.dim, len(model.blocks), model.num_classes) == (1024, 24, 174)
    assert (model.usual_stride, model.mean_pooled) == (2, False)
    block: Any = model.blocks[0]
    assert block.attn.num_heads == 16
    assert sum(p.numel() for p in model.parameters()) == 353_399_982
