"""`python tools/eval.py`: accuracy, cost and speed of a pruned video transformer beside the dense one."""

from __future__ import annotations

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

    Returns:
        the content of results.json.

    Raises:
        VideoPaprError: something in the configuration or the data that the user can mend.
    """
    import torch

    from ..evaluation.cost import gmacs_per_view, mean_gmacs
    from ..evaluation.store import RunInfo, build_results, describe_device, write_results
    from ..visualize import save_gallery
    from . import build

    engine = build.build_engine(config.runtime)
    root, videos = build.build_videos(config.dataset, progress=config.progress)
    pipeline = build.build_pipeline(
        config.backbone, config.pruner, videos, seed=config.seed, engine=engine, merger=config.merger
    )
    backbone, pruner = pipeline.backbone, pipeline.pruner
    videos = build.match_labels(videos, backbone.class_names, backbone.num_classes)
    view_shape = (1, backbone.num_frames, backbone.input_size, backbone.input_size, 3)
    gmacs = gmacs_per_view(pipeline, torch.zeros(view_shape, dtype=torch.uint8, device=engine.device))
    keep_ratio = 1.0 if pruner is None else pruner.budget.value
    evaluation = _evaluate(config, pipeline, root, videos, engine)
    if pruner is not None and pruner.budget.variable and evaluation.kept:  # known only now
        gmacs = mean_gmacs(pipeline, gmacs, evaluation.kept)
        keep_ratio = fmean(evaluation.kept.elements()) / backbone.grid.num_tokens
    info = RunInfo(
        dataset=config.dataset.name,
        backbone=config.backbone.name,
        pruner=config.pruner.name,
        keep_ratio=keep_ratio,
        views=str(config.views),
        num_tokens=backbone.grid.num_tokens,
        gmacs_per_view=gmacs,
        weights={"backbone": config.backbone.weights, "scorer": config.pruner.weights},
        device=describe_device(engine.device),
        dtype=build.dtype_name(engine),
        seed=config.seed,
        dataset_seed=config.dataset.seed if config.dataset.name == "synthetic" else None,
        settings={"pruner": config.pruner.options, "merger": asdict(config.merger)},
    )
    results = build_results(evaluation, info)
    names = videos.class_names or backbone.class_names
    written = write_results(out, results, evaluation, class_names=names)
    if evaluation.examples and pruner is not None:
        panels = [build.panel(pipeline, shown, names) for shown in evaluation.examples]
        written.append(save_gallery(panels, out / "kept_tubelets.png"))
    _report(results, evaluation, written)
    if not results["num_evaluated"]:
        raise DataError(f"no video of {root} could be read; the reasons are in {written[1]}")
    return results


def _evaluate(
    config: EvalConfig, pipeline: Pipeline, root: Path, videos: VideoList, engine: Engine
) -> Evaluation:
    """Decodes and answers every video; those that are not on disk come last."""
    from ..data.datasets import VideoDataset
    from ..data.loader import iter_samples
    from ..data.transforms import resize_and_crop
    from ..evaluation.runner import VideoAnswer, evaluate
    from . import build

    backbone, dataset, views = pipeline.backbone, config.dataset, config.views
    if config.runtime.compile:
        backbone.compile()  # in place; the compiler runs at the first batch, before the clock
    batch_size = build.batch_size(config.runtime, engine)
    sampler = build.frame_sampler(dataset, views.clips, backbone.num_frames)
    samples = iter_samples(
        VideoDataset(videos, sampler, decoder=dataset.decoder),
        workers=build.num_workers(config.runtime),
        pin_memory=engine.device.type == "cuda",
    )
    prepare = partial(
        resize_and_crop, size=backbone.input_size, short_side=dataset.short_side, num_crops=views.crops
    )
    with Progress(len(videos), show=config.progress) as progress, build.mendable_errors(batch_size):
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
        )
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
