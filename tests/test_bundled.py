"""The bundled pair does what the README says, on a fresh synthetic split that no figure of ours was made on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

import video_papr as vp
from video_papr.checkpoints import BUNDLED, bundled_names, read_weights
from video_papr.data.annotations import VideoList
from video_papr.data.datasets import VideoDataset, build_video_list
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import uniform_segments
from video_papr.data.synthetic import SyntheticSplit, generate
from video_papr.data.transforms import resize_and_crop

NUM_VIDEOS = 120


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list[str]]:
    """Views (n, T, S, S, 3) uint8 and the names of their actions."""
    split = SyntheticSplit("test", seed=20_240, num_videos=NUM_VIDEOS)
    root: Path = generate(split, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)
    videos: VideoList = build_video_list(name="folder", root=root)
    assert videos.class_names is not None
    dataset = VideoDataset(videos, partial(uniform_segments, num_frames=16, num_clips=1))
    samples = [sample for batch in iter_samples(dataset, videos_per_batch=8, workers=1) for sample in batch]
    views = [
        resize_and_crop(s.frames, size=64, short_side=None, num_crops=1)
        for s in samples
        if s.frames is not None
    ]
    assert len(views) == NUM_VIDEOS
    return torch.cat(views), [videos.class_names[s.label] for s in samples]


def accuracy(pipeline: vp.Pipeline, frames: torch.Tensor, actions: list[str]) -> float:
    names = pipeline.backbone.class_names
    assert names is not None
    with torch.inference_mode():
        answers = torch.cat([pipeline(part).argmax(1) for part in frames.split(20)]).tolist()
    return sum(names[a] == b for a, b in zip(answers, actions, strict=True)) / len(actions)


def test_pruning_with_x3d_keeps_what_random_dropping_loses(clips: tuple[torch.Tensor, list[str]]) -> None:
    frames, actions = clips
    backbone = vp.build_backbone("videomae_tiny", weights="videomae_tiny_synthetic")
    options = {"weights": "x3d_s_synthetic", "frames": 8, "size": 128, "align_corners": False}
    dense = accuracy(vp.Pipeline(backbone), frames, actions)
    pruned = accuracy(
        vp.Pipeline(backbone, vp.build_pruner("x3d_s", keep_ratio=0.3, **options)), frames, actions
    )
    random = accuracy(vp.Pipeline(backbone, vp.build_pruner("random", keep_ratio=0.3)), frames, actions)
    assert dense > 0.85, dense  # chance is 1/12; 120 videos leave a standard error of two to three points
    assert pruned > dense - 0.06, (pruned, dense)
    assert pruned > random, (pruned, random)


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_weights_have_a_card_and_say_what_they_are(name: str) -> None:
    state, described = read_weights(name)
    assert described["model"] in (*vp.BACKBONES, *vp.PRUNERS)
    assert len(described["class_names"]) == 12
    assert all(torch.isfinite(value).all() for value in state.values())
    assert (BUNDLED / f"{name}.md").is_file()


def test_bundled_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.glob("*.safetensors")) < 20e6
