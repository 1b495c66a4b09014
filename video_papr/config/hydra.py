"""Hydra: where the YAML files are, composing a configuration outside of a command, and its errors in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ..core.errors import ConfigError, VideoPaprError
from .rules import did_you_mean


def config_source() -> str:
    """Where Hydra finds `conf/`: the installed package, or the folder of a checkout that is only on PYTHONPATH."""
    if find_spec("video_papr.conf") is not None:
        return "pkg://video_papr.conf"
    return str(Path(__file__).resolve().parents[2] / "conf")


def quote(text: str) -> str:
    """A text in Hydra's grammar for values, whatever it holds."""
    # Backslashes count only before a quote, so those have to be doubled, and the ones at the end.
    body = re.sub(r"(\\*)'", r"\1\1\\'", text)
    tail = re.search(r"\\*$", text)
    return "'" + body + (tail.group() if tail else "") + "'"


def explain(error: Exception) -> str | None:
    """Returns one line for an error that the user can mend, of this package, Hydra or OmegaConf; None for a bug."""
    if isinstance(error, VideoPaprError):
        return str(error)
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = [name for name in error.options if not name.startswith("_")]  # those are parts of options
        hint = did_you_mean(option, options)
        return f"{group}={option}: no such option.{hint} Options: {', '.join(options)}."
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, or group=option."
    if isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error.__cause__)
    if text.startswith("Ambiguous value for argument"):
        return f"{text.split(chr(39))[1]}: several values; add -m to run each of them."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    if (
        isinstance(error, ValueError | TypeError)
        and frames
        and Path(frames[-1].filename).match("hydra/_internal/*")
    ):
        return text
    return None


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent = error.parent_node
    known = [str(key) for key in parent if key != "hydra"] if isinstance(parent, DictConfig) else []
    listed = f" Known: {', '.join(known)}." if known else ""
    return f"{error.full_key}: no such key.{did_you_mean(str(error.key), known)}{listed}"


def compose_words(words: Sequence[str], *, config: str = "predict") -> DictConfig:
    """conf/<config>.yaml with overrides as on the command line.

    Raises:
        ConfigError: an unknown group, option or key.
    """
    source = config_source()
    package = source.removeprefix("pkg://")
    start = initialize_config_dir if package == source else initialize_config_module
    current = GlobalHydra.instance()
    outer = current.hydra  # of a command that runs this, or of a program of the user's own
    current.clear()
    try:
        with start(package, version_base="1.3"):
            return compose(config, overrides=list(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error) or str(error)) from error
    finally:
        # Not get_state and set_state: they would take the resolvers along, which the result still needs.
        GlobalHydra.instance().hydra = outer
