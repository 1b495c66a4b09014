"""One map for all crops of a clip: what is joined, where it is cut, and where it agrees with a map of one crop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from video_papr.assembly.views import build_shared_maps
from video_papr.backbones.builders import build_backbone
from video_papr.config import DatasetConfig, ViewsConfig
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid
from video_papr.data.datasets import VideoSample
from video_papr.data.transforms import crop_places, resize_and_crop
from video_papr.evaluation import sharing
from video_papr.evaluation.cost import Engine
from video_papr.evaluation.evaluator import Evaluator
from video_papr.evaluation.sharing import SharedMaps
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.map_pruner import MapPruner
from video_papr.pruning.sharing import join_crops, shared_maps

SIZE, GRID = 32, TokenGrid(2, 4, 4)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pruner(name: str, **options: Any) -> MapPruner:
    made = build_pruner(name, **options)
    assert isinstance(made, MapPruner)
    return made


@settings(deadline=None, max_examples=40)
@given(height=st.integers(20, 120), width=st.integers(20, 120), short_side=st.integers(32, 48))
def test_crops_go_back_where_they_were_cut(height: int, width: int, short_side: int) -> None:
    frames = noise(2, 2, height, width, 3)
    how: dict[str, Any] = {"size": SIZE, "short_side": short_side}
    whole = resize_and_crop(frames, size=_resized(height, width, short_side), short_side=short_side)
    views = resize_and_crop(frames, **how, num_crops=3)
    corners = crop_places(height, width, **how, num_crops=3)
    (top, left), (bottom, right) = corners[0], corners[-1]
    joined = join_crops(views, corners)
    if max(bottom - top, right - left) > 2 * SIZE:
        assert joined is None
        return
    assert joined is not None
    assert torch.equal(joined, whole[:, :, top : bottom + SIZE, left : right + SIZE])


def _resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


@pytest.mark.parametrize("name", ["motion", "brightness", "run_length"])
def test_corners_on_the_grid_get_the_map_of_a_crop_alone(name: str) -> None:
    views = resize_and_crop(noise(2, 8, 32, 64, 3), size=SIZE, num_crops=3)
    corners = crop_places(32, 64, size=SIZE, num_crops=3)
    assert corners == [(0, 0), (0, 16), (0, 32)]  # two tokens of 8 pixels apart
    score = pruner(name).scorer
    found = shared_maps(score, views, corners, GRID)
    torch.testing.assert_close(found, score(views, GRID), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["motion", "x3d_s", "papr_plus", "image_convnet", "video_convnet"])
def test_a_shared_map_is_the_map_of_all_crops_together(name: str) -> None:
    small = {"frames": 4, "size": 64, "stage": "res3", "align_corners": False}
    options = {
        "x3d_s": small,
        "papr_plus": {"frames": 4, "size": 64, "stages": ["res2", "res3"], "motion": 0.3},
        "image_convnet": {"model": "resnet10t"},
    }
    score = pruner(name, **options.get(name, {})).scorer
    frames = noise(1, 8, 64, 32, 3)
    corners = [(0, 0), (16, 0), (32, 0)]
    views = resize_and_crop(frames, size=SIZE, num_crops=3)
    direct = score(frames, TokenGrid(2, 8, 4))
    found = shared_maps(score, views, corners, GRID)
    assert found is not None
    expected = torch.stack([direct[0, :, y // 8 : y // 8 + 4] for y, _ in corners])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-4


def test_between_tokens_the_map_is_interpolated() -> None:
    def ramp(frames: Tensor, grid: TokenGrid) -> Tensor:
        assert frames.shape[2:4] == (32, 48)  # 44 columns, and the last one four times more
        return torch.arange(float(grid.width)).expand(len(frames), *grid.shape)

    views = resize_and_crop(noise(2, 8, 32, 44, 3), size=SIZE, num_crops=3)
    corners = crop_places(32, 44, size=SIZE, num_crops=3)
    assert [x for _, x in corners] == [0, 6, 12]
    found = shared_maps(ramp, views, corners, GRID)
    assert found is not None and found.shape == (6, 2, 4, 4)
    assert found[:3, 0, 0].tolist() == [[0, 1, 2, 3], [0.75, 1.75, 2.75, 3.75], [1.5, 2.5, 3.5, 4.5]]


def test_a_square_video_is_scored_once_and_a_very_long_one_crop_by_crop() -> None:
    sizes: list[tuple[int, ...]] = []
    chosen = pruner("motion")

    chosen.scorer.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[:4])))
    for height, width in ((40, 40), (20, 90)):
        clips = noise(2, 8, height, width, 3)
        video = _video(clips)
        maps = SharedMaps(chosen, GRID, lambda h, w: crop_places(h, w, size=SIZE, num_crops=3))
        views = resize_and_crop(clips, size=SIZE, num_crops=3)
        assert maps(video, views).shape == (6, 2, 4, 4)
    assert sizes == [(2, 8, 32, 32), (6, 8, 32, 32)]


def _video(clips: Tensor) -> VideoSample:
    return VideoSample(0, "a.mp4", 1, clips, None, 1.0, None, 8, 25.0)


def test_an_evaluation_keeps_what_the_shared_maps_say_and_counts_what_they_cost() -> None:
    backbone = build_backbone("videomae_tiny", num_classes=5, num_frames=8, input_size=SIZE)
    chosen = pruner("x3d_s", frames=4, size=64, stage="res2", align_corners=False)
    flow = Pipeline(backbone, chosen)
    clips = noise(2, 8, 32, 64, 3)
    shared = SharedMaps(chosen, backbone.grid, lambda h, w: crop_places(h, w, size=SIZE, num_crops=3))
    found = {
        batch: Evaluator(
            flow,
            prepare=lambda frames: resize_and_crop(frames, size=SIZE, num_crops=3),
            views_per_video=6,
            batch_size=batch,
            engine=Engine(torch.device("cpu")),
            shared_maps=shared,
        ).run([_video(clips)])
        for batch in (2, 6)
    }
    views = resize_and_crop(clips, size=SIZE, num_crops=3)
    expected = flow.classify(views, chosen.choose(shared(_video(clips), views))).softmax(1).mean(0)
    for evaluation in found.values():
        (answer,) = evaluation.answers
        assert answer.probs_top5 == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
    (cost,) = found[6].pruned.scorer_gmacs
    alone = SharedMaps(chosen, backbone.grid, lambda h, w: [(0, 0)]).gmacs_per_view(_video(clips), views)
    assert cost[1] == 6 and cost[0] == pytest.approx(alone * 2 / 3, rel=0.05)  # 2 crops' width instead of 3


def test_controls_cannot_share() -> None:
    backbone = build_backbone("videomae_tiny", num_frames=8, input_size=SIZE)
    dataset = DatasetConfig(name="synthetic")
    for name, crops, line in (
        ("motion", 1, r"^share_maps=true: views=1x1 has one crop of each clip; use 3 crops"),
        ("similarity", 3, r"^share_maps=true: pruner=similarity compares the tokens of one view"),
        ("random", 3, r"^share_maps=true: pruner=random cannot score crops together"),
    ):
        flow, views = Pipeline(backbone, build_pruner(name)), ViewsConfig(clips=1, crops=crops)
        assert build_shared_maps(dataset, views, flow, wanted=False) is None
        with pytest.raises(ConfigError, match=line):
            build_shared_maps(dataset, views, flow, wanted=True)
    assert build_shared_maps(dataset, ViewsConfig(1, 3), Pipeline(backbone), wanted=True) is None
    with pytest.raises(
        ConfigError, match=r"^share_maps=true: pruner=center cannot score crops together; use one of"
    ):
        SharedMaps(pruner("center"), GRID, lambda h, w: [])


def test_each_layout_of_crops_is_counted_once_and_by_default_a_view_is_read_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        sharing, "count_gmacs", lambda run, video, views: (counted.append(tuple(views.shape)), 12.0)[1]
    )
    shared = SharedMaps(pruner("motion"), GRID, lambda h, w: crop_places(h, w, size=SIZE, num_crops=3))
    for height, width in ((32, 64), (32, 64), (64, 32), (32, 48)):
        clips = noise(2, 8, height, width, 3)
        views = resize_and_crop(clips, size=SIZE, num_crops=3)
        assert shared.gmacs_per_view(_video(clips), views) == 2
    assert len(counted) == 3 and shared.parts == 1
