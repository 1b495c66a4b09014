"""Linear probes: from a checked configuration of `tools/train.py experiment=probe` to a file that answers.

Letters: n videos that can be read, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.encoder import Encoder
from ..backbones.probe import Probe, checksum
from ..checkpoints.files import PROBE
from ..config import DatasetConfig, TrainRunConfig
from ..core.console import warn
from ..core.errors import ConfigError, DataError
from ..core.files import atomic_write
from ..core.processes import ALONE, Ranks
from ..core.reading import ReadConfig
from ..data.annotations import VideoList
from ..data.annotations.folds import read_folds
from ..evaluation.answers import VideoAnswer
from ..evaluation.metrics import standard_error
from ..evaluation.reports.confusion import Matrix, answer_matrix, write_classes
from ..evaluation.results import command_line, describe_device, prediction_lines, to_json, versions
from ..pipeline import Pipeline
from ..training.probe import Fitted, check_installed, draw_folds, fit_probe
from . import build, runtime
from .compose import FITTED, backbone_said, pruner_said
from .features import compute_features
from .views import read_as_trained, read_config


@dataclass(frozen=True)
class ProbeRun:
    """What was fitted, and how good it is on videos that were held out.

    Attributes:
        results: the content of probe.json.
        matrix: confusion matrix of the held-out answers, see `evaluation.reports.confusion`.
    """

    results: dict[str, Any]
    matrix: Matrix
    class_names: tuple[str, ...]
    written: list[Path]


def run_probe(config: TrainRunConfig, out: Path, ranks: Ranks = ALONE) -> ProbeRun:
    """Computes features or takes them from the cache, fits the classifier and writes the files of a run into `out`.

    Raises VideoPaprError: something in the configuration or the data that the user can mend.
    """
    _check(config, ranks)
    engine = runtime.build_engine(config.runtime)
    root, videos = build.build_videos(config.dataset, progress=config.progress)
    table = config.probe.folds
    given = (None, None) if table is None else read_folds(table, videos.records, root, key="probe.folds")
    _folds(given, videos, range(len(videos)), config)  # refuses what cannot be held out
    pipeline = build.build_pipeline(config, videos, engine)
    config = replace(config, dataset=read_as_trained(config.dataset, pipeline.backbone))
    start = perf_counter()
    found = compute_features(config, videos, pipeline, engine)
    names, rows = _readable(videos, found)
    featured = perf_counter()
    features = np.stack([found[row].double().numpy() for row in rows])  # type: ignore[union-attr]
    labels, folds = _labels(videos, rows), _folds(given, videos, rows, config)
    fitted = fit_probe(features, labels, folds, progress=config.progress)
    seconds = {"features": round(featured - start, 1), "fit": round(perf_counter() - featured, 1)}
    answers = _answers(videos, found, fitted, rows)
    results = _results(config, labels, folds, fitted, seconds)
    results |= {"num_failed": len(found) - len(rows), "device": describe_device(engine.device)}
    probe = _described(config, pipeline, fitted, names)
    probe.save(out / "probe.safetensors", results)
    lines = prediction_lines(answers, baseline=False, class_names=names)
    atomic_write(out / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
    matrix = answer_matrix([answer for answer in answers if answer.error is None])
    written = write_classes(out, matrix, names, title=f"{backbone_said(config.backbone)} + probe, held out")
    atomic_write(out / "probe.json", to_json(results))
    files = [out / name for name in ("probe.safetensors", "probe.json", "predictions.jsonl")]
    return ProbeRun(results, matrix, names, [*files, *written])


def _check(config: TrainRunConfig, ranks: Ranks) -> None:
    """Refuses what cannot be right before anything is read."""
    check_installed()
    if ranks.size > 1:
        raise ConfigError("train.target=probe: runs in one process; start it without torchrun")
    if config.pruner.name == FITTED or config.backbone.name == PROBE:
        raise ConfigError(
            f"backbone={config.backbone.name}, pruner={config.pruner.name}: name what a probe is fitted on"
        )
    if config.backbone.weights is None:
        raise ConfigError(
            "backbone.weights is not set: a probe needs trained features; give a file, a bundled name, org/name of the "
            "Hub, or pretrained for a model of timm"
        )


def _readable(videos: VideoList, found: Sequence[Tensor | str]) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes, and the rows with features.

    Raises DataError: a class has none.
    """
    count = build.count_classes(videos)
    names = videos.class_names or tuple(str(label) for label in range(count))
    rows = [row for row, features in enumerate(found) if isinstance(features, Tensor)]
    failed = [(videos.records[row].name, why) for row, why in enumerate(found) if isinstance(why, str)]
    known = {videos.records[row].label for row in rows}
    for label, name in enumerate(names):
        if label not in known:
            because = f"; the first that cannot be read: {': '.join(failed[0])}" if failed else ""
            raise DataError(f"class {name!r} has no video that can be read{because}")
    if failed:
        warn(
            f"{len(failed)} of {len(found)} videos cannot be read and are left out, e.g. {': '.join(failed[0])}"
        )
    return names, rows


