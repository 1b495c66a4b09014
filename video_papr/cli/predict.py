"""`python tools/predict.py video=PATH`: what happens in a video, when, and which of its tubelets were read."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..assembly.pipeline_config import PipelineConfig, check_pipeline
from ..config.hydra import quote
from ..config.rules import flag, natural, or_else, positive, positive_number, setting, text
from ..core.console import make_console, warn
from ..core.errors import ConfigError, DataError
from .common import print_written, run_command

if TYPE_CHECKING:
    from ..inference.files import Outcome

SOME_FAILED = 1  # exit status when there are answers, but not for every video
BUNDLED = "videomae_tiny_synthetic"


@dataclass(frozen=True)
class PredictConfig(PipelineConfig):
    """Everything that `tools/predict.py` reads. See conf/predict.yaml."""

    video: str | None = setting(or_else(None, text), None)
    window_seconds: float | None = setting(or_else(None, positive_number), None)
    stride_seconds: float | None = setting(or_else(None, positive_number), None)
    top_k: int = setting(positive, 5)
    visualize: int = setting(natural, 4)
    output_dir: str = setting(text, "outputs")
    progress: bool = setting(flag, True)

    def __post_init__(self) -> None:
        if self.stride_seconds is not None and self.window_seconds is None:
            raise ConfigError(f"stride_seconds={self.stride_seconds}: needs window_seconds=SECONDS.")


def main() -> None:
    """Entry point of the command."""
    sys.argv[1:] = [_plain_path(word) for word in sys.argv[1:]]
    run_command("predict", _work)


def _plain_path(word: str) -> str:
    """Puts the path of `video=PATH` into quotes, so that it may hold spaces, commas and brackets; quotes stay."""
    key, _, value = word.partition("=")
    return f"{key}={quote(value)}" if key == "video" and value and value[0] not in "'\"" else word


def _work(cfg: DictConfig, out: Path) -> dict[str, Any]:
    summary = run(check_pipeline(PredictConfig, cfg), out)
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
