"""`check`: turns a composed configuration into the options of its command, or says in one line what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..core.errors import ConfigError, did_you_mean
from .options import check_each, read
from .renamed import rename_values

Command = TypeVar("Command")


def sections(schema: type) -> dict[str, type]:
    """The groups that a command reads."""
    hints = get_type_hints(schema)
    return {f.name: hints[f.name] for f in dataclasses.fields(schema) if hasattr(hints[f.name], "prefix")}


def plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Resolves a composed configuration into plain dicts and values, with keys and values by their new names.

    Raises ConfigError: a reference to a key that does not exist, or a value still to be given (`???`).
    """
    if not isinstance(cfg, DictConfig):
        return rename_values({str(key): value for key, value in cfg.items()})
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return rename_values({str(key): value for key, value in values.items()})


def check(schema: type[Command], cfg: DictConfig | Mapping[str, Any]) -> Command:
    """Checks a composed configuration against the options of its command, one of `COMMANDS`.

    Raises ConfigError: the first wrong key, in one line.
    """
    values = plain(cfg)
    groups = sections(schema)
    known = {field.name for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{key}: no such key.{did_you_mean(key, sorted(known))}")
    for name, group in groups.items():
        given = values.get(name)
        if given is None:
            raise ConfigError(f"{name} is not set: choose an option of the group, {name}=OPTION.")
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name}={given!r}: must be an option of the group, with its keys.")
        try:
            values[name] = read(group, given)
        except ConfigError:  # a key of no group, which the group refers to, may be the one that is wrong
            check_each(schema, {key: value for key, value in values.items() if key not in groups})
            raise
    return read(schema, values)