def _labels(videos: VideoList, rows: Sequence[int]) -> np.ndarray:
    return np.array([videos.records[row].label for row in rows])


def _folds(
    given: tuple[list[str] | None, list[str] | None],
    videos: VideoList,
    rows: Sequence[int],
    config: TrainRunConfig,
) -> np.ndarray:
    """The fold of each of these videos: the table's, or drawn.

    Raises DataError: there is one class, or one fold.
    """
    labels = _labels(videos, rows)
    if len(set(labels)) < 2:
        raise DataError("all videos are of one class: a classifier needs two or more, a folder for each")
    folds, groups = ([kind[row] for row in rows] if kind is not None else None for kind in given)
    if folds is None:
        known = None if groups is None else np.unique(groups, return_inverse=True)[1]
        return draw_folds(labels, known, config.probe.num_folds, seed=config.seed)
    numbers = np.unique(folds, return_inverse=True)[1]
    if numbers.max() < 1:
        raise DataError(f"probe.folds={config.probe.folds}: all videos are in one fold; two are needed")
    return numbers


def _answers(
    videos: VideoList, found: Sequence[Tensor | str], fitted: Fitted, rows: list[int]
) -> list[VideoAnswer]:
    """The held-out answer to each video."""
    said = dict(zip(rows, torch.from_numpy(fitted.held_out), strict=True))
    made = []
    for row, record in enumerate(videos.records):
        if row not in said:
            made.append(VideoAnswer(record.name, record.label, error=str(found[row]), index=row))
            continue
        best = said[row].topk(min(5, len(said[row])))
        top, values = tuple(best.indices.tolist()), tuple(best.values.tolist())
        made.append(VideoAnswer(record.name, record.label, top5=top, probs_top5=values, index=row))
    return made


def _results(
    config: TrainRunConfig, labels: np.ndarray, folds: np.ndarray, fitted: Fitted, seconds: dict[str, float]
) -> dict[str, Any]:
    accuracy = 100 * float((fitted.held_out.argmax(1) == labels).mean())
    return {
        "top1_held_out": accuracy,
        "top1_standard_error": standard_error(accuracy, len(labels)),
        "num_videos": len(labels),
        "num_features": fitted.weight.shape[1],
        "folds": np.bincount(folds).tolist(),
        "folds_from": config.probe.folds or "drawn by class",
        "strength": fitted.strength,
        "log_likelihood": {str(strength): value for strength, value in fitted.likelihoods.items()},
        "seconds": seconds,
        "dataset": config.dataset.name,
        "backbone": backbone_said(config.backbone),
        "weights": config.backbone.weights,
        "pruner": pruner_said(config.pruner),
        "seed": config.seed,
        "versions": versions("scikit-learn"),
        "command": command_line(),
    }


def _described(config: TrainRunConfig, pipeline: Pipeline, fitted: Fitted, names: tuple[str, ...]) -> Probe:
    backbone = {key: value for key, value in config.backbone.options.items() if value}
    pruner = {"name": config.pruner.name, **config.pruner.options}
    if pruner.get("weights") is not None:
        pruner["weights"] = _located(pruner["weights"])
    return Probe(
        fitted.weight,
        fitted.bias,
        names,
        {"name": config.backbone.name, **backbone, "weights": _located(str(config.backbone.weights))},
        checksum(pipeline.backbone),
        _reading(config.dataset, pipeline.backbone),
        pruner,
    )


def _reading(dataset: DatasetConfig, backbone: Encoder) -> ReadConfig:
    """How the clips were read; `dataset` has its keys filled in."""
    short_side = dataset.short_side or backbone.short_side or min(backbone.frame_size)
    colors = {"mean": backbone.mean, "std": backbone.std}
    return read_config(dataset, backbone.num_frames, backbone.input_size, short_side=short_side, **colors)


def _located(weights: str) -> str:
    """A path that holds from every folder; names stay as they are."""
    path = Path(weights).expanduser()
    return str(path.resolve()) if path.exists() else weights
