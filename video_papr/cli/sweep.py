"""Sweeps: the summary of a multirun, as a callback of Hydra."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..core.console import make_console
from ..core.files import atomic_write
from ..evaluation.reports.tables import print_sweep, sweep_files, sweep_row
from .common import USAGE_ERROR, print_written


class SweepSummary(Callback):
    """Collects the jobs of a multirun into summary.json, summary.csv and summary.md in the sweep's directory.

    The files are written after every job, so that an interrupted sweep has them too. A job with an error that the
    user can mend does not end the sweep; the command then exits with status 2 at its end.

    Launchers may run jobs in other processes or on other machines, which share nothing but the sweep's directory. So
    every job leaves its line there, in `.jobs/`.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        for old in _job_lines(Path(config.hydra.sweep.dir)):  # of an earlier sweep into the same directory
            old.unlink()

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        state = config.hydra
        if state.mode != RunMode.MULTIRUN:
            return
        outcome = job_return._return_value  # `return_value` would raise the job's error here
        if isinstance(outcome, float):  # what a sweeper asked for; the rest is in the job's directory
            found = Path(state.runtime.output_dir) / "results.json"
            outcome = json.loads(found.read_text(encoding="utf-8"))
        results = outcome if isinstance(outcome, dict) else None
        error = None if results is not None else " ".join(str(outcome).split())
        overrides = OmegaConf.to_container(state.overrides.task)
        assert isinstance(overrides, list)
        row = sweep_row(int(state.job.num), [str(word) for word in overrides], results, error)
        atomic_write(Path(state.sweep.dir) / ".jobs" / f"{state.job.num}.json", json.dumps(row))
        self._write(Path(state.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        rows = self._rows(directory)
        console = make_console(stderr=bool(config.get("json")))  # its jobs have written theirs to stdout
        print_sweep(rows, console)
        print_written(self._write(directory), console)
        if any(row["error"] is not None for row in rows):
            sys.exit(USAGE_ERROR)

    def _rows(self, sweep_dir: Path) -> list[dict[str, Any]]:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in _job_lines(sweep_dir)]
        return sorted(rows, key=lambda row: row["job"])

    def _write(self, sweep_dir: Path) -> list[Path]:
        paths = []
        for name, text in sweep_files(self._rows(sweep_dir)).items():
            atomic_write(sweep_dir / name, text)
            paths.append(sweep_dir / name)
        return paths


def _job_lines(sweep_dir: Path) -> list[Path]:
    return sorted((sweep_dir / ".jobs").glob("[0-9]*.json"))
