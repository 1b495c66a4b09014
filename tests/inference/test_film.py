"""Annotated films: size, turn, times and sound stay, what was dropped is lighter, windows become segments."""

from __future__ import annotations

import errno
import os
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from video_papr.core.errors import VideoDecodeError
from video_papr.data.limits import Limits
from video_papr.data.transforms import crop_box, resize_and_crop
from video_papr.inference import film as module
from video_papr.inference.film import film_size, is_own_film, write_film
from video_papr.inference.overlay import Overlay, Scene, Seen, clock, masks
from video_papr.inference.predict import Recipe
from video_papr.inference.segments import merge_windows, subtitles

BACKBONE = SimpleNamespace(frame_size=(16, 16), short_side=16)
PIPELINE = SimpleNamespace(backbone=BACKBONE)


def scene(start, end, name="wave", kept=None, seconds=None):
    seen = None if kept is None else Seen(np.array(seconds), np.array(kept))
    return Scene(start, end, name, 0.5, seen)


def frames_of(path):
    """Frames as a player shows them, their times in seconds, and the kinds of the streams."""
    with av.open(str(path)) as container:
        kinds = [stream.type for stream in container.streams]
        frames = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames], kinds


@pytest.fixture
def grey(tmp_path, write_video):
    """12 grey frames of 80 x 120 at uneven times, with sound."""
    seconds = [0, 0.04, 0.08, 0.3, 0.34, 0.38, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    picture = np.full((80, 120, 3), 100, np.uint8)
    path = write_video(tmp_path / "grey.mp4", [picture] * 12, seconds=seconds, with_audio=True)
    return path, seconds


def test_size_times_and_sound_stay_and_what_was_dropped_is_lighter(tmp_path, grey):
    path, seconds = grey
    kept = [[[[True, False], [True, False]]]]  # of one slice, the left half
    shown = [scene(0, 1.04, kept=kept, seconds=[seconds])]
    out = write_film(path, tmp_path / "film.mp4", shown, PIPELINE, Recipe())
    frames, times, kinds = frames_of(out)
    assert len(frames) == 12 and frames[0].shape == (240, 360, 3)  # enlarged, to be looked at
    np.testing.assert_allclose(times, seconds, atol=1e-3)
    assert sorted(kinds) == ["audio", "video"]
    for frame in frames:  # the crop is the middle, 240 x 240
        assert np.abs(frame[120:210, 90:150].astype(int) - 100).mean() < 6  # kept
        assert frame[120:210, 195:285].min() > 190  # dropped: towards white
        assert np.abs(frame[120:210, 306:354].astype(int) - 100).mean() < 6  # outside of what was read
    assert is_own_film(out) and not is_own_film(path)


@pytest.mark.parametrize(
    ("size", "max_side", "wanted"),
    [
        ((720, 1280), None, (720, 1280)),
        ((721, 1281), None, (720, 1280)),
        ((64, 64), None, (256, 256)),
        ((2160, 3840), 1280, (720, 1280)),
        ((3, 4000), 1280, (2, 1280)),
        ((3, 40_000), None, (2, 16_384)),  # as large as the encoder goes
    ],
)
def test_size_of_a_film(size, max_side, wanted):
    assert film_size(*size, max_side) == wanted


def test_odd_sizes_and_formats(tmp_path, write_video):
    path = write_video(tmp_path / "odd.mkv", 3, size=(241, 301), codec="ffv1", pix_fmt="bgr0")
    frames, _, kinds = frames_of(write_film(path, tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe()))
    assert [frame.shape for frame in frames] == [(240, 300, 3)] * 3 and kinds == ["video"]


def test_frames_of_one_line_make_a_film_too(tmp_path, write_video):
    path = write_video(tmp_path / "a.mkv", 3, size=(1, 64), codec="ffv1", pix_fmt="bgr0")
    assert len(frames_of(write_film(path, tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe()))[0]) == 3


def test_the_limits_of_the_recipe_hold(tmp_path, grey):
    with pytest.raises(VideoDecodeError, match="max_frames"):
        recipe = Recipe(limits=Limits(max_frames=5))
        write_film(grey[0], tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, recipe)


def test_a_turned_video_is_upright(tmp_path, write_video):
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[:, 60:] = 255  # right half; the lower half when it is turned clockwise
    path = write_video(tmp_path / "turned.mp4", [picture] * 3)
    content = bytearray(path.read_bytes())
    start, one = content.index(b"tkhd") + 44, 0x10000
    content[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    frames, _, _ = frames_of(write_film(path, tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe()))
    assert frames[0].shape == (360, 240, 3)
    assert frames[0][90:150].mean() < 20 and frames[0][210:].mean() > 235


@pytest.mark.parametrize(("rate", "layout"), [(16_000, "mono"), (192_000, "7.1"), (12_345, "hexagonal")])
def test_sound_that_mp4_does_not_hold_becomes_aac(tmp_path, grey, rate, layout):
    path, _ = grey
    wave = tmp_path / "pcm.mkv"
    with av.open(str(path)) as source, av.open(str(wave), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("pcm_s16le", rate=rate, layout=layout)
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.stream = video
                out.mux(packet)
            else:
                for frame in packet.decode():
                    out.mux(sound.encode(frame))
        out.mux(sound.encode())
    film = write_film(wave, tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe())
    with av.open(str(film)) as container:
        (sound,) = container.streams.audio
        assert sound.codec_context.name == "aac"
        assert float(sound.duration * sound.time_base) > 0.3
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_a_film_goes_on_without_sound_that_cannot_be_stored(tmp_path, grey, monkeypatch):
    twice = module._Writer._add_sound

    def again(self, packet):
        twice(self, packet)
        twice(self, packet)  # its time is not after that of the one before

    monkeypatch.setattr(module._Writer, "_add_sound", again)
    film = write_film(grey[0], tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe())
    assert len(frames_of(film)[0]) == 12


def test_a_full_disk_leaves_no_half_film(tmp_path, grey, monkeypatch):
    def full(*_):
        raise av.error.OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module._Writer, "add", full)
    monkeypatch.setattr(module._Writer, "finish", lambda _: pytest.fail("writes on"))
    with pytest.raises(OSError, match="No space left"):
        write_film(grey[0], tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe())
    assert not (tmp_path / "film.mp4").exists()


def test_a_film_ends_where_decoding_does(tmp_path, grey, monkeypatch, capsys):
    path, _ = grey
    once = iter([None] * 5)

    def fails(*_):
        if next(once, "over") == "over":
            raise av.InvalidDataError(1, "invalid data")

    monkeypatch.setattr(Overlay, "draw", fails)
    frames, _, _ = frames_of(write_film(path, tmp_path / "film.mp4", [scene(0, 1)], PIPELINE, Recipe()))
    assert len(frames) == 5
    assert "grey.mp4 ends where decoding does" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "crops"), [((80, 120), 1), ((120, 80), 3), ((50, 50), 1), ((97, 211), 3)])
