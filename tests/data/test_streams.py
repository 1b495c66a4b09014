"""Streams of every origin (phones, browsers, captures, joined files) are shown upright, whole and at their own time."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import moving_frames
from video_papr.core.errors import VideoDecodeError
from video_papr.data.decoding import decode_clips
from video_papr.data.readers.packets import read_stream
from video_papr.data.readers.timing import frame_times, joints
from video_papr.inference.windows import cut_windows

VideoWriter = Callable[..., Path]
SLOW_PRESET = {"preset": "medium", "bf": "3"}


def every_frame(path: Path, decoder: str = "auto") -> np.ndarray:
    return decode_clips(path, lambda n: np.arange(n)[None], decoder=decoder).frames[0]


def by_hand(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# when frames are shown


@given(
    rate=st.sampled_from([12.0, 24000 / 1001, 25.0, 30000 / 1001, 60.0]),
    count=st.integers(1, 400),
    clock=st.sampled_from([1 / 1000, 1 / 90000]),
    start=st.integers(-5000, 5000),
)
def test_constant_rates_stay_what_the_header_says(rate: float, count: int, clock: float, start: int) -> None:
    ticks = [start + round(k / rate / clock) for k in range(count)]
    found = frame_times(ticks[::-1], [0] * count, time_base=clock, rates=[1000.0, rate])
    if count > 2:
        assert found.constant and found.fps == rate
        np.testing.assert_array_equal(found.borders, np.arange(count + 1) / rate)


@given(
    gaps=st.lists(st.integers(1, 900), min_size=3, max_size=60), wrong=st.sampled_from([0.0, 25.0, 1000.0])
)
def test_variable_rates_are_those_of_the_packets(gaps: list[int], wrong: float) -> None:
    ticks = np.cumsum([70, *gaps])
    found = frame_times(ticks.tolist(), [1] * len(ticks), time_base=1 / 1000, rates=[wrong])
    np.testing.assert_allclose(found.borders[:-1], (ticks - 70) / 1000)
    assert found.borders[-1] > found.borders[-2]
    assert found.fps == pytest.approx(len(ticks) / found.seconds)


def test_times_without_presentation_times() -> None:
    assert frame_times([None] * 3, [40] * 3, time_base=1 / 1000, rates=[1000.0, 25.0]).fps == 25
    assert frame_times([None] * 3, [50] * 3, time_base=1 / 1000, rates=[1000.0]).fps == pytest.approx(20)
    assert frame_times([0, None, 5], [0] * 3, time_base=1, rates=[10.0]).seconds == 0.3
    nothing = frame_times([None], [0], time_base=1, rates=[])
    assert (nothing.fps, nothing.seconds, nothing.span(0, None)) == (0.0, 0.0, (0.0, 0.0))
    assert frame_times([7], [40], time_base=1 / 1000, rates=[]).seconds == 0.04


def test_fewer_frames_than_packets_keep_the_length() -> None:
    fields = frame_times(range(0, 200, 2), [2] * 100, time_base=1 / 100, rates=[50.0])
    frames = fields.for_frames(50)  # two packets for each frame
    assert (frames.fps, frames.seconds, len(frames.borders)) == (25, 2.0, 51)
    odd = fields.for_frames(99).for_frames(50)
    assert (odd.fps, odd.seconds, len(odd.borders)) == (25, 2.0, 51)
    one = frame_times([0], [2], time_base=1 / 100, rates=[50.0])
    assert one.for_frames(1).borders.tolist() == [0, 0.02]
    packed = fields.for_frames(99)
    assert (packed.fps, packed.seconds) == (50, 1.98)


def test_joints() -> None:
    assert joints([0, 3600, 7200, 0, 3600, 3600 * 1000, None, 5], 1 / 90000) == [3, 5]


def remove_default_duration(path: Path) -> None:
    """What MediaRecorder of a browser leaves out: the element becomes an empty one of the same length."""
    content = bytearray(path.read_bytes())
    start = content.index(b"\x23\xe3\x83\x84")
    content[start : start + 8] = b"\xec\x86" + bytes(6)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["phone.mp4", "recorder.webm", "capture.mkv"])
def test_windows_follow_the_clock_where_the_rate_varies(
    tmp_path: Path, write_video: VideoWriter, name: str
) -> None:
    seconds = np.cumsum([0.0, *np.random.default_rng(0).choice([0.034, 0.1, 0.2], 59)]).round(3)
    codec = {"codec": "libvpx"} if name.endswith("webm") else {"options": SLOW_PRESET}
    path = write_video(tmp_path / name, 60, seconds=seconds, **codec)
    if name.endswith("webm"):
        remove_default_duration(path)
    times = decode_clips(path, lambda n: np.zeros((1, 1), int)).times
    np.testing.assert_allclose(times.borders[:-1], seconds, atol=0.0011)
    windows = cut_windows(times, 2, None)
    spans = [times.span(*window) for window in windows]
    assert spans[0][0] == 0 and spans[-1][1] == times.seconds == pytest.approx(seconds[-1], abs=0.21)
    assert times.fps == pytest.approx(60 / times.seconds)
    for number, (start, end) in enumerate(spans[:-1]):
        assert start == pytest.approx(2 * number, abs=0.11) and end - start == pytest.approx(2, abs=0.21)
    assert len(windows) == np.ceil(times.seconds / 2)


def test_a_window_in_which_nothing_moves_shows_one_frame(tmp_path: Path, write_video: VideoWriter) -> None:
    """Screen captures write a frame only when something changes."""
    path = write_video(tmp_path / "a.mkv", 6, seconds=[0, 0.1, 0.2, 8.0, 8.1, 8.2])
    times = read_stream(path).times
    windows = cut_windows(times, 2, None)
    assert all(start < end for start, end in windows if end is not None)
    assert windows[0] == (0, 3) or windows[0][0] == 0
    assert windows[-1][1] == 6


@pytest.mark.parametrize("fps", [15, 30, 30000 / 1001])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.h264", "libx264"), ("a.m2v", "mpeg2video"), ("a.mkv", "mpeg4")]
)
def test_streams_that_state_their_rate_inside(
    tmp_path: Path, write_video: VideoWriter, name: str, codec: str, fps: float
) -> None:
    if codec == "mpeg2video" and fps == 15:
        pytest.skip("MPEG-2 has no such rate")
    path = write_video(tmp_path / name, 30, fps=fps, codec=codec)
    assert read_stream(path).times.fps == pytest.approx(fps, rel=1e-3)
    assert read_stream(path).duration_seconds == pytest.approx(30 / fps, rel=1e-3)


# turned and mirrored

ONE = 0x10000
MATRICES = {  # [a b; c d], and what a player makes of a frame (H, W, 3)
    "turned 90": ((0, ONE, -ONE, 0), lambda x: np.rot90(x, -1)),
    "turned 180": ((-ONE, 0, 0, -ONE), lambda x: np.rot90(x, 2)),
    "turned 270": ((0, -ONE, ONE, 0), lambda x: np.rot90(x, 1)),
    "mirrored": ((-ONE, 0, 0, ONE), lambda x: x[:, ::-1]),
    "upside down": ((ONE, 0, 0, -ONE), lambda x: x[::-1]),
    "transposed": ((0, ONE, ONE, 0), lambda x: x.swapaxes(0, 1)),
    "other diagonal": ((0, -ONE, -ONE, 0), lambda x: x[::-1, ::-1].swapaxes(0, 1)),
    "enlarged": ((2 * ONE, 0, 0, 2 * ONE), lambda x: x),
    "slanting": ((46341, 46341, -46341, 46341), lambda x: x),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix(tmp_path: Path, write_video: VideoWriter, name: str) -> None:
    (a, b, c, d), shown = MATRICES[name]
    path = write_video(tmp_path / "a.mp4", 3, size=(120, 160))
    stored = by_hand(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    np.testing.assert_array_equal(every_frame(path), np.stack([shown(frame) for frame in stored]))
    if name not in ("enlarged", "slanting"):
        with pytest.raises(VideoDecodeError, match="decord: not trusted to turn frames"):
            every_frame(path, "decord")
    whole = decode_clips(path, lambda n: np.arange(n)[None])
    assert (
        torch.from_numpy(whole.frames).shape == whole.frames.shape
    )  # torch takes no frames that run backwards
    half = decode_clips(path, lambda n: np.array([[0]]), reduce=lambda h, w: (h // 2, w // 2)).frames
    assert half.shape[2:4] == tuple(side // 2 for side in shown(stored[0]).shape[:2])


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("said", "shown"), [("rotate=90", lambda x: np.rot90(x, 1)), ("flip=horizontal", lambda x: x[:, ::-1])]
)
def test_orientation_inside_the_stream(
    tmp_path: Path,
    write_video: VideoWriter,
    said: str,
    shown: Callable[[np.ndarray], np.ndarray],
    ending: str,
) -> None:
    """H.264 may say in a message (SEI) of its own how frames are turned, which decord does not read."""
    source, path = write_video(tmp_path / "source.mp4", 3, size=(120, 160)), tmp_path / f"a.{ending}"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        insert = BitStreamFilterContext(
            f"h264_metadata=display_orientation=insert:{said}", old.streams.video[0], stream
        )
        for packet in old.demux(video=0):
            for changed in insert.filter(packet if packet.size else None):
                changed.stream = stream
                new.mux(changed)
    np.testing.assert_array_equal(every_frame(path), np.stack([shown(frame) for frame in by_hand(source)]))


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_frames_are_not_for_decord(tmp_path: Path, write_video: VideoWriter, codec: str) -> None:
    """decord gives them other colours: chroma is shared within a field, or across both."""
    fields = (
        {"x264-params": "tff=1:interlaced=1"} if codec == "libx264" else {"flags": "+ildct+ilme", "top": "1"}
    )
    path = write_video(tmp_path / "a.mp4", 5, size=(96, 128), codec=codec, options=fields)
    clips = decode_clips(path, lambda n: np.arange(n)[None])
    np.testing.assert_array_equal(clips.frames[0], by_hand(path))
    with pytest.raises(VideoDecodeError, match="interlaced"):
        every_frame(path, "decord")


# captures


@pytest.fixture(scope="module")
def two_parts(tmp_path_factory: pytest.TempPathFactory, write_video: VideoWriter) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return tuple(
        write_video(
            folder / f"{seed}.ts", 40, gop=10, seed=seed, options={**SLOW_PRESET, "sc_threshold": "0"}
        )
        for seed in (0, 1)
    )


def packets_from(source: Path, first: int, path: Path) -> Path:
    """Copies a stream without its first packets, as a recorder does that is switched on in the middle."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and number >= first:
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.mark.parametrize("extension", ["ts", "mp4", "mkv"])
def test_a_capture_is_read_from_its_first_key_frame(
    tmp_path: Path, two_parts: tuple[Path, Path], extension: str
) -> None:
    path = packets_from(two_parts[0], 4, tmp_path / f"a.{extension}")
    truth = by_hand(two_parts[0])
    clips = decode_clips(path, lambda n: np.arange(n)[None])
    assert (clips.num_video_frames, clips.decoder) == (30, "pyav")
    np.testing.assert_array_equal(clips.frames[0], truth[10:])
    assert clips.times.seconds == pytest.approx(30 / 25, abs=0.01)


