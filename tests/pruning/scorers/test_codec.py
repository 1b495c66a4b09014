"""`pruner=codec`: the map is the codec's motion, or the frame difference where there is none; nobody else sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import video_papr as vp
from video_papr.core.errors import ConfigError
from video_papr.core.pixels import MOTION_UNKNOWN
from video_papr.core.types import TokenGrid
from video_papr.data.transforms import crop_places, resize_and_crop
from video_papr.pipeline import Pipeline
from video_papr.pruning.scorers.codec import CodecScorer
from video_papr.pruning.scorers.rules import cell_means, motion
from video_papr.pruning.sharing import shared_maps

GRID = TokenGrid(4, 3, 3)


def clips(count: int = 2, size: int = 48) -> Tensor:
    """Noise with a motion plane that is known everywhere: (count, 8, size, size, 4) uint8."""
    frames = torch.randint(0, 201, (count, 8, size, size, 4), generator=torch.Generator().manual_seed(0))
    return frames.byte()


def test_a_tubelet_is_worth_the_mean_of_its_plane() -> None:
    frames = clips()
    assert torch.equal(CodecScorer()(frames, GRID), cell_means(frames[..., 3].float(), GRID))


def test_frames_of_no_file_have_the_map_of_motion_and_that_is_said() -> None:
    frames = clips()[..., :3]
    with pytest.warns(UserWarning, match="pruner=codec: .* no motion vectors; the frame difference"):
        assert torch.equal(CodecScorer()(frames, GRID), motion(frames, GRID, 0))


def test_a_clip_without_vectors_has_the_map_of_motion_beside_one_that_has() -> None:
    frames = clips()
    frames[1, ..., 3] = MOTION_UNKNOWN
    found = CodecScorer()(frames, GRID)
    assert torch.equal(found[1], motion(frames[1:, ..., :3], GRID, 0)[0])
    assert torch.allclose(found[0], cell_means(frames[:1, ..., 3].float(), GRID)[0])


def test_unknown_frames_leave_their_tubelet_to_the_other_one_or_to_the_frame_difference() -> None:
    frames = clips()
    frames[0, 2, ..., 3] = MOTION_UNKNOWN  # one of two frames of the second tubelets
    frames[0, 6:, ..., 3] = MOTION_UNKNOWN  # both of the last ones
    found = CodecScorer()(frames, GRID)
    whole = cell_means(frames[..., 3].float(), GRID)
    assert torch.allclose(found[1], whole[1])
    assert torch.allclose(found[0, [0, 2]], whole[0, [0, 2]])
    third = cell_means(frames[:, 3:4, ..., 3].float(), TokenGrid(1, 3, 3))[0, 0]
    assert torch.allclose(found[0, 1], third)
    difference = motion(frames[:1, ..., :3], GRID, 0)[0].sqrt()
    assert torch.allclose(found[0, 3], difference[3] * found[0, :3].mean() / difference[:3].mean())


def flow(name: str) -> Pipeline:
    torch.manual_seed(0)
    backbone = vp.build_backbone("videomae_tiny", num_frames=8, input_size=48)
    return vp.Pipeline(backbone, vp.build_pruner(name, keep_ratio=0.3)).eval()


def test_the_plane_reaches_the_pruner_that_reads_it_and_nobody_else() -> None:
    frames = clips()
    codec, rule, dense = flow("codec"), flow("motion"), Pipeline(flow("codec").backbone)
    assert codec.reads_motion and not rule.reads_motion and not dense.reads_motion
    with torch.inference_mode():
        for other in (rule, dense):
            with pytest.raises(
                ValueError, match=r"frames must be uint8 \(B, 8, 48, 48, 3\), got torch.uint8 .*, 4\)"
            ):
                other(frames)
        kept = codec.select(frames)
        assert kept is not None
        best = cell_means(frames[..., 3].float(), codec.backbone.grid).flatten(1).topk(kept.num_kept).indices
        assert torch.equal(kept.keep_idx, best.sort().values)
        assert torch.equal(codec(frames), codec.classify(frames[..., :3], kept))
        alone = torch.cat([codec(frame) for frame in frames.split(1)])
        assert torch.allclose(alone, codec(frames), atol=1e-5)
    with pytest.raises(
        ValueError, match=r"frames must be uint8 \(B, 8, 48, 48, 3\), got torch.uint8 .*, 5\)"
    ):
        codec.select(torch.cat([frames, frames[..., :1]], -1))


def test_crops_share_a_map() -> None:
    frames = resize_and_crop(clips(1, size=64)[:, :, :48], size=48, num_crops=3)
    corners = crop_places(48, 64, size=48, num_crops=3)
    found = shared_maps(CodecScorer(), frames, corners, GRID)
    assert found is not None
    for crop in (0, 2):  # their corners fall on the token grid
        assert torch.allclose(found[crop], CodecScorer()(frames[crop : crop + 1], GRID)[0])


def test_images_and_exports_are_refused() -> None:
    backbone = vp.build_backbone("timm_vit", model="vit_tiny_patch16_224", input_size=32)
    with pytest.raises(
        ConfigError, match="pruner=codec: compares the frames of a video, and an image has one"
    ):
        vp.Pipeline(backbone, vp.build_pruner("codec"))
    pruner = vp.build_pruner("codec")
    assert pruner is not None
    with pytest.raises(ConfigError, match="pruner=codec cannot be exported: .* use pruner=motion"):
        pruner.check_exportable()
