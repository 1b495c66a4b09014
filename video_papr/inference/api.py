"""`video_papr.Pipeline`: the pipeline of pipeline.py with short ways to what lies above it.

What a method needs is imported when it is called, so that a pipeline for tensors does not wait for decoders or Hydra.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .. import pipeline

if TYPE_CHECKING:
    from .features import TokenFeatures
    from .predict import Answer, Guess, Recipe


class Pipeline(pipeline.Pipeline):
    """A backbone, the pruner that decides what it reads, and the merger that joins tokens on the way.

    Args:
        backbone: from `build_backbone`.
        pruner: from `build_pruner`; None keeps every tubelet.
        merger: from `build_merger`; None merges nothing.
        packing: how clips that keep unequal numbers of tokens run, see `pipeline.Pipeline`.

    Attributes:
        recipe: how `predict`, `stream` and `features` read videos, see `predict.Recipe`; None: its defaults.

    Raises:
        ConfigError: the pruner asks for more blocks than the backbone has.
    """

    recipe: Recipe | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, **groups: Any) -> Pipeline:
        """The pipeline that the command line would build, in eval mode.

            Pipeline.from_config()                                  # synthetic actions, bundled weights
            Pipeline.from_config(dataset="k400", pruner={"name": "x3d_s", "keep_ratio": 0.5})

        Args:
            config: a composed Hydra configuration, or a mapping like one; None: conf/predict.yaml with `groups`.
            groups: dataset, backbone, pruner, merger, views, runtime, each an option's name, or a mapping of `name` and
                keys; and `seed`. The dataset says how videos are read, and which weights are meant.

        Raises:
            ConfigError: an unknown group, option or key, or a value that cannot work.
            CheckpointError: weights are missing, damaged or of another network.
        """
        from ..assembly.compose import from_config

        parts, recipe = from_config(config, **groups)
        made = cls(parts.backbone, parts.pruner, parts.merger, packing=parts.packing)
        made.recipe = recipe
        return made.eval()

    def predict(self, video: Path | str | Tensor | np.ndarray, *, top_k: int = 5) -> tuple[Guess, ...]:
        """The `top_k` most probable classes of a file, or of frames (n, H, W, 3) uint8; see `predict.predict`."""
        from .predict import predict

        return predict(self, video, top_k=top_k)

    def stream(self, frames: Iterable[Tensor | np.ndarray], **windows: Any) -> Iterator[Answer]:
        """Answers window by window while frames (H, W, 3) uint8 come in; see `predict.predict_stream`."""
        from .predict import predict_stream

        return predict_stream(self, frames, **windows)

    def features(
        self, video: Path | str | Tensor | np.ndarray, *, pooled: bool = True
    ) -> Tensor | list[TokenFeatures]:
        """What the classifier reads of a file, frames (n, H, W, 3) or clips (B, T, S, S, 3); see features.py."""
        from .features import features

        return features(self, video, pooled=pooled)
