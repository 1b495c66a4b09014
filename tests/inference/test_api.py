"""`vp.predict` and `vp.evaluate`: what the commands do, from Python."""

from __future__ import annotations

import pytest
import torch

import video_papr as vp
from video_papr.evaluation.observers import Observer
from video_papr.inference.predict import Recipe


@pytest.fixture(scope="module")
def pipeline():
    backbone = vp.build_backbone("videomae_tiny", num_classes=3, num_frames=4, input_size=16, seed=0)
    made = vp.Pipeline(backbone, vp.build_pruner("motion", keep_ratio=0.5))
    made.recipe = Recipe(frame_stride=2, batch_size=4)
    return made


def test_predict_takes_one_video_or_several(pipeline, video_root):
    files = [video_root / "left/a.mp4", str(video_root / "right/d.mp4")]
    frames = torch.randint(0, 256, (9, 20, 30, 3), dtype=torch.uint8)
    each = [vp.predict(pipeline, one, top_k=2) for one in (*files, frames)]
    assert [len(guesses) for guesses in each] == [2, 2, 2]
    assert vp.predict(pipeline, [*files, frames], top_k=2) == each
    assert pipeline.predict(tuple(files), top_k=2) == each[:2]


def test_evaluate_a_folder_pairs_or_a_list(pipeline, video_root, tmp_path):
    seen: list[str] = []

    class Names(Observer):
        def on_video(self, video, part):
            seen.append(video.answer.name)

    found = vp.evaluate(pipeline, video_root, views="2x3", baseline=True, observers=[Names()])
    assert seen == [answer.name for answer in found.answers] and len(seen) > 2
    assert found.failed == [] and 0 <= found.top1 <= found.top5 == 100
    assert sum(views for _, views in found.pruned.backbone) == 6 * len(seen)
    assert all(answer.kept_tokens == 2 and answer.baseline_top5 for answer in found.answers)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    pairs = [(video_root / "left/a.mp4", 1), (str(tmp_path / "bad.mp4"), 0)]
    found = vp.evaluate(pipeline, pairs)
    guess = vp.predict(pipeline, pairs[0][0])[0]
    assert found.answers[0].top5[0] == guess.label
    assert found.answers[0].probs_top5[0] == pytest.approx(guess.probability, abs=1e-6)
    assert found.top1 == (50 if guess.label == 1 else 0) and len(found.failed) == 1
    for videos, options, message in (
        ([], {}, "there is none"),
        ([("a.mp4", 7)], {}, "label 7 is out of range"),
        (pairs, {"views": "2"}, "CLIPSxCROPS"),
        (tmp_path / "absent", {}, "absent"),
    ):
        with pytest.raises(vp.VideoPaprError, match=message):
            vp.evaluate(pipeline, videos, **options)


def test_what_is_not_finite_is_an_error(pipeline, video_root):
    broken = vp.Pipeline(vp.build_backbone("videomae_tiny", num_classes=3, num_frames=4, input_size=16))
    with torch.no_grad():
        broken.backbone.blocks[0].mlp.fc1.weight[0, 0] = torch.inf
    video, frames = video_root / "left/a.mp4", torch.zeros(8, 20, 20, 3, dtype=torch.uint8)
    with pytest.raises(vp.LogitsError, match="not finite"):
        broken.predict(video)
    with pytest.raises(vp.LogitsError, match="not finite"):
        list(broken.stream(frames, fps=8, window_seconds=0.5))
    with pytest.raises(vp.LogitsError, match="not finite"):
        broken.features(video)
    found = vp.evaluate(broken, [(video, 0)])
    assert found.answers[0].error is not None and "not finite" in found.answers[0].error
