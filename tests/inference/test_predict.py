"""Files, frames at hand and streams give the same answers; windows cover what they should; features fit the logits."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_papr.backbones.builders import Backbone, build_backbone
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import ConfigError, LogitsError, TooLargeError, VideoDecodeError
from video_papr.data import recipe
from video_papr.data.decoding import decode_clips
from video_papr.data.sampling import choose_sampler, dense_clips
from video_papr.data.transforms import resize_and_crop
from video_papr.inference.api import Pipeline
from video_papr.inference.features import TokenFeatures, features
from video_papr.inference.predict import Recipe, predict
from video_papr.inference.windows import Timeline, predict_stream, window_starts
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.tome import build_merger

NAMES = ("run", "jump", "swim")
FPS = 25


def pipeline(pruner="motion", merger="none", vivit=False):
    """Reads 4 frames of 16 x 16 pixels as 4 tokens; ViViT of 32 x 32 as 8, and a class token."""
    model: Backbone = build_backbone("videomae_tiny", num_classes=3, num_frames=4, input_size=16)
    if vivit:
        model = ViViT(num_classes=3, num_frames=4, input_size=32, dim=24, depth=2, num_heads=3).eval()
    model.class_names = NAMES
    options = {} if pruner == "none" else {"keep_ratio": 0.5}
    return Pipeline(model, build_pruner(pruner, **options), build_merger(merger))


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video):
    """90 frames at 25 per second."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 90, FPS)


@pytest.fixture(scope="module")
def frames(video):
    return decode_clips(video, lambda n: np.arange(n)[None]).frames[0]


def same(one, other):
    assert (one.start_seconds, one.end_seconds) == (other.start_seconds, other.end_seconds)
    assert torch.equal(one.views, other.views)
    assert torch.allclose(one.probabilities, other.probabilities, atol=1e-6)
    assert [guess.label for guess in one.guesses] == [guess.label for guess in other.guesses]


@given(num_frames=st.integers(1, 60), length=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_cover_the_video_as_far_as_their_stride_lets_them(num_frames, length, stride):
    starts = window_starts(num_frames, length, stride)
    assert starts == sorted(set(starts))
    ends = [min(start + length, num_frames) for start in starts]
    assert (starts[0], ends[-1]) == (0, num_frames)
    assert all(end - start == min(length, num_frames) for start, end in zip(starts, ends, strict=True))
    assert all(after - before == stride for before, after in pairwise(starts[:-1]))
    if stride <= length:
        assert set(range(num_frames)) <= {f for start in starts for f in range(start, start + length)}


RECIPES = {
    "dense": Recipe(frame_stride=3),
    "uniform": Recipe(sampling="uniform", clips=2, crops=3, short_side=20),
}


@pytest.mark.parametrize("name", RECIPES)
def test_whole_video_is_read_as_the_evaluation_reads_it(video, frames, name):
    recipe, flow = RECIPES[name], pipeline()
    timeline = Timeline(flow, video, recipe=recipe, top_k=2)
    timeline.pictured = {0}
    (answer,) = timeline
    chosen = choose_sampler(recipe.sampling, num_frames=4, num_clips=recipe.clips, frame_stride=3)(90)
    clips = torch.from_numpy(frames[chosen])
    views = resize_and_crop(clips, size=16, short_side=recipe.short_side, num_crops=recipe.crops)
    assert torch.equal(answer.views, views)
    side = None if recipe.short_side is None else 14 * recipe.short_side
    picture = resize_and_crop(clips[:1], size=224, short_side=side, num_crops=recipe.crops)[0]
    assert answer.picture is not None and torch.equal(answer.picture, picture)
    with torch.inference_mode():
        expected = flow(views).softmax(1).mean(0)
    assert torch.allclose(answer.probabilities, expected, atol=1e-6)
    best = expected.argsort(descending=True)[:2].tolist()
    assert [(guess.label, guess.name) for guess in answer.guesses] == [(i, NAMES[i]) for i in best]
    assert (answer.start_seconds, answer.end_seconds) == (0, 90 / FPS)
    assert answer.mask is not None
    assert answer.mask.flatten(1).sum(1).tolist() == [2] * len(views)
    assert answer.latency_ms > 0
    flow.recipe = recipe
    for kind in (video, str(video), frames, torch.from_numpy(frames)):
        guesses = flow.predict(kind, top_k=2)
        assert [guess.label for guess in guesses] == best
        assert guesses[0].probability == pytest.approx(answer.guesses[0].probability, abs=1e-6)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("window", "stride"), [(0.4, None), (0.4, 0.2), (0.32, 0.6), (1.9, 1.3), (3.6, 1), (9, None)]
)
def test_stream_gives_the_answers_of_the_file(video, frames, name, window, stride):
    flow = pipeline()
    given = {"window_seconds": window, "stride_seconds": stride, "recipe": RECIPES[name]}
    timeline = Timeline(flow, video, **given)
    from_file = list(timeline)
    assert len(from_file) == len(timeline)
    from_stream = list(predict_stream(flow, iter(frames), fps=FPS, **given))
    for one, other in zip(from_file, from_stream, strict=True):
        same(one, other)
    assert from_file[-1].end_seconds == 90 / FPS


