"""video_papr: video transformers that read only the tubelets that matter.

    import video_papr as vp

    pipeline = vp.Pipeline(vp.build_backbone("videomae_b"), vp.build_pruner("x3d_s"))
    logits = pipeline(frames)  # frames (B, 16, 224, 224, 3) uint8

Names are imported when they are first used (PEP 562): a command that only prints its help does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters.prune import kept_tokens as kept_tokens
    from .adapters.prune import prune as prune
    from .adapters.prune import unprune as unprune
    from .adapters.qwen_prompt import shorten_prompt as shorten_prompt
    from .backbones.builders import BACKBONES as BACKBONES
    from .backbones.builders import build_backbone as build_backbone
    from .core.errors import CheckpointError as CheckpointError
    from .core.errors import CheckpointWarning as CheckpointWarning
    from .core.errors import ConfigError as ConfigError
    from .core.errors import DataError as DataError
    from .core.errors import LogitsError as LogitsError
    from .core.errors import VideoDecodeError as VideoDecodeError
    from .core.errors import VideoPaprError as VideoPaprError
    from .core.types import TokenGrid as TokenGrid
    from .core.types import TokenSelection as TokenSelection
    from .inference.api import Pipeline as Pipeline
    from .inference.api import evaluate as evaluate
    from .inference.api import predict as predict
    from .pruning.builders import PRUNERS as PRUNERS
    from .pruning.builders import build_pruner as build_pruner
    from .pruning.protocol import Pruner as Pruner
    from .pruning.protocol import PrunerSpec as PrunerSpec
    from .pruning.tome import build_merger as build_merger

__version__ = "0.1.0"

_HOMES = {
    "adapters.qwen_prompt": ("shorten_prompt",),
    "adapters.prune": ("kept_tokens", "prune", "unprune"),
    "inference.api": ("Pipeline", "evaluate", "predict"),
    "backbones.builders": ("BACKBONES", "build_backbone"),
    "core.errors": (
        "CheckpointError",
        "CheckpointWarning",
        "ConfigError",
        "DataError",
        "LogitsError",
        "VideoDecodeError",
        "VideoPaprError",
    ),
    "pruning.builders": ("PRUNERS", "build_pruner"),
    "pruning.protocol": ("Pruner", "PrunerSpec"),
    "pruning.tome": ("build_merger",),
    "core.types": ("TokenGrid", "TokenSelection"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
