"""`python tools/train.py`: trains a backbone or a scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import TrainRunConfig, check_command
from .common import make_console, run_command


def main() -> None:
    """Entry point of the command."""
    run_command("train", lambda cfg, run_dir: run(check_command(TrainRunConfig, cfg), run_dir))


def run(config: TrainRunConfig, out: Path) -> dict[str, Any]:
    """Trains and writes checkpoint.pt, log.csv and weights.safetensors into `out`.

    Returns:
        the last row of the log.

    Raises:
        VideoPaprError: something in the configuration or the data that the user can mend.
    """
    import torch

    from ..training.curriculum import Curriculum
    from ..training.loop import fit, top1
    from . import build, build_train

    build_train.check_training(config)
    engine = build.build_engine(config.runtime)
    train, schedule = config.train, build_train.build_schedule(config)
    class_names, stores, val = build_train.build_stores(config)
    target = build_train.build_target(config, num_classes=len(class_names))
    target.model.to(engine.device)
    console = make_console()
    console.print(
        f"{target.name}: {len(class_names)} classes, {len(stores[-1])} clips, {len(val)} for validation"
    )
    rows = fit(
        target.model,
        draw=Curriculum(
            stores,
            full_at=train.full_at,
            augment=build_train.build_augment(train.augment, class_names),
            colors=train.colors,
        ),
        loss=target.loss,
        validate=lambda: top1(target.model, target.predict, val, batch_size=100, dtype=schedule.dtype),
        schedule=schedule,
        directory=out,
        resume=train.resume,
        progress=config.progress,
        log=build_train.tensorboard_log(out) if train.tensorboard else None,
    )
    last = rows[-1]
    described = {"trained_on": config.dataset.name, "steps": last["step"], "top1_val": last["top1"]}
    target.save(out / "weights.safetensors", class_names, {**described, "torch": torch.__version__})
    console.print(f"validation top-1 {last['top1']:.2f} % after {last['step']} steps")
    for name in ("weights.safetensors", "log.csv", "checkpoint.pt"):
        console.print(f"wrote {out / name}", highlight=False, soft_wrap=True)
    return last
