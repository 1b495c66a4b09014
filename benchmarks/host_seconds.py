"""Seconds of models of transformers and timm, dense and pruned by `video_papr.prune`: a column of the README's hosts.

    python benchmarks/host_seconds.py [--repeats 15] [--threads 2] [--models "VideoMAE-B, 16 x 224" ...] [--out FOLDER]

Dense and pruned take turns in one process, one clip or image at a time, with the default number of tokens. Choosing
them counts: X3D-S for videos, MobileOne-S0 for images. Weights are random, which changes no time. Leaves results.json
(medians and quartiles of seconds, and what a pass needs in memory above the weights) in FOLDER; in the committed
folder, the default, it also writes the table into README.md. With 64 frames of 256 x 256 V-JEPA 2 reads 8,192 tokens,
which takes minutes:

    python benchmarks/host_seconds.py --models "V-JEPA 2 L, 64 x 256" --repeats 2 --out benchmarks/results/hosts_64

Needs transformers.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import video_papr as vp
from video_papr.adapters.families import open_model, table
from video_papr.benchmark.probes import MemoryProbe
from video_papr.benchmark.timing import alternate, ratios, spread
from video_papr.core.files import atomic_write
from video_papr.evaluation.results import command_line, describe_device, git_commit, versions

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "hosts"
START, END = "<!-- hosts -->\n", "\n<!-- /hosts -->"
TOWER = "Qwen2-VL tower, 16 x 224"
# The first of each family is in the table.
TIMED = (
    "VideoMAE-B, 16 x 224",
    "ViViT-B, 32 x 224",
    "V-JEPA 2 L, 16 x 256",
    "V-JEPA 2 L, 64 x 256",
    "TimeSformer-B, 8 x 224",
    "VideoPrism-B, 16 x 288",
    TOWER,
    "DeiT-S",
    "ConvNeXt-T",
    "Swin-T",
    "Hiera-T",
)


def cells(results: dict[str, Any]) -> dict[str, str]:
    """First class of a family -> the table's cell about the first of its models in results.json."""
    found: dict[str, str] = {}
    for name, entry in results.get("models", {}).items():
        dense, pruned = (entry[kind]["median"] for kind in ("dense_seconds", "pruned_seconds"))
        found.setdefault(entry["family"], f"{name}: {dense:.3g}, {pruned:.3g}")
    return found


def shown(page: str, results: dict[str, Any]) -> str:
    """The page with the table as the results have it."""
    before, rest = page.split(START)
    return before + START + table(cells(results)) + END + rest.split(END, 1)[1]


def measure(name: str, repeats: int) -> dict[str, Any]:
    """One model: medians and quartiles of both, and how many times as fast, round by round."""
    torch.manual_seed(0)
    dense, given = _tower() if name == TOWER else _model(name)
    dense = dense.eval().requires_grad_(False)
    family = open_model(dense)[0]
    pruned = vp.prune(copy.deepcopy(dense), weights=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    calls = {"dense": partial(dense, *given), "pruned": partial(pruned, *given)}
    peaks = {kind: _peak_mib(call) for kind, call in calls.items()}
    times = alternate(calls, torch.device("cpu"), repeats=repeats)
    seconds = {kind: spread([value / 1000 for value in values]) for kind, values in times.items()}
    return {
        "family": family.classes[0],
        "dense_seconds": seconds["dense"],
        "pruned_seconds": seconds["pruned"],
        "times_as_fast": ratios(times["dense"], times["pruned"]),
        "peak_memory_mb": peaks,
    }


def _model(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One of `adapter_gmacs.MODELS`, and its pixels."""
    from adapter_gmacs import MODELS

    build, shape = MODELS[name]
    return build(), (torch.rand(1, *shape) * 3 - 1.5,)


def _tower() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The vision tower of Qwen2-VL, the patches of one video, and its grid."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

    tower = qwen.Qwen2VisionTransformerPretrainedModel(qwen.Qwen2VLVisionConfig())
    grid = torch.tensor([[8, 16, 16]])  # 2 x 14 x 14 pixels a patch
    return tower, (torch.rand(int(grid.prod()), 3 * 2 * 14 * 14) * 3 - 1.5, grid)


def _peak_mib(call: Callable[[], Any]) -> float | None:
    """What a pass needs above the weights, in MiB; None where the system does not tell."""
    probe = MemoryProbe(torch.device("cpu"))
    call()
    probe("pass")
    return probe.peaks.get("pass")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=TIMED, metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "command": command_line(),
        "git_commit": git_commit(),
        "device": describe_device(torch.device("cpu")),
        "dtype": "fp32",
        "repeats": options.repeats,
        "versions": versions("transformers", "timm"),
        "models": {},
    }
    for name in options.models:
        results["models"][name] = found = measure(name, options.repeats)
        line = (
            found["dense_seconds"]["median"],
            found["pruned_seconds"]["median"],
            found["times_as_fast"]["median"],
        )
        memory = ", ".join(f"{kind} {peak or 0:,.0f} MiB" for kind, peak in found["peak_memory_mb"].items())
        print(
            f"{name}: {line[0]:.3f} s, pruned {line[1]:.3f} s, {line[2]:.2f} times as fast; {memory}",
            flush=True,
        )
        atomic_write(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    if options.out == OUT:
        readme = ROOT / "README.md"
        readme.write_text(shown(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
