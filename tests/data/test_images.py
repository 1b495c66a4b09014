"""Image files as clips of one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from video_papr.core.errors import DataError, VideoDecodeError
from video_papr.data.annotations import read_folder
from video_papr.data.datasets import VideoDataset
from video_papr.data.decoding import decode_clips
from video_papr.data.readers.pillow import read_image
from video_papr.data.sampling import choose_sampler

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_formats_and_modes(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "a.ppm", "a.tif"):
        Image.fromarray(PIXELS).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), PIXELS)
    grey = Image.fromarray(PIXELS[..., 0])
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), PIXELS[..., :1].repeat(3, 2))
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png"), PIXELS[..., :1].repeat(3, 2))
    clear = np.concatenate([PIXELS, np.zeros((5, 7, 1), np.uint8)], 2)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "print.tif")
    assert read_image(tmp_path / "print.tif").shape == (5, 7, 3)


def test_images_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown after a quarter turn clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(PIXELS, -1))


def test_an_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    sampler = choose_sampler("dense", num_frames=1, num_clips=1, frame_stride=4)
    clips = decode_clips(tmp_path / "a.png", sampler, decoder="pillow")
    assert clips.frames.shape == (1, 1, 5, 7, 3) and clips.num_video_frames == 1
    assert np.array_equal(clips.frames[0, 0], PIXELS)


def test_bad_files_become_samples_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "cat" / "good.jpg")
    whole = (tmp_path / "cat" / "good.jpg").read_bytes()
    (tmp_path / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "empty.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    videos = read_folder(tmp_path, images=True)
    sampler = choose_sampler("dense", num_frames=1, num_clips=1, frame_stride=4)
    samples = {
        sample.name: sample
        for sample in map(VideoDataset(videos, sampler, decoder="pillow").__getitem__, range(3))
    }
    assert set(samples) == {"cat/cut.jpg", "cat/empty.png", "cat/good.jpg"}
    assert samples["cat/good.jpg"].error is None
    for name in ("cat/cut.jpg", "cat/empty.png"):
        error = samples[name].error
        assert error is not None and error.startswith("cannot decode") and name in error and "\n" not in error
    with pytest.raises(VideoDecodeError):
        read_image(tmp_path / "absent.png")


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images found; expected root/<class>/<image>, with .bmp"):
        read_folder(tmp_path, images=True)
