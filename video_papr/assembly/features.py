"""Features of the videos of a dataset, from a frozen backbone or from the cache of an earlier run.

Letters: F features.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import TrainRunConfig, ViewsConfig
from ..data.annotations import VideoList
from ..data.loader import iter_samples
from ..evaluation.cost import Engine, StageTimes
from ..evaluation.evaluator import classify_views
from ..evaluation.results import describe_device
from ..pipeline import Pipeline
from ..training.features import FeatureStore
from . import runtime
from .resume import weights_digest
from .views import build_dataset, cache_dir, frame_sampler, view_cutter

CENTRE = ViewsConfig(clips=1, crops=1)


def compute_features(
    config: TrainRunConfig, videos: VideoList, pipeline: Pipeline, engine: Engine
) -> list[Tensor | str]:
    """What the classifier would read of the centre view of each video, (F,) float32, or why there is none."""
    dataset, backbone = config.dataset, pipeline.backbone
    headless = pipeline.headless()
    runtime.speed_up(headless, config.runtime, engine)
    prepare = view_cutter(dataset, CENTRE, backbone)
    sampler = frame_sampler(dataset, 1, backbone.num_frames)
    store = FeatureStore(
        cache_dir(dataset) / "features",
        {
            "weights": weights_digest(pipeline),
            "pruner": asdict(config.pruner),
            "read": [repr(sampler), repr(prepare.keywords), dataset.decoder, dataset.decode_size],
            "precision": [runtime.dtype_name(engine), describe_device(engine.device)],
            "engine": runtime.chosen_engine(config.runtime, engine),
            "seed": config.seed,
        },
    )
    paths = [record.path for record in videos.records]
    found: list[Tensor | str | None] = [store.get(path) for path in paths]
    todo = [row for row, features in enumerate(found) if features is None]
    size = runtime.batch_size(config.runtime, engine)
    decoded = build_dataset(dataset, CENTRE, pipeline, videos)
    workers = runtime.num_workers(config.runtime, turns=runtime.takes_turns(engine))
    ahead = {**runtime.decoding(engine, workers, size), "timeout_s": dataset.decode_timeout_s}
    run = partial(classify_views, headless, batch_size=size, engine=engine, times=StageTimes())
    bar = tqdm(
        total=len(paths),
        initial=len(paths) - len(todo),
        desc="features",
        unit="video",
        disable=not config.progress,
        mininterval=0.2 if sys.stderr.isatty() else 10,  # a line every ten seconds is enough in a log file
    )
    try:
        with bar, runtime.mendable_errors(size):
            for batch in iter_samples(decoded, indices=todo, videos_per_batch=size, **ahead):
                readable = [sample for sample in batch if sample.frames is not None]
                cut = [prepare(s.frames.to(engine.device)) for s in readable if s.frames is not None]
                if cut:
                    rows, _ = run(torch.cat(cut), full=size if config.runtime.compile else 1)
                    for sample, own in zip(readable, rows.float().cpu(), strict=True):
                        found[sample.index] = own
                        store.add(paths[sample.index], own)
                for sample in batch:
                    if sample.frames is None:
                        found[sample.index] = sample.error or "cannot be read"
                bar.update(len(batch))
    finally:  # what was computed is kept when the run is stopped
        store.save()
    return [features for features in found if features is not None]
