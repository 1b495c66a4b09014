"""Depth pruning of a small ConvNeXt on real pictures: the search against greedy, random and even choices, three seeds.

    python benchmarks/depth_image.py run IMAGENETTE OUT     # trains from scratch, prunes; goes on where it was stopped
    python benchmarks/depth_image.py report IMAGENETTE OUT  # answers of val -> benchmarks/results/depth_image
    python benchmarks/depth_image.py                        # its table -> docs/depth_results.md

IMAGENETTE has the folders train and val. Everything is chosen and validated on a part of train; `report` reads val.
"""

from __future__ import annotations

import json
import platform
import runpy
import shlex
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from video_papr.assembly import build_depth, build_train
from video_papr.assembly.views import frame_sampler, read_as_trained
from video_papr.backbones.builders import build_backbone
from video_papr.cli.depth_prune import run as prune
from video_papr.config import DepthRunConfig, check
from video_papr.core.tables import Table
from video_papr.data.datasets import VideoDataset, build_video_list
from video_papr.depth.subjects import backbone_subject
from video_papr.training.curriculum import Curriculum
from video_papr.training.loop import CHECKPOINT, Schedule, Task, fit, top1
from video_papr.training.store import Batch, ClipStore, build_store

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "depth_results.md"
PUBLISHED = runpy.run_path(str(Path(__file__).with_name("real_page.py")), run_name="script")
NAME, MODEL, SIZE, PRUNED, SEEDS = "timm_convnext", "test_convnext", 32, 4, (0, 1, 2)
METHODS = {"updp": "search", "greedy": "greedy", "random": "random", "uniform": "even"}
BASE = Schedule(steps=1000, batch_size=128, learning_rate=4e-3, validate_every=250)
WORDS = (
    *("dataset=images", f"backbone={NAME}", f"backbone.model={MODEL}", f"backbone.input_size={SIZE}"),
    *(f"depth.prune={PRUNED}", "depth.mode=ffn", "depth.batch_size=128", "depth.learning_rate=1e-3"),
    *("depth.supernet_steps=100", "depth.progressive_steps=100", "depth.finetune_steps=100"),
    *("depth.validate_every=100", "depth.augment=natural", "depth.val_share=0.15", "depth.search_clips=600"),
    *(
        "depth.calibration_clips=128",
        "depth.exhaustive=126",
        "runtime=cpu",
        "runtime.workers=0",
        "progress=false",
    ),
)


def words_of(root: Path, out: Path, seed: int, method: str) -> list[str]:
    """What follows `tools/depth_prune.py` for one run."""
    places = (f"dataset.root={root / 'train'}", f"output_dir={out / f'{method}_{seed}'}")
    weights = f"backbone.weights={out / f'base_{seed}' / 'base.safetensors'}"
    return [*places, weights, *WORDS, f"depth.method={method}", f"seed={seed}", "depth.resume=true"]


def configured(words: list[str]) -> DepthRunConfig:
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        config: DepthRunConfig = check(DepthRunConfig, compose("depth_prune", overrides=words))
    return config


def train(words: list[str], folder: Path, seed: int) -> None:
    """Trains the network from scratch on what the prunings train on; writes base.safetensors with timm's names."""
    if (folder / "base.safetensors").exists():
        return
    names, stores, val = build_train.build_stores(build_depth.stores_config(configured(words)))
    net = build_backbone(NAME, model=MODEL, num_classes=len(names), input_size=SIZE, seed=seed)
    net.requires_grad_(True)
    subject = backbone_subject(NAME, net)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(subject.logits(net, batch.frames), batch.labels, label_smoothing=0.1)

    def validate() -> float:
        return top1(net, lambda frames: subject.logits(net, frames), val, batch_size=100, dtype="fp32")

    draw = Curriculum(stores, full_at=0, augment=build_train.build_augment("natural", names), colors=False)
    schedule = Schedule(**{**vars(BASE), "seed": seed})
    rows = fit(
        net,
        Task(draw, loss, validate),
        schedule,
        folder,
        resume=(folder / CHECKPOINT).exists(),
        progress=False,
    )
    save_file(
        {key: value.contiguous() for key, value in net.body.state_dict().items()}, folder / "base.safetensors"
    )
    print(f"seed {seed}: {rows[-1]}", flush=True)


def run(root: Path, out: Path) -> None:
    for seed in SEEDS:
        for method in METHODS:
            words = words_of(root, out, seed, method)
            train(words, out / f"base_{seed}", seed)
            folder = out / f"{method}_{seed}"
            if not (folder / "depth.json").exists():
                report = prune(configured(words), folder)
                print(f"{method} {seed}: {report['pruned']} {report['top1_val']}", flush=True)


