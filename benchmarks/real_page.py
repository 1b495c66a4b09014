"""Real data in docs/results.md: gathers the answers of evaluations, and writes the tables that they give.

    python benchmarks/real_page.py gather NAME RUN=LABEL ...    # evaluations, probes -> benchmarks/results/NAME
    python benchmarks/real_page.py                              # benchmarks/results/*/answers.csv.xz -> docs/results.md

`answers.csv.xz` has one line per video: its path, its label, and the class that each run answered, empty where
it failed. With it every accuracy and every paired error of the tables can be computed again.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_papr.core.tables import Table
from video_papr.evaluation.metrics import PairedComparison, compare_paired, percent_correct

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
HEADER = ["run", "top-1, %", "loss, points", "agreement, %", "more than random, points", "tokens", "GMACs"]
DENSE = "dense"
FILE = "answers.csv.xz"
STUDY = "study.md"  # of benchmarks/imagenette_study.py


@dataclass(frozen=True)
class Answers:
    """What several runs answered on the same videos.

    Attributes:
        paths, labels: of the videos.
        runs: label of a run -> its class for each video, None where it has none.
        results: label of a run -> its results.json, or of a probe, whose answers are held-out ones, its probe.json.
    """

    paths: list[str]
    labels: list[int]
    runs: dict[str, list[int | None]]
    results: dict[str, dict[str, Any]]

    def top1(self, run: str) -> float:
        """In percent of all videos."""
        return percent_correct(_rankings(self.runs[run]), self.labels)

    def gmacs(self, run: str) -> float:
        """Of a view, scorer included; 0 where nobody counted."""
        found = self.results[run].get("gmacs_per_view")
        return found["total"] if found else 0.0

    def compared(self, first: str, second: str) -> PairedComparison:
        """How much the second loses against the first, video by video."""
        return compare_paired(_rankings(self.runs[first]), _rankings(self.runs[second]), self.labels)


def _rankings(answers: list[int | None]) -> list[list[int] | None]:
    return [None if answer is None else [answer] for answer in answers]


def read_answers(folder: Path) -> Answers:
    """A folder that `gather` wrote."""
    with lzma.open(folder / FILE, "rt", encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    columns = list(zip(*lines, strict=True))
    runs = {
        name: [int(cell) if cell else None for cell in column]
        for name, column in zip(header[2:], columns[2:], strict=True)
    }
    results = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in runs}
    return Answers(list(columns[0]), [int(label) for label in columns[1]], runs, results)


def gather(name: str, runs: Mapping[str, Path]) -> None:
    """Writes the answers of runs, and their results.json or probe.json, by label into one folder of `RESULTS`.

    What the folder holds of other runs stays.
    """
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[tuple[str, int], int | None]] = {}
    if (folder / FILE).exists():
        known = read_answers(folder)
        videos = list(zip(known.paths, known.labels, strict=True))
        found = {label: dict(zip(videos, answers, strict=True)) for label, answers in known.runs.items()}
    for label, run in runs.items():
        lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
        found[label] = {(line["path"], line["label"]): line["pred"] for line in lines}
        (source,) = (path for path in (run / "results.json", run / "probe.json") if path.exists())
        (folder / f"{label}.json").write_bytes(source.read_bytes())
    videos = sorted(next(iter(found.values())))
    if any(sorted(answers) != videos for answers in found.values()):
        raise SystemExit("the runs answered different videos")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", *found])
    writer.writerows([*video, *(answers[video] for answers in found.values())] for video in videos)
    (folder / FILE).write_bytes(lzma.compress(text.getvalue().encode(), preset=9))


def table(answers: Answers) -> str:
    """The table of one folder: losses with the standard error of the paired difference, the most operations first."""
    rows = []
    for run in sorted(answers.runs, key=lambda run: -answers.gmacs(run)):
        results = answers.results[run]
        loss = None if run == DENSE else answers.compared(DENSE, run)
        control = re.sub(r"^.*? (?=\d)", "random ", run)  # at the same keep ratio
        ahead = answers.compared(run, control) if control in answers.runs and control != run else None
        rows.append(
            [
                run,
                f"{answers.top1(run):.2f}",
                "" if loss is None else f"{loss.loss_points:.2f} ± {loss.loss_standard_error:.2f}",
                "" if loss is None else f"{loss.agreement_percent:.1f}",
                "" if ahead is None else f"{ahead.loss_points:.2f} ± {ahead.loss_standard_error:.2f}",
                f"{results['mean_kept_tokens']:.0f}" if "mean_kept_tokens" in results else "",
                f"{answers.gmacs(run):.2f}" if answers.gmacs(run) else "",
            ]
        )
    return Table(HEADER, rows).filled().markdown()


LINES = ("lite0", "ToMe", "lite0 0.5 + ToMe", "center", "random", "uniform", "similarity", "brightness")


def plot(answers: Answers, path: Path) -> None:
    """Top-1 against operations, a line for each of `LINES`, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axhline(
        answers.top1(DENSE), color="black", linewidth=1, label=f"dense, {answers.gmacs(DENSE):.1f} GMACs"
    )
    for name, color in zip(LINES, ("C0", "C3", "C4", "C8", "C7", "C1", "C2", "C5"), strict=True):
        runs = [run for run in answers.runs if re.fullmatch(rf"{re.escape(name)}(, r)? [\d.]+", run)]
        runs.sort(key=answers.gmacs)
        top1 = [answers.top1(run) for run in runs]
        wide = [1.96 * answers.compared(DENSE, run).loss_standard_error for run in runs]
        axes.errorbar(
            [answers.gmacs(run) for run in runs], top1, wide, label=name, color=color, marker="o", capsize=3
        )
    axes.set(xlabel="GMACs per picture, scorer included", ylabel="top-1, %", ylim=(30, 101))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def with_tables(page: str) -> str:
    """The page with the table of every folder that it names, between its two comments."""
    for folder in sorted({path.parent for path in (*RESULTS.glob(f"*/{FILE}"), *RESULTS.glob(f"*/{STUDY}"))}):
        begin, end = f"<!-- {folder.name}: by benchmarks/real_page.py -->", f"<!-- end of {folder.name} -->"
        if begin in page:
            study = folder / STUDY
            shown = study.read_text("utf-8").strip() if study.exists() else table(read_answers(folder))
            before, _, rest = page.partition(begin)
            page = f"{before}{begin}\n\n{shown}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    if sys.argv[1:2] == ["gather"]:
        gather(sys.argv[2], {word.partition("=")[2]: Path(word.partition("=")[0]) for word in sys.argv[3:]})
    else:
        PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
        plot(read_answers(RESULTS / "imagenette"), PAGE.parent / "images" / "imagenette.png")


if __name__ == "__main__":
    main()
