"""Networks in an engine give what torch gives, for every pruner, and say so where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from video_papr.backbones.builders import build_backbone
from video_papr.benchmark.flops import count_gmacs
from video_papr.core import engines
from video_papr.core.errors import ConfigError
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import SPECS, build_pruner
from video_papr.pruning.scorers.channels_last import use_channels_last
from video_papr.pruning.tome import ToMe

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in engines.EXTRAS
]
SMALL: dict[str, Any] = {"weights": None, "num_classes": 5, "num_frames": 8, "input_size": 32}
X3D: dict[str, Any] = {"frames": 4, "size": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "x3d_s": X3D,
    "papr_plus": {**X3D, "stages": ["res2", "res3"]},
    "image_convnet": {"model": "resnet10t"},
    "similarity": {"after_block": 1},
}
SAME_NETWORK = {
    "x3d_xs",
    "x3d_m",
    "video_convnet",
}  # as x3d_s; the last one runs in torch, as image_convnet does


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests: a backbone becomes a graph once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("VIDEO_PAPR_CACHE", str(folder))
        yield folder / "engines"


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def frames_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 8, 32, 32, 3), generator=torch.Generator().manual_seed(seed)).byte()


def small(name: str = "videomae_tiny") -> Any:
    """A backbone of two blocks."""
    with torch.inference_mode(False):
        backbone = build_backbone(name, **SMALL)
        backbone.blocks = backbone.blocks[:2]
        return backbone.eval().requires_grad_(False)


def pruner_of(name: str, **options: Any) -> Any:
    with torch.inference_mode(False):
        return use_channels_last(build_pruner(name, **OPTIONS.get(name, {}), **options))


def check(
    flow: Pipeline,
    capsys: pytest.CaptureFixture[str],
    engine: str = "openvino",
    sizes: tuple[int, ...] = (2, 1, 3),
    frames: int = 8,
) -> None:
    """The same tokens and logits before and after, for batches of several sizes, without a warning."""
    clips = [frames_of(size, seed=size)[:, :frames] for size in sizes]
    plain = [(flow.select(part), flow(part)) for part in clips]
    flow.run_in(engine)
    for part, (selection, logits) in zip(clips, plain, strict=True):
        found = flow.select(part)
        if selection is not None and found is not None:
            same = (selection.mask() & found.mask()).sum() / selection.mask().sum()
            assert same >= 0.999
        torch.testing.assert_close(flow(part), logits, rtol=0, atol=1e-4)
    assert capsys.readouterr().err == ""
    assert flow.backbone._compiled_call_impl.graphs  # something ran there


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", sorted(set(SPECS) - SAME_NETWORK))
def test_every_pruner(engine: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = {"keep_ratio": 0.4} if SPECS[name].has_ratio else {}
    check(Pipeline(small(), pruner_of(name, **ratio)).eval(), capsys, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["dense", "top_p", "pool", "merge"])
def test_every_way_through_the_backbone(engine: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pruners: dict[str, dict[str, Any]] = {
        "top_p": {"budget": "top_p", "top_p": 0.7},
        "pool": {"compensation": "pool"},
        "merge": {"compensation": "merge"},
    }
    pruner = pruner_of("motion", **pruners[name]) if name in pruners else None
    check(Pipeline(small(), pruner).eval(), capsys, engine, sizes=(3, 1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["vivit_b", "vjepa2_l"])
def test_every_family_of_backbones(engine: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(Pipeline(small(name), pruner_of("motion", keep_ratio=0.5)).eval(), capsys, engine, sizes=(1, 2))


def test_int8() -> None:
    """Nearly the same logits, and the tokens that float32 keeps: the scorer stays in it."""
    pytest.importorskip("nncf", reason="nncf is not installed; it is the extra int8")
    flow = Pipeline(small(), pruner_of("x3d_s", keep_ratio=0.5)).eval()
    frames = frames_of(2)
    kept, logits = flow.select(frames), flow(frames)
    flow.run_in("openvino", torch.int8)
    assert kept is not None and torch.equal(flow.select(frames).keep_idx, kept.keep_idx)
    error = (flow(frames) - logits).abs().max() / logits.abs().max()
    assert 1e-5 < error < 0.2


def test_int8_never_becomes_float32() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    module = Odd().eval()
    engines.use_engine(module, "openvino", torch.int8)
    with pytest.raises(ConfigError, match=r"^runtime\.dtype=int8: openvino cannot run Odd"):
        module(torch.ones(2, 2))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "frames"), [("timm_vit", 1), ("image_vit", 8)])
def test_vits_of_timm(engine: str, name: str, frames: int, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.inference_mode(False):
        options = {**SMALL, "num_frames": frames, "model": "vit_tiny_patch16_224"}
        backbone = build_backbone(name, **options).requires_grad_(False)
        backbone.blocks = backbone.blocks[:2]
    check(Pipeline(backbone, pruner_of("brightness", keep_ratio=0.5)).eval(), capsys, engine, frames=frames)


def test_a_backbone_with_a_merger_stays_in_torch() -> None:
    """Its graph would be one for a fixed number of clips, which the comparison finds out."""
    backbone, merger = small(), ToMe(2)
    Pipeline(backbone, None, merger).run_in("openvino")
    assert backbone._compiled_call_impl is None


def test_weights_that_change_make_a_new_graph() -> None:
    flow = Pipeline(small()).eval()
    flow.run_in("openvino")
    before = flow(frames_of(1))
    with torch.inference_mode(False), torch.no_grad():
        flow.backbone.head.bias += 1
    torch.testing.assert_close(flow(frames_of(1)), before + 1, rtol=0, atol=1e-4)


def test_gradients_and_counters_see_torch() -> None:
    flow = Pipeline(small(), pruner_of("x3d_s", keep_ratio=0.5)).eval()
    gmacs = count_gmacs(flow, frames_of(1))
    flow.run_in("openvino")
    assert count_gmacs(flow, frames_of(1)) == pytest.approx(gmacs)
    with torch.inference_mode(False):
        flow.backbone.requires_grad_(True)
        assert flow(frames_of(1)).requires_grad


def test_what_cannot_become_a_graph_runs_in_torch(capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    module = Odd().eval()
    engines.use_engine(module, "openvino")
    assert module(torch.ones(2, 2)).tolist() == [[2, 2], [2, 2]]
    assert module(-torch.ones(2, 2)).tolist() == [[-2, -2], [-2, -2]]
    assert capsys.readouterr().err.count("warning: openvino cannot run Odd, so torch does") == 1


def test_frames_of_ever_new_sizes_end_in_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "MAX_GRAPHS", 2)
    module = nn.Upsample(scale_factor=2).eval()
    engines.use_engine(module, "openvino")
    for size in (2, 3, 4, 5):
        given = torch.rand(1, 2, size, size)
        torch.testing.assert_close(module(given), module._call_impl(given))
    assert "more than 2 sizes of frames" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ENGINES)
def test_graphs_on_disk(engine: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found again by a module that is the same to the bit, made again where damaged, bounded."""
    made: list[str] = []
    traced = engines._traced
    monkeypatch.setattr(engines, "_traced", lambda *args: made.append("graph") or traced(*args))
    known = set(cache.glob("*.blob"))

    def answer(scale: float) -> Tensor:
        with torch.inference_mode(False):
            module = nn.Linear(3, 3).eval()
            nn.init.constant_(module.weight, scale)
            nn.init.zeros_(module.bias)
        engines.use_engine(module, engine)
        return module(torch.ones(2, 3))

    assert answer(1.0).unique().item() == answer(1.0).unique().item() == 3
    assert answer(2.0).unique().item() == 6
    assert len(made) == 2
    new = set(cache.glob("*.blob")) - known
    assert len(new) == 2
    for path in new:
        path.write_bytes(b"damaged")
    assert answer(2.0).unique().item() == 6 and len(made) == 3
    monkeypatch.setattr(engines, "CACHE_BYTES", max(path.stat().st_size for path in new) * 3)
    assert answer(4.0).unique().item() == 12
    assert sum(path.stat().st_size for path in cache.glob("*.blob")) <= engines.CACHE_BYTES


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_binds_no_thread_to_a_core() -> None:
    """Bound to the first cores, two processes on one machine halve each other's speed."""
    from video_papr.core.graphs import OpenVinoGraph

    with torch.inference_mode(False):
        program = torch.export.export(nn.Linear(3, 3).eval(), (torch.ones(2, 3),))
    made = OpenVinoGraph(program, torch.float32)
    for graph in (made, OpenVinoGraph(made.dump(), torch.float32)):
        assert not graph._compiled.get_property("ENABLE_CPU_PINNING")
