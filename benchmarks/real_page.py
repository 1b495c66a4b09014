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

    def compared(self, first: str, second: str) -> PairedComparison:
        """How much the second loses against the first, video by video."""
        return compare_paired(_rankings(self.runs[first]), _rankings(self.runs[second]), self.labels)


def _rankings(answers: list[int | None]) -> list[list[int] | None]:
    return [None if answer is None else [answer] for answer in answers]


def read_answers(folder: Path) -> Answers:
    """A folder that `gather` wrote."""
    with lzma.open(folder / "answers.csv.xz", "rt", encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    columns = list(zip(*lines, strict=True))
    runs = {
        name: [int(cell) if cell else None for cell in column]
        for name, column in zip(header[2:], columns[2:], strict=True)
    }
    results = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in runs}
    return Answers(list(columns[0]), [int(label) for label in columns[1]], runs, results)


def gather(name: str, runs: Mapping[str, Path]) -> None:
    """Writes the answers of runs, and their results.json or probe.json, by label into one folder of `RESULTS`."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[tuple[str, int], int | None]] = {}
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
    (folder / "answers.csv.xz").write_bytes(lzma.compress(text.getvalue().encode(), preset=9))


def table(answers: Answers) -> str:
    """The table of one folder: losses with the standard error of the paired difference."""
    rows = []
    for run, results in answers.results.items():
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
                f"{results['gmacs_per_view']['total']:.2f}" if "gmacs_per_view" in results else "",
            ]
        )
    return Table(HEADER, rows).filled().markdown()


def with_tables(page: str) -> str:
    """The page with the table of every folder that it names, between its two comments."""
    for folder in sorted(path.parent for path in RESULTS.glob("*/answers.csv.xz")):
        begin, end = f"<!-- {folder.name}: by benchmarks/real_page.py -->", f"<!-- end of {folder.name} -->"
        if begin in page:
            before, _, rest = page.partition(begin)
            page = f"{before}{begin}\n\n{table(read_answers(folder))}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    if sys.argv[1:2] == ["gather"]:
        gather(sys.argv[2], {word.partition("=")[2]: Path(word.partition("=")[0]) for word in sys.argv[3:]})
    else:
        PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
