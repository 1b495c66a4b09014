"""`python tools/eval.py`: accuracy, cost and speed of a pruned video transformer beside the dense one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config import EvalConfig, check
from ..config.rules import did_you_mean
from ..core.console import Progress, make_console, warn
from ..core.errors import ConfigError, DataError
from ..core.processes import ALONE, Ranks, share
from ..evaluation.reports.tables import SWEEP_COLUMNS, print_report
from .common import run_shared_command

if TYPE_CHECKING:
    from ..data.annotations import VideoList
    from ..evaluation.answers import Evaluation
    from ..evaluation.cost import Engine
    from ..evaluation.journal import Finished, Journal
    from ..evaluation.profile import Profile
    from ..pipeline import Pipeline


def main() -> None:
    """Entry point of the command."""
    run_shared_command("eval", _work)


def _work(ranks: Ranks, cfg: DictConfig, out: Path) -> dict[str, Any] | float:
    """The content of results.json, or with `optimize` the one figure that a sweeper asks for."""
    config = check(cfg)
    wanted = config.optimize
    if wanted is not None and wanted not in SWEEP_COLUMNS:
        raise ConfigError(
            f"optimize={wanted!r}: must be one of {', '.join(SWEEP_COLUMNS)}.{did_you_mean(wanted, SWEEP_COLUMNS)}"
        )
    results = run(config, out, ranks)
    if wanted is None or ranks.rank:
        return results
    figure = SWEEP_COLUMNS[wanted](results)
    if figure is None:
        raise ConfigError(f"optimize={wanted}: this run has no such figure.")
    return float(figure)


def run(config: EvalConfig, out: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Evaluates and writes results.json, predictions.jsonl and kept_tubelets.png into `out`.

    What an earlier run finished there is not done again; see `evaluation/journal.py`.

    Args:
        ranks: share the videos; rank 0 puts the answers together and writes.

    Returns:
        the content of results.json; ranks above 0: nothing.

    Raises:
        VideoPaprError: something in the configuration or the data that the user can mend.
    """
    import torch

    from ..assembly import build, resume, runtime
    from ..evaluation.answers import VideoAnswer
    from ..evaluation.cost import gmacs_per_view, mean_gmacs, shared_gmacs
    from ..evaluation.journal import hold, open_journal, storing
    from ..evaluation.results import (
        RunInfo,
        build_results,
        describe_device,
        git_commit,
        versions,
        write_results,
    )
    from ..inference.visualize import save_gallery

    advice = f"Run again with output_dir={out} to go on with what was finished, with any number of ranks."
    with hold(out, ranks.rank), ranks.watched(advice):
        engine = runtime.build_engine(config.runtime, ranks)
        root, videos = build.build_videos(config.dataset, progress=config.progress)
        pipeline = build.build_pipeline(
            config.backbone,
            config.pruner,
            videos,
            seed=config.seed,
            engine=engine,
            merger=config.merger,
            packing=config.runtime.packing,
        )
        backbone, pruner = pipeline.backbone, pipeline.pruner
        videos = build.match_labels(videos, backbone.class_names, backbone.num_classes)
        dtype, device = runtime.dtype_name(engine), describe_device(engine.device)
        identity = resume.identity(config, videos, pipeline, {"runtime.dtype": dtype})
        work = partial(_evaluate, config, ranks, pipeline, root, videos, engine)
        if ranks.rank:
            _take_part(ranks, out, identity, work)
            return {}
        view_shape = (1, backbone.num_frames, *backbone.frame_size, 3)
        gmacs = gmacs_per_view(pipeline, torch.zeros(view_shape, dtype=torch.uint8, device=engine.device))
        keep_ratio = 1.0 if pruner is None else pruner.budget.value
        journal, finished = open_journal(
            out,
            identity,
            {
                "device": device,
                "ranks": ranks.size,
                "batch_size": runtime.batch_size(config.runtime, engine),
                "git_commit": git_commit(),
                "versions": versions(),
            },
            resume=config.resume,
            ranks=ranks.size,
        )
        with closing(journal):
            resume.tell(finished, len(videos))
            done = [answer.index for answer in finished.evaluation.answers]
            ranks.begin({"done": done, "session": finished.session})
            evaluation, profiled = work(journal, finished, done)
        if ranks.size > 1:
            evaluation, finished.sessions = _merge(ranks, out, identity, len(videos))
        evaluation.answers += [VideoAnswer(name, None, error="missing") for name in videos.missing]
        if pruner is not None and pruner.budget.variable and evaluation.kept:  # known only now
            gmacs = mean_gmacs(pipeline, gmacs, evaluation.kept)
            keep_ratio = fmean(evaluation.kept.elements()) / backbone.grid.num_tokens
        if evaluation.pruned.scorer_gmacs:  # known only now, too
            gmacs = shared_gmacs(gmacs, evaluation.pruned.scorer_gmacs)
        info = RunInfo(
            dataset=config.dataset.name,
            backbone=config.backbone.model or config.backbone.name,
            pruner=config.pruner.name,
            keep_ratio=keep_ratio,
            views=str(config.views),
            num_tokens=backbone.grid.num_tokens,
            gmacs_per_view=gmacs,
            weights={"backbone": config.backbone.weights, "scorer": config.pruner.weights},
            device=device,
            dtype=dtype,
            seed=config.seed,
            dataset_seed=config.dataset.seed if config.dataset.name == "synthetic" else None,
            settings={
                "pruner": {**config.pruner.options, "share_maps": config.share_maps},
                "merger": asdict(config.merger),
                "dataset": {"camera": config.dataset.camera} if config.dataset.camera else {},
            },
            sessions=finished.sessions,
        )
        results = build_results(evaluation, info)
        if profiled is not None:
            results["profile"] = profiled.record()
        names = build.shared_names(videos, backbone)
        with storing(out):
            written = write_results(out, results, evaluation, class_names=names)
            if evaluation.examples and pruner is not None:
                panels = [build.panel(pipeline, shown, names) for shown in evaluation.examples]
                written.append(save_gallery(panels, out / "kept_tubelets.png"))
    _report(results, evaluation, written, profiled)
    if not results["num_evaluated"]:
        raise DataError(f"no video of {root} could be read; the reasons are in {written[1]}")
    return results