def pictures(root: Path, out: Path) -> tuple[ClipStore, list[str]]:
    """The split val, and the names of its pictures."""
    videos = build_video_list(name="images", root=str(root / "val"))
    used = read_as_trained(configured([f"dataset.root={root}", *WORDS]).dataset)
    dataset = VideoDataset(videos, frame_sampler(used, 1, 1), decoder="pillow")
    store = build_store(dataset, out, sampling="image", num_frames=1, size=SIZE, workers=0, progress=False)
    if store.failed:
        raise SystemExit(f"{len(store.failed)} pictures cannot be read, e.g. {store.failed[0]}")
    return store, [record.name for record in videos.records]


def report(root: Path, out: Path) -> None:
    """What every network answers on val, written as evaluations are, and gathered by `real_page`."""
    store, names = pictures(root, out)
    runs = {f"{method} {seed}": out / f"{method}_{seed}" for method in METHODS for seed in SEEDS}
    runs |= {f"whole {seed}": out / f"base_{seed}" for seed in SEEDS}
    for label, folder in runs.items():
        method, seed = label.split()
        whole = method == "whole"
        weights = folder / ("base.safetensors" if whole else "weights.safetensors")
        net = build_backbone(NAME, model=MODEL, weights=weights, input_size=SIZE)
        subject = backbone_subject(NAME, net)
        with torch.inference_mode():
            logits = [subject.logits(net, store.batch(rows).frames) for rows in _parts(len(store))]
        found = torch.cat(logits).argmax(1).tolist()
        lines = [
            {"path": name, "label": int(label), "pred": pred}
            for name, label, pred in zip(names, store.labels, found, strict=True)
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        results = {} if whole else json.loads((folder / "depth.json").read_text("utf-8"))
        results |= {
            "num_videos": len(lines),
            "seed": int(seed),
            "device": _processor(),
            "torch": torch.__version__,
        }
        results["top1"] = 100 * sum(line["pred"] == line["label"] for line in lines) / len(lines)
        results["command"] = "python benchmarks/depth_image.py run IMAGENETTE OUT"
        if not whole:
            words = words_of(Path("IMAGENETTE"), Path("OUT"), int(seed), method)
            results["command"] = shlex.join(["python", "tools/depth_prune.py", *words])
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    PUBLISHED["gather"]("depth_image", runs)


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), range(250, count, 250))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"cpu, {torch.get_num_threads()} thread, {name or platform.processor()}"


def table(answers: Any) -> str:
    """One row for each way to choose: accuracies by seed, their mean, and what it is ahead of the search."""
    rows = []
    tops = {way: [answers.top1(f"{way} {seed}") for seed in SEEDS] for way in ("whole", *METHODS)}
    for way, values in tops.items():
        results = [answers.results[f"{way} {seed}"] for seed in SEEDS]
        gaps = [one - other for one, other in zip(values, tops["updp"], strict=True)]
        error = stdev(gaps) / len(gaps) ** 0.5
        told = way == "whole"
        rows.append(
            [
                METHODS.get(way, "not pruned"),
                *(f"{value:.2f}" for value in values),
                f"{mean(values):.2f} ± {stdev(values):.2f}",
                "" if way == "updp" else f"{mean(gaps):+.2f} ± {error:.2f}",
                "" if told else f"{mean(r['gmacs'] / r['gmacs_unpruned'] for r in results):.2f}",
                "" if told else f"{mean(r['latency_ms'] / r['latency_ms_unpruned'] for r in results):.2f}",
                "" if told else "; ".join(" ".join(n[7:] for n in r["pruned"]) for r in results),
            ]
        )
    seeds = [f"seed {seed}, %" for seed in SEEDS]
    header = [
        "blocks chosen by",
        *seeds,
        "mean, %",
        "ahead of the search",
        "GMACs",
        "time",
        "blocks (stage.block)",
    ]
    return Table(header, rows).filled().markdown()


def with_table(page: str) -> str:
    """The page with the table between its two comments."""
    begin, end = "<!-- depth_image: by benchmarks/depth_image.py -->", "<!-- end of depth_image -->"
    before, _, rest = page.partition(begin)
    answers = PUBLISHED["read_answers"](PUBLISHED["RESULTS"] / "depth_image")
    return f"{before}{begin}\n\n{table(answers)}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in ("run", "report"):
        {"run": run, "report": report}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        PAGE.write_text(with_table(PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
