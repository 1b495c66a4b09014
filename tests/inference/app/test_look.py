"""What the demo says about a clip is what the pipelines say; what it cannot read it says in one line."""

from __future__ import annotations

import copy
import csv
import shutil
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from video_papr.core.errors import ConfigError, LogitsError, VideoDecodeError
from video_papr.data.decoding import decode_clips
from video_papr.evaluation.cost import gmacs_per_view
from video_papr.inference.app import look
from video_papr.inference.app.look import FILM, TABLE, Looker
from video_papr.inference.predict import ClipReader, Recipe, predict
from video_papr.inference.windows import Timeline
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pruner=st.sampled_from(["motion", "similarity", "center"]), keep_ratio=st.sampled_from([0.25, 0.5, 1.0])
)
def test_both_answers_are_those_of_the_pipelines(looker, demo_clip, tmp_path, pruner, keep_ratio):
    found = looker.look(demo_clip, pruner=pruner, keep_ratio=keep_ratio, out=tmp_path)
    flow = Pipeline(looker.backbone, build_pruner(pruner, keep_ratio=keep_ratio))
    for key, pipeline in (("dense", Pipeline(looker.backbone)), ("pruned", flow)):
        expected = predict(pipeline, demo_clip, recipe=looker.recipe)
        assert [guess["name"] for guess in found[key]["top"]] == [guess.name for guess in expected]
        assert found[key]["top"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-6)
        assert found[key]["milliseconds"] > 0
    gmacs = gmacs_per_view(flow, torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8))
    assert found["dense"]["gmacs"] == gmacs["dense"]
    assert (found["pruned"]["gmacs"], found["scorer_gmacs"]) == (gmacs["total"], gmacs["scorer"])
    assert (found["dense"]["tokens"], found["pruned"]["tokens"]) == (4, int(4 * keep_ratio))
    assert (found["video"]["name"], found["video"]["seconds"]) == ("my clip.mp4", 1.0)
    film, clip = (
        decode_clips(path, lambda n: [list(range(n))]).frames for path in (tmp_path / FILM, demo_clip)
    )
    assert film.shape[1] == clip.shape[1]  # the whole video
    faded = (film[0, :, 100:] > 190).all(-1).mean()
    assert faded > 0.5 * (1 - keep_ratio)  # the crop is three quarters of a frame


def test_a_ratio_is_for_one_answer_only(looker, demo_clip, tmp_path):
    before = {name: pruner.budget for name, pruner in looker.pruners.items()}
    looker.look(demo_clip, pruner="motion", keep_ratio=0.25, out=tmp_path)
    assert {name: pruner.budget for name, pruner in looker.pruners.items()} == before


def test_a_stream_without_times_is_as_long_as_its_frames(looker, write_video, tmp_path):
    raw = write_video(tmp_path / "raw.h264", 200)
    with pytest.raises(VideoDecodeError, match="raw.h264 is 8 s long; at most 5 s are taken"):
        looker.look(raw, pruner="motion", keep_ratio=0.5, out=tmp_path)


def test_a_long_video_is_answered_window_by_window(looker, write_video, tmp_path, monkeypatch):
    video, said, asked, answer = write_video(tmp_path / "long.mp4", 100), [], [], ClipReader.answer
    monkeypatch.setattr(ClipReader, "answer", lambda *given: asked.append(given) or answer(*given))
    ask = partial(looker.look, video, pruner="center", out=tmp_path, tell=said.append)
    found = ask(keep_ratio=0.5)
    assert len(asked) == 2 * (1 + look.RUNS + 3)  # both models, the first window several times
    flow = Pipeline(looker.backbone, build_pruner("center", keep_ratio=0.5))
    windows = list(Timeline(flow, video, window_seconds=1, recipe=looker.recipe))
    assert found["video"]["windows"] == len(windows) == 4
    assert found["words"] == ["window_seconds=1"]
    assert (found["dense"]["tokens"], found["pruned"]["tokens"]) == (16, 8)
    rows = list(csv.DictReader((tmp_path / TABLE).open()))
    assert {row["video"] for row in rows} == {"long.mp4"}  # no folder of the server
    best = [row for row in rows if row["rank"] == "1"]
    assert [row["name"] for row in best] == [answer.guesses[0].name for answer in windows]
    segments = found["pruned"]["segments"]
    assert [segments[0]["start_seconds"], segments[-1]["end_seconds"]] == [0, 4]
    assert sum(segment["windows"] for segment in segments) == 4
    assert "3 of 4 windows" in said and said[-1] == "Drawing the film"
    assert ask(keep_ratio=0.25)["dense"] == found["dense"]  # not asked again, times included
    shutil.copyfile(write_video(tmp_path / "other.mp4", 75), video)
    assert ask(keep_ratio=0.25)["dense"]["milliseconds"] != found["dense"]["milliseconds"]


def test_large_frames_are_made_smaller_as_they_are_decoded(looker, demo_clip, tmp_path, monkeypatch):
    seen: list[Any] = []
    decode = Recipe.decode
    monkeypatch.setattr(look, "LARGE_SIDE", 60)
    monkeypatch.setattr(
        Recipe, "decode", lambda *a, **k: (found := decode(*a, **k), seen.append(found.frames.shape))[0]
    )
    found = looker.look(demo_clip, pruner="center", keep_ratio=0.5, out=tmp_path)
    assert found["words"] == ["dataset.decode_size=short_side"]
    assert len(seen) == 1 and seen[0][2] < 48  # of 48 rows


def test_logits_that_are_not_finite_are_no_answer(looker, demo_clip, tmp_path):
    broken = copy.copy(looker)
    broken.backbone = copy.deepcopy(looker.backbone)
    next(iter(broken.backbone.parameters())).data.fill_(float("nan"))
    with pytest.raises(LogitsError, match="logits are not finite"):
        broken.look(demo_clip, pruner="center", keep_ratio=0.5, out=tmp_path)


def test_what_cannot_be_shown(looker, write_video, tmp_path):
    long = write_video(tmp_path / "long.mp4", 13, 2)
    (tmp_path / "text.mp4").write_text("no video")
    wrong = {
        "long.mp4 is 6 s long; at most 5 s are taken": {"video": long},
        "text.mp4 cannot be read as a video: ": {"video": tmp_path / "text.mp4"},
        "absent.mp4 cannot be read as a video: no such file": {"video": tmp_path / "absent.mp4"},
    }
    for said, given_video in wrong.items():
        with pytest.raises(VideoDecodeError) as caught:
            looker.look(**given_video, pruner="motion", keep_ratio=0.5, out=tmp_path)
        assert str(caught.value).startswith(said)
        assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(
        ConfigError, match="pruner=x3d_s is not on offer; choose one of motion, similarity, center"
    ):
        looker.look(long, pruner="x3d_s", keep_ratio=0.5, out=tmp_path)
    for ratio in (0, -1, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
            looker.look(long, pruner="motion", keep_ratio=ratio, out=tmp_path)
    with pytest.raises(ConfigError, match="run_length has no keep ratio to choose"):
        Looker(
            looker.backbone,
            {"run_length": build_pruner("run_length")},
            looker.recipe,
            max_seconds=5,
            window_seconds=1,
        )
