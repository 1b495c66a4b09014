"""Models that run as transformers or timm have them, against themselves: whole, masked, and by the command."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import video_papr as vp
from tests.adapters.conftest import build_convnext, build_hiera, build_host, build_swin
from tests.adapters.test_factorized import masked_timesformer, masked_videoprism
from video_papr.backbones.builders import BACKBONES, build_backbone
from video_papr.backbones.hosts import HostBackbone, transformers_backbone
from video_papr.cli.eval import main
from video_papr.core.errors import CheckpointError, CheckpointWarning, ConfigError
from video_papr.evaluation.cost import gmacs_per_view
from video_papr.inference.features import features

CASES: dict[str, tuple[str, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "timesformer_b": ("TimesformerForVideoClassification", masked_timesformer),
    "videoprism_b": ("VideoPrismForVideoClassification", masked_videoprism),
}
NAMES = {0: "catch", 1: "throw", 2: "walk", 3: "run", 4: "jump"}


@pytest.fixture(scope="module", params=CASES)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Path]:
    """Name of a backbone, a small model of transformers, and the folder that it is saved in."""
    model = build_host(CASES[request.param][0], num_labels=5, id2label=NAMES)
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return request.param, model, folder


@pytest.fixture
def backbone(published: tuple[str, Any, Path]) -> HostBackbone:
    with pytest.warns(CheckpointWarning, match="built as the weights say"):
        own = build_backbone(published[0], weights=published[2])
    assert isinstance(own, HostBackbone)
    return own


def draw_frames(size: int = 32, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, count, size, size, 3), generator=generator, dtype=torch.uint8)


@torch.inference_mode()
def test_logits_are_those_of_transformers_whole_and_masked(
    published: tuple[str, Any, Path], backbone: HostBackbone
) -> None:
    name, reference, _ = published
    frames = draw_frames()
    assert (backbone.grid.shape, backbone.num_classes) == ((4, 4, 4), 5)
    assert backbone.class_names == tuple(NAMES.values())
    dense = reference(backbone.normalize(frames).transpose(1, 2)).logits.flatten(1)
    for pruner in (None, vp.build_pruner("center", keep_ratio=1.0)):
        assert torch.equal(vp.Pipeline(backbone, pruner).eval()(frames), dense)
    backbone, reference = backbone.double(), copy.deepcopy(reference).double()
    pipeline = vp.Pipeline(backbone, vp.build_pruner("motion", keep_ratio=0.3)).eval()
    selection = pipeline.select(frames)
    assert selection is not None and selection.num_kept == 4 * 4  # 0.3 of 16 places, in 4 frames
    logits = pipeline(frames)
    assert (logits - dense).abs().max() > 1e-3
    pixels = backbone.normalize(frames).transpose(1, 2)
    expected = CASES[name][1](reference, pixels, selection.keep_idx).flatten(1)
    atol = 1e-6 if name == "videoprism_b" else 1e-9  # its softmax is in fp32
    torch.testing.assert_close(logits, expected, rtol=0, atol=atol)
    for other in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        assert torch.equal(other(frames), logits)
    gmacs = gmacs_per_view(pipeline, frames)
    assert gmacs["backbone"] < 0.4 * gmacs["dense"]
    assert features(pipeline, frames).shape == (2, 24)  # type: ignore[union-attr]


BODIES: dict[str, Callable[[], Any]] = {
    **{name: partial(build_host, kind) for name, (kind, _) in CASES.items()},
    "ConvNeXt": build_convnext,
    "Swin": build_swin,
    "Hiera": build_hiera,
}


@pytest.mark.parametrize("name", BODIES)
@torch.inference_mode()
def test_compiled_as_one_graph_and_in_half_precision(name: str) -> None:
    backbone = HostBackbone(BODIES[name]().requires_grad_(False)).eval()
    frames = draw_frames(*backbone.frame_size[:1], backbone.num_frames)
    pipeline = vp.Pipeline(backbone, vp.build_pruner("center", keep_ratio=0.3)).eval()
    logits = pipeline(frames)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(pipeline).to(dtype)(frames)
        assert half.dtype == dtype and torch.allclose(half.float(), logits, atol=0.3)
    torch.compiler.reset()
    pipeline.compile_networks(backend="eager")
    torch.testing.assert_close(pipeline(frames), logits, rtol=0, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*built as the weights say")
def test_what_cannot_be(
    published: tuple[str, Any, Path], backbone: HostBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, folder = published
    other = next(one for one in CASES if one != name)
    fixed = r".* this backbone runs as transformers has it"
    refused: dict[str, Callable[[], object]] = {
        r"^pruner=similarity:" + fixed: lambda: vp.Pipeline(backbone, vp.build_pruner("similarity")),
        r"^pruner\.budget=top_p:" + fixed: lambda: vp.Pipeline(
            backbone, vp.build_pruner("motion", budget="top_p")
        ),
        r"^pruner\.compensation=pool:" + fixed: lambda: vp.Pipeline(
            backbone, vp.build_pruner("motion", compensation="pool")
        ),
        r"^merger=tome:" + fixed: lambda: vp.Pipeline(backbone, merger=vp.build_merger("tome")),
        r"^pruner\.scope=global .* same places of every frame": lambda: vp.Pipeline(
            backbone, vp.build_pruner("motion", scope="global")
        ),
        r"^pruner=papr_plus .* same places of every frame": lambda: vp.Pipeline(
            backbone, vp.build_pruner("papr_plus", weights=None)
        ),
        r"^pooled=False: this backbone": lambda: features(
            vp.Pipeline(backbone).eval(), draw_frames(), pooled=False
        ),
        r"leave backbone\.num_frames and backbone\.input_size out$": lambda: build_backbone(
            name, weights=folder, num_frames=8
        ),
        rf"but backbone={other} was asked for$": lambda: build_backbone(other, weights=folder),
        r"trained for 5 classes, but 7 were asked for": lambda: build_backbone(
            name, weights=folder, num_classes=7
        ),
    }
    for line, call in refused.items():
        with pytest.raises((ConfigError, CheckpointError), match=line):
            call()
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, line in (
        ({key: 10**6 for key in config if key.endswith("_layers")}, r"says \d+ layers: it belongs to other"),
        ({"hidden_act": "nonsense"}, r"^backbone=\w+: transformers cannot build it"),
        ({"num_attention_heads": 5}, r"dim 24 is no multiple of num_heads 5"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises((ConfigError, CheckpointError), match=line):
            build_backbone(name, weights=tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs transformers \(pip install "):
        build_backbone(name)


def test_a_pruner_serves_one_kind_of_backbone(backbone: HostBackbone) -> None:
    pruner = vp.build_pruner("motion")
    vp.Pipeline(backbone, pruner)
    with pytest.raises(ConfigError, match=r"^pruner\.scope=null: .* build a pruner for each$"):
        vp.Pipeline(build_backbone("videomae_tiny"), pruner)
    place = vp.build_pruner("motion", scope="place")
    vp.Pipeline(backbone, place)
    vp.Pipeline(build_backbone("videomae_tiny"), place)


@pytest.mark.parametrize(("name", "count"), [("timesformer_b", 121_566_352), ("videoprism_b", 124_122_512)])
def test_named_sizes_are_those_of_transformers(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        model = transformers_backbone(name.split("_")[0], **BACKBONES[name])
    assert sum(value.numel() for value in model.parameters()) == count
    assert model.usual_stride == (32 if name == "timesformer_b" else None)
    small = {"num_frames": 4, "input_size": 36, "dim": 24, "depth": 1, "num_heads": 3}
    monkeypatch.setitem(BACKBONES, name, {**BACKBONES[name], **small, "tubelet": (1, 9, 9)})
    first, same, other = (build_backbone(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_new_classifier(published: tuple[str, Any, Path]) -> None:
    with pytest.warns(CheckpointWarning):
        backbone = build_backbone(published[0], weights=published[2], num_classes=7, replace_head=True)
    assert (backbone.num_classes, backbone.class_names) == (7, None)
    assert vp.Pipeline(backbone).eval()(draw_frames()).shape == (2, 7)


@torch.inference_mode()
def test_hiera_is_timms_and_its_own_masked_pass() -> None:
    body = build_hiera()
    reference, frames = copy.deepcopy(body), draw_frames(64, 1)
    backbone = HostBackbone(body).eval()
    assert (backbone.grid.shape, backbone.num_classes) == ((1, 4, 4), 5)
    images = backbone.normalize(frames)[:, :, 0]
    for pruner in (None, vp.build_pruner("center", keep_ratio=1.0)):
        assert torch.equal(vp.Pipeline(backbone, pruner).eval()(frames), reference(images))
    backbone, reference = backbone.double(), reference.double()
    pipeline = vp.Pipeline(backbone, vp.build_pruner("brightness", keep_ratio=0.3)).eval()
    reference.patch_embed.forward = lambda x, mask=None: type(reference.patch_embed).forward(
        reference.patch_embed, x
    )
    selection, images = pipeline.select(frames), backbone.normalize(frames)[:, :, 0]
    assert selection is not None and selection.num_kept == 4
    expected = reference.forward_head(reference.forward_features(images, mask=selection.mask().flatten(1)))
    torch.testing.assert_close(pipeline(frames), expected, rtol=0, atol=1e-9)
    assert torch.equal(pickle.loads(pickle.dumps(pipeline))(frames), pipeline(frames))
    with pytest.raises(ConfigError, match=r"^backbone\.input_size=\[80, 80\]: .* multiples of 32$"):
        build_backbone("timm_hiera", model="hiera_tiny_224", input_size=80)


Run = Callable[..., tuple[int, str, str]]


def evaluated(run: Run, out: Path, *words: str) -> dict[str, Any]:
    small = (
        "runtime=cpu",
        "runtime.workers=0",
        "runtime.engine=torch",
        "progress=false",
        f"output_dir={out}",
    )
    status, _, errors = run("eval.py", main, *words, *small)
    assert status == 0, errors
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_the_command_on_videos(
    published: tuple[str, Any, Path], write_video: Callable[..., Path], run_in_process: Run, tmp_path: Path
) -> None:
    for number, name in enumerate(NAMES.values()):
        write_video(tmp_path / "videos" / name / "a.mp4", 6 + number, seed=number)
    words = ("dataset=folder", f"dataset.root={tmp_path / 'videos'}", f"backbone={published[0]}")
    words += (
        f"backbone.weights={published[2]}",
        "pruner=x3d_s",
        "pruner.weights=null",
        "pruner.keep_ratio=0.3",
    )
    results = evaluated(run_in_process, tmp_path / "out", *words)
    assert (results["num_evaluated"], results["num_tokens"], results["mean_kept_tokens"]) == (5, 64, 16)
    assert results["gmacs_per_view"]["backbone"] < 0.4 * results["gmacs_per_view"]["dense"]
    assert results["baseline"]["num_evaluated"] == 5


def test_the_command_on_images(run_in_process: Run, tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 64), 90).convert("RGB").save(path)
    words = (
        "task=image",
        f"dataset.root={tmp_path / 'images'}",
        "backbone=timm_hiera",
        "backbone.input_size=64",
    )
    words += (
        "backbone.model=hiera_tiny_224",
        "backbone.weights=null",
        "pruner=brightness",
        "pruner.keep_ratio=0.5",
    )
    results = evaluated(run_in_process, tmp_path / "out", *words)
    assert (results["num_evaluated"], results["num_tokens"], results["mean_kept_tokens"]) == (4, 4, 2)
