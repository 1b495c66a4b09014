"""Evaluation of a configuration: builds its objects, runs or resumes it on all ranks, and writes its results."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch

from ..config import DatasetConfig, EvalConfig, ViewsConfig
from ..core.console import warn
from ..core.errors import DataError
from ..core.processes import ALONE, Ranks, share
from ..core.types import TokenSelection
from ..data.clip_cache import ClipCache
from ..data.datasets import VideoSample
from ..data.loader import iter_samples
from ..evaluation.answers import Evaluation, VideoAnswer
from ..evaluation.cost import gmacs_per_view, mean_gmacs, shared_gmacs
from ..evaluation.evaluator import Evaluator
from ..evaluation.journal import Finished, Journal, join_journal, open_journal, read_finished, stamp_files
from ..evaluation.lock import hold
from ..evaluation.observers import ExtraMetric, KeepViews, Observer, Pictures, Progress, WithoutVectors
from ..evaluation.profile import Profile, Waiting, processor_seconds, profile
from ..evaluation.results import RunInfo, build_results, describe_device, git_commit, versions, write_results
from ..evaluation.visualize import save_gallery
from ..synthetic.oracle import actor_share
from ..synthetic.scenes import VERSION
from ..synthetic.videos import read_actors
from . import build, resume, runtime
from . import views as cut
from .compose import as_fitted, backbone_said

ACTOR_METRIC = "actor_tokens_kept"


@dataclass
class EvaluationRun:
    """What an evaluation found, and the files that it wrote. `root`: where the videos are."""

    results: dict[str, Any]
    evaluation: Evaluation
    profile: Profile | None
    written: list[Path]
    root: Path
    num_classes: int
    class_names: tuple[str, ...] | None


def run_evaluation(config: EvalConfig, out: Path, ranks: Ranks = ALONE) -> EvaluationRun | None:
    """Evaluates and writes results.json, predictions.jsonl, confusion matrix and pictures into `out`.

    What an earlier run finished there is not done again; see `evaluation.journal`.

    Args:
        ranks: share the videos; rank 0 puts the answers together and writes.

    Returns:
        None on ranks above 0.

    Raises VideoPaprError: something in the configuration or the data that the user can mend.
    """
    advice = f"Run again with output_dir={out} to go on with what was finished, with any number of ranks."
    with hold(out, ranks.rank), ranks.watched(advice):
        work = _Work(config, ranks)
        if ranks.rank:
            job = ranks.job
            journal = join_journal(out, ranks.rank, work.identity, job["session"], stamps=job["stamps"])
            with closing(journal):
                work.answer(journal, job["done"])
            ranks.barrier()
            return None
        # What torch.compile makes cannot be counted; otherwise no answer waits for what the counter imports.
        gmacs = work.count_gmacs() if config.runtime.compile else {}
        stamps = stamp_files(record.path for record in work.videos.records)
        journal, finished = open_journal(
            out, work.identity, work.session(), stamps=stamps, resume=config.resume, ranks=ranks.size
        )
        with closing(journal):
            resume.report(finished, len(work.videos))
            done = [answer.index for answer in finished.evaluation.answers]
            ranks.broadcast(done=done, session=finished.session, stamps=stamps)
            profiled = work.answer(journal, done, finished.evaluation)
        ranks.barrier()
        finished, total = read_finished(out, work.identity, stamps), len(work.videos)
        stored = len(finished.evaluation.answers)  # by all ranks and sessions
        if stored < total:
            raise DataError(
                f"{out}: {stored} of {total} videos are stored; run again with output_dir={out} for the rest."
            )
        return work.write(out, finished, gmacs or work.count_gmacs(), profiled)


class _Work:
    """The objects of one evaluation on one rank."""

    def __init__(self, config: EvalConfig, ranks: Ranks) -> None:
        config = self.config = as_fitted(config)
        self.ranks = ranks
        self.engine = runtime.build_engine(config.runtime, ranks)
        self.root, videos = build.build_videos(config.dataset, progress=config.progress)
        self.pipeline = build.build_pipeline(config, videos, self.engine)
        self.backbone = self.pipeline.backbone
        config = self.config = replace(config, dataset=cut.read_as_trained(config.dataset, self.backbone))
        self.backbone.check_classifies()
        self.videos = build.match_labels(videos, self.backbone.class_names, self.backbone.num_classes)
        self.batch_size = runtime.batch_size(config.runtime, self.engine)
        self.dtype = runtime.dtype_name(self.engine)
        self.runs_in = runtime.chosen_engine(config.runtime, self.engine)
        known = {"runtime.dtype": self.dtype, "runtime.engine": self.runs_in}
        self.identity = resume.identity(config, self.videos, self.pipeline, known)
        self.metrics = [_actor_metric(config.dataset, self.root, config.views, self.backbone.input_size)]
        if self.pipeline.reads_motion:
            self.metrics.append(WithoutVectors())

    def session(self) -> dict[str, Any]:
        """What is worth knowing about this start of the command."""
        return {
            "device": describe_device(self.engine.device),
            "ranks": self.ranks.size,
            "batch_size": self.batch_size,
            "git_commit": git_commit(),
            "versions": versions(),
        }

    def count_gmacs(self) -> dict[str, float]:
        """Multiply-accumulates of a view; where the clips decide, `info` knows more in the end."""
        channels = 4 if self.pipeline.reads_motion else 3
        shape = (1, self.backbone.num_frames, *self.backbone.frame_size, channels)
        return gmacs_per_view(self.pipeline, torch.zeros(shape, dtype=torch.uint8, device=self.engine.device))

    def answer(
        self, journal: Journal, done: Collection[int], earlier: Evaluation | None = None
    ) -> Profile | None:
        """Decodes and answers this rank's share of the videos that are not `done` yet.

        Args:
            earlier: what is done, for the progress bar.

        Returns:
            with `runtime.profile`, where the time of this session went.
        """
        config, engine, ranks = self.config, self.engine, self.ranks
        runtime.speed_up(self.pipeline, config.runtime, engine)  # compilers run at the first batch
        cache = cut.build_clip_cache(config.dataset, config.views, self.pipeline, engine)
        evaluator = self._evaluator()
        known, group = set(done), evaluator.videos_per_batch
        left = [index for index in range(len(self.videos)) if index not in known]
        todo = share(left, ranks, together=group)
        workers = runtime.num_workers(config.runtime, ranks, turns=runtime.takes_turns(engine, ranks))
        waiting, start, computed = Waiting(), perf_counter(), processor_seconds()
        samples = chain.from_iterable(waiting.watch(self._samples(todo, cache, workers, group)))
        earlier = earlier or Evaluation()
        what = f"rank {ranks.rank} of {ranks.size}" if ranks.size > 1 else None
        with (
            Progress(len(earlier.answers) + len(todo), show=config.progress, what=what) as progress,
            runtime.mendable_errors(self.batch_size),
        ):
            progress.on_batch(earlier)
            observers: list[Observer] = [Pictures(build.spread(config.visualize, len(self.videos)))]
            observers += [*self.metrics, journal, progress]
            evaluator.observers = observers if cache is None else [KeepViews(cache), *observers]
            evaluation = evaluator.run(samples)
        if cache is not None and cache.fault is not None:
            warn(f"dataset.clip_cache: some views were not kept for the next run ({cache.fault})")
        if not (config.runtime.profile and evaluation.pruned.backbone):
            return None
        return profile(
            evaluation,
            total=perf_counter() - start,
            waiting=waiting,
            workers=workers,
            views=config.views.per_video,
            cores=runtime.shared_cores(engine, ranks),
            processor=processor_seconds() - computed,
        )

    def _evaluator(self) -> Evaluator:
        config, dataset, pipeline = self.config, self.config.dataset, self.pipeline
        return Evaluator(
            pipeline,
            prepare=cut.view_cutter(dataset, config.views, self.backbone),
            views_per_video=config.views.per_video,
            batch_size=self.batch_size,
            engine=self.engine,
            baseline=config.baseline and not (pipeline.pruner is None and pipeline.merger is None),
            full_batches=bool(config.runtime.compile),
            shared_maps=cut.build_shared_maps(dataset, config.views, pipeline, wanted=config.share_maps),
            batch_bytes=math.inf if dataset.memory_mb is None else dataset.memory_mb * 2**18,
        )

    def _samples(self, todo: Sequence[int], cache: ClipCache | None, workers: int, group: int) -> Any:
        """Decoded videos, in lists; `group` of them are one batch."""
        dataset, views = self.config.dataset, self.config.views
        decoded = cut.build_dataset(dataset, views, self.pipeline, self.videos, cache=cache)
        ahead = runtime.decoding(self.engine, workers, group, self.ranks)
        return iter_samples(decoded, indices=todo, timeout_s=dataset.decode_timeout_s, **ahead)

    def write(
        self, out: Path, finished: Finished, gmacs: dict[str, float], profiled: Profile | None
    ) -> EvaluationRun:
        """Writes the files of a finished evaluation."""
        evaluation, pipeline = finished.evaluation, self.pipeline
        evaluation.answers += [VideoAnswer(name, None, error="missing") for name in self.videos.missing]
        results = build_results(evaluation, self._info(evaluation, finished.sessions, gmacs))
        if profiled is not None:
            results["profile"] = profiled.record()
        names = build.shared_names(self.videos, self.backbone)
        written = write_results(out, results, evaluation, class_names=names)
        if evaluation.examples and pipeline.pruner is not None:
            dataset, views = self.config.dataset, self.config.views
            decoded = cut.build_dataset(dataset, views, pipeline, self.videos, whole=True)
            cutter = cut.view_cutter(dataset, views, self.backbone)
            panels = [
                build.panel(pipeline, shown, cut.picture(decoded, cutter, shown), names)
                for shown in evaluation.examples
            ]
            written.append(save_gallery(panels, out / "kept_tubelets.png"))
        return EvaluationRun(
            results, evaluation, profiled, written, self.root, self.backbone.num_classes, names
        )

    def _info(
        self, evaluation: Evaluation, sessions: list[dict[str, Any]], gmacs: dict[str, float]
    ) -> RunInfo:
        config, pruner, backbone = self.config, self.pipeline.pruner, self.backbone
        keep_ratio = 1.0 if pruner is None else pruner.budget.value
        varies = pruner is not None and pruner.budget.variable
        if evaluation.kept and (varies or backbone.parts > 1):  # known only now
            gmacs = mean_gmacs(self.pipeline, gmacs, evaluation.kept)
        if evaluation.kept and varies:
            keep_ratio = fmean(evaluation.kept.elements()) / backbone.part_grid.num_tokens
        if evaluation.pruned.scorer_gmacs:  # known only now, too
            gmacs = shared_gmacs(gmacs, evaluation.pruned.scorer_gmacs)
        dataset = config.dataset
        return RunInfo(
            dataset=dataset.name,
            backbone=backbone_said(config.backbone),
            pruner=config.pruner.name,
            keep_ratio=keep_ratio,
            views=str(config.views),
            num_tokens=backbone.grid.num_tokens,
            gmacs_per_view=gmacs,
            weights={"backbone": config.backbone.weights, "scorer": config.pruner.weights},
            device=describe_device(self.engine.device),
            dtype=self.dtype,
            engine=self.runs_in,
            seed=config.seed,
            dataset_seed=dataset.seed if dataset.name == "synthetic" else None,
            generator_version=VERSION if dataset.name == "synthetic" else None,
            settings={
                "pruner": {**config.pruner.options, "share_maps": config.share_maps},
                "merger": asdict(config.merger),
                "dataset": {"camera": dataset.camera} if dataset.camera else {},
            },
            sessions=sessions,
            extra={metric.name: metric.dense for metric in self.metrics},
        )


def _actor_metric(
    dataset: DatasetConfig, root: Path, views: ViewsConfig, input_size: int | tuple[int, int]
) -> ExtraMetric:
    """How much of the actor is kept, of synthetic videos seen through one centre crop; of others nobody knows."""
    known = dataset.name == "synthetic" and views.crops == 1 and dataset.short_side in (None, input_size)
    tracks = read_actors(root) if known else {}

    def measure(sample: VideoSample, selection: TokenSelection) -> float | None:
        return actor_share(tracks, sample, selection) if tracks else None

    return ExtraMetric(ACTOR_METRIC, measure, dense=1.0)