def test_a_capture_with_more_lost_than_left_is_refused(tmp_path: Path, write_video: VideoWriter) -> None:
    source = write_video(tmp_path / "a.ts", 40, gop=22, options={**SLOW_PRESET, "sc_threshold": "0"})
    assert len(every_frame(packets_from(source, 4, tmp_path / "half.ts"))) == 18  # of 36
    with pytest.raises(VideoDecodeError, match="starts between key frames: only 18 of 37 frames can be"):
        every_frame(packets_from(source, 3, tmp_path / "less.ts"))


@pytest.mark.parametrize("cut", [0, 4])
def test_joined_captures(tmp_path: Path, two_parts: tuple[Path, Path], cut: int) -> None:
    """`cat a.ts b.ts`, where b may begin between key frames: the clock starts again, the film goes on."""
    second = packets_from(two_parts[1], cut, tmp_path / "b.ts")
    path = tmp_path / "joined.ts"
    path.write_bytes(two_parts[0].read_bytes() + second.read_bytes())
    truth = np.concatenate([by_hand(two_parts[0]), by_hand(two_parts[1])[10 if cut else 0 :]])
    clips = decode_clips(path, lambda n: np.arange(n)[None])
    np.testing.assert_array_equal(clips.frames[0], truth)
    assert clips.times.seconds == pytest.approx(len(truth) / 25, abs=0.05)
    assert (np.diff(clips.times.borders) > 0).all()