def test_one_window_over_everything_is_the_whole_video(video):
    flow = pipeline()
    (whole,), (window,) = Timeline(flow, video), Timeline(flow, video, window_seconds=60)
    same(whole, window)


def test_stream_answers_as_soon_as_a_window_is_full(frames):
    taken = []

    def camera():
        for place, frame in enumerate(frames):
            taken.append(place)
            yield frame

    answers = pipeline().stream(camera(), fps=FPS, window_seconds=0.4, stride_seconds=0.2, top_k=1)
    assert taken == []  # nothing is read before it is asked for
    assert (next(answers).end_seconds, len(taken)) == (0.4, 10)
    assert (next(answers).end_seconds, len(taken)) == (0.6, 15)
    assert list(pipeline().stream(iter([]), fps=FPS, window_seconds=1)) == []


def test_wrong_arguments(video, frames, tmp_path):
    flow = pipeline()
    for name, value in (("window_seconds", 0), ("stride_seconds", 0), ("stride_seconds", -1), ("fps", 0)):
        given = {"fps": 25, "window_seconds": 1, name: value}
        with pytest.raises(ConfigError, match=f"^{name}={value} must be a number above 0"):
            predict_stream(flow, [], **given)
    with pytest.raises(ConfigError, match="top_k=0 must be at least 1"):
        flow.predict(frames, top_k=0)
    with pytest.raises(ConfigError, match="stride_seconds=1 needs window_seconds"):
        Timeline(flow, video, stride_seconds=1)
    with pytest.raises(ConfigError, match="dataset.sampling='densely' is unknown; use one of dense,"):
        predict(flow, frames, recipe=Recipe(sampling="densely"))
    with pytest.raises(ValueError, match=r"frames must be uint8 \(n, H, W, 3\)"):
        flow.predict(frames[0])
    with pytest.raises(ValueError, match=r"frames must be uint8"):
        flow.predict(frames.astype(np.float32))
    with pytest.raises(VideoDecodeError, match="no such file"):
        flow.predict(tmp_path / "absent.mp4")
    with pytest.raises(VideoDecodeError, match="cannot decode .*absent.mp4: no such file"):
        Timeline(flow, tmp_path / "absent.mp4", window_seconds=1)


def test_classes_without_names(frames):
    flow = pipeline("none")
    flow.backbone.class_names = None
    guesses = flow.predict(frames)
    assert len(guesses) == 3
    assert all(guess.name == f"class {guess.label}" for guess in guesses)
    assert sum(guess.probability for guess in guesses) == pytest.approx(1)


