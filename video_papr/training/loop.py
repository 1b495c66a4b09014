"""One training loop for backbones and scorers: AdamW, cosine schedule, gradient accumulation, checkpoints, resume.

Every random choice of step s comes from a generator seeded with (seed, s). A resumed run therefore draws what the
uninterrupted run would have drawn, and needs no random state on disk.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints.files import load_exactly
from ..checkpoints.torch_files import read_torch
from ..core.errors import CheckpointError, ConfigError, LogitsError, TrainingError
from ..core.files import atomic_write
from ..core.processes import ALONE, Ranks
from .augment import unchanged
from .parallel import Loss, Shared, check_split, own_rows, share_steps
from .store import Batch, ClipStore

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECKPOINT, LOG = "checkpoint.pt", "log.csv"


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train. Keys of the same name stand in `config.TrainConfig`."""

    steps: int  # optimiser steps; each sees `batch_size` clips
    batch_size: int = 64
    accumulate: int = 1  # the batch is split into this many parts, one backward pass each
    learning_rate: float = 1e-3  # the peak; linear warm-up over `warmup` of the steps, then a cosine to zero
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0  # gradients above this norm are scaled down
    dtype: str = "fp32"  # of the forward pass, fp32 or bf16 (autocast; weights stay fp32)
    validate_every: int = 500  # steps between two validations and checkpoints
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "accumulate", "validate_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"train.{key}={getattr(self, key)} must be an integer >= 1")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"train.accumulate={self.accumulate} must divide train.batch_size={self.batch_size}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"train.dtype={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")

    def rate(self, step: int) -> float:
        """The learning rate of a step (counted from 0)."""
        rising = max(1, int(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


Draw = Callable[[float, int, torch.Generator], Batch]


@dataclass(frozen=True)
class Task:
    """What is learned."""

    draw: Draw  # (progress in 0..1, clips, generator) -> a batch; a curriculum reads the progress
    loss: Loss  # (batch, generator) -> scalar; runs under autocast when the schedule says bf16
    validate: Callable[[], float]  # -> top-1 in per cent on the validation split
    plan: Callable[[Batch, torch.Generator], Batch] = unchanged  # see `targets.Target`


def fit(
    model: nn.Module,
    task: Task,
    schedule: Schedule,
    directory: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]]:
    """Trains `model` in place and returns the log, one row per validation.

    Args:
        directory: receives `checkpoint.pt` (after each validation) and `log.csv`.
        resume: continue from the checkpoint in `directory`.
        log: called with each new row.
        ranks: each takes its rows of every batch; rank 0 validates and writes.

    Raises:
        ConfigError: a batch cannot be shared out evenly.
        CheckpointError: `resume` without a checkpoint, or with one that is damaged, of another schedule or model.
        TrainingError: the loss, a gradient or a logit is no longer a number.
        StorageError: the disk is full, or fails.
    """
    check_split(schedule.batch_size, schedule.accumulate, ranks)
    directory.mkdir(parents=True, exist_ok=True)
    shared = share_steps(model, task.loss, ranks)
    groups = _groups(model, schedule.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))
    first, rows = _restore(directory, model, optimizer, schedule) if resume else (0, [])
    started, losses, steps = time.perf_counter(), list[float](), range(first, schedule.steps)
    bar = tqdm(steps, initial=first, total=schedule.steps, unit="step", disable=not progress)
    for step in bar:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        losses.append(_step(model, optimizer, task, shared, schedule, step, ranks))
        if not math.isfinite(losses[-1]):
            raise _diverged(f"the loss of step {step + 1} is {losses[-1]}", schedule)
        bar.set_postfix(loss=f"{losses[-1]:.3f}", val=rows[-1]["top1"] if rows else "-", refresh=False)
        due = (step + 1) % schedule.validate_every == 0 or step + 1 == schedule.steps
        if due and ranks.rank == 0:
            row: dict[str, Any] = {"step": step + 1, "clips": (step + 1) * schedule.batch_size}
            try:
                row |= {"loss": round(sum(losses) / len(losses), 4), "top1": round(task.validate(), 2)}
            except LogitsError as error:
                raise _diverged(f"after step {step + 1}, {error}", schedule) from None
            row |= {"learning_rate": f"{schedule.rate(step):.3g}"}
            rows.append({**row, "seconds": round(time.perf_counter() - started, 1)})
            losses.clear()
            if log is not None:
                log(rows[-1])
            _save(directory, model, optimizer, schedule, step + 1, rows)
    return rows


