"""The loop on a linear model over clips of 2 x 2 pixels: exact resume, schedule, accumulation, and that it learns."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from video_papr.core.errors import CheckpointError, ConfigError, TrainingError
from video_papr.training.loop import CHECKPOINT, LOG, Loss, Schedule, Task, fit, top1
from video_papr.training.store import Batch, ClipStore

SCHEDULE = Schedule(steps=6, batch_size=8, validate_every=2, learning_rate=0.05)
SHAPE = (2, 2, 2, 3)


def draw(progress, clips, generator):
    """Bright clips are class 1, dark ones class 0."""
    labels = torch.randint(0, 2, (clips,), generator=generator)
    noise = torch.randint(0, 128, (clips, *SHAPE), generator=generator)
    return Batch((noise + 127 * labels.view(-1, 1, 1, 1, 1)).to(torch.uint8), labels)


def predict(model, frames):
    weight = next(model.parameters())
    return model(frames.flatten(1).to(weight.dtype) / 255 - 0.5)


def loss_of(model):
    return lambda batch, _: F.cross_entropy(predict(model, batch.frames), batch.labels)


def network(seed=0):
    """With dropout, which draws from torch's global generator, and batch norm, which has buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))


def train(model, directory, **options):
    task = {"draw": draw, "loss": loss_of(model), "validate": lambda: 50.0}
    task |= {key: options.pop(key) for key in ("draw", "loss", "validate") if key in options}
    schedule = options.pop("schedule", SCHEDULE)
    return fit(model, Task(**task), schedule, directory, progress=False, **options)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ---- resume ----


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, stop):
    whole = network()
    rows = train(whole, tmp_path / "whole")

    def until(progress, clips, generator):
        if progress >= stop / SCHEDULE.steps:
            raise KeyboardInterrupt
        return draw(progress, clips, generator)

    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path / "parts", draw=until)
    torch.manual_seed(999)  # another process has another random state
    resumed = network(seed=1)
    assert not same(resumed, whole)
    resumed_rows = train(resumed, tmp_path / "parts", resume=True)
    assert same(resumed, whole)
    assert without_seconds(resumed_rows) == without_seconds(rows)


def test_runs_are_reproducible_and_the_seed_matters(tmp_path):
    models = [network() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.rand(number)  # what was drawn before does not matter
        train(model, tmp_path / str(number), schedule=replace(SCHEDULE, seed=seed))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_finished_run_resumes_to_itself(tmp_path):
    whole = network()
    rows = train(whole, tmp_path)
    again = network(1)
    assert train(again, tmp_path, resume=True) == rows
    assert same(again, whole)


def test_resume_is_refused_in_one_line_where_it_cannot_be_right(tmp_path):
    def refusal(model, **options):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError) as caught:
            train(model, tmp_path, resume=True, **options)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / CHECKPOINT) in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return str(caught.value)

    assert "does not exist; start without it" in refusal(network())
    train(network(), tmp_path)
    other = refusal(network(), schedule=replace(SCHEDULE, steps=12))
    assert "was written under another schedule: Schedule(steps=6" in other
    assert "now Schedule(steps=12" in other
    assert "does not fit Linear; missing: weight, bias; unexpected: 0.weight" in refusal(nn.Linear(24, 2))
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(network())
    torch.save({"model": {}}, tmp_path / CHECKPOINT)
    assert "is no checkpoint of a training" in refusal(network())


def test_run_killed_while_it_writes_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    train(network(), tmp_path, schedule=replace(SCHEDULE, validate_every=3))
    before = (tmp_path / CHECKPOINT).read_bytes()

    def killed(state, path):
        path.write(b"half a check")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


# ---- the log ----


def test_log_is_returned_written_and_handed_over(tmp_path):
    handed: list[dict[str, Any]] = []
    scores = iter([10.0, 20.123456, 30.0])
    rows = train(
        network(),
        tmp_path,
        schedule=replace(SCHEDULE, steps=5),
        validate=lambda: next(scores),
        log=handed.append,
    )
    assert [row["step"] for row in rows] == [2, 4, 5]  # the last step always counts
    assert [row["clips"] for row in rows] == [16, 32, 40]
    assert [row["top1"] for row in rows] == [10.0, 20.12, 30.0]
    assert handed == rows
    with (tmp_path / LOG).open() as file:
        read = list(csv.DictReader(file))
    assert read == [{key: str(value) for key, value in row.items()} for row in rows]


# ---- the schedule ----


@settings(deadline=None)
@given(steps=st.integers(1, 400), warmup=st.floats(0, 1), peak=st.floats(1e-5, 1))
def test_rate_rises_in_a_line_and_falls_in_a_cosine(steps, warmup, peak):
    schedule = Schedule(steps=steps, warmup=warmup, learning_rate=peak)
    rates = np.array([schedule.rate(step) for step in range(steps)])
    rising = max(1, int(warmup * steps))
    assert (rates > 0).all()
    assert rates.max() == pytest.approx(peak)
    np.testing.assert_allclose(rates[:rising], peak * np.arange(1, rising + 1) / rising)
    assert (np.diff(rates[rising - 1 :]) <= 1e-12).all()
    if steps - rising > 20:
        half = rising + (steps - rising) // 2
        assert rates[half] == pytest.approx(peak / 2, rel=0.1)
        assert rates[-1] < 0.01 * peak


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 0}, r"^train\.steps=0 must be an integer >= 1$"),
        ({"batch_size": -1}, r"^train\.batch_size=-1 must be"),
        ({"accumulate": 3}, r"^train\.accumulate=3 must divide train\.batch_size=64$"),
        ({"dtype": "fp8"}, r"^train\.dtype='fp8' is unknown; use one of fp32, bf16$"),
    ],
)
def test_schedule_out_of_range(options, line):
    with pytest.raises(ConfigError, match=line):
        Schedule(**{"steps": 10, **options})


