"""The configuration as frozen dataclasses, checked.

Every wrong value raises `ConfigError` with one line that names the key, its value and what is allowed. The rules are in
`rules`, the keys of each group of `conf/` in `groups`, `train` and `depth`, and what a command reads in `commands`.
"""

from .commands import DepthRunConfig, EvalConfig, TrainRunConfig, check, check_command, check_section, plain
from .depth import DepthConfig
from .groups import (
    DECODER,
    SAMPLING,
    BackboneConfig,
    DatasetConfig,
    MergerConfig,
    PrunerConfig,
    RuntimeConfig,
    TaskConfig,
    ViewsConfig,
)
from .train import TrainConfig

__all__ = [
    "DECODER",
    "SAMPLING",
    "BackboneConfig",
    "DatasetConfig",
    "DepthConfig",
    "DepthRunConfig",
    "EvalConfig",
    "MergerConfig",
    "PrunerConfig",
    "RuntimeConfig",
    "TaskConfig",
    "TrainConfig",
    "TrainRunConfig",
    "ViewsConfig",
    "check",
    "check_command",
    "check_section",
    "plain",
]