@pytest.mark.parametrize("pruner", ["none", "motion", "similarity"])
@pytest.mark.parametrize("vivit", [False, True])
@torch.inference_mode()
def test_features_lead_to_the_logits(video, pruner, vivit):
    flow = pipeline(pruner, vivit=vivit)
    model = flow.backbone
    size = model.input_size
    clips = torch.randint(0, 256, (3, 4, size, size, 3), dtype=torch.uint8)
    logits = flow(clips)
    pooled = flow.features(clips)
    assert pooled.shape == (3, model.head.in_features)
    assert torch.allclose(model.head(pooled), logits, atol=1e-5)
    tokens = flow.features(clips, pooled=False)
    for view, found in enumerate(tokens):
        assert isinstance(found, TokenFeatures)
        assert (len(found.prefix), len(found.tokens)) == (int(vivit), len(found.keep_idx))
        again = model.forward_head(torch.cat([found.prefix, found.tokens])[None])
        assert torch.allclose(again, logits[view : view + 1], atol=1e-5)
        selection = flow.select(clips[view : view + 1])
        expected = torch.arange(model.grid.num_tokens) if selection is None else selection.keep_idx[0]
        assert torch.equal(found.keep_idx, expected)
    assert torch.equal(flow(clips), logits)  # the pipeline itself is as it was
    assert flow.features(video).shape == (1, model.head.in_features)


def test_features_of_tokens_that_move():
    """Merged tokens have no place; clips that keep unequal numbers of tokens still have one vector each."""
    clips = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="pooled=False needs merger=none"):
        features(pipeline(merger="tome"), clips, pooled=False)
    assert features(pipeline(merger="tome"), clips).shape == (2, 192)
    flow = pipeline()
    flow.pruner = build_pruner("motion", keep_ratio=0.5)
    plain = features(flow, clips, pooled=False)
    flow.pruner = build_pruner("motion", keep_ratio=0.5, compensation="merge")
    for one, two in zip(
        features(flow, clips, pooled=False), plain, strict=True
    ):  # the regions' have no place
        assert torch.equal(one.keep_idx, two.keep_idx) and one.tokens.shape == two.tokens.shape
        assert not torch.allclose(one.tokens, two.tokens)
    assert features(flow, clips).shape == (2, 192)
    flow.pruner = build_pruner("motion", budget="top_p", top_p=0.6)
    clips[0, :, :8] = 0
    pooled = features(flow, clips)
    assert torch.allclose(pooled[:1], features(flow, clips[:1]), atol=1e-5)


def test_features_beside_predictions_in_other_threads(frames):
    """`features` borrows the weights of the pipeline, not the pipeline."""
    flow = pipeline()
    expected = flow.predict(frames)
    wrong: list[object] = []

    def work():
        wrong.extend(guesses for _ in range(10) if (guesses := flow.predict(frames)) != expected)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(10):
        flow.features(frames)
    thread.join()
    assert wrong == []


def test_sampler_of_the_recipe():
    assert np.array_equal(
        Recipe(clips=2).indices(100, 16), dense_clips(100, num_frames=16, frame_stride=4, num_clips=2)
    )


@pytest.mark.parametrize("pooled", [True, False])
def test_features_that_are_not_finite_are_refused(frames, pooled):
    flow = pipeline()
    with torch.no_grad():
        flow.backbone.blocks[1].mlp.fc1.weight.fill_(3e38)
    with pytest.raises(LogitsError, match="the features are not finite"):
        features(flow, frames, pooled=pooled)


def test_windows_that_memory_does_not_hold_together_are_read_one_by_one(video, monkeypatch):
    passes = []

    def counted(*args, **options):
        passes.append(options["max_bytes"])
        return decode_clips(*args, **options)

    def answers(memory_mb):
        return list(Timeline(pipeline(), video, window_seconds=0.2, recipe=Recipe(memory_mb=memory_mb)))

    monkeypatch.setattr(recipe, "decode_clips", counted)
    together = answers(None)
    assert (len(together), passes) == (18, [None, None])  # 16 windows at a time
    for one, other in zip(answers(1), together, strict=True):
        same(one, other)
    assert passes[2:] == [2**19] * (1 + 16 + 1)
    with pytest.raises(TooLargeError, match=r"dataset\.memory_mb allows 0 for one video"):
        next(iter(Timeline(pipeline(), video, window_seconds=0.2, recipe=Recipe(memory_mb=0))))
