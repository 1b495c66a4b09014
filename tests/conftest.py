"""Fixtures shared by all tests: small videos written on the spot, and the real clips where they are at hand."""

import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def moving_frames(num_frames, height, width, seed=0):
    """(num_frames, height, width, 3) uint8: a smooth random pattern that drifts, so that every frame differs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3))
    rows = np.linspace(0, 4, height).round().astype(int)
    columns = np.linspace(0, 6, width).round().astype(int)
    still = coarse[rows][:, columns]
    ramp = np.arange(num_frames) * 97 % 256
    drift = [(np.roll(still, 2 * i, axis=1) + ramp[i]) % 256 for i in range(num_frames)]
    return np.stack(drift).astype(np.uint8)


def write_video_file(
    path,
    frames,
    fps=25,
    *,
    size=(48, 64),
    seed=0,
    codec="libx264",
    pix_fmt="yuv420p",
    options=None,
    seconds=None,
    gop=None,
    container_options=None,
    with_audio=False,
):
    """Writes RGB frames to `path`, whose extension names the container.

    A number of frames gives `moving_frames` of `size` (height, width) drawn with `seed`.
    `seconds` gives every frame its own time (a variable frame rate); `gop` is the distance of key frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(frames, int):
        frames = moving_frames(frames, *size, seed=seed)
    times = None if seconds is None else list(seconds)
    with av.open(str(path), "w", options=container_options or {}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = pix_fmt
        stream.options = {"preset": "ultrafast"} if options is None and codec == "libx264" else options or {}
        if gop is not None:
            stream.gop_size = gop
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000) if with_audio else None
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _write_tone(container, sound, num_samples=16000)
    return path


def _write_tone(container, stream, num_samples):
    tone = np.sin(np.arange(num_samples) / 20).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.fixture(scope="session", autouse=True)
def auto_means_torch():
    """Graphs take seconds to make: what tests an engine asks for it, `runtime.engine=auto` takes torch."""
    from video_papr.core import engines

    with suppress(ImportError):  # comes with openvino; its handler closes the stream that a test had captured
        from absl import logging

        logging.get_absl_handler().python_handler.stream = sys.__stderr__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "has_openvino", lambda: False)
        yield


@pytest.fixture(scope="session")
def write_video():
    """A function (path, frames, fps=25, *, size=(48, 64), codec="libx264", ...), see `write_video_file`."""
    return write_video_file


@pytest.fixture(scope="session")
def write_audio():
    """A function (path) that writes a file with sound and without pictures."""

    def write(path):
        with av.open(str(path), "w") as container:
            _write_tone(container, container.add_stream("aac", rate=16000), num_samples=16000)
        return path

    return write


@pytest.fixture(scope="session")
def video_root(tmp_path_factory):
    """A directory of two classes, `left` (3 videos) and `right` (2 videos), with lengths from 5 to 40 frames."""
    root = tmp_path_factory.mktemp("videos")
    lengths = {
        "left/a.mp4": 40,
        "left/b.mp4": 12,
        "left/deeper/c.mp4": 5,
        "right/d.mp4": 25,
        "right/e.mkv": 30,
    }
    for seed, (name, length) in enumerate(lengths.items()):
        write_video_file(root / name, length, seed=seed)
    return root


@pytest.fixture(scope="session")
def clips_dir():
    """The folder of real clips beside the repository; skips the test where it is absent."""
    path = ROOT.parent / "shared" / "clips"
    if not path.is_dir():
        pytest.skip("the real clips are not at ../shared/clips")
    return path


@pytest.fixture
def run_in_process(monkeypatch, capsys):
    """A function (script, entry point, words) -> exit status, stdout, stderr that runs a command in this process."""

    def call(script, entry, *words):
        monkeypatch.setattr(sys, "argv", [script, *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        status = 0
        try:
            entry()
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
