"""Live sources: what a word names, frames as the writer sent them, and errors in one line."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from video_papr.core.errors import ConfigError, VideoDecodeError
from video_papr.data.limits import Limits
from video_papr.data.readers.live import LiveSource, _timed, live_source, read_live

FPS = 25


def pictures(count=12):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), np.uint8)


def send(target, frames):
    """Writes frames without loss, in a format that needs no seeking."""
    with av.open(target, "w", format="nut") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("kind", ["pipe", "tcp"])
def test_frames_are_those_that_were_sent(kind, tmp_path):
    frames = pictures()
    send(str(tmp_path / "sent"), frames)
    sent = (tmp_path / "sent").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if kind == "pipe":
            address = str(tmp_path / "ümlaut pipe")
            os.mkfifo(address)

        def answer():
            if kind == "pipe":
                Path(address).write_bytes(sent)
            else:
                with server.accept()[0] as client:
                    client.sendall(sent)

        threading.Thread(target=answer, daemon=True).start()
        source = live_source(address)
        assert source is not None and source.url == address
        read = list(read_live(source))
    assert np.array_equal([pixels for _, pixels in read], frames)
    assert [seconds for seconds, _ in read] == pytest.approx(np.arange(len(frames)) / FPS, abs=2e-3)


def test_what_comes_through_a_pipe_names_no_files(tmp_path):
    send(str(tmp_path / "own.nut"), pictures())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    listing = "ffconcat version 1.0\nfile own.nut\n"
    threading.Thread(target=pipe.write_text, args=(listing,), daemon=True).start()
    source = live_source(str(pipe))
    assert source is not None
    with pytest.raises(VideoDecodeError, match="cannot open .*pipe"):
        list(read_live(source))


def test_what_a_word_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert live_source("0") == LiveSource("0", "avfoundation", {"framerate": "30"})
    monkeypatch.setenv("DISPLAY", ":3")
    assert live_source("screen") == LiveSource(":3", "x11grab", {"framerate": "15"})
    for address in ("rtsp://camera/1", "udp://0.0.0.0:1234", "https://example.org/live.m3u8?key=1"):
        assert live_source(address) == LiveSource(address)
    for name in ("0", "screen"):
        (tmp_path / name).write_bytes(b"")
    for file in ("0", "screen", "clip.mp4", "https://example.org/clip.mp4", "a\0b"):
        assert live_source(file) is None


@pytest.mark.parametrize(
    ("system", "video", "line"),
    [
        ("Linux", "77", "video=/dev/video77: there is no such webcam"),
        ("Windows", "0", "video=0: webcams are opened on Linux and macOS"),
        ("Linux", "screen", "video=screen: needs an X display, and DISPLAY is not set"),
    ],
)
def test_sources_that_are_not_there(system, video, line, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ConfigError, match=line):
        live_source(video)


def test_errors_and_limits(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"rtsp://127.0.0.1:{closed.getsockname()[1]}/x"
        with pytest.raises(VideoDecodeError, match=rf"^cannot open {address}: .*refused"):
            next(read_live(LiveSource(address)))
    (tmp_path / "text").write_text("no video")
    with pytest.raises(VideoDecodeError, match="cannot open .*text: "):
        next(read_live(LiveSource(str(tmp_path / "text"))))
    send(str(tmp_path / "large.nut"), pictures(2))
    with pytest.raises(VideoDecodeError, match="48x32 have more pixels"):
        next(read_live(LiveSource(str(tmp_path / "large.nut")), Limits(max_pixels=100)))


def test_a_clock_that_is_set_does_not_stop_time():
    def frame(time):
        return SimpleNamespace(
            time=time, width=2, height=2, to_ndarray=lambda format: np.zeros((2, 2, 3), np.uint8)
        )

    times = [seconds for seconds, _ in _timed(map(frame, [5.0, 5.1, 900.0, 900.1, 3.0, 3.1]), Limits())]
    assert times == pytest.approx([0, 0.1, 0.14, 0.24, 0.28, 0.38])
