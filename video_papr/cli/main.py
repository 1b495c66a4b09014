"""`video-papr COMMAND ...`: every script of tools/ under one name, also where only the package is installed.

`python -m video_papr COMMAND ...` is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from ..core.errors import did_you_mean
from .common import USAGE_ERROR

PROGRAM = "video-papr"

# command -> what it does; `a-b` is `main` of the module a_b beside this one, and tools/a_b.py
COMMANDS = {
    "eval": "accuracy, cost and speed of a pruned video transformer beside the dense one",
    "predict": "what happens in videos, when, and which of their tubelets were read",
    "train": "train a backbone, or an X3D that scores tubelets",
    "depth-prune": "remove or merge blocks of a trained backbone or scorer (UPDP)",
    "bench": "speed and memory of dense and pruned models, and of what a user would take instead",
    "report": "one report over any set of finished evaluations",
    "export": "a pipeline as one ONNX, torch.export or AOTInductor file, checked against PyTorch",
    "demo": "a page in the browser: dense and pruned side by side, on this machine",
    "prepare-data": "check the videos of a dataset and write an index, before a long run",
}


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `video-papr`: hands the words behind the command's name to the command.

    Args:
        words: the command line without the program's name; None: that of the process.
    """
    given = sys.argv[1:] if words is None else list(words)
    if not given or given[0] in ("-h", "--help", "help"):
        print(help_text())
        sys.exit(0 if given else USAGE_ERROR)
    if given[0] == "--version":
        print(f"{PROGRAM} {version('video_papr')}")
        return
    command = given[0].replace("_", "-")
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"error: {given[0]}: no such command.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    sys.argv = [f"{PROGRAM} {command}", *given[1:]]  # Hydra and argparse read it
    import_module(f".{command.replace('-', '_')}", __package__).main()


def help_text() -> str:
    """The list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Video transformers that read only the tubelets that matter.",
            "",
            f"usage: {PROGRAM} COMMAND [group=option ...] [key=value ...]",
            "",
            "Commands:",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` explains one. In a checkout, `python tools/COMMAND.py` is the same.",
        ]
    )
