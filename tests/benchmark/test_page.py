"""docs/performance.md says what the committed results say, and owns up to what is missing."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from video_papr.benchmark.plots import speedup_plot
from video_papr.benchmark.report import machine, report

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "performance_page.py"), run_name="script")


def variant(name: str, ms: float, speedup: float, scoring: float, **settings: Any) -> dict[str, Any]:
    spread = {"median": speedup, "low": speedup - 0.1, "high": speedup + 0.1}
    stage = {
        "ms": {"median": ms / 2, "low": ms / 2, "high": ms / 2},
        "share": 0.5,
        "peak_memory_mb": None,
        "gmacs": 1.0,
        "gigabytes": 0.5,
        "bound_ms": ms / 4,
    }
    return {
        "name": name,
        "kind": "pruned" if settings else name,
        "settings": settings,
        "kept_tokens": 470.0 if settings else None,
        "gmacs": 47.1,
        "latency_ms": {"median": ms, "low": ms - 1, "high": ms + 1},
        "clips_per_second": 1000 / ms,
        "speedup": spread,
        "flop_limit": 3.83,
        "share_of_flop_limit": speedup / 3.83,
        "scoring_share": scoring,
        "least_scoring": {"gmacs": 1.2, "gigabytes": 0.2, "bound_ms": 20.0} if settings else None,
        "stages": {"score": stage, "blocks": stage},
        "peak_memory_mb": 100.0,
        "weights_mb": 330.0,
        "logit_difference": None,
    }


def benchmark(speedup: float = 3.9, device: str = "cpu (Test, 2 cores, 2 threads)") -> dict[str, Any]:
    setting = {
        "backbone": "videomae_b",
        "num_frames": 16,
        "input_size": 224,
        "num_tokens": 1568,
        "dtype": "fp32",
        "batch_size": 1,
        "file_ms": {"decode": 12.0, "resize": 3.0},
        "variants": [
            variant("dense", 2000, 1.0, 0.0),
            variant("x3d_s 0.3", 2000 / speedup, speedup, 0.05, pruner="x3d_s", keep_ratio=0.3),
            variant("x3d_s 0.5", 1200, 1.7, 0.04, pruner="x3d_s", keep_ratio=0.5),
        ],
    }
    return {
        "device": device,
        "threads": 2,
        "compile": False,
        "repeats": 15,
        "ceilings": {"fp32": {"gflops_per_s": 200.0, "gigabytes_per_s": 12.0}},
        "settings": [setting],
        "command": "tools/bench.py experiment=bench_cpu",
        "git_commit": "abc",
        "versions": {"torch": "2.15.0"},
    }


def test_committed_page_is_that_of_the_committed_results() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    section = SCRIPT["measured_section"](SCRIPT["committed"]())
    assert SCRIPT["with_section"](page, section) == page, "run `python benchmarks/performance_page.py`"


def test_figures_are_those_of_the_results() -> None:
    rows = list(SCRIPT["rows"]({"bench_cpu": benchmark() | {"compile": True}}))
    assert [row[3] for row in rows] == ["dense", "x3d_s 0.3"]
    assert rows[1][2] == "fp32, compiled"
    assert rows[1][4:] == ["47.1", "513", "3.90 (3.80-4.00)", "5.0 %"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"compile": True}, "compiled,"),
        ({"compile": "reduce-overhead"}, "compiled (reduce-overhead),"),
        ({"engine": "openvino 2026.4.1"}, "ours in openvino 2026.4.1,"),
    ],
)
def test_the_compiler_and_the_engine_are_named(what: dict[str, Any], said: str) -> None:
    assert f" {said} medians" in machine(benchmark() | what)


def test_report_names_the_limits() -> None:
    text = report(benchmark())
    assert "12.0 ms to decode and 3.0 ms to resize and crop the 1 clip" in text
    assert "| x3d_s 0.3 | score | 2 | 0.5 | 128.21 | 256.41 | 50 % |" in text
    assert "of x3d_s 0.3, x3d_s 0.5 do 2.40 GFLOP and move 0.200 GB" in text


def test_plot_only_where_something_was_pruned() -> None:
    picture = speedup_plot([benchmark()])
    assert picture is not None and picture.startswith(b"\x89PNG")
    nothing = benchmark()
    nothing["settings"][0]["variants"] = nothing["settings"][0]["variants"][:1]
    assert speedup_plot([nothing]) is None
