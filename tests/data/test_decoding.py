"""Decoding: all readers give the same, right frames, and every file that cannot be read gives one clear line."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from video_papr.core.errors import ConfigError, TooLargeError, VideoDecodeError
from video_papr.data import decoding
from video_papr.data.decoding import DecodedClips, decode_clips
from video_papr.data.readers import decord as decord_reader
from video_papr.data.readers import file_head, packets, pyav
from video_papr.data.readers import torchcodec as torchcodec_reader
from video_papr.data.readers.answers import EndedEarly, Refused
from video_papr.data.readers.file_head import missing_bytes
from video_papr.data.sampling import dense_clips, uniform_segments

VideoWriter = Callable[..., Path]

OTHERS = {"decord": decord_reader._library, "torchcodec": torchcodec_reader._library}
SLOW_PRESET = {"preset": "medium", "bf": "3"}  # with B-frames: stored in another order than shown


def frames_at(*indices: int) -> Callable[[int], np.ndarray]:
    return lambda _: np.array([indices])


def all_frames(num_frames: int) -> np.ndarray:
    return np.arange(num_frames)[None]


def decode_by_hand(path: Path) -> np.ndarray:
    """Every frame in the order shown: the plainest use of PyAV, as the truth to compare with."""
    with av.open(str(path)) as container:
        video = container.streams.best("video")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])


def refusal(path: Path, decoder: str = "auto", choose: Callable[[int], np.ndarray] = all_frames) -> str:
    """The one line that says why a file cannot be decoded."""
    with pytest.raises(VideoDecodeError) as error:
        decode_clips(path, choose, decoder=decoder)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    assert str(path) in text
    return text


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest) -> str:
    """The readers besides PyAV, where they are installed."""
    try:
        OTHERS[request.param]()
    except Refused as missing:
        pytest.skip(f"{request.param}: {missing}")
    return str(request.param)


def assert_same_by_both(path: Path, choose: Callable[[int], np.ndarray], other: str) -> DecodedClips:
    by_pyav = decode_clips(path, choose)
    by_other = decode_clips(path, choose, decoder=other)
    assert (by_other.decoder, by_pyav.decoder) == (other, "pyav")
    assert by_other.num_video_frames == by_pyav.num_video_frames
    np.testing.assert_array_equal(by_other.frame_indices, by_pyav.frame_indices)
    np.testing.assert_array_equal(by_other.frames, by_pyav.frames)
    return by_other


# what is decoded


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_clips_are_scattered_from_one_pass(tmp_path: Path, write_video: VideoWriter, decoder: str) -> None:
    path = write_video(tmp_path / "a.mp4", 30, fps=20, options=SLOW_PRESET)
    truth = decode_by_hand(path)
    indices = np.array([[20, 21, 29], [0, 5, 20], [7, 7, 3]])  # overlapping, repeated, out of order
    calls = []

    def choose(num_frames: int) -> np.ndarray:
        calls.append(num_frames)
        return indices

    clips = decode_clips(path, choose, decoder=decoder)
    assert calls == [30]
    assert clips.frames.shape == (3, 3, 48, 64, 3) and clips.frames.dtype == np.uint8
    np.testing.assert_array_equal(clips.frames, truth[indices])
    np.testing.assert_array_equal(clips.frame_indices, indices)
    assert (clips.num_video_frames, clips.fps) == (30, 20.0)
    assert clips.decoder == ("decord" if decoder == "decord" else "pyav")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("plain.mov", {}),
        ("reordered.mp4", {"options": SLOW_PRESET, "gop": 12}),
        ("reordered.mkv", {"options": SLOW_PRESET, "gop": 12}),
        ("vp9.webm", {"codec": "libvpx-vp9", "gop": 12}),
        ("mpeg4.mp4", {"codec": "mpeg4", "gop": 12}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 12}),
        ("sound.mp4", {"with_audio": True}),
        ("444.mp4", {"pix_fmt": "yuv444p"}),
        ("full range.mp4", {"pix_fmt": "yuvj420p"}),
    ],
)
def test_the_other_readers_agree(
    tmp_path: Path, write_video: VideoWriter, other: str, name: str, options: dict
) -> None:
    path = write_video(tmp_path / name, 90, **options)
    truth = decode_by_hand(path)
    assert len(truth) == 90
    np.testing.assert_array_equal(assert_same_by_both(path, all_frames, other).frames[0], truth)
    rng = random.Random(0)
    for count in (1, 2, 5, 30):
        wanted = sorted(rng.sample(range(90), count))
        found = assert_same_by_both(path, frames_at(*wanted), other)
        np.testing.assert_array_equal(found.frames[0], truth[wanted])
    np.testing.assert_array_equal(assert_same_by_both(path, frames_at(89), other).frames[0], truth[[89]])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("h264.avi", {"gop": 12}, "not trusted to find frames in avi files"),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2"}}, "AVI stores no presentation times"),
        ("mpeg2.mpg", {"codec": "mpeg2video"}, "not trusted to find frames in mpeg files"),
        ("stream.ts", {"gop": 12}, "not trusted to find frames in mpegts files"),
        ("windows.wmv", {"codec": "wmv2", "gop": 12}, "not trusted to find frames in asf files"),
        ("raw.h264", {}, "without presentation times"),
        ("open.mp4", {"codec": "mpeg4", "options": {"bf": "2"}, "gop": 12}, "open groups of pictures"),
        ("10 bit.mp4", {"pix_fmt": "yuv420p10le"}, "pixel format yuv420p10le"),
    ],
)
def test_files_in_which_decord_finds_wrong_frames(
    tmp_path: Path,
    write_video: VideoWriter,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict,
    reason: str,
) -> None:
    """For these, decord returns frames other than those asked for, and no error; so it does not even try."""
    opened: list[object] = []
    monkeypatch.setattr(decord_reader, "_frames", lambda *asked: opened.append(asked))
    path = write_video(tmp_path / name, 80, **options)
    truth = decode_by_hand(path)
    assert len(truth) == 80
    for wanted in ([0, 13, 77], [79], [40, 41]):
        clips = decode_clips(path, frames_at(*wanted))
        assert clips.decoder == "pyav"
        np.testing.assert_array_equal(clips.frames[0], truth[wanted])
    text = refusal(path, "decord")
    assert reason in text and "decoder=auto" in text
    assert not opened


def test_decord_lacks_a_decoder(clips_dir: Path) -> None:
    path = clips_dir / "single" / "av1_video.mkv"
    assert "decord: has no decoder for av1" in refusal(path, "decord")


@pytest.mark.parametrize("size", [(63, 47), (47, 63), (1, 1), (2, 200), (48, 64), (16, 16), (101, 37)])
def test_odd_sizes(tmp_path: Path, write_video: VideoWriter, other: str, size: tuple[int, int]) -> None:
    width, height = size
    even = width % 2 == height % 2 == 0
    path = write_video(tmp_path / "a.mp4", 12, size=(height, width), pix_fmt="yuv420p" if even else "yuv444p")
    clips = decode_clips(path, frames_at(0, 6, 11))
    assert clips.frames.shape == (1, 3, height, width, 3)
    np.testing.assert_array_equal(clips.frames[0], decode_by_hand(path)[[0, 6, 11]])
    with contextlib.suppress(VideoDecodeError):  # decord cannot hand over frames of some widths
        assert_same_by_both(path, frames_at(0, 6, 11), other)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path: Path, write_video: VideoWriter, other: str, extension: str) -> None:
    """Indices count frames, however long each of them is shown."""
    seconds = np.cumsum(np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.5], 60))
    path = write_video(tmp_path / f"a.{extension}", 60, seconds=seconds, options=SLOW_PRESET, gop=20)
    truth = decode_by_hand(path)
    wanted = uniform_segments(60, num_frames=8, num_clips=2)
    clips = assert_same_by_both(path, partial(uniform_segments, num_frames=8, num_clips=2), other)
    np.testing.assert_array_equal(clips.frames, truth[wanted])


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_short_videos(tmp_path: Path, write_video: VideoWriter, other: str, num_frames: int) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames, options=SLOW_PRESET)
    clips = assert_same_by_both(path, partial(dense_clips, num_frames=16, frame_stride=4, num_clips=3), other)
    assert clips.num_video_frames == num_frames
    np.testing.assert_array_equal(clips.frames[0], decode_by_hand(path)[clips.frame_indices[0]])


def test_pyav_seeks_in_long_videos(
    tmp_path: Path, write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", 600, size=(16, 32), gop=25, options=SLOW_PRESET)
    truth = decode_by_hand(path)
    decoded = []
    check = pyav._check_frame
    monkeypatch.setattr(pyav, "_check_frame", lambda *args: (decoded.append(1), check(*args)))
    wanted = [3, 300, 301, 320, 590]
    clips = decode_clips(path, frames_at(*wanted), decoder="pyav")
    np.testing.assert_array_equal(clips.frames[0], truth[wanted])
    assert len(decoded) < 120  # of 591 without seeks


def test_a_seek_that_misses_is_repeated_without(
    tmp_path: Path, write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", 200, size=(16, 32), gop=25)
    truth = decode_by_hand(path)
    real = decoding.read_stream

    def with_wrong_times(path: Path, *limits: object) -> packets.VideoStream:
        stream = real(path, *limits)
        stream.pts[:] += 1
        return stream

    monkeypatch.setattr(decoding, "read_stream", with_wrong_times)
    clips = decode_clips(path, frames_at(10, 190), decoder="pyav")
    np.testing.assert_array_equal(clips.frames[0], truth[[10, 190]])


def test_fewer_frames_than_packets(clips_dir: Path) -> None:
    """DivX packs two frames into one packet and adds empty ones: 73 packets, 72 frames."""
    path = next((clips_dir / "single").glob("RATRACE*.avi"))
    assert packets.read_stream(path).num_frames == 73
    calls = []

    def choose(num_frames: int) -> np.ndarray:
        calls.append(num_frames)
        return all_frames(num_frames)

    clips = decode_clips(path, choose, decoder="pyav")
    assert calls == [73, 72] and clips.num_video_frames == 72
    np.testing.assert_array_equal(clips.frames[0], decode_by_hand(path))


@pytest.mark.parametrize(
    ("shown", "accepted"), [(9, True), (6, True), (5, True), (4, False), (1, False), (10, False)]
)
def test_less_than_half_of_the_frames_is_a_loss(
    tmp_path: Path, write_video: VideoWriter, shown: int, accepted: bool
) -> None:
    """Streams of fields have two packets for each frame; a decoder that shows fewer than that lost some."""
    stream = packets.read_stream(write_video(tmp_path / "a.mp4", 10))

    def reader(path: object, stream: object, wanted: np.ndarray, places: np.ndarray) -> np.ndarray:
        if wanted[-1] >= min(shown, 9):
            raise EndedEarly(shown)
        return np.zeros((*places.shape, 48, 64, 3), np.uint8)

    if accepted:
        clips = decoding._decode_with(reader, "pyav", "a.mp4", stream, all_frames)
        assert clips.num_video_frames == shown == len(clips.frames[0])
        assert clips.times.seconds == pytest.approx(shown / 25 if shown > 5 else 10 / 25)
    else:
        with pytest.raises(Refused, match=f"only {shown} of 10 frames can be decoded"):
            decoding._decode_with(reader, "pyav", "a.mp4", stream, all_frames)


def test_a_count_that_changes_again_is_refused(tmp_path: Path, write_video: VideoWriter) -> None:
    stream = packets.read_stream(write_video(tmp_path / "a.mp4", 10))
    shown = iter([9, 8, 7])

    def reader(path: object, stream: object, wanted: np.ndarray, places: np.ndarray) -> np.ndarray:
        raise EndedEarly(next(shown))

    with pytest.raises(Refused, match="the number of frames differs between two passes"):
        decoding._decode_with(reader, "pyav", "a.mp4", stream, all_frames)
    assert next(shown) == 7


def test_wrong_count_in_a_complete_file(tmp_path: Path, write_video: VideoWriter) -> None:
    """Damaged metadata: the frames are counted."""
    path = write_video(tmp_path / "a.avi", 20, codec="mpeg4")
    content = bytearray(path.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # dwTotalFrames, dwLength
        start = content.index(tag) + offset
        assert struct.unpack_from("<I", content, start) == (20,)
        struct.pack_into("<I", content, start, 5000)
    path.write_bytes(content)
    assert decode_clips(path, all_frames).num_video_frames == 20


@pytest.mark.parametrize("decoder", decoding.DECODERS)
def test_decoders_that_export_vectors(tmp_path: Path, write_video: VideoWriter, decoder: str) -> None:
    if decoder in ("auto", "pyav"):
        decoding.check_exports_vectors(decoder)
        clips = decode_clips(write_video(tmp_path / "a.mp4", 3), all_frames, decoder=decoder, motion=True)
        assert clips.decoder == "pyav" and clips.frames.shape[-1] == 4
    else:
        with pytest.raises(ConfigError, match=f"^dataset.decoder={decoder}: exports no motion vectors"):
            decode_clips(tmp_path / "a.mp4", all_frames, decoder=decoder, motion=True)


def test_choose_must_return_indices_of_the_video(tmp_path: Path, write_video: VideoWriter) -> None:
    """A mistake in the caller's function is the caller's error, not that of the video."""
    path = write_video(tmp_path / "a.mp4", 5)
    for bad in (
        np.array([[0, 5]]),
        np.array([[-1]]),
        np.array([0, 1]),
        np.array([[0.5]]),
        np.zeros((0, 3), int),
    ):
        with pytest.raises(ValueError) as error:
            decode_clips(path, lambda _, bad=bad: bad)
        assert not isinstance(error.value, VideoDecodeError)


def test_memory_is_known_before_anything_is_decoded(tmp_path: Path, write_video: VideoWriter) -> None:
    path = write_video(tmp_path / "video.mp4", 12, size=(32, 48))
    for clips, frames in ((1, 4), (2, 6 + 8)):  # of two clips that share frames a copy is made
        indices = np.arange(4)[None] + 2 * np.arange(clips)[:, None]
        num_bytes = 3 * 32 * 48 * frames
        assert decode_clips(path, lambda n, i=indices: i, max_bytes=num_bytes).frames.shape[0] == clips
        with_plane = decode_clips(
            path, lambda n, i=indices: i, max_bytes=4 * 32 * 48 * indices.size, motion=True
        )
        assert with_plane.frames.shape == (clips, 4, 32, 48, 4)  # made where it is to lie
        with pytest.raises(
            TooLargeError, match=r"frames of 48x32 take 0 MiB, dataset\.memory_mb allows 0"
        ) as error:
            decode_clips(path, lambda n, i=indices: i, max_bytes=num_bytes - 1)
        assert error.value.num_bytes == num_bytes
    small = partial(decode_clips, path, lambda n: np.arange(4)[None], reduce=lambda height, width: (16, 24))
    assert small(max_bytes=3 * 16 * 24 * 4).frames.shape == (1, 4, 16, 24, 3)
    for options, num_bytes in (({}, 3 * 16 * 24 * 4), ({"motion": True}, 4 * 16 * 24 * 4)):
        with pytest.raises(TooLargeError) as error:
            small(max_bytes=num_bytes - 1, **options)
        assert error.value.num_bytes == num_bytes


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(tmp_path / "a.png")
    clips = decode_clips(tmp_path / "a.png", lambda n: np.full((1, 2), n - 1), decoder="pillow")
    assert (clips.num_video_frames, clips.fps, clips.decoder) == (1, 0.0, "pillow")
    np.testing.assert_array_equal(clips.frames, np.full((1, 2, 4, 6, 3), 7))
    with pytest.raises(ValueError, match=r"leave the video \(0\.\.0\)"):
        decode_clips(tmp_path / "a.png", lambda n: np.ones((1, 1), int), decoder="pillow")


@pytest.mark.parametrize("decoder", ["decord", "pillow"])
def test_decoders_that_read_whole_frames(tmp_path: Path, decoder: str) -> None:
    with pytest.raises(ConfigError) as error:
        decode_clips(tmp_path / "a.mp4", all_frames, decoder=decoder, reduce=lambda *size: size)
    assert str(error.value) == (
        f"dataset.decode_size=short_side: dataset.decoder={decoder} reads whole frames; use auto or pyav"
    )


def test_unknown_decoder(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dataset.decoder='ffmpeg' is unknown; use one of auto, pyav, decord"
    ):
        decode_clips(tmp_path / "a.mp4", all_frames, decoder="ffmpeg")


# bad files


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_not_a_video(
    tmp_path: Path, write_audio: Callable[[Path], Path], decoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in refusal(tmp_path / "absent.mp4", decoder)
    assert "is a directory" in refusal(tmp_path, decoder)
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.mp4", decoder)
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 200)
    assert "is a text (This is no video." in refusal(tmp_path / "text.mp4", decoder)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    assert "(" + decoder in refusal(tmp_path / "noise.mp4", decoder)
    assert "no video stream (streams: audio)" in refusal(write_audio(tmp_path / "sound.mp4"), decoder)
    assert capfd.readouterr().err == ""  # neither library talks to the terminal


def test_names_that_need_care(
    tmp_path: Path, write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    source = write_video(tmp_path / "a.mp4", 4)
    for name in ("take2:final cut.mp4", "Käse – 映像 %03d.mp4", "[a]{b}*?.mp4", "-i.mp4"):
        path = Path(shutil.copy(source, tmp_path / name))
        assert_same_by_both(path, all_frames, other)
    monkeypatch.chdir(tmp_path)
    assert_same_by_both(Path("take2:final cut.mp4"), all_frames, other)
    with pytest.raises(VideoDecodeError) as error:
        decode_clips(tmp_path / "two\nlines.mp4", all_frames)
    assert "\n" not in str(error.value)
    odd = tmp_path / os.fsdecode(b"bad\xff.mp4")
    shutil.copy(source, odd)
    try:
        decode_clips(odd, all_frames)
    except VideoDecodeError as refused:
        str(refused).encode()  # can be written anywhere


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("front.mp4", {"container_options": {"movflags": "faststart"}}),
        ("end.mp4", {}),
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 10}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("b.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    ],
)
def test_truncated(tmp_path: Path, write_video: VideoWriter, name: str, options: dict) -> None:
    """A file that was cut off is refused, unless only an index is lost: before a reader is asked."""
    path = write_video(tmp_path / name, 60, **options)
    truth, whole = decode_by_hand(path), path.read_bytes()
    assert missing_bytes(path) == 0
    for share in (0.999, 0.97, 0.9, 0.5, 0.2, 0.05, 0.001):
        path.write_bytes(whole[: int(share * len(whole))])
        if share > 0.9 and (name == "end.mp4" or path.suffix == ".avi"):
            with contextlib.suppress(VideoDecodeError):
                np.testing.assert_array_equal(decode_clips(path, all_frames).frames[0], truth)
        else:
            text = refusal(path, "torchcodec", frames_at(0))
            assert any(word in text for word in ("truncated", "cut off", "Invalid data", "End of file")), text


def test_truncation_is_called_by_its_name(tmp_path: Path, write_video: VideoWriter) -> None:
    path = write_video(tmp_path / "a.mp4", 60, container_options={"movflags": "faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    text = refusal(path)
    assert f"truncated: {len(whole) - len(whole) // 2} bytes are missing" in text or "cut off" in text
    path = write_video(tmp_path / "b.mkv", 60)
    path.write_bytes(path.read_bytes()[:-700])
    assert "truncated: 700 bytes are missing" in refusal(path)
    path = write_video(tmp_path / "c.mp4", 60)  # the table of frames is at the end
    path.write_bytes(path.read_bytes()[:-700])
    assert "truncated: 700 bytes are missing" in refusal(path)


def test_a_lost_tail_that_holds_no_frame_is_no_loss(tmp_path: Path, write_video: VideoWriter) -> None:
    path = write_video(tmp_path / "a.mp4", 20, container_options={"movflags": "faststart"})
    tail = struct.pack(">I4s", 5000, b"free") + bytes(100)  # promises 5000 bytes
    path.write_bytes(path.read_bytes() + tail)
    assert missing_bytes(path) == 4892
    assert decode_clips(path, all_frames).num_video_frames == 20


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("flips", [10, 100, 2000])
def test_flipped_bits_are_noticed(
    tmp_path: Path, write_video: VideoWriter, other: str, extension: str, flips: int
) -> None:
    """No reader hands over frames that FFmpeg patched up, although decord and torchcodec alone would."""
    path = write_video(tmp_path / f"a.{extension}", 40, size=(120, 160), options=SLOW_PRESET)
    content = bytearray(path.read_bytes())
    rng = random.Random(flips)
    for _ in range(flips):
        content[rng.randrange(len(content) // 10, len(content) * 8 // 10)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    for decoder in ("pyav", other):
        refusal(path, decoder)


def test_damage_that_decodes_to_a_picture_passes(tmp_path: Path, write_video: VideoWriter) -> None:
    """The limit that docs/reliability.md states: raw pixels carry no checksum, so nothing shows that they changed."""
    path = write_video(tmp_path / "a.avi", 5, codec="rawvideo")
    before, content = decode_by_hand(path), bytearray(path.read_bytes())
    middle = 2 * len(content) // 5
    content[middle : middle + 512] = bytes(512)
    path.write_bytes(content)
    after = decode_clips(path, all_frames).frames[0]
    assert after.shape == before.shape and (after != before).any()


def test_oggs_own_checksums_are_checked(tmp_path: Path, write_video: VideoWriter) -> None:
    path = write_video(tmp_path / "a.ogv", 40, codec="libvpx", gop=10)
    good = path.read_bytes()
    assert decode_clips(path, all_frames).num_video_frames == 40
    for share in (0.3, 0.5, 0.7, 0.9):
        bad = bytearray(good)
        bad[int(share * len(good))] ^= 1
        path.write_bytes(bad)
        assert "CRC mismatch" in refusal(path)


def test_matroskas_own_checksums_are_checked(tmp_path: Path, write_video: VideoWriter) -> None:
    """FFmpeg writes one for each cluster, and does not look at it: any changed byte of a frame shows."""
    path = write_video(tmp_path / "a.mkv", 30, size=(120, 160), gop=10)
    good, chance = path.read_bytes(), random.Random(0)
    start, end = good.index(b"\x1fC\xb6u") + 16, good.rindex(b"\x1cS\xbbk")  # of the clusters; Cues follow
    file_head.check_whole(path)
    for _ in range(20):
        bad = bytearray(good)
        bad[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        assert "contradict their checksum" in refusal(path)
    for content in (good[:-3], good[: end - 100], good[:start], good[:4], good + b"\x00\xff"):
        path.write_bytes(content)
        file_head.check_whole(path)  # truncation is told by others


def test_mp4_files_joined_byte_by_byte_are_refused(tmp_path: Path, write_video: VideoWriter) -> None:
    """FFmpeg and players show the first one alone."""
    path = write_video(tmp_path / "a.mp4", 5)
    path.write_bytes(path.read_bytes() + write_video(tmp_path / "b.mp4", 7).read_bytes())
    assert "holds 2 indexes (moov): files that were joined byte by byte" in refusal(path)


def test_the_others_alone_hide_damage(tmp_path: Path, write_video: VideoWriter, other: str) -> None:
    """Why the log of their FFmpeg is listened to: without, the damaged frames come back as good ones."""
    path = write_video(tmp_path / "a.mp4", 40, size=(120, 160), options=SLOW_PRESET)
    content, start = bytearray(path.read_bytes()), path.read_bytes().index(b"mdat")
    for place in range(start + 3000, len(content) - 3000, 2500):
        content[place] ^= 0xFF
    path.write_bytes(content)
    if other == "decord":
        import decord

        found = decord.VideoReader(str(path), num_threads=1).get_batch(range(40)).asnumpy()
    else:
        from torchcodec.decoders import VideoDecoder

        found = VideoDecoder(str(path)).get_frames_in_range(0, 40).data
    assert len(found) == 40
    assert "damaged stream" in refusal(path, other)
    assert "damaged" in refusal(path, "pyav")


def test_damage_inside_matroska(tmp_path: Path, write_video: VideoWriter) -> None:
    """FFmpeg skips to the next readable cluster and goes on with fewer frames."""
    path = write_video(tmp_path / "a.mkv", 60, size=(120, 160), gop=10)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "h264"])
def test_frame_size_changes(tmp_path: Path, write_video: VideoWriter, other: str, extension: str) -> None:
    parts = [
        write_video(tmp_path / "0.h264", 20, size=(48, 64)),
        write_video(tmp_path / "1.h264", 20, size=(96, 128)),
    ]
    path = tmp_path / f"a.{extension}"
    if extension == "h264":
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    else:
        join(parts, path)
    refusal(path, other)
    assert "size changes from 64x48 to 128x96" in refusal(path)
    # the part before the change is whole
    assert decode_clips(path, frames_at(0, 10)).frames.shape == (1, 2, 48, 64, 3)


def join(parts: list[Path], path: Path) -> None:
    """Muxes the packets of several raw streams into one stream, as careless cutting tools do."""
    with av.open(str(path), "w") as output:
        stream, place = None, 0
        for part in parts:
            with av.open(str(part)) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        stream = stream or output.add_stream_from_template(container.streams.video[0])
                        packet.stream, packet.pts, packet.dts = stream, place, place
                        packet.time_base = stream.time_base = stream.time_base or packet.time_base
                        place += 48000
                        output.mux(packet)


def test_file_that_makes_decord_hang(
    tmp_path: Path, write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """decord can spin for ever: after a while that is an error, and the next file is decoded as usual."""
    path = write_video(tmp_path / "a.mp4", 10)
    monkeypatch.setattr(decord_reader, "_PATIENCE_SECONDS", 0.2)
    release = threading.Event()
    with monkeypatch.context() as context:
        context.setattr(decord_reader, "_frames", lambda *_: release.wait(30))
        assert "decord: gave no answer within 1 s" in refusal(path, "decord")
    release.set()
    monkeypatch.setattr(decord_reader, "_PATIENCE_SECONDS", 30)
    assert decode_clips(path, all_frames, decoder="decord").num_video_frames == 10


def test_no_reader_outlives_its_call(tmp_path: Path, write_video: VideoWriter) -> None:
    """A reader that were left to the garbage collector would hang the forked worker in which it is collected."""
    decord = pytest.importorskip("decord")
    good, bad = write_video(tmp_path / "a.mp4", 5), write_video(tmp_path / "b.mp4", 5, size=(16, 16))
    gc.collect()
    gc.disable()
    try:
        assert decode_clips(good, all_frames, decoder="decord").num_video_frames == 5
        refusal(bad, "decord")
        assert not [thing for thing in gc.get_objects() if type(thing) is decord.VideoReader]
    finally:
        gc.enable()


def test_readers_that_are_not_installed(
    tmp_path: Path, write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", 5)
    torchcodec_reader._library.cache_clear()
    for name, module in (("decord", "decord._ffi.base"), ("torchcodec", "torchcodec")):
        monkeypatch.setitem(sys.modules, module, None)
        assert f"{name}: not installed" in refusal(path, name)


def test_a_bad_file_does_not_spoil_the_next(tmp_path: Path, write_video: VideoWriter, other: str) -> None:
    good = write_video(tmp_path / "good.mp4", 20)
    bad = tmp_path / "bad.mp4"
    content = bytearray(good.read_bytes())
    for place in range(len(content) // 3, len(content) // 2, 40):
        content[place] ^= 0xFF
    bad.write_bytes(content)
    for _ in range(3):
        refusal(bad, other)
        refusal(bad)
        assert_same_by_both(good, all_frames, other)


def test_random_damage_never_escapes(tmp_path: Path, write_video: VideoWriter) -> None:
    """Whatever is done to a file, the result is frames or one line, and soon."""
    sources = [
        write_video(tmp_path / "a.mp4", 30, options=SLOW_PRESET),
        write_video(tmp_path / "b.mkv", 30),
        write_video(tmp_path / "c.avi", 30, codec="mpeg4"),
    ]
    rng = random.Random(0)
    begin = time.monotonic()
    for trial in range(90):
        source = sources[trial % 3]
        content = bytearray(source.read_bytes())
        place, length = rng.randrange(len(content)), rng.randrange(1, len(content) // 3)
        match trial % 5:
            case 0:
                del content[place : place + length]
            case 1:
                content[place:place] = content[place : place + length]
            case 2:
                content[place : place + length] = bytes(len(content[place : place + length]))
            case 3:
                content[:2000] = bytes(
                    b if rng.random() > 0.01 else rng.randrange(256) for b in content[:2000]
                )
            case 4:
                content[place] ^= 0xFF
        path = tmp_path / f"damaged{source.suffix}"
        path.write_bytes(content)
        try:
            clips = decode_clips(path, partial(uniform_segments, num_frames=4, num_clips=1))
            assert clips.frames.shape[:2] == (1, 4)
        except VideoDecodeError as error:
            assert "\n" not in str(error)
    assert time.monotonic() - begin < 60


# real files


def test_every_real_clip(clips_dir: Path, other: str) -> None:
    """All files of clips/single decode, and where another reader takes them at all, it gives the frames of PyAV."""
    choose = partial(dense_clips, num_frames=4, frame_stride=8, num_clips=3)
    by_other = 0
    for path in sorted((clips_dir / "single").iterdir()):
        clips = decode_clips(path, choose)
        assert clips.frames.shape[:2] == (3, 4)
        with contextlib.suppress(VideoDecodeError):
            found = decode_clips(path, choose, decoder=other)
            by_other += 1
            assert found.num_video_frames == clips.num_video_frames
            worst = np.abs(found.frames.astype(int) - clips.frames).max()
            same_idct = (
                packets.read_stream(path).codec != "mpeg4"
            )  # other releases of FFmpeg round it otherwise
            assert worst <= (0 if same_idct else 2), path.name
    assert by_other >= 28