def test_the_box_is_what_the_middle_crop_reads(size, crops):
    top, left, bottom, right = crop_box(*size, size=16, short_side=20, num_crops=crops)
    frames = torch.zeros(1, 1, *size, 3, dtype=torch.uint8)
    frames[:, :, top:bottom, left:right] = 255
    views = resize_and_crop(frames, size=16, short_side=20, num_crops=crops)
    middle = views[crops // 2]
    assert middle.float().mean() > 245  # but for rounding at its border, it is all that is read
    assert (bottom - top) * (right - left) / frames[0, 0, :, :, 0].numel() == pytest.approx(
        (16 / 20) ** 2 * min(size) / max(size), abs=0.03
    )


def test_which_slice_is_on_display():
    seen = Seen(np.array([[0.0, 0.1, 0.2, 0.3], [2.0, 2.1, 2.2, 2.3]]), np.zeros((2, 2, 1, 1), bool))
    wanted = {
        0.0: (0, 0),
        0.15: (0, 0),
        0.2: (0, 1),
        0.35: (0, 1),
        1.0: None,
        1.95: (1, 0),
        2.39: (1, 1),
        2.5: None,
    }
    assert {time: seen.slice_at(time) for time in wanted} == wanted


def test_the_line_lies_inside_of_what_is_kept_and_closes_at_the_edge():
    dropped, edges = masks(np.array([[True, False]]), (6, 8), 1)
    assert (~dropped).sum() == 24 and not (dropped & edges).any()
    assert edges[:, :4].sum() == 2 * 4 + 2 * 4  # a frame of 6 x 4 pixels
    _, none = masks(np.array([[False]]), (6, 8), 1)
    assert not none.any()


def test_the_timeline_shows_each_window_in_its_place():
    windows = [scene(0, 1, "run"), scene(1, 2, "jump"), scene(2, 3, "run")]
    pixels = np.zeros((90, 300, 3), np.uint8)
    Overlay((90, 300), windows, (0, 0, 90, 90)).draw(pixels, 1.5)
    row = pixels[-1]
    assert (row[95] == row[205]).all() and (row[95] != row[190]).any()
    assert (row[150] == 255).all()  # the time that is on display


def test_a_dropped_place_never_becomes_darker():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    before = pixels.copy()
    seen = scene(0, 1, kept=[[[[False]]]], seconds=[[0.0]])
    overlay = Overlay((16, 16), [seen], (0, 0, 16, 16))
    overlay._draw_tubelets(pixels, seen.seen.kept[0, 0], key=None)
    assert (pixels >= before).all() and pixels.min() >= 192


def test_clock():
    assert [clock(s) for s in (0, 59.96, 61.25, 3599.99, 3725)] == [
        "0:00.0",
        "1:00.0",
        "1:01.2",
        "1:00:00.0",
        "1:02:05.0",
    ]


def window(start, end, name, probability=0.5):
    guess = SimpleNamespace(name=name, probability=probability)
    return SimpleNamespace(start_seconds=start, end_seconds=end, guesses=(guess,))


def test_neighbours_of_one_class_are_a_segment():
    found = merge_windows(
        [window(0, 2, "run", 0.4), window(1, 3, "run", 0.6), window(2, 4, "jump"), window(3.5, 5, "run")]
    )
    spans = [(s.start_seconds, s.end_seconds, s.windows, s.name, s.probability) for s in found]
    assert spans == [(0, 2, 2, "run", 0.5), (2, 3.5, 1, "jump", 0.5), (3.5, 5, 1, "run", 0.5)]
    assert merge_windows([]) == []
    assert subtitles(found, "vtt").startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:02.000\nrun 50 %\n")
    assert subtitles(found).startswith("1\n00:00:00,000 --> 00:00:02,000\nrun 50 %\n\n2\n00:00:02,000 --> ")
