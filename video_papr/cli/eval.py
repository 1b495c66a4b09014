"""`python tools/eval.py`: accuracy, cost and speed of a pruned video transformer beside the dense one."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config import EvalConfig, check
from ..config_rules import did_you_mean
from ..errors import ConfigError, DataError
from ..evaluation.report import SWEEP_COLUMNS, print_report
from .common import Progress, make_console, run_command, warn

if TYPE_CHECKING:
    from ..data.annotations import VideoList
    from ..evaluation.cost import Engine
    from ..evaluation.journal import Finished, Journal
    from ..evaluation.runner import Evaluation
    from ..pipeline import Pipeline


def main() -> None:
    """Entry point of the command."""
    run_command("eval", _work)


def _work(cfg: DictConfig, out: Path) -> dict[str, Any] | float:
    """The content of results.json, or with `optimize` the one figure that a sweeper asks for."""
    config = check(cfg)
    wanted = config.optimize
    if wanted is not None and wanted not in SWEEP_COLUMNS:
        raise ConfigError(
            f"optimize={wanted!r}: must be one of {', '.join(SWEEP_COLUMNS)}.{did_you_mean(wanted, SWEEP_COLUMNS)}"
        )
    results = run(config, out)
    if wanted is None:
        return results
    figure = SWEEP_COLUMNS[wanted](results)
    if figure is None:
        raise ConfigError(f"optimize={wanted}: this run has no such figure.")
    return float(figure)


def run(config: EvalConfig, out: Path) -> dict[str, Any]:
    """Evaluates and writes results.json, predictions.jsonl and kept_tubelets.png into `out`.

    What an earlier run finished there is not done again; see `evaluation/journal.py`.

    Returns:
        the content of results.json.

    Raises:
        VideoPaprError: something in the configuration or the data that the user can mend.
    """
    import torch

    from ..evaluation.cost import gmacs_per_view, mean_gmacs, shared_gmacs
    from ..evaluation.journal import hold, open_journal, storing
    from ..evaluation.store import (
        RunInfo,
        build_results,
        describe_device,
        git_commit,
        versions,
        write_results,
    )
    from ..visualize import save_gallery
    from . import build, resume

    with hold(out):
        engine = build.build_engine(config.runtime)
        root, videos = build.build_videos(config.dataset, progress=config.progress)
        pipeline = build.build_pipeline(
            config.backbone, config.pruner, videos, seed=config.seed, engine=engine, merger=config.merger
        )
        backbone, pruner = pipeline.backbone, pipeline.pruner
        videos = build.match_labels(videos, backbone.class_names, backbone.num_classes)
        view_shape = (1, backbone.num_frames, *backbone.frame_size, 3)
        gmacs = gmacs_per_view(pipeline, torch.zeros(view_shape, dtype=torch.uint8, device=engine.device))
        keep_ratio = 1.0 if pruner is None else pruner.budget.value
        dtype, device = build.dtype_name(engine), describe_device(engine.device)
        journal, finished = open_journal(
            out,
            resume.identity(config, videos, pipeline, {"runtime.dtype": dtype}),
            {
                "device": device,
                "batch_size": build.batch_size(config.runtime, engine),
                "git_commit": git_commit(),
                "versions": versions(),
            },
            resume=config.resume,
        )
        with closing(journal):
            resume.tell(finished, len(videos))
            evaluation = _evaluate(config, pipeline, root, videos, engine, journal, finished)
        if pruner is not None and pruner.budget.variable and evaluation.kept:  # known only now
            gmacs = mean_gmacs(pipeline, gmacs, evaluation.kept)
            keep_ratio = fmean(evaluation.kept.elements()) / backbone.grid.num_tokens
        if evaluation.pruned.scorer_gmacs:  # maps that crops share
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
        names = build.shared_names(videos, backbone)
        with storing(out):
            written = write_results(out, results, evaluation, class_names=names)
            if evaluation.examples and pruner is not None:
                panels = [build.panel(pipeline, shown, names) for shown in evaluation.examples]
                written.append(save_gallery(panels, out / "kept_tubelets.png"))
    _report(results, evaluation, written)
    if not results["num_evaluated"]:
        raise DataError(f"no video of {root} could be read; the reasons are in {written[1]}")
    return results


def _evaluate(
    config: EvalConfig,
    pipeline: Pipeline,
    root: Path,
    videos: VideoList,
    engine: Engine,
    journal: Journal,
    finished: Finished,
) -> Evaluation:
    """Decodes and answers every video that no earlier session has; those that are not on disk come last."""
    from ..data.datasets import VideoDataset, keep_views
    from ..data.limits import Limits
    from ..data.loader import iter_samples
    from ..evaluation.runner import VideoAnswer, evaluate
    from . import build

    backbone, dataset, views = pipeline.backbone, config.dataset, config.views
    if config.runtime.compile:
        backbone.compile()  # in place; the compiler runs at the first batch, before the clock
    batch_size = build.batch_size(config.runtime, engine)
    sampler = build.frame_sampler(dataset, views.clips, backbone.num_frames)
    cache = build.build_clip_cache(dataset, views, backbone, engine)
    earlier = finished.evaluation
    done = {answer.index for answer in earlier.answers}
    limits = Limits(max_pixels=dataset.max_pixels, max_frames=dataset.max_frames)
    samples = iter_samples(
        VideoDataset(videos, sampler, decoder=dataset.decoder, limits=limits, cache=cache),
        indices=[index for index in range(len(videos)) if index not in done],
        workers=build.num_workers(config.runtime),
        pin_memory=engine.device.type == "cuda",
        timeout_s=dataset.decode_timeout_s,
        memory_mb=dataset.decode_memory_mb,
    )

    def store(part: Evaluation) -> None:
        journal.add(part)
        finished.sessions[-1]["videos"] += len(part.answers)

    def smaller(size: int) -> None:
        warn(f"runtime.batch_size={batch_size}: out of memory; the run goes on with {size} views at a time")

    prepare = build.view_cutter(dataset, views, backbone)
    shared = build.build_shared_maps(dataset, views, pipeline, wanted=config.share_maps)
    with Progress(len(videos), show=config.progress) as progress, build.mendable_errors(batch_size):
        for answer in earlier.answers:
            progress(answer)
        evaluation = evaluate(
            pipeline,
            chain.from_iterable(samples),
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
            shared_maps=shared,
        )
    if cache is not None and cache.fault is not None:
        warn(f"dataset.clip_cache: some views were not kept for the next run ({cache.fault})")
    evaluation.extend(earlier)
    evaluation.answers.sort(key=lambda answer: answer.index)  # damage to the journal may have left a gap
    evaluation.examples.sort(key=lambda example: example.answer.index)
    evaluation.answers += [VideoAnswer(name, None, error="missing") for name in videos.missing]
    return evaluation


def _report(results: dict[str, Any], evaluation: Evaluation, written: list[Path]) -> None:
    """Prints the table, what went wrong, and where the files are."""
    console = make_console()
    print_report(results, console)
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
