"""The progress bar and the observers that come with the package."""

from __future__ import annotations

import io
import re
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from video_papr.evaluation.answers import Evaluation, VideoAnswer
from video_papr.evaluation.observers import ExtraMetric, Observer, Progress, WithoutVectors


def right(*, error: str | None = None, top5: tuple[int, ...] | None = (1, 0)) -> VideoAnswer:
    return VideoAnswer("a", 1, None if error else top5, error=error)


class Stderr(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(("terminal", "every"), [(False, 10.0), (True, 0.2)])
def test_a_log_gets_a_line_every_ten_seconds_and_a_terminal_five_a_second(
    terminal: bool, every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, out = [0.0], Stderr(terminal)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    shown = []
    with Progress(1000, what="rank 0 of 2") as progress:
        for step in range(1, 400):
            now[0], before = step * every / 20, out.tell()
            progress.on_batch(Evaluation([right()]))
            if out.tell() > before:
                shown.append(now[0])
    gaps = [after - before for before, after in pairwise([0.0, *shown])]
    assert len(gaps) > 17 and gaps == pytest.approx([every] * len(gaps), rel=0.06)
    assert out.getvalue().startswith("\rrank 0 of 2:   0%") and "399/1000" in out.getvalue()


def test_the_bar_says_what_is_right_and_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", out := Stderr(True))
    said = []
    with Progress(6) as progress:
        for answer in (right(), right(top5=(0, 1)), right(error="broken"), VideoAnswer("a", None)):
            progress.on_batch(Evaluation([answer]))
            progress._bar.refresh()
            said.append(re.findall(r"top-1 [^\]]*", out.getvalue())[-1])
    assert said == [
        *("top-1 100.0 %, failed 0", "top-1 50.0 %, failed 0"),
        *("top-1 33.3 %, failed 1", "top-1 25.0 %, failed 2"),
    ]
    monkeypatch.setattr(sys, "stderr", silent := Stderr(True))
    with Progress(1, show=False) as progress:
        progress.on_batch(Evaluation([right()]))
    assert silent.getvalue() == ""


def test_no_batch_at_all_is_no_division_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", out := Stderr(True))
    with Progress(1) as progress:
        progress.on_batch(Evaluation())
        progress._bar.refresh()
    assert "top-1 0.0 %, failed 0" in out.getvalue()


@pytest.mark.parametrize("kept", [None, "selection"])
def test_metrics_stand_in_the_answer(kept: Any) -> None:
    """A dense model has no selection for a metric to read; frames without vectors are counted all the same."""
    views = torch.zeros(2, 4, 2, 2, 4, dtype=torch.uint8)
    views[0, 1:, :, :, 3] = views[1, 3:, :, :, 3] = 128
    video: Any = SimpleNamespace(sample="sample", views=views, selection=kept, answer=right())
    observers: list[Observer] = [
        ExtraMetric("share", lambda sample, selection: float((sample, selection) == ("sample", "selection"))),
        WithoutVectors(),
    ]
    for observer in observers:
        observer.on_video(video, Evaluation())
    assert video.answer.extra.get("share") == (None if kept is None else 1.0)
    assert "frames_without_vectors" in video.answer.extra
