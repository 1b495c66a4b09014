"""Predictions and features of very many videos on the machines of a Ray cluster.

    paths -> tasks that decode -> actors that hold the pipeline, a GPU each where there are any -> shards

Ray Data holds decoders back while decoded bytes wait in its store, starts actors anew that were lost, and gives their
work to others. Without GPUs it joins the two steps, and each actor decodes for itself. A shard's name says which videos
are in it, and it is written whole or not at all: work that is done twice leaves one shard, and a run that is started
again leaves out what is in shards.

Letters: V views of a video, T frames of S x S pixels.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..assembly.compose import build_reader
from ..config import PredictConfig
from ..core.console import note
from ..core.errors import ConfigError, DataError, LogitsError, VideoDecodeError
from ..core.files import atomic_write, remove_partial
from ..core.pixels import frames_without_vectors
from ..data.recipe import Recipe
from ..data.transforms import resize_and_crop
from ..evaluation.cost import StageTimes
from ..evaluation.evaluator import classify_views
from ..evaluation.views import aggregate_views
from .features import check_finite
from .predict import ClipReader, best_guesses, cut_of

SHARDS = "shards"
PER_SHARD = 64  # videos that go to an actor together, and into one shard, at most
BYTES = 1 << 28  # of their views, at most
UNKNOWN = "frames_without_vectors"  # column: of a view, see `core.pixels`; null where no pruner reads motion
Rows = dict[str, Any]


def decoded(row: Rows, *, recipe: Recipe, num_frames: int, cut: dict[str, Any], motion: bool) -> Rows:
    """`video`, a path -> with its `views` (V, T, S, S, 3; 4 with motion) uint8 as bytes, or an `error` without any."""
    try:
        frames = recipe.decode(row["video"], lambda n: recipe.indices(n, num_frames), motion=motion).frames
    except VideoDecodeError as error:
        return {**row, "views": b"", "error": str(error)}
    return {**row, "views": resize_and_crop(torch.from_numpy(frames), **cut).numpy().tobytes(), "error": ""}


class Actor:
    """A pipeline, loaded once, that answers decoded videos and writes a shard of them.

    Args:
        shards: the folder, which all machines see.
    """

    def __init__(self, config: PredictConfig, shards: str) -> None:
        pipeline, recipe = build_reader(config)
        self.reader = ClipReader(pipeline, recipe, config.top_k)
        self.shards, self.features = Path(shards), config.features
        self.pipeline = pipeline.headless() if config.features else pipeline

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        """Decoded videos -> how many there were, and how many of them failed."""
        errors = list(batch["error"])
        readable = [place for place, error in enumerate(errors) if not error]
        found: list[Rows] = [{} for _ in errors]
        if readable:
            views = self._views([batch["views"][place] for place in readable])
            for place, own, answer in zip(readable, views, self._run(views), strict=True):
                found[place] = {UNKNOWN: frames_without_vectors(own)}
                try:
                    found[place] |= self._columns(answer)
                except LogitsError as error:
                    errors[place] = str(error)
        rows = [
            {"video": video, "error": error or None, **own}
            for video, error, own in zip(batch["video"], errors, found, strict=True)
        ]
        write_shard(self.shards, rows, self.features)
        return {"videos": [len(rows)], "failed": [sum(bool(error) for error in errors)]}

    def _views(self, views: Sequence[bytes]) -> Tensor:
        """Bytes of videos -> (videos, V, T, S, S, 3 or 4) uint8."""
        backbone, channels = self.pipeline.backbone, 4 if self.pipeline.reads_motion else 3
        pixels = torch.frombuffer(bytearray(b"".join(views)), dtype=torch.uint8)
        return pixels.view(len(views), -1, backbone.num_frames, *backbone.frame_size, channels)

    def _run(self, views: Tensor) -> Tensor:
        """Views of videos -> their probabilities (videos, classes), or features (videos, V, D), on the processor."""
        frames, per_video = views.flatten(0, 1).to(self.reader.engine.device), views.shape[1]
        options: dict[str, Any] = {"batch_size": self.reader.recipe.batch_size, "engine": self.reader.engine}
        rows, _ = classify_views(self.pipeline, frames, times=StageTimes(), **options)
        if self.features:
            return rows.float().cpu().unflatten(0, (-1, per_video))
        return aggregate_views(rows, per_video).cpu()

    def _columns(self, answer: Tensor) -> Rows:
        """What is stored of a video. Raises LogitsError: it is not finite."""
        if self.features:
            check_finite(answer)
            return {"features": answer.tolist()}
        guesses = best_guesses(answer, self.pipeline.backbone.class_names, self.reader.top_k)
        labels, names, probabilities = zip(*guesses, strict=True)
        return {"labels": labels, "names": names, "probabilities": probabilities}


def write_shard(folder: Path, rows: Sequence[Rows], features: bool) -> None:
    """One row for each video: video, error, and what was found; named by its videos."""
    import pyarrow as pa
    from pyarrow import parquet

    own = (
        {"features": pa.list_(pa.list_(pa.float32()))}
        if features
        else {
            "labels": pa.list_(pa.int64()),
            "names": pa.list_(pa.string()),
            "probabilities": pa.list_(pa.float32()),
        }
    )
    schema = pa.schema({"video": pa.string(), "error": pa.string(), UNKNOWN: pa.float32(), **own})
    table = pa.Table.from_pylist(list(rows), schema=schema)
    name = hashlib.sha256(
        "\n".join(sorted(row["video"] for row in rows)).encode(errors="backslashreplace")
    ).hexdigest()
    atomic_write(folder / f"{name[:32]}.parquet", lambda file: parquet.write_table(table, file))


def stored(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Every video in the shards, with its error."""
    from pyarrow import parquet

    for path in sorted(folder.glob("*.parquet")):
        columns = parquet.read_table(path, columns=["video", "error"]).to_pydict()
        yield from zip(columns["video"], columns["error"], strict=True)


