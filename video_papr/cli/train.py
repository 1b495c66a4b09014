"""`python tools/train.py`: trains a backbone or a scorer, or fits a linear probe on frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainRunConfig
from ..core.console import make_console, warn
from ..core.processes import ALONE, Ranks
from .common import print_written, run_shared_command

if TYPE_CHECKING:
    from ..training.targets import Target


def main() -> None:
    """Entry point of the command."""
    run_shared_command("train", _work)


def _work(config: TrainRunConfig, out: Path, ranks: Ranks) -> dict[str, Any]:
    advice = f"Run again with train.resume=true output_dir={out} to go on from the last checkpoint."
    with ranks.watched(advice):
        return run(config, out, ranks)


def run(config: TrainRunConfig, out: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Trains and writes checkpoint.pt, log.csv and weights.safetensors; returns the last row of the log.

    A probe: see `build_probe`; returns the content of probe.json.

    Args:
        ranks: share the clips of every step; rank 0 prepares, validates, writes and returns.
    """
    if config.train.target == "probe":
        return _fit_probe(config, out, ranks)

    from ..assembly import build_train, runtime
    from ..training.curriculum import Curriculum
    from ..training.loop import Task, find_checkpoint, fit, top1

    build_train.check_training(config, ranks)
    if config.train.resume:
        find_checkpoint(out)  # before the videos are decoded, and before the other ranks start
    engine = runtime.build_engine(config.runtime, ranks)
    if ranks.size > 1 and config.train.target == "scorer" and engine.device.type == "cpu":
        warn("train.target=scorer on the CPU: batch norm sees the clips of one rank, not the whole batch")
    train, schedule = config.train, build_train.build_schedule(config.train, config.runtime, config.seed)
    class_names, stores, val = build_train.build_stores(config)
    target = build_train.build_target(config, num_classes=len(class_names))
    target.model.to(engine.device)
    make_console().print(
        f"{target.name}: {len(class_names)} classes, {len(stores[-1])} clips, {len(val)} for validation"
    )
    if ranks.rank == 0:
        ranks.broadcast()
    augment = build_train.build_augment(train.augment, class_names)
    task = Task(
        Curriculum(stores, full_at=train.full_at, augment=augment, colors=train.colors),
        target.loss,
        lambda: top1(target.model, target.predict, val, batch_size=100, dtype=schedule.dtype),
        target.plan,
    )
    rows = fit(
        target.model,
        task,
        schedule,
        out,
        resume=train.resume,
        progress=config.progress,
        log=build_train.tensorboard_log(out) if train.tensorboard and ranks.rank == 0 else None,
        ranks=ranks,
    )
    ranks.barrier()
    return {} if ranks.rank else _save(config, out, target, class_names, rows[-1])


def _save(
    config: TrainRunConfig, out: Path, target: Target, class_names: tuple[str, ...], last: dict[str, Any]
) -> dict[str, Any]:
    """Writes the trained weights; returns the last row of the log."""
    import torch

    from ..assembly import build_train

    described = {"trained_on": config.dataset.name, "steps": last["step"], "top1_val": last["top1"]}
    read = build_train.reading_of(config.dataset, config.backbone, target.weights)
    described |= {"read": read.to_metadata(), "torch": torch.__version__}
    target.save(out / "weights.safetensors", class_names, described)
    console = make_console()
    console.print(f"validation top-1 {last['top1']:.2f} % after {last['step']} steps")
    print_written([out / name for name in ("weights.safetensors", "log.csv", "checkpoint.pt")], console)
    return last


def _fit_probe(config: TrainRunConfig, out: Path, ranks: Ranks) -> dict[str, Any]:
    from ..assembly.build_probe import run_probe
    from ..evaluation.reports.confusion import confusion_table

    done, console = run_probe(config, out, ranks), make_console()
    table = confusion_table(done.matrix, dict(enumerate(done.class_names)))
    if table is not None:
        table.print(console)
    results = done.results
    console.print(
        f"held-out top-1 {results['top1_held_out']:.1f} ± {results['top1_standard_error']:.1f} % "
        f"({results['num_videos']} videos in {len(results['folds'])} folds, {results['folds_from']}); "
        f"features {results['seconds']['features']} s, fit {results['seconds']['fit']} s"
    )
    print_written(done.written, console)
    if config.probe.folds is None:
        console.print("Clips of one scene may be among both parts; probe.folds=FILE keeps scenes together.")
    weights = done.written[0]
    console.print(f"Next: python tools/predict.py video=PATH backbone=probe backbone.weights={weights}")
    return results
