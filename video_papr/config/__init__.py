"""The configuration: one declaration per option, checked.

Every wrong value raises `ConfigError` with one line that names the key, its value and what is allowed. `options` is how
an option is declared, `groups`, `recipes` and `commands` declare them, and `hydra` reads what is typed.
"""

from .checking import check, plain
from .commands import (
    COMMANDS,
    BenchConfig,
    DemoConfig,
    DepthRunConfig,
    EvalConfig,
    ExportConfig,
    PipelineConfig,
    PredictConfig,
    PrepareConfig,
    TrainRunConfig,
)
from .groups import (
    BackboneConfig,
    DatasetConfig,
    MergerConfig,
    PrunerConfig,
    RuntimeConfig,
    TaskConfig,
    ViewsConfig,
)
from .recipes import DepthConfig, ProbeConfig, TrainConfig