def test_damage_inside_a_capture_is_still_refused(tmp_path: Path, two_parts: tuple[Path, Path]) -> None:
    content = two_parts[0].read_bytes()
    lost = 188 * (len(content) // 188 * 2 // 5)
    path = tmp_path / "a.ts"
    path.write_bytes(content[:lost] + content[lost + 4 * 188 :])
    with pytest.raises(VideoDecodeError, match="damaged"):
        every_frame(path)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_still_picture_yields_to_the_film(tmp_path: Path, extension: str) -> None:
    film = moving_frames(12, 48, 64)
    path = tmp_path / f"a.{extension}"
    with av.open(str(path), "w") as container:
        still = container.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 640, 480, "yuvj420p"
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.mux(
            still.encode(av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24"))
        )
        for frame in film:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        container.mux(still.encode())
    assert every_frame(path).shape == (12, 48, 64, 3)


# what is no video

PAGES = {
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n": "is a Git LFS pointer: run `git lfs pull`",
    "<!DOCTYPE html><html><title>Virus scan\nwarning</title></html>": r"is an HTML page \(Virus scan warning\)",
    '{"error": "Private video"}': r"is a JSON text \(\{\"error\": \"Private video\"\}\)",
    "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "is an XML text .*AccessDenied",
    "#EXTM3U\nsegment0.ts\n": r"is a text \(#EXTM3U segment0.ts\), not a video",
    "Too many requests": r"is a text \(Too many requests\), not a video",
}


@pytest.mark.parametrize("text", PAGES)
def test_what_a_failed_download_leaves_is_called_by_its_name(tmp_path: Path, text: str) -> None:
    for name in ("a.mp4", "a.webm", "a.avi"):
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoDecodeError, match=PAGES[text]):
            every_frame(tmp_path / name)


def test_other_files_in_place_of_videos(tmp_path: Path, write_video: VideoWriter) -> None:
    good = write_video(tmp_path / "good.mp4", 8)
    content = good.read_bytes()
    (tmp_path / "unfinished.mp4").write_bytes(content[: content.index(b"moov") - 4])
    (tmp_path / "zip.mp4").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "zeros.mp4").write_bytes(bytes(5000))
    (tmp_path / "broken link.mp4").symlink_to(tmp_path / "absent.mp4")
    reasons = {
        "unfinished.mp4": r"the index \(moov\) is missing: the recording was not finished",
        "zip.mp4": "is a ZIP archive, not a video",
        "zeros.mp4": "is nothing but zero bytes, not a video",
        "broken link.mp4": "is a link to a file that does not exist",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoDecodeError, match=reason):
            every_frame(tmp_path / name)
    for name in ("wrong ending.avi", "none at all"):  # FFmpeg goes by the content
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(every_frame(tmp_path / name), by_hand(good))