def _take_part(
    ranks: Ranks,
    out: Path,
    identity: dict[str, Any],
    work: Callable[[Journal, Finished, list[int]], object],
) -> None:
    """What a rank above 0 does: its share of the videos, into its own journal."""
    from ..evaluation.answers import Evaluation
    from ..evaluation.journal import Finished, join_journal

    with closing(join_journal(out, ranks.rank, identity, ranks.facts["session"])) as journal:
        work(journal, Finished(Evaluation(), [{"videos": 0}]), ranks.facts["done"])
    ranks.meet()


def _merge(
    ranks: Ranks, out: Path, identity: dict[str, Any], total: int
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Waits for the other ranks, and puts together what all of them stored."""
    from ..evaluation.journal import read_finished

    ranks.meet()
    finished = read_finished(out, identity)
    stored = len(finished.evaluation.answers)
    if stored < total:
        raise DataError(
            f"{out}: {stored} of {total} videos are stored; run again with output_dir={out} for the rest."
        )
    finished.evaluation.examples.sort(key=lambda example: example.answer.index)
    return finished.evaluation, finished.sessions


def _evaluate(
    config: EvalConfig,
    ranks: Ranks,
    pipeline: Pipeline,
    root: Path,
    videos: VideoList,
    engine: Engine,
    journal: Journal,
    finished: Finished,
    done: Collection[int],
) -> tuple[Evaluation, Profile | None]:
    """Decodes and answers this rank's share of the videos that are not `done` yet.

    Returns:
        the answers, those of earlier sessions among them; and where the time of this session went, with
        `runtime.profile`.
    """
    from time import perf_counter

    from ..assembly import build, runtime
    from ..data.datasets import VideoDataset, keep_views
    from ..data.limits import Limits
    from ..data.loader import iter_samples
    from ..evaluation.evaluator import evaluate, videos_per_batch
    from ..evaluation.profile import Waiting, profile

    backbone, dataset, views = pipeline.backbone, config.dataset, config.views
    runtime.choose_kernels(pipeline.pruner, config.runtime, engine)
    if config.runtime.compile:
        # The compiler runs at the first batch, before the clock.
        pipeline.compile_networks(**config.runtime.compile_options)
    batch_size = runtime.batch_size(config.runtime, engine)
    sampler = build.frame_sampler(dataset, views.clips, backbone.num_frames)
    cache = build.build_clip_cache(dataset, views, backbone, engine)
    earlier, known = finished.evaluation, set(done)
    group = videos_per_batch(batch_size, views.per_video)
    todo = share([index for index in range(len(videos)) if index not in known], ranks, together=group)
    limits = Limits(max_pixels=dataset.max_pixels, max_frames=dataset.max_frames)
    workers = runtime.num_workers(config.runtime, ranks, turns=runtime.takes_turns(engine, ranks))
    samples = iter_samples(
        VideoDataset(
            videos,
            sampler,
            decoder=dataset.decoder,
            limits=limits,
            cache=cache,
            reduce=build.frame_reducer(dataset, views, backbone),
        ),
        indices=todo,
        workers=workers,
        pin_memory=engine.device.type == "cuda",
        timeout_s=dataset.decode_timeout_s,
        memory_mb=dataset.decode_memory_mb,
        ahead=runtime.videos_ahead(engine, workers, group, ranks),
        turns=runtime.videos_in_turn(engine, workers, group, ranks),
    )

    def store(part: Evaluation) -> None:
        journal.add(part)
        finished.sessions[-1]["videos"] += len(part.answers)

    def smaller(size: int) -> None:
        warn(f"runtime.batch_size={batch_size}: out of memory; the run goes on with {size} views at a time")

    prepare = build.view_cutter(dataset, views, backbone)
    shared = build.build_shared_maps(dataset, views, pipeline, wanted=config.share_maps)
    waiting, start = Waiting(), perf_counter()
    what = f"rank {ranks.rank} of {ranks.size}" if ranks.size > 1 else None
    with (
        Progress(len(earlier.answers) + len(todo), show=config.progress, what=what) as progress,
        runtime.mendable_errors(batch_size),
    ):
        for answer in earlier.answers:
            progress(answer)
        evaluation = evaluate(
            pipeline,
            chain.from_iterable(waiting.watch(samples)),
            prepare=prepare,
            views_per_video=views.per_video,
            batch_size=batch_size,
            engine=engine,
            baseline=config.baseline and not (pipeline.pruner is None and pipeline.merger is None),
            examples=build.spread(config.visualize, len(videos)),
            actor_share=build.build_actor_share(dataset, root, views, backbone.input_size),
            on_answer=progress,
            keep_views=None if cache is None else partial(keep_views, cache),
            on_batch=store,
            on_smaller_batch=smaller,
            full_batches=bool(config.runtime.compile),
            shared_maps=shared,
        )
    if cache is not None and cache.fault is not None:
        warn(f"dataset.clip_cache: some views were not kept for the next run ({cache.fault})")
    profiled = None
    if config.runtime.profile and evaluation.pruned.backbone:
        total = perf_counter() - start
        profiled = profile(
            evaluation,
            total=total,
            waiting=waiting,
            workers=workers,
            views=views.per_video,
            **runtime.shared_cores(engine, ranks),
        )
    evaluation.extend(earlier)
    evaluation.answers.sort(key=lambda answer: answer.index)  # damage to the journal may have left a gap
    evaluation.examples.sort(key=lambda example: example.answer.index)
    return evaluation, profiled


def _report(
    results: dict[str, Any], evaluation: Evaluation, written: list[Path], profiled: Profile | None
) -> None:
    """Prints the table, where the time went, what went wrong, and where the files are."""
    console = make_console()
    print_report(results, console)
    if profiled is not None:
        from ..evaluation.profile import print_profile

        print_profile(profiled, console)
    bad = [answer for answer in evaluation.answers if answer.error]
    failed = [answer for answer in bad if answer.label is not None]
    missing = [answer for answer in bad if answer.label is None]
    total = len(evaluation.answers)
    if failed:
        warn(f"{len(failed)} of {total} videos failed and count as wrong; the first: {failed[0].error}")
    if missing:
        warn(f"{len(missing)} of {total} videos are missing and count as wrong; the first: {missing[0].name}")
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