def _diverged(what: str, schedule: Schedule) -> TrainingError:
    return TrainingError(
        f"{what}; try train.learning_rate below {schedule.learning_rate:g} or train.dtype=fp32 (the last checkpoint is "
        "left as it was)"
    )


@torch.inference_mode()
def top1(
    model: nn.Module, predict: Callable[[Tensor], Tensor], store: ClipStore, *, batch_size: int, dtype: str
) -> float:
    """Top-1 over a whole store, in per cent.

    Args:
        model: put in eval mode; `predict` runs it.
        predict: frames (B, T, S, S, 3) uint8 -> logits (B, classes).

    Raises LogitsError: the logits of a clip are not finite, so that they name no class.
    """
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    for start in range(0, len(store), batch_size):
        batch = store.batch(np.arange(start, min(start + batch_size, len(store))))
        with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"):
            logits = predict(batch.frames.to(device))
        if not bool(logits.isfinite().all()):
            raise LogitsError("logits of the validation clips are not finite (NaN or infinite)")
        correct += int((logits.argmax(1).cpu() == batch.labels).sum())
    return 100 * correct / len(store)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    shared: Shared,
    schedule: Schedule,
    step: int,
    ranks: Ranks,
) -> float:
    """One optimiser step; returns its mean loss over all ranks.

    All ranks draw the same batch, so that a step does not depend on their number.
    """
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
    batch = task.draw(step / schedule.steps, schedule.batch_size, generator)
    # Dropout takes no generator; the ranks drop different units.
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)) + ranks.rank)
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part, last in _parts(batch, schedule.accumulate):
        own = own_rows(task.plan(part, generator), ranks)
        with nullcontext() if last else shared.apart():
            with torch.autocast(device.type, DTYPES[schedule.dtype], enabled=schedule.dtype != "fp32"):
                value = shared.loss(_to(own, device), generator) / schedule.accumulate
            value.backward()
        total += value.item()
    loss = ranks.mean(total)  # of all ranks, before any of them gives up: gradients are shared
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm))
    if math.isfinite(loss) and not math.isfinite(norm):
        raise _diverged(f"the gradients of step {step + 1} are not finite (norm {norm})", schedule)
    optimizer.step()
    return loss


def _parts(batch: Batch, count: int) -> Iterator[tuple[Batch, bool]]:
    """`count` equal parts of a batch, and whether it is the last one."""
    chunks = [None if x is None else x.chunk(count) for x in batch]
    for i in range(count):
        yield Batch(*(None if chunk is None else chunk[i] for chunk in chunks)), i == count - 1  # type: ignore[arg-type]


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(None if x is None else x.to(device) for x in batch))  # type: ignore[arg-type]


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only, as VideoMAE and X3D do for transformers and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _save(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    step: int,
    rows: list[dict[str, Any]],
) -> None:
    """Writes the log and the checkpoint; a run killed while writing keeps the previous checkpoint."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(directory / LOG, text.getvalue())
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "rows": rows}
    state["schedule"] = repr(schedule)
    atomic_write(directory / CHECKPOINT, lambda file: torch.save(state, file))


def find_checkpoint(directory: Path) -> Path:
    """The checkpoint in a run directory. Raises CheckpointError: there is none."""
    path = directory / CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f"train.resume=true, but {path} does not exist; start without it")
    return path


def _restore(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
) -> tuple[int, list[dict[str, Any]]]:
    path = find_checkpoint(directory)
    state = read_torch(path)
    if not isinstance(state, dict) or not {"model", "optimizer", "step", "rows", "schedule"} <= state.keys():
        raise CheckpointError(f"{path} is no checkpoint of a training; start without train.resume")
    if state["schedule"] != repr(schedule):
        raise CheckpointError(
            f"{path} was written under another schedule: {state['schedule']}, now {schedule}"
        )
    load_exactly(model, state["model"], source=str(path))
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["rows"]
