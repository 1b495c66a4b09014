"""Reads finished evaluations back: `results.json` and `predictions.jsonl` of any set of run directories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core.errors import DataError

Video = tuple[str, str]  # the split that a video belongs to, and its path in it
DENSE = "dense"  # the method that keeps every token and merges none
# Keys along which a method draws its curve, or that make it the same method again.
CURVE = {
    "keep_ratio",
    "mass",
    "top_p",
    "threshold",
    "tau",
    "deviations",
    "min_keep",
    "max_keep",
    "seed",
    "r",
    "name",
}
NEEDED = {"dataset", "pruner", "keep_ratio", "backbone", "views", "gmacs_per_view", "latency_ms"}


@dataclass(frozen=True)
class Answer:
    """What one run said about one video; None = no answer (failed, missing, or no dense baseline in the run)."""

    label: int | None
    pred: int | None
    dense_pred: int | None

    @property
    def correct(self) -> bool:
        return self.pred is not None and self.pred == self.label

    @property
    def dense_correct(self) -> bool:
        return self.dense_pred is not None and self.dense_pred == self.label


@dataclass(frozen=True)
class Run:
    """One finished evaluation.

    Attributes:
        results: the content of results.json.
        has_dense: the run holds the dense model's answers too.
        class_names: of the classes that occur, where the run knows names.
        variant: keys that tell it from other runs of its method, see `named_apart`.
    """

    directory: Path
    results: Mapping[str, Any]
    answers: Mapping[Video, Answer]
    has_dense: bool
    class_names: Mapping[int, str] = field(default_factory=dict)
    variant: str = ""

    @property
    def method(self) -> str:
        """The pruner, and what else was done to the tokens: "x3d_s", "x3d_s (mass)", "dense + tome r=16"."""
        return " ".join(filter(None, (self.plain_method, self.variant)))

    @property
    def dtype(self) -> str:
        """The precision: "fp32", "bf16" or "fp16"."""
        return str(self.results.get("dtype", "fp32"))

    @property
    def plain_method(self) -> str:
        """`method` without what tells it from others of its kind."""
        pruner, merger = self._settings("pruner"), self._settings("merger")
        name = DENSE if self.results["pruner"] == "none" else str(self.results["pruner"])
        kind = pruner.get("budget", pruner.get("mode"))
        name += f" ({kind})" if kind not in (None, "fixed", "ratio") else ""
        joined = merger.get("name", "none") != "none"
        return name + (f" + {merger['name']} r={merger.get('r')}" if joined else "")

    @property
    def kept(self) -> float:
        """The share of the tokens, as it was asked for; that which was kept where the clips decide, to two digits."""
        if self.results["pruner"] == "none":  # whatever ratio a sweep over all pruners gave it
            return 1.0
        variable = self.plain_method.endswith(")") or "keep_ratio" not in self._settings("pruner")
        share = self.results["keep_ratio"]
        return round(float(share), 2) if variable else float(self._settings("pruner")["keep_ratio"])

    def _settings(self, group: str) -> Mapping[str, Any]:
        return (self.results.get("settings") or {}).get(group) or {}

    @property
    def setting(self) -> tuple[str, ...]:
        """What must agree for two runs to be compared: dataset, backbone with its weights, views."""
        weights = (self.results.get("weights") or {}).get("backbone")
        camera = self._settings("dataset").get("camera", "mixed")  # the only one of older runs
        dataset = self.results["dataset"] + ("" if camera == "mixed" else f" ({camera})")
        return (dataset, self.results["backbone"], str(weights), str(self.results["views"]))


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Reads every run at or below the given directories (a sweep holds one directory per job), in sorted order.

    Raises DataError: a path is not there or holds no finished run, or a file of a run is damaged.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path} is no directory; give the output_dir of an evaluation or of a sweep")
        files = sorted(path.rglob("results.json"))
        if not files:
            raise DataError(f"{path} holds no results.json; an evaluation writes it when it ends")
        for file in files:
            found[file.parent.resolve()] = read_run(file.parent)
    return list(found.values())


def read_run(directory: Path) -> Run:
    """Reads one run.

    Raises DataError: a file is absent or damaged.
    """
    results = _json(directory / "results.json", (directory / "results.json").read_text(encoding="utf-8"))
    lacking = sorted(NEEDED - results.keys())
    if lacking:
        raise DataError(f"{directory / 'results.json'} lacks {', '.join(lacking)}")
    file = directory / "predictions.jsonl"
    try:
        # Not splitlines: names may hold other line breaks.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError:
        raise DataError(f"{file} is missing; a report needs the answers video by video") from None
    split = f"{results['dataset']} seed {results.get('dataset_seed')}"
    rows = [_json(f"{file}:{number}", line) for number, line in enumerate(lines, 1)]
    try:
        answers = {
            (split, row["path"]): Answer(row["label"], row["pred"], row.get("baseline_pred")) for row in rows
        }
    except KeyError as error:
        raise DataError(f"{file}: a line lacks {error}") from None
    names = {row[of]: row[f"{of}_name"] for row in rows for of in ("label", "pred") if row.get(f"{of}_name")}
    return Run(directory, results, answers, any("baseline_pred" in row for row in rows), names)


def with_dense(runs: list[Run]) -> list[Run]:
    """Gives every run the dense answers that another one holds; a dense model that is only a baseline becomes a run.

    Runs whose dense answers are nowhere to be found stay as they are.
    """
    runs = [*runs, *_baselines(runs)]
    dense = {  # a precision of its own: a loss is that of pruning alone
        (run.setting, run.dtype, video): answer
        for run in runs
        if _is_dense(run)
        for video, answer in run.answers.items()
    }

    def paired(run: Run) -> Run:
        keys = [(run.setting, run.dtype, video) for video in run.answers]
        if run.has_dense or not all(key in dense for key in keys):
            return run
        answers = {
            video: Answer(answer.label, answer.pred, dense[run.setting, run.dtype, video].pred)
            for video, answer in run.answers.items()
        }
        return replace(run, answers=answers, has_dense=True)

    return [paired(run) for run in runs]


def named_apart(runs: list[Run]) -> list[Run]:
    """Tells runs of one method apart that were set differently: "papr_plus stages=res4" beside "papr_plus".

    A key is named where its value is not the most common one of the method; where two are equally common, on all runs.
    Without this, the settings of an ablation would look like seeds of one method.
    """
    own: dict[str, list[Run]] = {}
    for run in runs:
        own.setdefault(run.plain_method, []).append(run)
    usual = {base: _usual(group) for base, group in own.items()}
    return [replace(run, variant=_variant(run, usual[run.plain_method])) for run in runs]


def twin_key(run: Run) -> tuple[object, ...]:
    """What two runs share that differ in precision alone; seeds of random pruners count too."""
    settings = {**run._settings("merger"), **run._settings("pruner"), "seed": run.results.get("seed")}
    split = (run.results.get("dataset_seed"), run.setting)
    return (
        run.plain_method,
        run.kept,
        split,
        tuple(sorted((key, _text(value)) for key, value in settings.items())),
    )


def _usual(group: list[Run]) -> dict[str, str | None]:
    """The most common value of each key that differs within a method; None where there is no such value."""
    found: dict[str, Counter[str]] = {}
    for run in group:
        for key, value in _keys(run).items():
            found.setdefault(key, Counter())[value] += 1
    ranked = {key: counts.most_common(2) for key, counts in found.items() if len(counts) > 1}
    return {key: first[0] if first[1] > second[1] else None for key, (first, second) in ranked.items()}


def _variant(run: Run, usual: Mapping[str, str | None]) -> str:
    own = _keys(run)
    return " ".join(f"{key}={own[key]}" for key in usual if key in own and own[key] != usual[key])


def _keys(run: Run) -> dict[str, str]:
    """What else was set, as text: those of the merger first, and the precision last."""
    both = {**run._settings("merger"), **run._settings("pruner"), "dtype": run.dtype}
    return {key: _text(value) for key, value in both.items() if key not in CURVE}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _baselines(runs: list[Run]) -> list[Run]:
    """The dense model as a run of its own, once for each split on which only baselines of pruned runs show it."""
    shown = {(run.setting, run.dtype, video) for run in runs if _is_dense(run) for video in run.answers}
    made = []
    for run in runs:
        keys = {(run.setting, run.dtype, video) for video in run.answers}
        if run.results.get("baseline") and not keys <= shown:
            answers = {v: Answer(a.label, a.dense_pred, a.dense_pred) for v, a in run.answers.items()}
            settings = {"dataset": run._settings("dataset")}  # the same videos, nothing done to their tokens
            results = {**run.results, **run.results["baseline"], "settings": settings}
            made.append(replace(run, results=results, answers=answers, has_dense=True))
            shown |= keys
    return made


def _is_dense(run: Run) -> bool:
    return run.method == DENSE


def _json(where: str | Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is no JSON object")
    return value
