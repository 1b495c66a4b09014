"""Every command in the documentation is one that the scripts understand.

A command that reads synthetic videos is run elsewhere in the tests; most need data, weights or a GPU. So here each is
composed and checked, as far as it goes before the first file is opened: groups, options, keys, values.

What cannot be checked has a comment in front of its block: `<!-- not run by the tests: REASON -->`.
"""

from __future__ import annotations

import re
import shlex
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from video_papr.cli.main import COMMANDS
from video_papr.cli.report import build_parser
from video_papr.config import COMMANDS as SCHEMAS
from video_papr.config import check
from video_papr.config.hydra import plain_words

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = r"<!-- not run by the tests: [^>]+ -->\n"
NOT_OURS = {"cd", "curl", "export", "git", "hf", "source", "find", ".venv/bin/pre-commit"}
STAND_INS = {
    "DATA": ["dataset.root=PATH", "dataset.annotations=FILE"],
    "...": ["dataset.root=PATH"],
    "RUN": ["RUN"],
}


class Line(NamedTuple):
    """One command of a page."""

    page: str
    text: str


def commands(page):
    """The commands of the blocks in bash, and those of ours in running text and tables."""
    text = re.sub(
        MARK + r"```\w+\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (Line(page.name, part.strip()) for part in re.split(r"&&|\|", line.split("  #")[0]))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    ours = r"(?:python tools/\w+\.py|video-papr|make)"
    yield from (Line(page.name, found) for found in re.findall(rf"`({ours} [^`]+)`", prose))
    yield from (Line(page.name, found) for found in re.findall(rf"^    ({ours} .+)$", prose, re.MULTILINE))


LINES = [
    line for page in PAGES for line in dict.fromkeys(commands(page)) if line.text and line.text[0] != "#"
]


@pytest.fixture(scope="module")
def own_options(tmp_path_factory):
    """The folder my_conf of the pages, with the files that they show."""
    folder = tmp_path_factory.mktemp("my_conf")
    for page in PAGES:
        for name, body in re.findall(r"^```yaml\n# my_conf/(\S+)\n(.*?)^```", page.read_text(), re.M | re.S):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(body)
    return folder


def one_job(words):
    """The first job of a sweep: `a=1,2` becomes `a=1`."""
    parser = OverridesParser.create()
    chosen = []
    for word in words:
        override = parser.parse_override(word)
        key = word.partition("=")[0]
        first = next(islice(override.sweep_string_iterator(), 1)) if override.is_sweep_override() else None
        chosen.append(word if first is None else f"{key}={first}")
    return chosen


def check_ours(name, words, own_options):
    """Raises where the command would refuse these words."""
    assert name in COMMANDS
    if name == "report":
        build_parser().parse_args(words)
        return
    config_name, overrides, sweep = name.replace("-", "_"), [], False
    rest = iter(words)
    for word in rest:
        if word in ("--help", "-sc", "--cfg") or word.startswith("GROUP"):
            return  # other tests ask for the flags; GROUP stands for any
        if word in ("-m", "--multirun"):
            sweep = True
        elif word == "--config-dir":
            folder = next(rest)
            found = own_options if folder == "my_conf" else ROOT / folder
            assert found.is_dir()
            overrides.append(f"hydra.searchpath=[file://{found}]")
        else:
            overrides += plain_words(config_name, [*(["-m"] * sweep), word])[sweep:]
    if sweep:
        overrides = one_job(overrides)
    needed = re.search(r"dataset=(folder|csv|k400|ssv2|ucf101|hmdb51)", " ".join(overrides))
    if needed and not any(word.startswith("dataset.root=") for word in overrides):
        assert name in ("predict", "export", "demo"), "this dataset needs dataset.root"
        overrides.append("dataset.root=PATH")
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        check(SCHEMAS[config_name], compose(config_name, overrides=overrides))


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.page}: {line.text[:60]}")
def test_command_is_understood(line, own_options):
    found = re.search(r'\$\((.*?)\)"?', line.text)  # eval "$(python tools/eval.py ...)"
    given = shlex.split(found.group(1) if found else line.text)
    words = [word for part in given for word in STAND_INS.get(part, [part])]
    if words[0] == "torchrun":  # --option=value ... script
        words = ["python", *(word for word in words[1:] if not word.startswith("--"))]
    program, *rest = words
    if words[:2] == ["python", "-m"]:
        program, rest = "video-papr", [words[2].removeprefix("video_papr.cli."), *rest[2:]]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{rest[0]}:.*## ", makefile, re.MULTILINE)
    elif program == "pip":
        extra = re.fullmatch(r"video_papr\[(\w+)\]", rest[-1])
        assert extra and f"\n{extra.group(1)} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    elif program == "python":
        script = ROOT / rest[0]
        assert script.is_file()
        if script.parent.name == "tools":
            check_ours(script.stem.replace("_", "-"), rest[1:], own_options)
    elif program == "video-papr":
        if rest[0] != "--help" and rest[0] != "COMMAND":
            check_ours(rest[0], rest[1:], own_options)
    else:
        assert program in NOT_OURS, "unknown program: run it in a test, or mark its block and say why not"


def test_pages_have_commands():
    assert len(LINES) > 60
