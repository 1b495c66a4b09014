"""The Python API: `video_papr.Pipeline` with short ways to what lies above it, `predict` and `evaluate`.

What a method needs is imported when it is called, so that a pipeline for tensors does not wait for decoders or Hydra.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..pipeline import Pipeline as PlainPipeline

if TYPE_CHECKING:
    from ..data.annotations import VideoList
    from ..evaluation.answers import Evaluation
    from ..evaluation.observers import Observer
    from .features import TokenFeatures
    from .predict import Answer, Guess, Recipe


class Pipeline(PlainPipeline):
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
            Pipeline.from_config(dataset="k400", pruner={"name": "x3d_s", "stage": "res4"})

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

    def predict(
        self,
        video: Path | str | Tensor | np.ndarray | Sequence[Path | str | Tensor | np.ndarray],
        *,
        top_k: int = 5,
    ) -> tuple[Guess, ...] | list[tuple[Guess, ...]]:
        """The `top_k` most probable classes of a video, or of each of several; see `predict`."""
        return predict(self, video, top_k=top_k)

    def stream(self, frames: Iterable[Tensor | np.ndarray], **windows: Any) -> Iterator[Answer]:
        """Answers window by window while frames (H, W, 3) uint8 come in; see `windows.predict_stream`."""
        from .windows import predict_stream

        return predict_stream(self, frames, **windows)

    def features(
        self, video: Path | str | Tensor | np.ndarray, *, pooled: bool = True
    ) -> Tensor | list[TokenFeatures]:
        """What the classifier reads of a file, frames (n, H, W, 3) or clips (B, T, S, S, 3); see features.py."""
        from .features import features

        return features(self, video, pooled=pooled)


def predict(
    pipeline: PlainPipeline,
    video: Path | str | Tensor | np.ndarray | Sequence[Path | str | Tensor | np.ndarray],
    *,
    top_k: int = 5,
) -> tuple[Guess, ...] | list[tuple[Guess, ...]]:
    """The most probable classes of a whole video, best first; a list of videos gives a list.

    Args:
        video: a file, or its frames (n, H, W, 3) uint8; or a list or tuple of such.

    Raises:
        VideoDecodeError: a file cannot be decoded.
        ConfigError: `top_k` is below 1.
        LogitsError: the logits are not finite.
        ValueError: frames have another shape or type.
    """
    from .predict import predict as predict_one

    if isinstance(video, list | tuple):
        return [predict_one(pipeline, one, top_k=top_k) for one in video]
    return predict_one(pipeline, video, top_k=top_k)  # type: ignore[arg-type]


def evaluate(
    pipeline: PlainPipeline,
    videos: Path | str | VideoList | Iterable[tuple[Path | str, int]],
    *,
    views: str | None = None,
    baseline: bool = False,
    workers: int = 0,
    progress: bool = False,
    observers: Sequence[Observer] = (),
    recipe: Recipe | None = None,
) -> Evaluation:
    """Accuracy and cost of a pipeline over labelled videos. Videos that cannot be read count as wrong.

        found = vp.evaluate(pipeline, "videos", views="5x3", baseline=True)   # videos/CLASS/NAME.mp4
        found.top1, found.accuracy(1, baseline=True), [answer.error for answer in found.failed]

    Args:
        videos: a folder with a folder for each class, whose names are matched with the backbone's where both are
            known; pairs of a file and its label; or a list that `video_papr.data` has read.
        views: clips x crops, such as "5x3"; None: as `recipe` says.
        baseline: also run the dense model on the same views.
        workers: processes that decode; 0: this one does.
        progress: show a bar.
        observers: see `evaluation.observers.Observer`.
        recipe: how videos are read, see `predict.recipe_of`.

    Raises:
        ConfigError: an argument is out of range.
        DataError: there is no video, or a label has no logit.
    """
    from ..assembly.build import match_labels
    from ..data.datasets import VideoDataset
    from ..data.loader import iter_samples
    from ..evaluation.answers import VideoAnswer
    from ..evaluation.evaluator import Evaluator
    from ..evaluation.observers import Progress
    from .predict import ClipReader, recipe_of

    read = recipe_of(pipeline, recipe)
    if views is not None:
        clips, crops = _views(views)
        read = replace(read, clips=clips, crops=crops)
    pipeline.backbone.check_classifies()
    listed = match_labels(_listed(videos), pipeline.backbone.class_names, pipeline.backbone.num_classes)
    reader = ClipReader(pipeline, read, 1)
    dataset = VideoDataset(
        listed,
        partial(read.indices, num_frames=reader.num_frames),
        decoder=read.decoder,
        limits=read.limits,
        reduce=read.reduce,
        memory_mb=read.memory_mb,
        motion=pipeline.reads_motion,
    )
    with Progress(len(listed), show=progress) as bar:
        evaluator = Evaluator(
            pipeline,
            reader.views,
            read.clips * read.crops,
            read.batch_size,
            reader.engine,
            baseline=baseline,
            observers=[*observers, bar],
        )
        found = evaluator.run(chain.from_iterable(iter_samples(dataset, workers=workers)))
    found.answers += [VideoAnswer(name, None, error="missing") for name in listed.missing]
    return found


def _listed(videos: Path | str | VideoList | Iterable[tuple[Path | str, int]]) -> VideoList:
    from ..data.annotations import VideoList, VideoRecord
    from ..data.datasets import build_video_list

    if isinstance(videos, VideoList):
        return videos
    if isinstance(videos, str | Path):
        return build_video_list("folder", root=Path(videos).expanduser())
    records = tuple(VideoRecord(Path(path).expanduser(), int(label), str(path)) for path, label in videos)
    if not records:
        raise DataError("videos: there is none; give a folder, or pairs of a file and its label")
    for record in records:
        if record.label < 0:
            raise DataError(f"{record.name}: label {record.label} must be at least 0")
    return VideoList(records, None)


def _views(views: str) -> tuple[int, int]:
    """ "5x3" -> 5 clips, 3 crops."""
    clips, _, crops = views.partition("x")
    if not clips.isdecimal() or crops not in ("1", "3") or int(clips) < 1:
        raise ConfigError(f"views={views!r}: must be CLIPSxCROPS with 1 or 3 crops, such as 1x1 or 5x3")
    return int(clips), int(crops)
