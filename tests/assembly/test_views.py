"""How a model reads its clips belongs to its weights: stored by training, used by default, said when contradicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import video_papr as vp
from video_papr.assembly.build import build_video_list
from video_papr.assembly.views import build_dataset, picture, read_as_trained, view_cutter
from video_papr.backbones.builders import build_backbone
from video_papr.backbones.vjepa2 import VJEPA2
from video_papr.checkpoints import write_weights
from video_papr.config import DatasetConfig, ViewsConfig
from video_papr.core.errors import CheckpointError
from video_papr.core.reading import ReadConfig
from video_papr.data.transforms import resize_and_crop
from video_papr.evaluation.answers import Example, VideoAnswer
from video_papr.inference.predict import Recipe, recipe_of
from video_papr.pipeline import Pipeline

READ = ReadConfig("uniform", None, 8, 32, 40, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))


@pytest.fixture
def weights(tmp_path):
    """A file as `tools/train.py` writes it."""
    net = build_backbone("videomae_tiny", num_classes=3, num_frames=8, input_size=32)
    described = {"model": "videomae_tiny", "class_names": list("abc"), "read": READ.to_metadata()}
    write_weights(tmp_path / "own.safetensors", net.state_dict(), described)
    return tmp_path / "own.safetensors"


def test_a_reading_recipe_survives_the_file():
    assert ReadConfig.from_metadata(READ.to_metadata(), source="f") == READ
    assert ReadConfig.from_metadata({"num_frames": 8, "of a later version": 1}, source="f") == ReadConfig(
        num_frames=8
    )
    for wrong in (
        {"sampling": 3},
        {"num_frames": True},
        {"input_size": [1]},
        {"mean": "abc"},
        {"std": [0, 1, 1]},
    ):
        with pytest.raises(CheckpointError, match="^f: its reading recipe says"):
            ReadConfig.from_metadata(wrong, source="f")


@pytest.mark.filterwarnings("ignore::video_papr.core.errors.CheckpointWarning")
def test_the_clip_of_the_weights_is_built_and_read(weights, capsys):
    """Whatever the dataset, and from Python too."""
    for dataset in ("folder", "synthetic", "k400"):
        pipeline: Any = vp.Pipeline.from_config(
            dataset=dataset,
            backbone={"name": "videomae_tiny", "weights": str(weights)},
            pruner="center",
            runtime="cpu",
        )
        backbone = pipeline.backbone
        assert (backbone.num_frames, backbone.input_size) == (8, 32)
        assert (backbone.mean, backbone.std) == (READ.mean, READ.std)
        assert pipeline.recipe == Recipe(sampling="uniform", short_side=40)
    assert recipe_of(vp.Pipeline(backbone)) == pipeline.recipe
    assert "the weights were trained" not in capsys.readouterr().err


def test_keys_win_and_contradictions_are_said(weights, capsys):
    with pytest.warns(UserWarning, match="built as the weights say, with num_frames 8"):
        backbone = build_backbone("videomae_tiny", weights=weights)

    def read(**keys):
        found = read_as_trained(DatasetConfig("folder", root=".", **keys), backbone)
        return found, " ".join(capsys.readouterr().err.split())

    found, said = read()
    assert (found.sampling, found.short_side, said) == ("uniform", 40, "")
    found, said = read(sampling="uniform", frame_stride=9, short_side=40)
    assert (found.frame_stride, said) == (9, "")
    found, said = read(sampling="dense", short_side=36)
    assert (found.sampling, found.frame_stride, found.short_side) == ("dense", 4, 36)
    assert "dataset.sampling=dense: the weights were trained with uniform" in said
    assert "dataset.short_side=36: the weights were trained with 40" in said
    backbone.read = ReadConfig("dense", 2, short_side=40)
    found, said = read(frame_stride=3)
    assert (found.sampling, found.frame_stride) == ("dense", 3)
    assert "dataset.frame_stride=3: the weights were trained with 2" in said
    backbone.frame_size = (48, 48)  # a larger clip than they were trained on
    assert read()[0].short_side is None
    backbone.read = None
    assert (read()[0].sampling, read()[0].frame_stride) == ("dense", 4)
    assert read(usual_sampling="uniform")[0].sampling == "uniform"


def test_a_mean_of_the_weights_is_that_of_the_pixels(weights):
    with pytest.warns(UserWarning):
        own = build_backbone("videomae_tiny", weights=weights)
    frames = torch.randint(0, 256, (1, 3, 8, 32, 32), dtype=torch.uint8)
    assert READ.mean is not None and READ.std is not None
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (READ.mean, READ.std))
    torch.testing.assert_close(own(frames), own((frames / 255 - mean) / std), rtol=1e-4, atol=1e-4)


def test_vjepa2_reads_as_it_was_evaluated() -> None:
    for frames, stride in ((16, 4), (64, 2)):
        backbone = VJEPA2(num_classes=3, num_frames=frames, input_size=32, dim=24, depth=1, num_heads=2)
        used = read_as_trained(DatasetConfig(name="ssv2", usual_sampling="uniform"), backbone)
        assert (used.sampling, used.frame_stride) == ("vjepa2", stride)
        recipe = recipe_of(Pipeline(backbone))
        assert (recipe.sampling, recipe.frame_stride) == ("vjepa2", stride)
    asked = DatasetConfig(name="ssv2", usual_sampling="uniform", sampling="uniform", frame_stride=3)
    used = read_as_trained(asked, backbone)
    assert (used.sampling, used.frame_stride) == ("uniform", 3)


def test_pictures_are_cut_from_the_pixels_of_the_video(video_root, monkeypatch):
    """What is drawn is the view that was read, at a size that can be looked at, also where views come from a cache."""
    net = build_backbone("videomae_tiny", num_classes=3, num_frames=8, input_size=32)
    videos = build_video_list(name="folder", root=str(video_root))
    dataset = read_as_trained(DatasetConfig(name="folder", root=str(video_root), decode_size="short_side"))
    views = ViewsConfig(clips=2, crops=3)
    decoded = build_dataset(dataset, views, Pipeline(net), videos, whole=True)
    cutter = view_cutter(dataset, views, net)
    sample = decoded[1]
    seen = cutter(sample.frames)[0]
    example = Example(VideoAnswer(sample.name, 0), seen, torch.ones(net.grid.shape, dtype=torch.bool))
    drawn = picture(decoded, cutter, example)
    assert drawn.shape == (8, 224, 224, 3)
    assert torch.equal(drawn, resize_and_crop(sample.frames[:1], size=224, num_crops=3)[0])
    shrunk = torch.nn.functional.avg_pool2d(drawn.permute(0, 3, 1, 2).float(), 7).permute(0, 2, 3, 1)
    assert (shrunk - seen.float()).abs().mean() < 6
    gone = replace(decoded.videos, records=[replace(r, path=video_root / "gone.mp4") for r in videos.records])
    monkeypatch.setattr(decoded, "videos", gone)
    assert torch.equal(picture(decoded, cutter, example), seen)
