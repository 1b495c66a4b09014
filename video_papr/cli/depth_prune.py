"""`python tools/depth_prune.py`: removes or merges blocks of a trained backbone or scorer (UPDP)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import DepthRunConfig
from ..core.console import make_console
from ..core.files import atomic_write
from .common import print_written, run_command


def main() -> None:
    """Entry point of the command."""
    run_command("depth_prune", run)


def run(config: DepthRunConfig, out: Path) -> dict[str, Any]:
    """Prunes, and writes weights.safetensors and depth.json, which it returns, beside what the stages leave there."""
    from ..assembly import build_depth, build_train, runtime
    from ..depth.plan import Clips
    from ..depth.run import prune_depth
    from ..training.curriculum import Curriculum

    config = build_depth.check_depth(config)
    plan = build_depth.build_plan(config)
    build_depth.same_run(out, config)
    engine = runtime.build_engine(config.runtime)
    class_names, stores, val = build_train.build_stores(build_depth.stores_config(config))
    net, subject = build_depth.build_network(config, class_names)
    console = make_console()
    console.print(
        f"{subject.name}: {len(class_names)} classes, {len(stores[-1])} clips, {len(val)} for validation"
    )
    augment = build_train.build_augment(config.depth.augment, class_names)
    draw = Curriculum(stores, full_at=0, augment=augment, colors=False)
    pruned = prune_depth(
        net.to(engine.device),
        subject,
        plan,
        Clips(draw, stores[-1], val),
        directory=out,
        resume=config.depth.resume,
        progress=config.progress,
        say=console.print,
    )
    read = build_train.reading_of(config.dataset, config.backbone, pruned.net)
    described = {"model": subject.name, "trained_on": config.dataset.name, "read": read.to_metadata()}
    build_depth.save(out / "weights.safetensors", pruned, config.backbone, class_names, described)
    report = {"model": subject.name, "blocks": pruned.blocks, **pruned.report}
    atomic_write(out / "depth.json", json.dumps(report, indent=2) + "\n")
    _tell(report, console.print)
    print_written([out / name for name in ("weights.safetensors", "depth.json")], console)
    return report


def _tell(report: dict[str, Any], say: Any) -> None:
    """What pruning brought, in a few lines."""
    lines = (
        ("validation top-1, %", "top1_val_unpruned", "top1_val", "{:.2f}"),
        ("parameters", "parameters_unpruned", "parameters", "{:,}"),
        ("GMACs per clip", "gmacs_unpruned", "gmacs", "{:.3f}"),
        ("measured, ms", "latency_ms_unpruned", "latency_ms", "{:.2f}"),
    )
    for title, before, after, form in lines:
        say(f"{title}: {form.format(report[before])} unpruned, {form.format(report[after])} pruned")
