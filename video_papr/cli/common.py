"""What commands share: one-line errors, the summary of a sweep, a word on the bundled weights.

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
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..config import COMMANDS, PredictConfig, check, plain
from ..config.hydra import command_help, explain, plain_words
from ..config.sources import config_source
from ..core.console import Terminal, fail, make_console, warn
from ..core.errors import ConfigError, RankError, StorageError, VideoPaprError
from ..core.files import system_cause
from ..core.processes import ALONE, Ranks, join, refuse_ranks

BUNDLED = "videomae_tiny_synthetic"  # backbone.weights of dataset=synthetic
USAGE_ERROR = 2  # exit status when the user can mend it
FULL_ERROR = "HYDRA_FULL_ERROR"
_SPACE = "Free some space and run the same command again."
_PLACE = "Check the path; output_dir must be a folder that can be made and written."
_HANDLES = "Allow more open files (ulimit -n) and run the same command again."
SYSTEM_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _HANDLES),
}
Work = Callable[[Any, Path], "dict[str, Any] | float"]  # (checked configuration, run directory) -> results


def run_shared_command(name: str, work: Callable[[Any, Path, Ranks], Any]) -> None:
    """Like `run_command`, for work that several ranks can share (`torchrun tools/...`); see `core.processes`.

    Only rank 0 reads the command line; the others do as they are told.
    """
    try:
        with join() as ranks:
            follow_or_lead = run_command if ranks.rank == 0 else _follow
            follow_or_lead(name, lambda config, out: work(config, out, ranks), ranks)
    except RankError as error:
        fail(error)
        sys.exit(USAGE_ERROR)


def _follow(name: str, work: Work, ranks: Ranks) -> None:
    """The jobs that rank 0 gives. What is said along the way goes to a file, but for the error that ends it."""
    try:
        while ranks.receive():
            out = Path(ranks.job["out"])
            with _into(out, f"rank_{ranks.rank}.log"):
                work(check(COMMANDS[name], ranks.job["config"]), out)
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

    Raises StorageError: this machine does not see the directory, or cannot write there.
    """
    try:
        file = (out / name).open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise StorageError(
            f"output_dir={out}: {error.strerror}; all machines of a run must share it, and may write there"
        ) from error
    with file, redirect_stdout(file), redirect_stderr(file):
        yield


def run_command(name: str, work: Work, ranks: Ranks = ALONE) -> None:
    """Composes `conf/<name>.yaml` with the command line, checks it and runs `work(configuration, run directory)`.

    An error that the user can mend becomes one line, and exit status 2; `runtime=debug` or HYDRA_FULL_ERROR=1 show its
    stack trace instead. In a sweep the other jobs go on; see `SweepSummary`.

    Args:
        ranks: those that share the work; this one leads them.
    """
    before = os.environ.get(FULL_ERROR)
    trace = before == "1" or bool({"runtime=debug", "runtime.debug=true"} & set(sys.argv[1:]))
    os.environ[FULL_ERROR] = "1"  # meanwhile: Hydra then hands on errors instead of printing traces

    @hydra.main(config_path=config_source(), config_name=name, version_base="1.3")
    def job(cfg: DictConfig) -> dict[str, Any] | float | str:
        state = HydraConfig.get()
        out = Path(state.runtime.output_dir)
        try:
            if ranks.size > 1:
                ranks.job = {"config": plain(cfg), "out": str(out)}
            with _one_line(out):
                return work(check(COMMANDS[name], cfg), out)
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
        words = plain_words(name, sys.argv[1:])
        if (text := command_help(name, words)) is not None:
            return print(text, flush=True)
        sys.argv[1:] = sorted(words, key=lambda word: word not in ("-m", "--multirun"))
        refuse_ranks(name, ranks, sys.argv[1:])
        job()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever reads stdout has seen enough: `--help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        line = explain(error) or system_error(error)
        if trace or line is None:
            raise
        fail(line)
        sys.exit(USAGE_ERROR)
    finally:
        if before is None:
            del os.environ[FULL_ERROR]


@contextmanager
def _one_line(out: Path) -> Iterator[None]:
    """Makes an error of the operating system, or memory that runs out, one of ours.

    Raises StorageError or ConfigError.
    """
    try:
        yield
    except VideoPaprError:
        raise
    except Exception as error:
        from ..evaluation.memory import out_of_memory

        if reason := out_of_memory(error):
            raise ConfigError(
                f"out of memory ({reason}); use fewer or smaller frames, a smaller batch or a smaller model"
            ) from error
        if line := system_error(error, str(out)):
            raise StorageError(line) from error
        raise


@contextmanager
def json_on_stdout(asked: bool, file: Path) -> Iterator[None]:
    """With `--json` all that is printed goes to stderr, and the content of a file to stdout when it is written."""
    if not asked:
        yield
        return
    ended: SystemExit | None = None
    with redirect_stdout(sys.stderr):
        try:
            yield
        except SystemExit as status:  # there are answers, but not for every video
            ended = status
    text = file.read_text(encoding="utf-8", errors="backslashreplace")
    sys.stdout.write(text if file.suffix == ".jsonl" else json.dumps(json.loads(text)) + "\n")
    if ended is not None:
        raise ended


def print_written(paths: Iterable[Path], console: Terminal | None = None) -> None:
    """Says where the files of a run are."""
    console = console or make_console()
    for path in paths:
        console.print(f"wrote {path}")


def system_error(error: Exception, out: str = "output_dir") -> str | None:
    """One line for an error of the operating system, such as a full disk; None for any other.

    Args:
        out: what is named where the system names no file.
    """
    cause = system_cause(error)
    if cause is None or cause.errno is None:
        return None
    return f"{cause.filename or out}: {cause.strerror}. {SYSTEM_ERRORS.get(cause.errno, _PLACE)}"


def warn_of_bundled(config: PredictConfig) -> None:
    """The bundled weights have an answer to everything."""
    if config.backbone.weights == BUNDLED:
        warn(
            f"backbone.weights={BUNDLED} knows the synthetic actions only and calls any video one of them; for others "
            "use dataset=k400, which downloads weights once, or give backbone= and backbone.weights="
        )
