"""Where the YAML files of `conf/` are, and what they say about themselves."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path


def folder() -> Path:
    """`conf/` of this installation: the package video_papr.conf, or the folder of a checkout on PYTHONPATH."""
    spec = find_spec("video_papr.conf")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "conf"


def config_source() -> str:
    """The same for Hydra."""
    return "pkg://video_papr.conf" if find_spec("video_papr.conf") is not None else str(folder())


@cache
def names(group: str) -> tuple[str, ...]:
    """The options of a group; files with a leading underscore are parts of others."""
    return tuple(
        sorted(path.stem for path in (folder() / group).glob("*.yaml") if not path.stem.startswith("_"))
    )


def about(path: Path) -> tuple[str, str]:
    """The command that a file opens with, and the first sentence of what it says about itself."""
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[:9]]
    lines = [line for line in lines if not line.startswith("@package")]
    words = [line for line in lines[1:] if not line.startswith("python ")]
    text = " ".join(words[: words.index("")] if "" in words else words)
    return lines[0], text.split(". ")[0].removesuffix(".") + "."
