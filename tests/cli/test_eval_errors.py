"""What `tools/eval.py` says when it is used wrongly: one line, exit status 2, no stack trace."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from video_papr.assembly import evaluate
from video_papr.cli.eval import main
from video_papr.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_an_output_dir_that_cannot_be_made_is_one_line(command, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/below", tmp_path / ("x" * 300)):
        status, _, errors = command("dataset.limit=2", f"output_dir={place}")
        assert status == 2
        assert errors.splitlines()[-1].startswith("error: ") and str(place) in errors
        assert "output_dir" in errors and "Traceback" not in errors and errors.count("\n") == 1

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)  # before anything is written
    status, _, errors = command("dataset.limit=2", f"output_dir={tmp_path / 'run'}")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: ") and "No space left on device. Free some space" in errors


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_error_of_the_system_in_the_middle_of_the_work_is_one_line(
    command, tmp_path, monkeypatch, named, wrapped
):
    """Hydra itself would print a line more, with all overrides. pebble raises its own error from that of the system."""
    out, number = tmp_path / "run", errno.EMFILE
    error = OSError(number, os.strerror(number), *(["/some/file"] if named else []))

    def work(*_):
        if wrapped:
            raise RuntimeError("a process broke") from error
        raise error

    monkeypatch.setattr(evaluate, "run_evaluation", work)
    status, _, errors = command(f"output_dir={out}")
    place = "/some/file" if named else out
    told = "Allow more open files (ulimit -n) and run the same command again."
    assert (status, errors) == (2, f"error: {place}: Too many open files. {told}\n")


@pytest.mark.parametrize("side", [10**6, 2**32 - 1])
def test_frames_larger_than_any_memory_are_one_line(command, small, video_root, tmp_path, side):
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", "runtime.workers=0")
    status, _, errors = command(*words, *small, "backbone.weights=null", f"dataset.short_side={side}")
    assert status == 2 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: out of memory (")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_asked_for_and_absent(command, tmp_path):
    status, _, errors = command("runtime=gpu", f"output_dir={tmp_path}")
    assert status == 2
    assert errors.startswith("error: runtime.device='cuda': torch sees no CUDA device")


@pytest.mark.parametrize("words", [("runtime=debug",), ("runtime.debug=true",)])
def test_debug_shows_the_trace(command, words, tmp_path):
    with pytest.raises(ConfigError, match="keep_ratio=0"):
        command(*words, "pruner.keep_ratio=0", f"output_dir={tmp_path}")


def test_variable_of_hydra_shows_the_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["eval.py", "pruner.keep_ratio=0", f"output_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="keep_ratio=0"):
        main()


def test_shim_from_another_directory(tmp_path):
    """A process of its own: tools/eval.py finds its configuration from anywhere."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/eval.py", "dataset=folder", "dataset.root=nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: dataset.root=nowhere")
    assert "Traceback" not in done.stderr


def test_help_answers_with_groups_and_examples(command):
    status, shown, _ = command("--help")
    assert status == 0
    for words in ("dataset=synthetic*", "pruner.keep_ratio=0.3", "Examples:", "python tools/eval.py -m"):
        assert words in shown


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]])
def test_whoever_reads_stdout_may_leave(words, tmp_path):
    """As `--help | head -1` does."""
    script, pipe = [sys.executable, ROOT / "tools/eval.py", *words], subprocess.PIPE
    with subprocess.Popen(script, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_compiler_absent(command, small, video_root, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(self, *args, **options):
        def forward(*inputs, **named):
            raise InvalidCxxCompiler

        self.forward = forward

    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *small)
    status, _, errors = command(*words, "runtime.compile=true")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: runtime.compile: torch.compile does not work here (")
