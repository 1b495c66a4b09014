"""What `--help` lists: the options of each group from the files of conf/, and the keys from their declarations."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from .checking import sections
from .commands import COMMANDS
from .options import choices, help_of, schemas
from .sources import about, folder, names

WIDTH = 34


def options_text(command: str, cfg: DictConfig) -> str:
    """Groups and keys of a command as they are composed, one line each. `cfg`: with the node `hydra`."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values: Any = OmegaConf.to_container(own, resolve=True)
    schema = COMMANDS[command]
    groups = [name for name in sections(schema) if names(name)]
    lines = ["Groups (group=option; * is what is chosen now):"]
    for group in [*groups, *(["experiment"] if "experiment" in _choices(cfg) else [])]:
        chosen = _choices(cfg).get(group)
        found = [
            f"  {f'{group}={name}' + '*' * (name == chosen):<{WIDTH}} {about(folder() / group / f'{name}.yaml')[1]}"
            for name in names(group)
            if group != "experiment" or f"{command}.py" in about(folder() / group / f"{name}.yaml")[0]
        ]
        lines += ["", *found] if found else []
    lines += ["", "Keys (key=value), with their values now:"]
    parts = {"": (schema, values)}
    parts |= {f"{name}.": (part, values.get(name, {})) for name, part in sections(schema).items()}
    for prefix, (part, given) in parts.items():
        texts = help_of(part).items()
        found = [_line(prefix, part, key, given[key], text) for key, text in texts if _own(given, key)]
        lines += ["", *found] if found else []
    return "\n".join(lines)


def _choices(cfg: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in cfg.hydra.runtime.choices.items()}


def _own(values: dict[str, Any], key: str) -> bool:
    return key in values and key != "name" and not isinstance(values[key], dict)


def _line(prefix: str, part: type, key: str, value: Any, text: str) -> str:
    """Hydra's template gives $ a meaning."""
    words = choices(schemas(part)[key])
    listed = f"{' | '.join(words)}; " if len(words) > 1 else ""
    return f"  {f'{prefix}{key}={typed(value)}':<{WIDTH}} {listed}{text}".replace("$", "$$")


def typed(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def register() -> None:
    """Makes `${video_papr.options:COMMAND}` known to the templates in conf/."""
    OmegaConf.register_new_resolver(
        "video_papr.options", lambda command, *, _root_: options_text(command, _root_), replace=True
    )
