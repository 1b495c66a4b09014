"""What every command shares: one-line errors, and the summary of a sweep.

Nothing heavy is imported here, so `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..config import plain
from ..config.hydra import explain, plain_words
from ..config.sources import config_source
from ..core.console import Terminal, fail, make_console
from ..core.errors import RankError, StorageError, VideoPaprError
from ..core.files import atomic_write
from ..core.processes import ALONE, Ranks, join, refuse_ranks
from ..evaluation.reports.tables import print_sweep, sweep_files, sweep_row

USAGE_ERROR = 2  # exit status when the user can mend it
FULL_ERROR = "HYDRA_FULL_ERROR"


_SPACE = "Free some space and run the same command again."
_PLACE = "Check the path; output_dir must be a folder that can be made and written."
_HANDLES = "Allow more open files (ulimit -n) and run the same command again."
SYSTEM_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _HANDLES),
}
Work = Callable[[DictConfig, Path], "dict[str, Any] | float"]


def run_shared_command(config_name: str, work: Callable[[Ranks, DictConfig, Path], Any]) -> None:
    """Like `run_command`, for work that several ranks can share (`torchrun tools/...`); see `core.processes`.

    Only rank 0 reads the command line; the others do as they are told.
    """
    try:
        with join() as ranks:
            if ranks.rank == 0:
                run_command(config_name, partial(work, ranks), ranks)
            else:
                _follow(ranks, partial(work, ranks))
    except RankError as error:
        fail(error)
        sys.exit(USAGE_ERROR)


def _follow(ranks: Ranks, work: Work) -> None:
    """The jobs that rank 0 gives. What is said along the way goes to a file, but for the error that ends it."""
    try:
        while ranks.receive():
            out = Path(ranks.job["out"])
            with _into(out, f"rank_{ranks.rank}.log"):
                work(DictConfig(ranks.job["config"]), out)
    except RankError:
        raise
    except VideoPaprError as error:
        if ranks.first_to_report():  # some errors are those of all ranks
            fail(f"{ranks}: {error}")
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _into(out: Path, name: str) -> Iterator[None]:
    """Sends what Python prints to a file of the run directory.

    Raises:
        StorageError: this machine does not see the directory, or cannot write there.
    """
    try:
        file = (out / name).open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise StorageError(
            f"output_dir={out}: {error.strerror}; all machines of a run must share it, and may write there"
        ) from error
    with file, redirect_stdout(file), redirect_stderr(file):
        yield


def run_command(config_name: str, work: Work, ranks: Ranks = ALONE) -> None:
    """Composes `conf/<config_name>.yaml` with the command line and runs `work(configuration, run directory)`.

    An error that the user can mend becomes one line, and exit status 2; `runtime=debug` or HYDRA_FULL_ERROR=1 show its
    stack trace instead. In a sweep the other jobs go on; see `SweepSummary`.

    Args:
        ranks: those that share the work; this one leads them.
    """
    before = os.environ.get(FULL_ERROR)
    trace = before == "1" or bool({"runtime=debug", "runtime.debug=true"} & set(sys.argv[1:]))
    os.environ[FULL_ERROR] = (
        "1"  # for as long as this runs: Hydra then hands on errors instead of printing traces
    )

    @hydra.main(config_path=config_source(), config_name=config_name, version_base="1.3")
    def job(cfg: DictConfig) -> dict[str, Any] | float | str:
        state = HydraConfig.get()
        out = Path(state.runtime.output_dir)
        try:
            if ranks.size > 1:
                ranks.job = {"config": plain(cfg), "out": str(out)}
            return work(cfg, out)
        except VideoPaprError as error:
            if trace:
                raise
            if isinstance(error, RankError) or not ranks.busy or ranks.first_to_report():
                fail(error)
            if state.mode == RunMode.MULTIRUN and not ranks.busy:
                return str(error)
            sys.exit(USAGE_ERROR)  # unlike an exception, this passes Hydra without a word

    try:
        # Hydra stops reading overrides at the first flag, so `dataset=folder -m pruner=a,b` would be refused.
        sys.argv[1:] = sorted(
            plain_words(config_name, sys.argv[1:]), key=lambda word: word not in ("-m", "--multirun")
        )
        refuse_ranks(config_name, ranks, sys.argv[1:])
        job()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        line = explain(error) or system_error(error)
        if trace or line is None:
            raise
        fail(line)
        sys.exit(USAGE_ERROR)
    finally:
        if before is None:
            del os.environ[FULL_ERROR]


def print_written(paths: Iterable[Path], console: Terminal | None = None) -> None:
    """Says where the files of a run are."""
    console = console or make_console()
    for path in paths:
        console.print(f"wrote {path}")


def system_error(error: Exception) -> str | None:
    """One line for an error of the operating system, such as a full disk; None for any other."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}. {SYSTEM_ERRORS.get(error.errno, _PLACE)}"


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
        console = make_console()
        directory = Path(config.hydra.sweep.dir)
        rows = self._rows(directory)
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
