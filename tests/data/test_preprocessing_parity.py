"""Pixels as the reference implementations prepare them, on real videos: within one grey level, everywhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.core.pixels import normalize_pixels
from video_papr.data.decoding import decode_clips
from video_papr.data.sampling import uniform_segments
from video_papr.data.transforms import resize_and_crop

# 4:3 and 16:9, portrait, small (resized up), and odd sizes
CLIPS = (
    "RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "R6llTwEh07w.mp4",
    "WUzgd7C1pWA.mp4",
    "v_Basketball_g01_c02.mp4",
    "again.mkv",
    "basketball.mp4",
)


def frames_of(clips_dir: Path, name: str) -> np.ndarray:
    """(3, H, W, 3) uint8."""
    choose = partial(uniform_segments, num_frames=3, num_clips=1)
    return decode_clips(clips_dir / "single" / name, choose).frames[0]


@pytest.mark.parametrize("name", CLIPS)
def test_videomae(clips_dir: Path, name: str) -> None:
    from transformers import VideoMAEImageProcessor

    frames = frames_of(clips_dir, name)
    # The published checkpoints come with ImageNet's mean and deviation; the rest are the processor's defaults.
    processor = VideoMAEImageProcessor(image_mean=list(VideoMAE.mean), image_std=list(VideoMAE.std))
    theirs = processor(list(frames), return_tensors="pt")["pixel_values"][0]  # (T, 3, 224, 224)
    views = resize_and_crop(torch.from_numpy(frames)[None], size=224, short_side=224)
    ours = normalize_pixels(views, mean=VideoMAE.mean, std=VideoMAE.std)[0].transpose(0, 1)
    grey_level = 1 / (255 * torch.tensor(VideoMAE.std)).view(3, 1, 1)
    assert ours.shape == theirs.shape == (3, 3, 224, 224)
    assert ((ours - theirs).abs() / grey_level).max() <= 1.01


@pytest.mark.parametrize("name", CLIPS)
def test_vivit(clips_dir: Path, name: str) -> None:
    """Pixels from -1 to 1. The processor can normalise once more after that, which ViViT's authors do not do."""
    from transformers import VivitImageProcessor

    frames = frames_of(clips_dir, name)
    processor = VivitImageProcessor(do_normalize=False)
    theirs = processor(list(frames), return_tensors="pt")["pixel_values"][0]
    views = resize_and_crop(torch.from_numpy(frames)[None], size=224, short_side=256)
    ours = normalize_pixels(views, mean=ViViT.mean, std=ViViT.std)[0].transpose(0, 1)
    assert ours.shape == theirs.shape == (3, 3, 224, 224)
    assert theirs.min() >= -1 and theirs.max() <= 1
    assert ((ours - theirs).abs() * 127.5).max() <= 1.01
