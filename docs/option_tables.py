"""Writes the tables of docs/configuration.md: options from the files of conf/, keys from their declarations.

    python docs/option_tables.py            # part of `make docs`; tests/test_docs.py compares

A table stands between `<!-- options: GROUP -->` or `<!-- keys: GROUP or COMMAND -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from video_papr.config import COMMANDS
from video_papr.config.checking import sections
from video_papr.config.help import typed
from video_papr.config.options import allowed, defaults_of, help_of, schemas
from video_papr.config.sources import about, folder, names

PAGE = Path(__file__).resolve().parent / "configuration.md"
GROUPS = {name: part for schema in COMMANDS.values() for name, part in sections(schema).items()}


def options_table(group: str) -> str:
    """What each option of a group is, and the command that runs it."""
    rows = ["| option | |", "|---|---|"]
    for name in names(group):
        command, text = about(folder() / group / f"{name}.yaml")
        script = re.search(r"(\w+)\.py", command)
        where = f" (`{script.group(1)}.py`)" if group == "experiment" and script else ""
        rows.append(f"| `{name}` | {text}{where} |")
    return "\n".join(rows)


def keys_table(name: str) -> str:
    """The keys of a group, or those of a command that are in no group."""
    part = GROUPS.get(name) or COMMANDS[name]
    prefix = f"{name}." if name in GROUPS else ""
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key, text in help_of(part).items():
        schema = schemas(part).get(key, {})
        if key in GROUPS or key == "name":
            continue
        cells = (f"`{prefix}{key}`", _default(name, part, key), allowed(schema), text)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(name: str, part: type, key: str) -> str:
    """The declared default, or those of the files of the group's options."""
    declared = defaults_of(part)
    by_option = name in ("pruner", "merger") or "null" not in allowed(schemas(part)[key])
    if declared.get(key) is not None or not by_option:
        return f"`{typed(declared[key])}`"
    found: dict[str, list[str]] = {}
    for option in names(name):
        values = _values(name, option)
        if key in values and not isinstance(values[key], dict):
            found.setdefault(typed(values[key]), []).append(f"`{option}`")
    rare = sorted(found, key=lambda value: len(found[value]))
    most = [f"`{value}`" for value in rare[-1:]]  # the last has no names beside it
    return ", ".join([*(f"{' '.join(found[value])} `{value}`" for value in rare[:-1]), *most])


def _values(group: str, option: str) -> dict[str, Any]:
    """What a file and its parts set; of what a dataset may change the value that it has elsewhere."""
    own = OmegaConf.load(folder() / group / f"{option}.yaml")
    values: dict[str, Any] = {}
    for parent in own.pop("defaults", []):
        if (folder() / group / f"{parent}.yaml").is_file():
            values |= _values(group, parent)
    for key, value in OmegaConf.to_container(own, resolve=False).items():  # type: ignore[union-attr]
        select = re.fullmatch(r"\$\{oc\.select:(?:[\w.]|\$\{pruner\.recipe\})+,(.*)\}", str(value))
        chosen = select.group(1) if select else value
        values[str(key)] = "by dataset" if "${data" in str(chosen) else chosen
    return values


def render(page: str) -> str:
    """The page with its tables as they are to be."""

    def table(found: re.Match[str]) -> str:
        kind, name = found.group(1), found.group(2)
        made = options_table(name) if kind == "options" else keys_table(name)
        return f"<!-- {kind}: {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (options|keys): (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
