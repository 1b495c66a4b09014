"""Hydra: what is typed, composing a configuration outside of a command, and errors in one line."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ..core.errors import ConfigError, VideoPaprError, did_you_mean
from .checking import sections
from .commands import COMMANDS
from .groups import BackboneConfig, DatasetConfig, RuntimeConfig
from .help import register
from .options import PATH, defaults_of
from .renamed import rename_word
from .sources import config_source

# Flags of Hydra; those that take a word after them.
FLAGS = {
    *("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun", "-i"),
    *("--info", "-sc", "--shell-completion", "--experimental-rerun"),
}
_LONG = ("--cfg", "--package", "--config-path", "--config-name", "--config-dir")
WITH_WORD = {*_LONG, "-c", "-p", "-cp", "-cn", "-cd"}
PUBLISHED = "${oc.select:backbone.published.${dataset.name},null}"  # what the option names for the dataset
GENERATED = ("split", "seed", "num_videos")  # keys of dataset=synthetic alone


def store_defaults() -> None:
    """Gives Hydra the declared defaults, as parts that the files of conf/ name in their lists of defaults."""
    store = ConfigStore.instance()
    shared = defaults_of(DatasetConfig)
    generated = {key: shared.pop(key) for key in GENERATED}
    splits = {"split": generated["split"], "fold": shared.pop("fold")}
    bundled = {"backbone": None, "scorer": None, "pixel_rule": None}
    parts = {"video": {**_set(shared), "bundled": bundled}, "generated": generated, "splits": splits}
    for name, values in parts.items():
        store.store(name=f"_{name}", node=values, group="dataset")
    backbone = {**_set(defaults_of(BackboneConfig)), "weights": PUBLISHED}
    store.store(name="_base", node=backbone, group="backbone")
    store.store(name="_base", node=defaults_of(RuntimeConfig), group="runtime")
    for name, schema in COMMANDS.items():
        own = {
            part: defaults_of(group)
            for part, group in sections(schema).items()
            if part in ("train", "probe", "depth")
        }
        store.store(name=f"_{name}", node={**defaults_of(schema), **own})


def _set(values: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that only some options of a group have."""
    some = ("camera", "bundled", "scorer", "model", "pool", "stages", "published")
    return {key: value for key, value in values.items() if key not in some}


def quote(text: str) -> str:
    """A text in Hydra's grammar for values, whatever it holds."""
    # Backslashes count only before a quote, so those have to be doubled, and the ones at the end.
    body = re.sub(r"(\\*)'", r"\1\1\\'", text)
    tail = re.search(r"\\*$", text)
    return "'" + body + (tail.group() if tail else "") + "'"


def plain_words(command: str, words: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: paths in quotes, `--key value` as key=value, former names by their new ones.

    Raises ConfigError: a word that is neither key=value nor a flag.
    """
    if {"-sc", "--shell-completion"} & set(words):
        return list(words)
    paths = path_keys(command)
    sweep = bool({"-m", "--multirun"} & set(words))
    return [_plain(word, paths, sweep) for word in _with_keys(command, words)]


def _with_keys(command: str, words: Sequence[str]) -> Iterator[str]:
    """Gives a path alone its key, and takes dashes from keys."""
    keys = {*COMMANDS[command].__annotations__, *path_keys(command)}
    bare: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in FLAGS:
            yield word
        elif name in WITH_WORD:
            yield word
            if not equals and (following := next(rest, None)) is not None:
                yield following
        elif word == "--json" and "json" in keys:
            yield "json=true"
        elif name.startswith("--"):
            key = name[2:]
            if key not in keys:
                raise ConfigError(
                    f"{word}: no such flag; keys are written without dashes, key=value. See --help."
                )
            given = value if equals else next(rest, None)
            if given is None:
                raise ConfigError(f"{word}: write {key}=VALUE.")
            yield f"{key}={given}"
        elif command == "predict" and not word.startswith("-") and _is_bare(word):
            bare.append(word)
        else:
            yield word
    if len(bare) > 1:
        raise ConfigError(
            f"{bare[1]!r}: a second video; give a folder, a pattern in quotes, or video=- and a path in each line "
            "of stdin."
        )
    yield from (f"video={word}" for word in bare)


def _is_bare(word: str) -> bool:
    """Whether a word is a path alone: a file, whose name may hold an equals sign, or what cannot be anything else."""
    return os.path.exists(word) or ("=" not in word and not word.startswith("~"))


def _plain(word: str, paths: set[str], sweep: bool) -> str:
    word = rename_word(word)
    key, equals, value = word.partition("=")
    is_path = equals and key.lstrip("+") in paths and value not in ("", "null")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    if not is_path or "${" in value or quoted:
        return word
    if sweep and ("," in value or re.match(r"(choice|glob|sort|shuffle)\(", value)):
        return word  # the jobs of a sweep
    return f"{key}={quote(os.path.expanduser(value))}"


def path_keys(command: str) -> set[str]:
    """The dotted keys of a command whose values are paths."""
    schema = COMMANDS[command]
    found = {name for name, hint in get_type_hints(schema, include_extras=True).items() if _is_path(hint)}
    for group, part in sections(schema).items():
        hints = get_type_hints(part, include_extras=True)
        found |= {f"{group}.{name}" for name, hint in hints.items() if _is_path(hint)}
    return found


def _is_path(hint: Any) -> bool:
    return PATH in getattr(hint, "__metadata__", ()) or any(_is_path(part) for part in get_args(hint))


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
        key, equals, _ = str(error.override).partition("=")
        form = f"; such a value goes in quotes, as in '{key}=\"a (b)\"'" if equals else ""
        return f"cannot read {error.override!r}: write key=value, or group=option{form}."
    if isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error.__cause__)
    if text.startswith("Ambiguous value for argument"):
        return f"{text.split(chr(39))[1]}: several values; add -m to run each of them."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    of_hydra = frames and Path(frames[-1].filename).match("hydra/_internal/*")
    return text if of_hydra and isinstance(error, ValueError | TypeError) else None


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent = error.parent_node
    known = [str(key) for key in parent if key != "hydra"] if isinstance(parent, DictConfig) else []
    listed = f" Known: {', '.join(known)}." if known else ""
    return f"{error.full_key}: no such key.{did_you_mean(str(error.key), known)}{listed}"


def command_help(name: str, words: Sequence[str]) -> str | None:
    """What `--help` prints; None where flags beside it are Hydra's business.

    Hydra would first list all groups for a template, which takes longer than everything else.
    """
    if not {"-h", "--help"} & set(words):
        return None
    overrides = [word for word in words if word not in ("-h", "--help")]
    if any(word.startswith("-") for word in overrides):
        return None
    template: str = compose_words(overrides, config=name, return_hydra_config=True).hydra.help.template
    return template.replace("$$", "$")


def compose_words(words: Sequence[str], *, config: str = "predict", **options: Any) -> DictConfig:
    """conf/<config>.yaml with overrides as on the command line. Raises ConfigError: an unknown group, option or key."""
    source = config_source()
    package = source.removeprefix("pkg://")
    start = initialize_config_dir if package == source else initialize_config_module
    current = GlobalHydra.instance()
    outer = current.hydra  # of a command that runs this, or of a program of the user's own
    current.clear()
    try:
        with start(package, version_base="1.3"):
            return compose(config, overrides=[rename_word(word) for word in words], **options)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error) or str(error)) from error
    finally:
        # Not get_state and set_state: they would take the resolvers along, which the result still needs.
        GlobalHydra.instance().hydra = outer


store_defaults()
register()
