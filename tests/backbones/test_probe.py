"""The file of a linear probe: what is read is what was written, to the bit, and only on the backbone of its fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import video_papr as vp
from video_papr.backbones.probe import Probe, checksum, read_probe
from video_papr.checkpoints.files import write_weights
from video_papr.core.errors import CheckpointError, ConfigError
from video_papr.core.reading import ReadConfig

CLIP = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TIMM = {"name": "image_vit", "model": "vit_tiny_patch16_224", "num_frames": 4, "input_size": 32}
OURS = {"name": "videomae_tiny", "num_frames": 4, "input_size": 32}
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "video": (OURS, 192),
    "mean over frames": (TIMM, 192),
    "largest over frames": ({**TIMM, "pool": "max"}, 192),
    "frames side by side": ({**TIMM, "pool": "concat"}, 4 * 192),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of the two backbones, drawn with a seed of their own."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    model = timm.create_model(TIMM["model"], num_classes=0)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "timm.safetensors"
    )
    ours = vp.build_backbone(**OURS, seed=7)
    write_weights(folder / "ours.safetensors", ours.state_dict(), {"model": "videomae_tiny"}, half=False)
    return {"image_vit": folder / "timm.safetensors", "videomae_tiny": folder / "ours.safetensors"}


def probe_of(options: dict[str, Any], weights: Path, width: int) -> Probe:
    backbone = {**options, "weights": str(weights)}
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(3, width, generator=generator) / 9, torch.randn(3, generator=generator)
    read = ReadConfig(sampling="uniform", num_frames=4, short_side=32)
    digest = checksum(vp.build_backbone(**backbone))
    return Probe(weight, bias, ("a", "b", "c"), backbone, digest, read, {"name": "random", "keep_ratio": 0.5})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_answers_like_what_was_written(
    kind: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    options, width = KINDS[kind]
    probe = probe_of(options, trained[options["name"]], width)
    path = tmp_path / "probe.safetensors"
    probe.save(path, {"top1": 50.0})
    assert read_probe(path).pruner == probe.pruner
    first, second = vp.build_backbone(**probe.backbone), vp.build_backbone("probe", weights=path)
    probe.attach(first, source="here")
    assert (second.num_classes, second.class_names, second.read) == (3, ("a", "b", "c"), probe.read)
    pruner = vp.build_pruner("random", keep_ratio=0.5)
    for chosen in (None, pruner):
        one, two = vp.Pipeline(first, chosen).eval(), vp.Pipeline(second, chosen).eval()
        assert torch.equal(one(CLIP), two(CLIP))
    features = vp.Pipeline(second).eval().features(CLIP)
    assert features.shape == (3, width)
    expected = nn.functional.linear(features, probe.weight, probe.bias)
    assert torch.allclose(vp.Pipeline(second).eval()(CLIP), expected, atol=1e-5)


def test_a_backbone_is_found_beside_the_probe_and_no_other_is_taken(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    weights = tmp_path / "ours.safetensors"
    weights.write_bytes(trained["videomae_tiny"].read_bytes())
    probe = probe_of(OURS, weights, 192)
    (tmp_path / "moved").mkdir()
    path = tmp_path / "moved/probe.safetensors"
    probe.save(path, {})
    weights.rename(tmp_path / "moved/ours.safetensors")
    vp.build_backbone("probe", weights=path)
    state = load_file(tmp_path / "moved/ours.safetensors")
    state["blocks.1.mlp.fc1.weight"][0, 0] += 1e-3
    write_weights(tmp_path / "moved/ours.safetensors", state, {"model": "videomae_tiny"}, half=False)
    with pytest.raises(CheckpointError, match="was fitted on other weights of videomae_tiny"):
        vp.build_backbone("probe", weights=path)
    (tmp_path / "moved/ours.safetensors").unlink()
    with pytest.raises(CheckpointError, match="are neither at .*ours.safetensors nor beside the probe"):
        vp.build_backbone("probe", weights=path)


def test_wrong_files_and_keys_are_one_line(trained: dict[str, Path], tmp_path: Path) -> None:
    path, weights = tmp_path / "probe.safetensors", trained["videomae_tiny"]
    probe = probe_of(OURS, weights, 192)
    probe.save(path, {})
    with pytest.raises(CheckpointError, match="holds a linear probe; use backbone=probe"):
        vp.build_backbone("videomae_tiny", weights=path)
    with pytest.raises(CheckpointError, match="is no linear probe"):
        vp.build_backbone("probe", weights=weights)
    with pytest.raises(ConfigError, match="backbone=probe needs the file"):
        vp.build_backbone("probe")
    with pytest.raises(ConfigError, match="leave the other keys out"):
        vp.build_backbone("probe", weights=path, num_frames=8)
    for wrong, message in (
        (replace(probe, weight=torch.zeros(3, 191)), "its head reads 191 features, not 192"),
        (replace(probe, class_names=("a", "b")), "do not fit together"),
        (replace(probe, backbone={"weights": str(weights)}), "is damaged"),
        (replace(probe, bias=torch.full((3,), torch.nan)), "not finite"),
    ):
        wrong.save(path, {})
        with pytest.raises(CheckpointError, match=message):
            vp.build_backbone("probe", weights=path)
