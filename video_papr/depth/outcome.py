"""The end of a depth pruning: the chosen blocks merged, and what that brought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..benchmark.flops import count_gmacs
from ..training.loop import top1
from ..training.store import ClipStore
from .latency import LatencyTable, time_networks
from .places import find_places, merge_places
from .plan import Pruned, Work
from .search import Found
from .subjects import Subject


@torch.no_grad()
def merge_and_measure(
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
        "top1_val_unpruned": round(validation_top1(teacher, subject, val, plan.schedule.dtype), 2),
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


def validation_top1(net: nn.Module, subject: Subject, store: ClipStore, dtype: str) -> float:
    return top1(net, lambda frames: subject.logits(net, frames), store, batch_size=100, dtype=dtype)
