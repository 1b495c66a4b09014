"""What hostile files and lists try, and what stops it before anything is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from video_papr.core.errors import DataError, VideoDecodeError
from video_papr.data import decoding
from video_papr.data.annotations import inside_root, read_csv, read_folder
from video_papr.data.annotations.records import refuse
from video_papr.data.datasets import VideoDataset, build_video_list
from video_papr.data.decoding import decode_clips
from video_papr.data.limits import Limits


def first(frames: int) -> np.ndarray:
    return np.zeros((1, 1), np.int64)


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_large_frames_are_refused_before_they_are_decoded(
    write_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    path = write_video(tmp_path / "a.mp4", 5, size=(48, 64))
    assert decode_clips(path, first, decoder=decoder, limits=Limits(max_pixels=48 * 64)).frames.shape[
        2:4
    ] == (48, 64)

    def decode(*_: object) -> None:
        raise AssertionError("a reader was asked")

    monkeypatch.setattr(decoding, "_decode_with", decode)
    with pytest.raises(
        VideoDecodeError, match=r"frames of 64x48 have more pixels than dataset.max_pixels=3071"
    ):
        decode_clips(path, first, decoder=decoder, limits=Limits(max_pixels=48 * 64 - 1))


def test_long_videos_are_refused(write_video: Callable[..., Path], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 5)
    assert decode_clips(path, first, limits=Limits(max_frames=5)).num_video_frames == 5
    with pytest.raises(VideoDecodeError, match=r"more frames than dataset.max_frames=4"):
        decode_clips(path, first, limits=Limits(max_frames=4))
    assert decode_clips(path, first, limits=Limits(None, None)).num_video_frames == 5


def test_frames_that_grow_inside_the_stream_are_refused(
    write_video: Callable[..., Path], tmp_path: Path
) -> None:
    """The header promises small frames, the stream holds large ones: FFmpeg itself refuses them."""
    small = write_video(tmp_path / "small.h264", 4, size=(32, 32), codec="libx264")
    large = write_video(tmp_path / "large.h264", 4, size=(256, 256), codec="libx264")
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())

    def last(frames: int) -> np.ndarray:
        return np.array([[frames - 1]])

    with pytest.raises(VideoDecodeError, match=r"both.h264"):
        decode_clips(both, last, limits=Limits(max_pixels=64 * 64))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n",
    ],
    ids=["script", "playlist", "address"],
)
def test_a_text_that_leads_to_other_files_is_no_video(
    write_video: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    write_video(tmp_path / "secret.mp4", 5)
    write_video(tmp_path / "secret.ts", 5)
    (tmp_path / "clip.mp4").write_text(text)
    with pytest.raises(VideoDecodeError, match="clip.mp4"):
        decode_clips(tmp_path / "clip.mp4", first)


def test_limits_reach_the_samples_of_a_dataset(video_root: Path) -> None:
    dataset = VideoDataset(read_folder(video_root), first, limits=Limits(max_frames=12))
    errors = [dataset[index].error for index in range(5)]
    assert [error is None for error in errors] == [False, True, True, False, False]


# paths


@pytest.fixture
def outside(tmp_path: Path, write_video: Callable[..., Path]) -> tuple[Path, Path]:
    """A root with one video and three ways out of it, and where they lead."""
    root, other = tmp_path / "root", tmp_path / "root_of_others"
    write_video(root / "a/in.mp4", 5)
    write_video(other / "b/out.mp4", 5)
    (root / "a/file.mp4").symlink_to(other / "b/out.mp4")
    (root / "linked").symlink_to(other / "b")
    (root / "a/same.mp4").symlink_to(root / "a/in.mp4")
    return root, other


@pytest.mark.parametrize(
    "way", ["../root_of_others/b/out.mp4", "{other}/b/out.mp4", "a/file.mp4", "linked/out.mp4"]
)
def test_ways_out_of_the_root_are_refused(outside: tuple[Path, Path], tmp_path: Path, way: str) -> None:
    root, other = outside
    listed = tmp_path / "list.csv"
    listed.write_text(f"a/in.mp4,0\na/same.mp4,0\n{way.format(other=other)},1\n")
    place = os.path.realpath(other / "b/out.mp4")
    with pytest.raises(DataError) as error:
        build_video_list("csv", root=root, annotations=listed, allow_outside_root=False)
    text = str(error.value)
    assert f"leads to {place}, outside of dataset.root={root}; dataset.allow_outside_root=true" in text
    assert "\n" not in text
    assert len(build_video_list("csv", root=root, annotations=listed, allow_outside_root=True)) == 3
    told: list[str] = []
    left = build_video_list(
        "csv", root=root, annotations=listed, allow_outside_root=False, on_invalid=told.append
    )
    assert [record.name for record in left.records] == ["a/in.mp4", "a/same.mp4"] and len(told) == 1


def test_a_root_that_is_a_link_itself_is_fine(outside: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(outside[1])
    assert len(build_video_list("folder", root=tmp_path / "link", allow_outside_root=False)) == 1


def test_no_video_inside(outside: tuple[Path, Path], tmp_path: Path) -> None:
    root, other = outside
    listed = tmp_path / "list.csv"
    listed.write_text(f"{other}/b/out.mp4,0\n")
    with pytest.raises(DataError, match="every video lies outside"):
        inside_root(read_csv(listed, root), root, lambda line: None)
    with pytest.raises(DataError, match="allow_outside_root=true"):
        inside_root(read_csv(listed, root), root, refuse)
