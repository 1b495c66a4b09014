"""`python tools/predict.py video=PATH`: what happens in a video, when, and which of its tubelets were read."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config import PredictConfig, check
from ..core.console import make_console, warn
from ..core.errors import ConfigError, DataError
from .common import print_written, run_command

if TYPE_CHECKING:
    from ..inference.files import Outcome

SOME_FAILED = 1  # exit status when there are answers, but not for every video
BUNDLED = "videomae_tiny_synthetic"


def main() -> None:
    """Entry point of the command."""
    run_command("predict", _work)


def _work(cfg: DictConfig, out: Path) -> dict[str, Any]:
    summary = run(check(PredictConfig, cfg), out)
    if summary["num_failed"]:
        sys.exit(SOME_FAILED)
    return summary


def run(config: PredictConfig, out: Path) -> dict[str, Any]:
    """Answers every video, and writes predictions.jsonl, predictions.csv and pictures into `out`.

    Returns:
        num_videos and num_failed.

    Raises:
        VideoPaprError: something in the configuration or the data that the user can mend.
    """
    videos = find_videos(config.video, sys.stdin)

    from tqdm import tqdm

    from ..assembly import runtime
    from ..assembly.compose import build_reader
    from ..evaluation.answers import NOT_FINITE
    from ..inference.files import PredictionWriter, is_own_film, predict_file
    from .predict_report import print_predictions

    found = [path for path in videos if path == config.video or not is_own_film(path)]
    if len(found) < len(videos):
        warn(
            f"video={config.video}: {len(videos) - len(found)} films that predict drew itself are passed over"
        )
        if not found:
            raise DataError(f"video={config.video}: there are no other videos")
    pipeline, recipe = build_reader(config)
    if config.backbone.weights == BUNDLED:
        warn(
            f"backbone.weights={BUNDLED} knows the synthetic actions only and calls any video one of them; for others "
            "use dataset=k400, which downloads weights once, or give backbone= and backbone.weights="
        )
    outcomes: list[Outcome] = []
    bar = tqdm(found, unit="video", disable=not config.progress)
    with PredictionWriter(out) as writer, runtime.mendable_errors(recipe.batch_size):
        for number, path in enumerate(bar):
            pictured = sum(outcome.error is None for outcome in outcomes) < config.visualize
            outcome = predict_file(
                pipeline,
                recipe,
                path,
                windows=(config.window_seconds, config.stride_seconds),
                top_k=config.top_k,
                pictured=pictured,
                progress=config.progress,
            )
            writer.add(number, outcome)
            outcomes.append(outcome.without_panels())
    failed = [outcome for outcome in outcomes if outcome.error]
    console = make_console()
    print_predictions(outcomes, console)
    print_written(writer.written, console)
    short = [outcome for outcome in outcomes if outcome.short is not None]
    if short:
        needed = recipe.frames_needed(pipeline.backbone.num_frames)
        warn(
            f"{len(short)} of {len(outcomes)} videos or their windows are shorter than the {needed} frames of a clip, "
            f"so frames are repeated; the first: {short[0].path} ({short[0].short} frames)"
        )
    what = "answered" if any(NOT_FINITE in (outcome.error or "") for outcome in failed) else "read"
    if len(failed) == len(outcomes):
        raise DataError(f"no video could be {what}; the first: {failed[0].error}")
    if failed:
        warn(f"{len(failed)} of {len(outcomes)} videos could not be {what}; the first: {failed[0].error}")
    return {"num_videos": len(outcomes), "num_failed": len(failed)}


def find_videos(video: str | None, lines: Iterable[str]) -> list[str]:
    """The files that `video` names.

    Args:
        video: a file, a folder (with all below it), a pattern as in a shell (`**` reaches into folders), or "-".
        lines: one path in each, for "-"; empty ones are passed over.

    Raises:
        ConfigError: `video` is None.
        DataError: there are none.
    """
    from ..core.console import warn
    from ..data.annotations.files import VIDEO_EXTENSIONS, passed_over_line, videos_below

    if video is None:
        raise ConfigError(
            "video is not set: video=PATH, a file, folder or pattern; video=- reads paths from stdin."
        )
    if video == "-":
        paths = [path for line in lines if (path := line.rstrip("\r\n")).strip()]
        if not paths:
            raise DataError("video=-: stdin holds no path; give one in each line.")
        return paths
    named = os.path.expanduser(video)
    if os.path.isfile(named):
        return [named]
    if os.path.isdir(named):
        passed_over: Counter[str] = Counter()
        found = [str(path) for path in videos_below(Path(named), passed_over=passed_over) if path.is_file()]
        line = passed_over_line(f"video={video}", passed_over)
        if not found:
            endings = ", ".join(sorted(VIDEO_EXTENSIONS))
            raise DataError(f"video={video}: no video in this folder (endings: {endings})")
        if line:
            warn(line)
        return found
    if not glob.has_magic(named):
        raise DataError(f"video={video}: no such file or folder")
    found = sorted(path for path in glob.glob(named, recursive=True) if os.path.isfile(path))
    if not found:
        raise DataError(f"video={video}: no file fits this pattern")
    return found
