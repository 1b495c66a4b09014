"""Writes what an evaluation found: results.json, predictions.jsonl (a line per video), class counts."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..core.files import atomic_write
from .answers import Evaluation, VideoAnswer
from .cost import StageTimes
from .metrics import compare_paired, percent_correct, standard_error
from .reports.confusion import answer_matrix, write_classes

TIMING = (
    "latency_ms: medians over batches of milliseconds per view (decode: over videos, in a worker process, beside the "
    "other stages); total is their sum. videos_per_second: evaluated videos / seconds of preprocess + score + "
    "backbone, so decoding is left out and dense and pruned compare in one run. The first batch warms up, untimed. "
    "Views from a clip cache count with what decoding and preprocess took when they were made. "
    "A resumed run takes all figures over the batches of all its sessions; see sessions for their machines. "
    "With several ranks they are taken over the batches of all of them, so videos_per_second is that of one rank."
)
PACKAGES = ("video_papr", "torch", "torchvision", "timm", "numpy", "decord", "av", "hydra-core")


@dataclass(frozen=True)
class RunInfo:
    """What was evaluated, and on what: the fields of results.json that do not come from the answers.

    Where the clips decide about `keep_ratio`, it is the mean share of the tokens that was kept. `settings` has the keys
    of the groups pruner and merger as they were set, and the camera of synthetic videos. `sessions`: the starts of the
    command, more than one when the run was resumed. `extra`: names of extra metrics, and what the dense model has.
    """

    dataset: str
    backbone: str
    pruner: str
    keep_ratio: float
    views: str
    num_tokens: int
    gmacs_per_view: dict[str, float]
    weights: dict[str, str | None]
    device: str
    dtype: str
    engine: str
    seed: int
    dataset_seed: int | None = None
    generator_version: int | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    extra: Mapping[str, float | None] = field(default_factory=dict)


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def build_results(evaluation: Evaluation, info: RunInfo) -> dict[str, Any]:
    """Returns the object of results.json.

    top1 and top5 are percentages of all videos of the split: failed and missing ones count as wrong.
    """
    answers = evaluation.answers
    labelled = [answer for answer in answers if answer.label is not None]
    pruned, dense = [answer.top5 for answer in labelled], [answer.baseline_top5 for answer in labelled]
    extra = {name: _mean_of(answer.extra.get(name) for answer in answers) for name in info.extra}
    kept = _mean_of(answer.kept_tokens for answer in answers)
    made = {"versions": versions(), "git_commit": git_commit(), "command": command_line()}
    results = _figures(answers, info, pruned, evaluation.pruned, kept, extra) | made
    baseline = comparison = None
    if evaluation.dense is not None:
        full = info.gmacs_per_view["dense"]
        gmacs = {"backbone": full, "scorer": 0.0, "total": full, "dense": full}
        unpruned = replace(info, pruner="none", keep_ratio=1.0, settings={}, gmacs_per_view=gmacs)
        everything = None if kept is None else float(info.num_tokens)
        known = {name: None if extra[name] is None else value for name, value in info.extra.items()}
        baseline = _figures(answers, unpruned, dense, evaluation.dense, everything, known) | made
        comparison = asdict(compare_paired(dense, pruned, _labels(answers), total=len(answers)))
    ends = {"timing": TIMING, "sessions": info.sessions, "baseline": baseline, "comparison": comparison}
    return {**results, **ends}


def _labels(answers: Iterable[VideoAnswer]) -> list[int]:
    return [answer.label for answer in answers if answer.label is not None]


def _figures(
    answers: Sequence[VideoAnswer],
    info: RunInfo,
    rankings: Sequence[tuple[int, ...] | None],
    times: StageTimes,
    kept_tokens: float | None,
    extra: Mapping[str, float | None],
) -> dict[str, Any]:
    """What results.json says of one model; `rankings` of the videos that have a label."""
    total, evaluated = len(answers), sum(answer.top5 is not None for answer in answers)
    labels = _labels(answers)
    top1 = percent_correct(rankings, labels, k=1, total=total)
    seconds = times.processing_seconds()
    return {
        **{key: value for key, value in vars(info).items() if key not in ("sessions", "extra")},
        "num_videos": total,
        "num_evaluated": evaluated,
        "num_failed": sum(a.top5 is None and a.label is not None for a in answers),
        "num_missing": total - len(labels),
        "top1": top1,
        "top5": percent_correct(rankings, labels, k=5, total=total),
        "top1_standard_error": standard_error(top1, total),
        "mean_kept_tokens": kept_tokens,
        **extra,
        "videos_per_second": evaluated / seconds if seconds else None,
        "latency_ms": times.per_view_ms(),
        "peak_memory_mb": times.peak_memory_mb or None,
    }


def prediction_lines(
    answers: Iterable[VideoAnswer], *, baseline: bool, class_names: Sequence[str] | None = None
) -> list[str]:
    """Returns one JSON object per video, in the order of the dataset; with `class_names` also the names of label and
    prediction.
    """

    def named(label: int | None) -> str | None:
        known = class_names is not None and label is not None and label < len(class_names)
        return class_names[label] if known else None  # type: ignore[index]

    lines = []
    for answer in answers:
        row: dict[str, Any] = {
            "path": answer.name,
            "label": answer.label,
            "pred": answer.top5[0] if answer.top5 else None,
            "top5": answer.top5,
            "probs_top5": answer.probs_top5 and [round(p, 6) for p in answer.probs_top5],
            "kept_tokens": answer.kept_tokens,
            "error": answer.error,
        }
        if class_names is not None:
            row["label_name"], row["pred_name"] = named(row["label"]), named(row["pred"])
        if baseline:
            row["baseline_pred"] = answer.baseline_top5[0] if answer.baseline_top5 else None
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False))
    return lines


def to_json(content: Mapping[str, Any]) -> str:
    """A JSON object over several lines."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_results(
    run_dir: Path,
    results: dict[str, Any],
    evaluation: Evaluation,
    *,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Writes results.json, predictions.jsonl, and the files of `write_classes`; returns their paths."""
    answers, baseline = evaluation.answers, evaluation.dense is not None
    lines = prediction_lines(answers, baseline=baseline, class_names=class_names)
    atomic_write(run_dir / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
    written = write_classes(
        run_dir,
        answer_matrix(answers),
        class_names,
        title=f"{results['backbone']}, pruner {results['pruner']}",
    )
    atomic_write(run_dir / "results.json", to_json(results))  # last: its presence means done
    return [run_dir / "results.json", run_dir / "predictions.jsonl", *written]


def versions(*others: str) -> dict[str, str]:
    """Returns the versions of Python, of the packages that results depend on, and of others, if they are installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command that is running, as a shell reads it; `video-papr eval` comes as one word of `sys.argv`."""
    program, *words = sys.argv
    words = [re.sub(r"='([\w./+-]*)'$", r"=\1", word) for word in words]  # paths are in quotes for Hydra
    return shlex.join([*(program.split() if program.startswith("video-papr ") else [program]), *words])


def git_commit() -> str | None:
    """Returns the commit of this source tree, with "-dirty" after local changes; None outside its repository."""

    def git(*arguments: str) -> str:
        here: Any = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
        return str(subprocess.run(["git", *arguments], timeout=10, check=True, **here).stdout).strip()

    try:
        # An installed copy may lie in somebody else's repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_device(device: torch.device) -> str:
    """Returns e.g. "cuda (NVIDIA H200)" or "cpu (Intel(R) Xeon(R) ..., 2 cores, 2 threads)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    return f"cpu ({name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"
