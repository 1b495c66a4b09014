"""The motion plane: what the codec's vectors say moves against the camera, at the place where it moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from video_papr.core.errors import ConfigError, TooLargeError
from video_papr.core.pixels import LARGEST_MOTION, motion_unknown
from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.data.datasets import VideoDataset
from video_papr.data.decoding import decode_clips
from video_papr.data.loader import iter_samples
from video_papr.data.readers.vectors import STEPS, camera_motion
from video_papr.data.transforms import reduced_size, resize_and_crop

HEIGHT, WIDTH, SIDE = 144, 192, 48
PAN, SPEED = (2, 1), 3  # pixels per frame: the whole picture to the left and up; the square to the right
B_FRAMES = {"preset": "medium", "bf": "3", "crf": "18"}


def square_at(number: int) -> tuple[int, int]:
    return 48, 16 + SPEED * number


def scene(count: int = 24) -> np.ndarray:
    """A textured square moves over a textured ground under a camera that pans, (count, H, W, 3) uint8."""
    rng = np.random.default_rng(3)
    ground, square = (
        gaussian_filter(rng.integers(0, 256, (400, 400, 3)).astype(float), (2, 2, 0)) * 4 % 256
        for _ in range(2)
    )
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for number, frame in enumerate(frames):
        y, x = PAN[1] * number, PAN[0] * number
        frame[:] = ground[y : y + HEIGHT, x : x + WIDTH]
        top, left = square_at(number)
        frame[top : top + SIDE, left : left + SIDE] = square[:SIDE, :SIDE]
    return frames


@pytest.fixture(scope="module")
def film(write_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", scene(), options=B_FRAMES)


def read(path: Path, *clips: list[int], **options: object) -> np.ndarray:
    """(C, T, H, W, 4) uint8."""
    return decode_clips(path, lambda _: np.array(clips), motion=True, **options).frames  # type: ignore[arg-type]


def found(plane: np.ndarray, number: int) -> tuple[float, float]:
    """The mean of the plane inside of the square and outside of it, an edge left out."""
    top, left = square_at(number)
    inside = np.zeros(plane.shape, bool)
    inside[top + 8 : top + SIDE - 8, left + 8 : left + SIDE - 8] = True
    near = np.zeros(plane.shape, bool)
    near[top - 24 : top + SIDE + 24, max(left - 24, 0) : left + SIDE + 24] = True
    return float(plane[inside].mean()), float(plane[~near].mean())


CODECS = {
    "no B-frames": {"options": {"preset": "medium", "bf": "0", "crf": "18"}},
    "B-frames": {"options": B_FRAMES},
    "short groups": {"options": {"preset": "medium", "crf": "28"}, "gop": 6},
    "MPEG-4": {"codec": "mpeg4", "options": {"b": "4000000"}},
    "MPEG-2": {"codec": "mpeg2video", "options": {"b": "4000000"}},
}


@pytest.mark.parametrize("how", CODECS)
def test_the_square_moves_and_the_ground_does_not(
    how: str, write_video: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "film.mp4", scene(), **CODECS[how])
    frames = read(path, [3, 7, 11, 15, 19])[0]
    assert np.array_equal(
        frames[..., :3], decode_clips(path, lambda _: np.array([[3, 7, 11, 15, 19]])).frames[0]
    )
    assert not motion_unknown(torch.from_numpy(frames[..., 3])).any()
    for plane, number in zip(frames[1:, ..., 3], (7, 11, 15, 19), strict=True):
        inside, ground = found(plane, number - 2)  # the middle of what lies between
        assert inside > 3 * ground and inside > 30
    # Against the camera it moves 5 pixels to the right and 1 down; a vector may span a few frames.
    assert STEPS * np.sqrt(2.5) < frames[2:, 72, 16 + SPEED * 11, 3].max() <= LARGEST_MOTION


def test_the_first_frame_has_the_motion_of_the_second_and_repeated_ones_none(film: Path) -> None:
    frames = read(film, [4, 8, 8, 12])[0, ..., 3]
    assert np.array_equal(frames[0], frames[1]) and frames[0].any()
    assert not frames[2].any() and frames[3].any()


def test_a_plane_is_the_mean_of_all_frames_between(film: Path) -> None:
    one_by_one = read(film, list(range(8, 13)))[0, 1:, ..., 3].astype(float)
    together = read(film, [8, 12])[0, 1, ..., 3].astype(float)
    mean = np.sqrt(np.square(one_by_one / STEPS).mean(0)) * STEPS
    assert np.abs(mean - together).max() <= 3 and together.max() > 20


def test_no_other_clip_of_the_pass_changes_a_clip(
    film: Path, write_video: Callable[..., Path], tmp_path: Path
) -> None:
    clips = [[3, 7, 11, 15], [4, 9, 14, 19], [0, 1, 2, 3], [22, 22, 23, 23]]
    for chosen, together in zip(clips, read(film, *clips), strict=True):
        assert np.array_equal(read(film, chosen)[0], together)
    # A long video, in which the reader jumps from one clip to the next, but not inside of one.
    long = write_video(tmp_path / "long.mp4", 400, gop=20)
    clips = [[5, 10], [120, 300], [150, 152], [380, 390]]
    for chosen, together in zip(clips, read(long, *clips), strict=True):
        assert np.array_equal(read(long, chosen)[0], together)


def test_intra_frames_and_other_codecs_are_unknown(write_video: Callable[..., Path], tmp_path: Path) -> None:
    def unknown(path: Path, *clip: int) -> list[bool]:
        return motion_unknown(torch.from_numpy(read(path, list(clip))[..., 3]))[0].tolist()

    intra = write_video(tmp_path / "intra.mp4", 12, gop=1)
    assert unknown(intra, 2, 4, 6) == [True, True, True]
    groups = write_video(tmp_path / "groups.mp4", 16, gop=4, options={"preset": "ultrafast", "bf": "0"})
    assert unknown(groups, 2, 3, 4, 5) == [False, False, True, False]
    assert unknown(groups, 2, 4, 8) == [False, False, False]  # others lie between
    assert unknown(groups, 5) == [True]  # nothing before it
    assert unknown(write_video(tmp_path / "vp8.webm", 8, codec="libvpx"), 1, 3) == [True, True]


def test_hevc_exports_no_vectors(write_video: Callable[..., Path], tmp_path: Path) -> None:
    try:
        av.codec.Codec("libx265", "w")
    except ValueError:
        pytest.skip("this build of PyAV has no HEVC encoder")
    path = write_video(
        tmp_path / "film.mp4", scene(12), codec="libx265", options={"x265-params": "log-level=none"}
    )
    assert motion_unknown(torch.from_numpy(read(path, [2, 5, 8])[..., 3])).all()


@pytest.mark.parametrize("side", [64, 96, 112, 160, 224])
def test_vectors_are_resized_and_cropped_with_the_pixels(film: Path, side: int) -> None:
    frames = torch.from_numpy(read(film, [3, 7, 11, 15]))
    views = resize_and_crop(frames, size=side, num_crops=3)
    assert torch.equal(views[..., :3], resize_and_crop(frames[..., :3], size=side, num_crops=3))
    whole = torch.full_like(frames, 255)
    assert motion_unknown(resize_and_crop(whole, size=side)[..., 3]).all()
    plane, scale = views[1, 2, ..., 3].float(), side / HEIGHT  # the middle crop, of frame 11
    top, left = square_at(9)
    left -= (WIDTH - HEIGHT) // 2
    y, x = (round(scale * (edge + SIDE / 2)) for edge in (top, left))
    reach = round(scale * 12)
    inside = plane[y - reach : y + reach, x - reach : x + reach].mean()
    assert inside > 3 * plane[:, int(0.85 * side) :].mean() and inside > 30


def test_vectors_are_turned_and_scaled_like_the_frames(film: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], np.int32)  # a quarter turn
    with av.open(str(film)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = turned.read_bytes()
    plain = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    place = data.index(plain, data.index(b"tkhd"))
    turned.write_bytes(data[:place] + matrix.astype(">i4").tobytes() + data[place + len(plain) :])
    stored, shown = read(film, [3, 9, 15]), read(turned, [3, 9, 15])
    assert shown.shape[2:4] == (WIDTH, HEIGHT)
    assert np.array_equal(shown, np.rot90(stored, -1, (2, 3)))
    half = partial(reduced_size, size=72)
    small = read(film, [3, 9, 15], reduce=half)
    assert small.shape[2:4] == (72, 96)
    near = stored[..., ::2, ::2, 3].astype(float)
    assert np.abs(small[..., 3] - near).mean() < 1


def test_the_camera_is_found_among_what_moves_otherwise() -> None:
    rng = np.random.default_rng(0)
    model = np.ones((3, 300), np.float32)
    model[1:] = rng.uniform(-0.5, 0.5, (2, 300))
    turned = model.T @ np.array([[3, -8, 1], [1, 2, 6]], np.float32).T  # a pan with a zoom and a turn
    camera = np.concatenate([turned, -2 * turned])  # two groups
    moved = camera + rng.normal(0, 0.1, camera.shape).astype(np.float32)
    moved[:90] = rng.uniform(-20, 20, (90, 2))
    group = np.repeat([0, 1], 300)
    fit = camera_motion(moved.T, np.tile(model, 2), group, 3)
    for own, sign in ((fit[:, :, 0], 1), (fit[:, :, 1], -2)):
        assert np.abs(own @ model - sign * turned.T).max() < 0.25
    assert not fit[:, :, 2].any()  # nobody is in that group
    one = camera_motion(moved[100:101].T, model[:, 100:101], group[:1], 1)[..., 0]
    assert np.abs(one @ model[:, 100] - moved[100]).max() < 0.01


def test_workers_send_the_same_planes(film: Path, write_video: Callable[..., Path], tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mp4", 20, options=B_FRAMES)
    records = tuple(VideoRecord(path, 0, path.name) for path in (film, other, film))
    dataset = VideoDataset(VideoList(records, None), partial(_every_third), motion=True)
    alone, watched = (
        [sample.frames for batch in iter_samples(dataset, workers=workers) for sample in batch]
        for workers in (0, 2)
    )
    for one, two in zip(alone, watched, strict=True):
        assert one is not None and two is not None and one.shape[-1] == 4
        assert torch.equal(one, two)


def _every_third(num_frames: int) -> np.ndarray:
    return np.arange(0, 18, 3).reshape(2, 3)


def test_readers_without_vectors_are_refused(film: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^dataset\.decoder=decord: exports no motion vectors.*use auto or pyav$"
    ):
        read(film, [0], decoder="decord")
    with pytest.raises(ConfigError, match=r"^dataset\.decoder=pillow"):
        VideoDataset(VideoList((), None), _every_third, decoder="pillow", motion=True)


def test_planes_count_as_memory(film: Path) -> None:
    clip = [1, 5, 9]
    needed = HEIGHT * WIDTH * 4 * len(clip)
    assert read(film, clip, max_bytes=needed).any()
    with pytest.raises(TooLargeError):
        read(film, clip, max_bytes=needed - 1)
