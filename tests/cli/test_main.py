"""`video-papr` lists and starts every command, and its `--help` is quick."""

import json
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from video_papr.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def video_papr(run_in_process):
    """A function (words) -> exit status, stdout, stderr that runs `video-papr`."""
    return partial(run_in_process, "video-papr", main)


def test_every_script_is_a_command():
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "tools").glob("*.py")}
    assert scripts <= set(COMMANDS), (
        "a new script in tools/ needs a line in COMMANDS of video_papr/cli/main.py"
    )
    for name in COMMANDS:
        module = import_module(f"video_papr.cli.{name.replace('-', '_')}")
        assert callable(module.main)


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), (["help"], 0), ([], 2)])
def test_help_lists_the_commands_with_a_line_each(video_papr, words, status):
    code, shown, errors = video_papr(*words)
    assert (code, errors) == (status, "")
    listed = shown.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(what) for line, what in zip(listed, COMMANDS.values(), strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(video_papr, name):
    code, shown, _ = video_papr(name, "--help")
    assert code == 0
    assert "usage:" in shown


def test_unknown_command_is_one_line(video_papr):
    code, shown, errors = video_papr("evel", "pruner=none")
    assert (code, shown) == (2, "")
    assert errors.startswith("error: evel: no such command. Did you mean 'eval'? Commands: eval, ")
    assert errors.count("\n") == 1


def test_command_runs_with_its_words(video_papr, video_root, small, tmp_path):
    folder = ("dataset=folder", f"dataset.root={video_root}", "runtime.workers=0", "baseline=false")
    code, _, errors = video_papr("eval", *small, *folder, "visualize=0", f"output_dir={tmp_path / 'out'}")
    assert code == 0, errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_evaluated"] == 5
    assert results["command"].startswith("video-papr eval backbone.num_frames=4 ")


@pytest.mark.parametrize("name", ["prepare-data", "prepare_data"])
def test_both_spellings_and_the_exit_status_of_the_command(video_papr, name):
    code, _, errors = video_papr(name, "dataset=folder")
    assert code == 2
    assert errors == "error: dataset.root is not set: dataset=folder needs dataset.root=PATH.\n"


def test_version(video_papr):
    import video_papr as package

    assert video_papr("--version") == (0, f"video-papr {package.__version__}\n", "")


def test_module_is_the_same_command():
    """And it answers without torch, which takes seconds to import."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['video-papr', '--help']; "
        "runpy.run_module('video_papr', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "prepare-data" in done.stdout
