"""`python tools/eval.py`: accuracy, cost and speed of a pruned video transformer beside the dense one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EvalConfig
from ..core.console import make_console, warn
from ..core.errors import ConfigError, DataError, LogitsError, check_known
from ..core.processes import Ranks
from ..evaluation.reports.tables import SWEEP_COLUMNS, print_failures, print_report
from .common import json_on_stdout, print_written, run_shared_command

if TYPE_CHECKING:
    from ..assembly.evaluate import EvaluationRun


def main() -> None:
    """Entry point of the command."""
    run_shared_command("eval", _work)


def _work(config: EvalConfig, out: Path, ranks: Ranks) -> dict[str, Any] | float:
    """The content of results.json, or with `optimize` the one figure that a sweeper asks for."""
    from ..assembly.evaluate import run_evaluation

    wanted = config.optimize
    if wanted is not None:
        check_known("optimize", wanted, SWEEP_COLUMNS)
    done = run_evaluation(config, out, ranks)
    if done is None:  # on ranks above 0
        return {}
    with json_on_stdout(config.json, out / "results.json"):
        _print(done)
    if wanted is None:
        return done.results
    figure = SWEEP_COLUMNS[wanted](done.results)
    if figure is None:
        raise ConfigError(f"optimize={wanted}: this run has no such figure.")
    return float(figure)


def _print(done: EvaluationRun) -> None:
    """The table, where the time went, where the files are, and what went wrong.

    Raises:
        LogitsError: logits are not finite.
        DataError: there is no answer at all.
    """
    from ..evaluation.answers import NOT_FINITE
    from ..evaluation.reports.confusion import answer_matrix, confusion_table

    console = make_console()
    print_report(done.results, console, num_classes=done.num_classes)
    table = confusion_table(answer_matrix(done.evaluation.answers), dict(enumerate(done.class_names or ())))
    if table is not None:
        table.print(console)
    if done.profile is not None:
        from ..evaluation.profile import print_profile

        print_profile(done.profile, console)
    answers = done.evaluation.answers
    print_failures([(answer.name, answer.error) for answer in answers if answer.error], console)
    broken = [answer for answer in answers if answer.error == NOT_FINITE]
    failed = [
        answer for answer in done.evaluation.failed if answer.label is not None and answer not in broken
    ]
    missing = [answer for answer in answers if answer.label is None]
    if failed:
        warn(
            f"{len(failed)} of {len(answers)} videos failed and count as wrong; the first: {failed[0].error}"
        )
    if missing:
        warn(
            f"{len(missing)} of {len(answers)} videos are missing and count as wrong; the first: {missing[0].name}"
        )
    print_written(done.written, console)
    if broken:
        raise LogitsError(
            f"logits of {len(broken)} of {len(answers)} videos are not finite (first: {broken[0].name}), so they count "
            "as failed; check backbone.weights and pruner.weights, or use runtime.dtype=fp32 where it is fp16"
        )
    if done.evaluation.dense is not None and any(a.top5 and a.baseline_top5 is None for a in answers):
        raise LogitsError(
            "logits of the dense model are not finite; check backbone.weights and runtime.dtype"
        )
    if not done.results["num_evaluated"]:
        raise DataError(f"no video of {done.root} could be read; the reasons are in {done.written[1]}")
