"""`python tools/predict.py video=PATH`: what happens in a video, when, and which of its tubelets were read."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PredictConfig
from ..core.console import make_console, warn
from ..core.errors import ConfigError, DataError
from .common import json_on_stdout, print_written, run_command, warn_of_bundled

if TYPE_CHECKING:
    from ..inference.files import Outcome

SOME_FAILED = 1  # exit status when there are answers, but not for every video


def main() -> None:
    """Entry point of the command."""
    run_command("predict", _work)


def _work(config: PredictConfig, out: Path) -> dict[str, Any]:
    from ..data.readers.live import live_source
    from ..inference.find_videos import RECORDS

    if config.video is not None and (source := live_source(str(config.video))):
        from .predict_live import run_live

        return run_live(config, source, out)
    if config.show or config.max_seconds:
        key = "show=true" if config.show else f"max_seconds={config.max_seconds}"
        raise ConfigError(
            f"{key}: for live sources (a webcam, screen, rtsp://, a pipe), not video={config.video}"
        )
    with json_on_stdout(config.json, out / RECORDS):
        summary = run(config, out)
        if summary["num_failed"]:
            sys.exit(SOME_FAILED)
    return summary


def run(config: PredictConfig, out: Path) -> dict[str, Any]:
    """Answers every video, writes predictions.jsonl, predictions.csv and pictures; returns num_videos, num_failed."""
    from ..inference.find_videos import find_videos

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    videos = find_videos(config.video, sys.stdin, out / "downloads")
    if config.runtime.cluster is not None:
        return _run_on_cluster(config, videos, out)

    from tqdm import tqdm

    from ..assembly import runtime
    from ..assembly.compose import build_reader
    from ..evaluation.answers import NOT_FINITE
    from ..inference.files import PredictionWriter, predict_file
    from ..inference.predict import warm_up
    from .predict_report import print_predictions

    if config.runtime.engine == "auto" and len(videos) == 1 and config.window_seconds is None:
        # One answer of torch is there before a graph is.
        config = replace(config, runtime=replace(config.runtime, engine="torch"))
    pipeline, recipe = build_reader(config)
    warn_of_bundled(config)
    outcomes: list[Outcome] = []
    bar = tqdm(videos, unit="video", disable=not config.progress)
    drawn: dict[str, Any] = {"annotate": config.annotate, "progress": config.progress}
    with (
        PredictionWriter(out, pipeline, recipe, **drawn) as writer,
        runtime.mendable_errors(recipe.batch_size),
    ):
        warm_up(pipeline, recipe)
        for number, path in enumerate(bar):
            answered = sum(outcome.error is None for outcome in outcomes)
            pictured = config.annotate != "none" and answered < config.visualize
            windows, shown = (config.window_seconds, config.stride_seconds), {"pictured": pictured}
            outcome = predict_file(
                pipeline, recipe, path, windows=windows, top_k=config.top_k, progress=config.progress, **shown
            )
            writer.add(number, outcome)
            outcomes.append(replace(outcome, panels=[]))
    console = make_console()
    print_predictions(outcomes, console)
    print_written(writer.written, console)
    _warn_of_short(outcomes, recipe.frames_needed(pipeline.backbone.num_frames))
    if writer.without_film:
        count = f"{len(writer.without_film)} of {len(outcomes)}"
        warn(f"{count} videos have no film; the first: {writer.without_film[0]}")
    failed = [outcome for outcome in outcomes if outcome.error]
    what = "answered" if any(NOT_FINITE in (outcome.error or "") for outcome in failed) else "read"
    if len(failed) == len(outcomes):
        raise DataError(f"no video could be {what}; the first: {failed[0].error}")
    if failed:
        warn(f"{len(failed)} of {len(outcomes)} videos could not be {what}; the first: {failed[0].error}")
    return {"num_videos": len(outcomes), "num_failed": len(failed)}


def _warn_of_short(outcomes: Sequence[Outcome], needed: int) -> None:
    """Says which videos have fewer frames than a clip needs."""
    short = [outcome for outcome in outcomes if outcome.short is not None]
    if short:
        warn(
            f"{len(short)} of {len(outcomes)} videos or their windows are shorter than the {needed} frames of a clip, "
            f"so frames are repeated; the first: {short[0].path} ({short[0].short} frames)"
        )


def _run_on_cluster(config: PredictConfig, videos: list[str], out: Path) -> dict[str, Any]:
    from ..inference.cluster import SHARDS, run_on_ray

    total, failed = run_on_ray(config, videos, out)
    print_written([out / SHARDS])
    if failed:
        warn(f"{failed} of {total} videos have no answer; the column error says why")
    return {"num_videos": total, "num_failed": failed}