# ---- the step ----


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(24, 2).double()


def test_loss_that_is_no_number_stops_the_training_in_one_line(tmp_path):
    model = network()
    train(model, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    broken = lambda batch, _: predict(model, batch.frames).sum() * float("nan")  # noqa: E731
    with pytest.raises(
        TrainingError, match=r"^the loss of step 1 is nan; try train.learning_rate below [^\n]+$"
    ):
        train(model, tmp_path, loss=broken)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_what_diverges_in_the_last_step_is_never_written(tmp_path):
    """The loss of a step is that of the weights before it: gradients and the validation show what became of them."""
    once = replace(SCHEDULE, steps=1)
    model = network()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    infinite = lambda batch, _: predict(model, batch.frames).pow(2).sum().sqrt()  # noqa: E731 (no slope at zero)
    with pytest.raises(
        TrainingError, match=r"^the gradients of step 1 are not finite \(norm nan\); try [^\n]+$"
    ):
        train(model, tmp_path, schedule=once, loss=infinite)
    model, clips = network(), draw(0.0, 8, torch.Generator().manual_seed(0))
    store = ClipStore(clips.frames.numpy(), clips.labels.numpy())
    logits = lambda frames: predict(model, frames) / 0  # noqa: E731
    validate = lambda: top1(model, logits, store, batch_size=8, dtype="fp32")  # noqa: E731
    with pytest.raises(
        TrainingError, match=r"^after step 1, logits of the validation clips are not finite [^\n]+$"
    ):
        train(model, tmp_path, schedule=once, validate=validate)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, accumulate):
    whole, parts = linear(), linear()
    once = replace(SCHEDULE, steps=1, clip_norm=1e9, warmup=0.0)
    train(whole, tmp_path, schedule=once)
    train(parts, tmp_path, schedule=replace(once, accumulate=accumulate))
    start = linear()
    loss_of(start)(draw(0.0, 8, torch.Generator().manual_seed(0)), torch.Generator()).backward()
    for one, other, alone in zip(whole.parameters(), parts.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one.grad, alone.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_large_gradients_are_scaled_down_to_the_norm(tmp_path):
    model = linear()
    train(model, tmp_path, schedule=replace(SCHEDULE, steps=1, clip_norm=1e-3))
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_shrinks_matrices_and_nothing_else(tmp_path):
    model = nn.Sequential(nn.Linear(24, 3), nn.LayerNorm(3))
    before = {key: value.clone() for key, value in model.state_dict().items()}

    schedule = Schedule(steps=1, batch_size=4, learning_rate=0.1, weight_decay=0.5, warmup=0)
    still: Loss = lambda batch, _: 0 * predict(model, batch.frames).sum()  # noqa: E731  only the decay moves weights
    train(model, tmp_path, loss=still, schedule=schedule)
    for key, value in model.state_dict().items():
        expected = before[key] * (1 - 0.1 * 0.5) if key == "0.weight" else before[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_frozen_parameters_stay(tmp_path):
    model = nn.Sequential(nn.Linear(24, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before, head = model[0].weight.clone(), model[1].weight.clone()
    train(model, tmp_path)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[1].weight, head)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_learns(tmp_path, dtype):
    frames, labels, *_ = draw(0.0, 101, torch.Generator().manual_seed(77))
    store = ClipStore(frames.numpy(), labels.numpy())
    torch.manual_seed(0)
    model = nn.Linear(24, 2)
    rows = train(
        model,
        tmp_path,
        validate=lambda: top1(model, partial(predict, model), store, batch_size=10, dtype=dtype),
        schedule=Schedule(
            steps=60, batch_size=16, learning_rate=0.05, validate_every=20, dtype=dtype, clip_norm=10
        ),
    )
    assert rows[-1]["top1"] == 100
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert model.weight.dtype == torch.float32


# ---- validation ----


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_top1_counts_every_clip_once_in_eval_mode(batch_size):
    frames, labels, *_ = draw(0.0, 7, torch.Generator().manual_seed(1))
    labels[2] = 1 - labels[2]
    model = network()
    calls: list[tuple[bool, bool]] = []

    def watched(clips):
        calls.append((model.training, torch.is_grad_enabled()))
        return predict(model, clips)

    store = ClipStore(frames.numpy(), labels.numpy())
    found = top1(model, watched, store, batch_size=batch_size, dtype="fp32")
    right = (predict(model.eval(), frames).argmax(1) == labels).sum()
    assert found == pytest.approx(100 * right.item() / 7)
    assert set(calls) == {(False, False)}


def test_training_goes_on_in_training_mode_after_a_validation(tmp_path):
    model = network()
    modes: list[bool] = []
    progress: list[float] = []

    def watched(batch, generator):
        modes.append(model.training)
        return loss_of(model)(batch, generator)

    def spied(at, clips, generator):
        progress.append(at)
        return draw(at, clips, generator)

    def validate():
        model.eval()
        return 0.0

    train(model, tmp_path, loss=watched, validate=validate, draw=spied)
    assert modes == [True] * 6
    assert progress == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_the_actors_tracks_reach_the_loss_in_parts_too(tmp_path):
    model = network()

    def marked(at, clips, generator):
        batch = draw(at, clips, generator)
        return batch._replace(tracks=batch.labels.view(-1, 1, 1).float())

    def checked(batch, generator):
        assert batch.tracks is not None
        assert batch.tracks.shape == (2, 1, 1)
        assert torch.equal(batch.tracks.flatten().long(), batch.labels)
        return loss_of(model)(batch, generator)

    train(model, tmp_path, draw=marked, loss=checked, schedule=replace(SCHEDULE, steps=1, accumulate=4))
