"""Depth pruning from a network to its merged form, stage by stage; what a stage leaves on disk is not done again.

latency.json              how long each block takes, as it is and merged              `latency.measure`
supernet/checkpoint.pt    the network in which every subnet of K pruned blocks works  `progressive.supernet_loss`
search.json               the score of every mask that was tried, and the choice      `search.search`
progressive/checkpoint.pt the chosen blocks moved to their pruned branch, fine-tuned  `progressive.rising_draw`
(the network, merged)                                                                 `places.merge_places`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..backbones.depth_pruned import REMOVED
from ..benchmark.flops import count_gmacs
from ..core.errors import CheckpointError
from ..core.files import atomic_write
from ..training.loop import CHECKPOINT, Schedule, Task, fit, top1
from ..training.store import ClipStore
from .fit import fit_branches
from .latency import LatencyTable, measure, time_networks
from .places import Mask, copy_pruned_branches, find_places, merge_places, open_places, switches
from .plan import Clips, Plan, Pruned, Work
from .progressive import Judge, rising_draw, student_loss, supernet_loss
from .search import (
    Budget,
    Evolution,
    Found,
    Scores,
    check_budget,
    check_count,
    greedy,
    random_mask,
    search,
    uniform_mask,
)
from .subjects import Subject

STAGE_FILES = ("latency.json", f"supernet/{CHECKPOINT}", "search.json", f"progressive/{CHECKPOINT}")


def prune_depth(
    net: nn.Module,
    subject: Subject,
    plan: Plan,
    clips: Clips,
    *,
    directory: Path,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Pruned:
    """Prunes `plan.prune` blocks of a trained network, which stays as it is.

    Args:
        directory: receives what the top of this module lists.
        resume: take what is there already; the plan must be the same.
        say: called with a line for people at the end of each stage.

    Raises:
        ConfigError: so many blocks cannot be pruned, or not within the budget.
        CheckpointError: `resume` with files that are damaged or of another run.
        TrainingError: a loss is no longer a number.
    """
    if not resume:
        for name in STAGE_FILES:  # of an earlier run, so that resuming this one never takes them up
            (directory / name).unlink(missing_ok=True)
    places = find_places(net, last_stage=subject.last_stage)
    check_count(plan.prune, len(places), keep_one=REMOVED in plan.kinds)
    teacher = deepcopy(net).eval().requires_grad_(False)
    work = Work(teacher, subject, plan, clips, directory, resume, progress)
    table = _table(work)
    kinds = [table.choose(place.name, plan.kinds) for place in places]
    named = {place.name: kind for place, kind in zip(places, kinds, strict=True)}
    budget = table.budget(named, plan.max_latency)
    check_budget(budget, plan.prune)
    say(
        f"measured: {table.network:.2f} ms for {plan.latency_clips} clips, {len(places)} blocks can be pruned"
    )

    supernet = None
    if plan.method in ("random", "uniform"):
        found = Found(_drawn(plan, len(places)), float("nan"), {})
    else:
        supernet = _opened(net, subject, kinds)
        _start(supernet, work)
        found = _searched(supernet, budget, work)
    chosen = [places[number].name for number in found.mask]
    say(f"chosen by {plan.method} from {len(found.scores)} scores: {', '.join(chosen)}")

    student = _opened(net, subject, kinds, found.mask)
    if supernet is not None and plan.method == "updp":
        source, target = (find_places(one, last_stage=subject.last_stage) for one in (supernet, student))
        copy_pruned_branches(source, target, found.mask)
    else:
        _start(student, work)
    rows = _train_student(student, work)
    say(f"validation top-1 {rows[-1]['top1']:.2f} % after {rows[-1]['step']} steps")
    return _merge_and_measure(student, work, kinds, found, table, rows)


def _opened(net: nn.Module, subject: Subject, kinds: Sequence[str], mask: Mask | None = None) -> nn.Module:
    """A copy of a network, with two branches in the blocks of a mask, or in all that may be pruned."""
    copy = deepcopy(net).requires_grad_(True)
    open_places(find_places(copy, last_stage=subject.last_stage), kinds, mask)
    return copy


def _start(net: nn.Module, work: Work) -> None:
    """Gives the pruned branches of an opened network their start, in place."""
    plan = work.plan
    if plan.start == "copy":
        return  # what they are made with
    batches = work.clips_of(work.clips.train, plan.calibration_clips, plan.schedule.batch_size)
    fit_branches(net, lambda frames: work.subject.answer(net, frames, None), batches)


def _table(work: Work) -> LatencyTable:
    path, plan = work.directory / "latency.json", work.plan
    if work.resume and path.is_file():
        return LatencyTable(**_read(path, {"network", "blocks", "measured"}))
    (frames,) = work.clips_of(work.clips.val, plan.latency_clips, plan.latency_clips)
    places = find_places(work.teacher, last_stage=work.subject.last_stage)
    measured = {
        "clips": len(frames),
        "repeats": plan.latency_repeats,
        "device": frames.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tqdm(total=len(places), desc="measuring", unit="block", disable=not work.progress) as bar:
        table = measure(
            work.teacher,
            lambda net: work.subject.timed(net, frames),
            places,
            plan.kinds,
            repeats=plan.latency_repeats,
            described=measured,
            on_block=bar.update,
        )
    atomic_write(path, json.dumps(asdict(table), indent=1) + "\n")
    return table


def _drawn(plan: Plan, blocks: int) -> Mask:
    """The mask of a method that looks at nothing."""
    if plan.method == "uniform":
        return uniform_mask(blocks, plan.prune)
    return random_mask(np.random.default_rng(plan.seed), blocks, plan.prune)


def _searched(supernet: nn.Module, budget: Budget, work: Work) -> Found:
    """The mask that scores best in the supernet, which UPDP trains first; each score is on disk before the next."""
    plan, blocks = work.plan, len(switches(supernet))
    judge = _judge(supernet, work)
    if plan.method == "updp":
        example = uniform_mask(blocks, plan.prune)
        loss = supernet_loss(supernet, work.teacher, work.subject, plan.teaching, plan.prune)
        task = Task(work.clips.draw, loss, lambda: judge(example))  # which is one subnet among many
        _train(supernet, task, replace(plan.schedule, steps=plan.supernet_steps), "supernet", work)
    path = work.directory / "search.json"
    known: dict[Mask, float] = {}
    if work.resume and path.is_file():
        known = {tuple(mask): score for mask, score in _read(path, {"scores"})["scores"]}
    with tqdm(desc="search", unit="mask", initial=len(known), disable=not work.progress) as bar:

        def keep(mask: Mask, score: float) -> None:
            known[mask] = score
            scores = [[list(mask), score] for mask, score in known.items()]
            atomic_write(path, json.dumps({"scores": scores}, indent=1) + "\n")
            bar.update()
            bar.set_postfix(best=f"{max(known.values()):.2f}", refresh=False)

        scores = Scores(judge, known, keep)
        if plan.method == "greedy":
            return greedy(scores, blocks=blocks, count=plan.prune)
        evolution = Evolution(plan.population, plan.generations, plan.exhaustive, plan.seed)
        return search(scores, blocks=blocks, count=plan.prune, budget=budget, evolution=evolution)


def _train(net: nn.Module, task: Task, schedule: Schedule, stage: str, work: Work) -> list[dict[str, Any]]:
    """Trains; with `resume` it goes on where there is a checkpoint, and starts where there is none."""
    place = work.directory / stage
    going_on = work.resume and (place / CHECKPOINT).is_file()
    return fit(net, task, schedule, place, resume=going_on, progress=work.progress)


def _train_student(student: nn.Module, work: Work) -> list[dict[str, Any]]:
    plan = work.plan
    rising = plan.progressive_steps if plan.progressive else 0
    steps = plan.progressive_steps + plan.finetune_steps  # abrupt pruning trains as long
    found = switches(student)
    task = Task(
        rising_draw(work.clips.draw, found, steps, rising),
        student_loss(student, work.teacher, work.subject, plan.teaching),
        lambda: _validation_top1(student, work.subject, work.clips.val, plan.schedule.dtype),
    )
    schedule = replace(plan.schedule, steps=steps, seed=plan.seed + 1)
    rows = _train(student, task, schedule, "progressive", work)
    for switch in found:  # a run that was finished before has drawn nothing
        switch.mix = 1.0
    return rows


def _judge(net: nn.Module, work: Work) -> Judge:
    plan, val = work.plan, work.clips.val
    rows = np.linspace(0, len(val) - 1, min(plan.search_clips, len(val))).round().astype(int)
    return Judge(
        net,
        work.subject,
        calibration=work.clips_of(work.clips.train, plan.calibration_clips, plan.schedule.batch_size),
        examples=ClipStore(val.frames[rows], val.labels[rows]),
        batch_size=plan.schedule.batch_size,
        alike=plan.alike,
        teacher=work.teacher,
    )


@torch.no_grad()
def _merge_and_measure(
    student: nn.Module,
    work: Work,
    kinds: Sequence[str],
    found: Found,
    table: LatencyTable,
    rows: list[dict[str, Any]],
) -> Pruned:
    """Merges the chosen blocks and measures the result beside the unpruned network."""
    teacher, subject, plan, val = work.teacher, work.subject, work.plan, work.clips.val
    student.eval()
    (frames,) = work.clips_of(val, plan.latency_clips, plan.latency_clips)
    before = subject.logits(student, frames)
    places = find_places(student, last_stage=subject.last_stage)
    names = [place.name for place in places]
    blocks = merge_places(student, places, kinds, found.mask)
    student.requires_grad_(False)
    if subject.last_stage is not None:
        student.to(memory_format=torch.channels_last_3d)
    error = (subject.logits(student, frames) - before).abs().max().item()
    nets = {"unpruned": teacher, "pruned": student}
    times = time_networks(nets, lambda net: subject.timed(net, frames), repeats=plan.latency_repeats)
    gmacs = [count_gmacs(subject.timed, net, frames) / len(frames) for net in (teacher, student)]
    score = None if found.score != found.score else round(found.score, 3)
    report = {
        "pruned": [names[number] for number in found.mask],
        "kinds": [kinds[number] for number in found.mask],
        "method": plan.method,
        "start": plan.start,
        "progressive": plan.progressive,
        "score": score,
        "scored": len(found.scores),
        "top1_val": rows[-1]["top1"],
        "top1_val_unpruned": round(_validation_top1(teacher, subject, val, plan.schedule.dtype), 2),
        "val_videos": len(val),
        "parameters": sum(p.numel() for p in student.parameters()),
        "parameters_unpruned": sum(p.numel() for p in teacher.parameters()),
        "gmacs": gmacs[1],
        "gmacs_unpruned": gmacs[0],
        "latency_ms": times["pruned"],
        "latency_ms_unpruned": times["unpruned"],
        "latency_ms_expected": table.budget(dict(zip(names, kinds, strict=True)), None).cost(found.mask),
        "measured": table.measured,
        "merge_error": error,
    }
    return Pruned(student, blocks, report)


def _validation_top1(net: nn.Module, subject: Subject, store: ClipStore, dtype: str) -> float:
    return top1(net, lambda frames: subject.logits(net, frames), store, batch_size=100, dtype=dtype)


def _read(path: Path, keys: set[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it to do this stage again") from None
    if not isinstance(content, dict) or set(content) != keys:
        raise CheckpointError(f"{path} must hold {', '.join(sorted(keys))}; delete it to do this stage again")
    return content
