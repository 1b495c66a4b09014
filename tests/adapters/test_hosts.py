"""What must hold for every model that `prune` takes: it stays what it was, can be stored, copied and compiled."""

from __future__ import annotations

import copy
import io
import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import video_papr as vp
from video_papr.adapters.families import FAMILIES
from video_papr.adapters.prune import _attachment, _open

from .conftest import HOSTS, Example

X3D: dict[str, Any] = {"weights": None, "frames": 4, "size": 32, "stage": "res2"}  # quick to trace


@pytest.fixture(params=HOSTS)
def example(request: pytest.FixtureRequest) -> Example:
    return HOSTS[request.param]()


def pruned(example: Example, keep_ratio: float = 0.3) -> Any:
    if example.reads_images:
        return vp.prune(example.model, "brightness", keep_ratio)
    return vp.prune(example.model, "x3d_s", keep_ratio, **X3D)


def stored(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@torch.no_grad()
def test_everything_kept_is_the_same_bits_and_unprune_undoes(example: Example) -> None:
    model, pixels = example.model, example.pixels()
    dense, before = example.logits(model, pixels), copy.deepcopy(model.state_dict())
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(example.logits(pruned(example, 1.0), pixels), dense)
    vp.unprune(model)
    assert (example.logits(pruned(example), pixels) - dense).abs().max() > 1e-3
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert vp.unprune(model) is model
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(example.logits(model, pixels), dense)


@torch.no_grad()
def test_copies_are_pruned_by_themselves(example: Example) -> None:
    model, pixels = example.model, example.pixels()
    dense = example.logits(model, pixels)
    expected = example.logits(pruned(example), pixels)
    for other in (copy.deepcopy(model), stored(model)):
        assert torch.equal(example.logits(other, pixels), expected)
        assert torch.equal(example.logits(vp.unprune(other), pixels), dense)
        assert torch.equal(example.logits(model, pixels), expected)


@torch.no_grad()
def test_half_precision(example: Example) -> None:
    model, pixels = vp.prune(example.model, "center", 0.3), example.pixels()
    logits = example.logits(model, pixels)
    for dtype in (torch.bfloat16, torch.float16):
        half = example.logits(copy.deepcopy(model).to(dtype), pixels.to(dtype))
        assert half.dtype == dtype
        assert torch.allclose(half.float(), logits, atol=0.3)


@torch.no_grad()
def test_a_map_that_is_not_finite_gives_no_answer(example: Example) -> None:
    model, pixels = pruned(example), example.pixels()
    expected = example.logits(model, pixels)
    scorer = _attachment(_open(model)[1]).selector.pruners[""].scorer
    turn = itertools.cycle([True, False])  # the first of two clips, seen together or one by one

    def blind(module: Any, args: Any, maps: torch.Tensor) -> torch.Tensor:
        broken = torch.tensor([next(turn) for _ in maps])
        return maps.masked_fill(broken.view(-1, 1, 1, 1), torch.nan)

    scorer.register_forward_hook(blind)
    logits = example.logits(model, pixels)
    assert logits[0].isnan().all()
    assert torch.allclose(logits[1], expected[1], atol=1e-5)


# "eager" runs what was traced, without a C++ compiler; fullgraph: nothing of it falls back to Python.
COMPILE: dict[str, Any] = {"backend": "eager", "fullgraph": True}


@torch.no_grad()
def test_compiled(example: Example) -> None:
    model, pixels = vp.prune(example.model, "brightness", 0.3), example.pixels()
    logits = example.logits(model, pixels)
    torch._dynamo.reset()
    compiled = torch.compile(model, **{**COMPILE, "fullgraph": example.one_graph})
    assert torch.allclose(example.logits(compiled, pixels), logits, atol=1e-5)
    again = example.pixels(seed=1)
    assert torch.allclose(example.logits(compiled, again), example.logits(model, again), atol=1e-5)


@torch.no_grad()
def test_compiled_before_it_is_pruned() -> None:
    example = HOSTS["VideoMAE"]()
    model, pixels = example.model, example.pixels()
    compiled = torch.compile(model, **COMPILE)
    dense = example.logits(compiled, pixels)
    expected = example.logits(pruned(example), pixels)
    assert (expected - dense).abs().max() > 1e-3
    assert torch.allclose(example.logits(compiled, pixels), expected, atol=1e-5)
    vp.unprune(compiled)
    assert torch.allclose(example.logits(compiled, pixels), dense, atol=1e-5)


def test_the_page_shows_the_declared_families() -> None:
    root = Path(__file__).resolve().parents[2]
    measured = root / "benchmarks" / "results" / "hosts" / "results.json"
    results = json.loads(measured.read_text()) if measured.is_file() else {}
    page, script = (root / "README.md").read_text(encoding="utf-8"), root / "benchmarks" / "host_seconds.py"
    assert runpy.run_path(str(script))["shown"](page, results) == page
    one = {"dense_seconds": {"median": 1.2345}, "pruned_seconds": {"median": 0.4}, "family": "Hiera"}
    assert "| Hiera-T: 1.23, 0.4 |" in runpy.run_path(str(script))["shown"](
        page, {"models": {"Hiera-T": one}}
    )
    assert {type(build().model).__name__ for build in HOSTS.values()} <= {
        name for family in FAMILIES for name in family.classes
    }