def run_on_ray(config: PredictConfig, videos: Sequence[str], out: Path) -> tuple[int, int]:
    """Answers the videos that no shard of `out` holds yet; returns how many there are in all, and how many failed.

    Raises:
        ConfigError: Ray is not installed, or the configuration cannot work.
        DataError: a video is in several shards, or in none.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            'runtime.cluster=ray: Ray is not installed (pip install "video_papr[ray]").'
        ) from None
    shards = out.resolve() / SHARDS
    remove_partial(shards)
    paths = list(dict.fromkeys(str(Path(video).resolve()) for video in videos))
    if odd := next((path for path in paths if not path.isascii() and "\\udc" in ascii(path)), None):
        raise DataError(
            f"video={odd!a}: runtime.cluster=ray stores names in UTF-8, which this one is not; rename it"
        )
    known = dict(stored(shards))
    todo = [{"video": path} for path in paths if path not in known]
    if len(todo) < len(paths):
        note(f"{len(paths) - len(todo)} of {len(paths)} videos are in {shards} and not read again")
    if todo:
        with tqdm(
            total=len(paths), initial=len(paths) - len(todo), unit="video", disable=not config.progress
        ) as bar:
            for row in _answer(config, todo, shards, ray):
                bar.update(row["videos"])
    return _checked(paths, list(stored(shards)), shards)


def _answer(
    config: PredictConfig, todo: list[dict[str, str]], shards: Path, ray: Any
) -> Iterator[dict[str, Any]]:
    """Has a pool of actors answer the videos into shards; says of each shard how many videos it holds."""
    pipeline, recipe = build_reader(config)  # so that what is wrong is said here, before any actor starts
    backbone = pipeline.backbone
    own = recipe.clips * recipe.crops * backbone.num_frames * math.prod(backbone.frame_size) * 3
    together = max(1, min(PER_SHARD, BYTES // own))
    shards_left = -(-len(todo) // together)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    threads, there = config.runtime.threads or 1, ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if config.runtime.device != "cpu" else 0
    actors = max(1, min(shards_left, gpus or int(there["CPU"]) // threads))
    data: Any = ray.data.from_items(todo, override_num_blocks=shards_left)
    read: dict[str, Any] = {"num_frames": backbone.num_frames, "motion": pipeline.reads_motion}
    data = data.map(partial(decoded, recipe=recipe, cut=cut_of(pipeline, recipe), **read), num_cpus=1)
    data = data.map_batches(
        Actor,
        fn_constructor_args=(config, str(shards)),
        batch_size=together,
        num_gpus=1 if gpus else None,
        num_cpus=None if gpus else threads,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=None, initial_size=actors),
    )
    yield from data.iter_rows()


def _checked(paths: Sequence[str], rows: Sequence[tuple[str, str | None]], shards: Path) -> tuple[int, int]:
    errors = dict(rows)
    missing = [path for path in paths if path not in errors]
    if missing or len(errors) < len(rows):
        what = (
            f"{len(rows) - len(errors)} videos are in several shards, {len(missing)} of {len(paths)} in none"
        )
        raise DataError(
            f"{shards}: {what}; run the same command again, in an empty output_dir if some are there twice"
        )
    return len(paths), sum(errors[path] is not None for path in paths)
