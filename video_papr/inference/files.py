"""Predictions of video files, and their files: predictions.jsonl, two tables, pictures and films, video by video."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from ..assembly.build import significance_of, spread
from ..core.errors import LogitsError, VideoDecodeError
from ..core.escape import shorten, spreadsheet
from ..core.files import atomic_write, storing
from ..evaluation.visualize import Panel, save_gallery, save_timeline
from ..pipeline import Pipeline
from .film import write_film
from .find_videos import RECORDS
from .predict import Answer, Guess, Recipe, best_guesses
from .segments import Window, merge_windows, subtitles
from .windows import Timeline

SHOWN = 4  # windows of a long video in its picture
TIMELINE_CLASSES = 6  # lines in the plot of a timeline
COLUMNS = ("video", "start_seconds", "end_seconds", "rank", "label", "name", "probability", "error")
SEGMENT_COLUMNS = ("video", "start_seconds", "end_seconds", "windows", "name", "probability")


@dataclass
class Outcome:
    """What became of one video.

    Attributes:
        lines: class -> probability in each window, for the classes that come out highest anywhere.
        short: frames of the shortest window, where a clip reads more, so that frames are repeated; otherwise None.
    """

    path: str  # as it was given
    num_tokens: int  # of the backbone's grid
    error: str | None = None  # why there is no answer; all below is empty then
    num_frames: int = 0
    fps: float = 0.0
    windows: list[Window] = field(default_factory=list)  # one for a video that was not cut
    guesses: tuple[Guess, ...] = ()  # of the whole video: the mean over its windows
    lines: dict[str, list[float]] = field(default_factory=dict)
    short: int | None = None
    pictured: bool = False  # whether pictures are wanted; `panels` hold what was kept in some of the windows
    panels: list[Panel] = field(default_factory=list)

    def summarise(self, names: tuple[str, ...] | None, top_k: int, num_lines: int) -> None:
        """Fills `guesses` and `lines` when all windows are there."""
        table = torch.stack([window.probabilities for window in self.windows])  # (windows, classes)
        self.guesses = best_guesses(table.mean(0), names, top_k)
        highest = best_guesses(table.amax(0), names, num_lines)
        self.lines = {guess.name: table[:, guess.label].tolist() for guess in highest}

    def record(self) -> dict[str, Any]:
        """The line of predictions.jsonl."""
        if self.error is not None:
            return {"video": self.path, "error": self.error}
        windows = [
            {
                "start_seconds": window.start_seconds,
                "end_seconds": window.end_seconds,
                "top": [guess._asdict() for guess in window.guesses],
                "kept_tokens": self.num_tokens if window.kept_tokens is None else window.kept_tokens,
                "latency_ms": window.latency_ms,
                **({} if window.unknown is None else {"frames_without_vectors": window.unknown}),
            }
            for window in self.windows
        ]
        return {
            "video": self.path,
            "error": None,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "num_tokens": self.num_tokens,
            "top": [guess._asdict() for guess in self.guesses],
            "windows": windows,
        }


def predict_file(
    pipeline: Pipeline,
    recipe: Recipe,
    path: str,
    *,
    windows: tuple[float | None, float | None] = (None, None),
    top_k: int = 5,
    pictured: bool = False,
    progress: bool = False,
) -> Outcome:
    """Answers one video, or says why not. `windows`: their length and stride in seconds, see `Timeline`."""
    outcome = Outcome(path, num_tokens=pipeline.backbone.grid.num_tokens, pictured=pictured)
    length, stride = windows
    try:
        timeline = Timeline(
            pipeline, path, window_seconds=length, stride_seconds=stride, top_k=top_k, recipe=recipe
        )
        timeline.pictured = shown = spread(SHOWN, len(timeline)) if pictured else set()
        quiet = not progress or len(timeline) == 1
        for place, answer in enumerate(tqdm(timeline, unit="window", leave=False, disable=quiet)):
            outcome.windows.append(Window.of(answer, recipe.crops))
            if place in shown and answer.mask is not None:
                outcome.panels.append(panel_of(pipeline, path, answer))
        outcome.num_frames, outcome.fps = timeline.num_frames, timeline.fps
        if timeline.shortest < recipe.frames_needed(pipeline.backbone.num_frames):
            outcome.short = timeline.shortest
        outcome.summarise(pipeline.backbone.class_names, top_k, TIMELINE_CLASSES)
    except (VideoDecodeError, LogitsError) as error:
        return Outcome(path, num_tokens=outcome.num_tokens, error=str(error))
    return outcome


class PredictionWriter:
    """Writes each outcome as soon as it is there, so that a run that is stopped leaves what it found.

    Args:
        annotate: "film": pictures and films; "pictures".

    Attributes:
        without_film: why there is none, of the videos that should have one.
    """

    def __init__(
        self, out: Path, pipeline: Pipeline, recipe: Recipe, *, annotate: str = "film", progress: bool = False
    ) -> None:
        self.out, self.pipeline, self.recipe = out, pipeline, recipe
        self.annotate, self.progress = annotate, progress
        self.written: list[Path] = []
        self.without_film: list[str] = []

    def __enter__(self) -> PredictionWriter:
        with storing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        self._json = self._open(RECORDS)
        self._csv = self._open("predictions.csv")
        self._rows = csv.writer(self._csv)
        self._rows.writerow(COLUMNS)
        self._segments: IO[str] | None = None  # with windows only
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._json, self._csv, self._segments):
            if file is not None:
                file.close()

    def _open(self, name: str) -> IO[str]:
        self.written.append(self.out / name)
        return open(self.out / name, "w", encoding="utf-8", errors="backslashreplace", newline="")

    def add(self, number: int, outcome: Outcome) -> None:
        """Writes the outcome of video `number`, counted from 0."""
        with storing(self.out):
            stem = f"{number + 1:03d}_{_plain(Path(outcome.path).stem)}"
            self._write(outcome, stem)
            if outcome.error is None and outcome.pictured:
                self._draw(stem, outcome)

    def _write(self, outcome: Outcome, stem: str) -> None:
        self._json.write(json.dumps(outcome.record(), ensure_ascii=False, allow_nan=False) + "\n")
        name = spreadsheet(outcome.path)
        if outcome.error is not None:
            self._rows.writerow([name, *[""] * 6, spreadsheet(outcome.error)])
        for window in outcome.windows:
            span = f"{window.start_seconds:.3f}", f"{window.end_seconds:.3f}"
            for rank, guess in enumerate(window.guesses, start=1):
                probability = f"{guess.probability:.6f}"
                self._rows.writerow(
                    [name, *span, rank, guess.label, spreadsheet(guess.name), probability, ""]
                )
        if len(outcome.windows) > 1:
            self._write_segments(outcome, stem)
        self._json.flush()
        self._csv.flush()

    def _write_segments(self, outcome: Outcome, stem: str) -> None:
        segments = merge_windows(outcome.windows)
        if self._segments is None:
            self._segments = self._open("segments.csv")
            csv.writer(self._segments).writerow(SEGMENT_COLUMNS)
        rows = csv.writer(self._segments)
        for segment in segments:
            span = f"{segment.start_seconds:.3f}", f"{segment.end_seconds:.3f}"
            probability = f"{segment.probability:.6f}"
            name = spreadsheet(segment.name)
            rows.writerow([spreadsheet(outcome.path), *span, segment.windows, name, probability])
        self._segments.flush()
        for kind in ("srt", "vtt"):
            self.written.append(self.out / f"{stem}.{kind}")
            atomic_write(self.written[-1], subtitles(segments, kind))

    def _draw(self, name: str, outcome: Outcome) -> None:
        if outcome.panels:
            self.written.append(save_gallery(outcome.panels, self.out / f"{name}.png"))
        if self.annotate == "film":
            scenes = [window.scene for window in outcome.windows]
            film = self.out / f"{name}.mp4"
            try:
                write_film(outcome.path, film, scenes, self.pipeline, self.recipe, progress=self.progress)
                self.written.append(film)
            except VideoDecodeError as error:
                self.without_film.append(str(error))
        if len(outcome.windows) > 1:
            spans = [(window.start_seconds, window.end_seconds) for window in outcome.windows]
            path = self.out / f"{name}_timeline.png"
            title = Path(outcome.path).name
            self.written.append(save_timeline(spans, outcome.lines, path, title=title))


def panel_of(pipeline: Pipeline, path: str, answer: Answer) -> Panel:
    """The first view of an answer, what was kept of it, and the map that decided it."""
    assert answer.mask is not None and answer.picture is not None
    best = answer.guesses[0]
    when = f"{answer.start_seconds:.1f} to {answer.end_seconds:.1f} s"
    title = (
        f"{shorten(Path(path).name, 60)}    {when}    {shorten(best.name, 40)} {100 * best.probability:.0f} %"
    )
    return Panel(title, answer.picture, answer.mask[0], significance_of(pipeline, answer.views[0]))


def _plain(stem: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII)[:60]
