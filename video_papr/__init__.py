"""video_papr: video transformers that read only the tubelets that matter.

import video_papr as vp

pipeline = vp.Pipeline(vp.build_backbone("videomae_b"), vp.build_pruner("x3d_s", keep_ratio=0.3))
logits = pipeline(frames)  # frames (B, 16, 224, 224, 3) uint8
"""

from .backbones.builders import BACKBONES, build_backbone
from .errors import CheckpointError, ConfigError, DataError, VideoDecodeError, VideoPaprError
from .pipeline import Pipeline
from .pruning.builders import PRUNERS, Pruner, build_pruner
from .structures import TokenGrid, TokenSelection

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "PRUNERS",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Pipeline",
    "Pruner",
    "TokenGrid",
    "TokenSelection",
    "VideoDecodeError",
    "VideoPaprError",
    "build_backbone",
    "build_pruner",
]
