"""Annotated films: the video as it is, in its own size and with its sound, and the answers drawn on it.

    packets -> decoded -> turned as shown -> `overlay.Overlay` -> H.264 in MP4, which browsers and phones play

One frame is in memory at a time, so the length of the video does not matter. Videos too small to hold writing are
enlarged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.console import warn
from ..core.errors import VideoDecodeError
from ..core.escape import printable
from ..core.files import FULL
from ..data.readers.packets import VideoStream, listen_to_ffmpeg, open_container, prepare_decoder, read_stream
from ..data.recipe import Recipe
from ..pipeline import Pipeline
from .overlay import Overlay, Pixels, Scene
from .predict import middle_crop

CLOCK = Fraction(1, 90_000)  # seconds; of MPEG, fine enough for any frame rate
USUAL_FPS = 25  # where a file does not say
MIN_SIDE = 240  # pixels
MAX_SIDE = 16_384  # pixels; the encoder's
# Sound that MP4 holds as it is; other sound becomes AAC, which knows some rates only.
COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "alac")
SOUND_RATE = 48_000
SIGNATURE = "annotated by video_papr"  # in the file's comment, so that no film becomes an input
ENCODER = {"preset": "veryfast", "crf": "23"}


def write_film(
    source: Path | str,
    target: Path,
    scenes: Sequence[Scene],
    pipeline: Pipeline,
    recipe: Recipe,
    *,
    max_side: int | None = None,
    progress: bool = False,
) -> Path:
    """Writes the film of a video whose windows were answered.

    A frame that cannot be decoded ends the film with a warning: what was answered came from other frames.

    Args:
        scenes: its windows, by their start.
        pipeline, recipe: what answered, and how it cut its views from the frames.
        max_side: the longer side of the film in pixels, at most; None: as long as the video's.

    Raises:
        VideoDecodeError: the file cannot be read any more, or FFmpeg cannot make a film of it.
        OSError: the disk is full.
        In both cases there is no half a film.
    """
    import av

    with _whole_or_none(source, target):
        stream = read_stream(source, recipe.limits)
        times = (
            stream.times.borders
            if len(stream.times.borders)
            else np.arange(stream.num_frames + 1) / USUAL_FPS
        )
        bar = tqdm(total=stream.num_frames, desc="film", unit="frame", leave=False, disable=not progress)
        size = film_size(*stream.size, max_side)
        overlay = Overlay(size, scenes, middle_crop(size, pipeline, recipe))
        with (
            bar,
            listen_to_ffmpeg(),
            open_container(source) as container,
            av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as film,
        ):
            film.metadata["comment"] = SIGNATURE
            writer = _Writer(film, container, stream, size)
            try:
                for number, pixels in enumerate(writer.frames()):
                    time = float(times[min(number, len(times) - 1)])
                    overlay.draw(pixels, time)
                    writer.add(pixels, time)
                    bar.update()
            except (av.FFmpegError, VideoDecodeError) as error:
                if isinstance(error, OSError) and error.errno in FULL:  # FFmpeg may crash where it writes on
                    raise
                warn(f"the film of {printable(source)} ends where decoding does: {error}")
            writer.finish()
    return target


@contextmanager
def _whole_or_none(source: Path | str, target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # FFmpeg's errors are of many kinds, as in reading
        target.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise VideoDecodeError(f"no film of {printable(source)}: {error}") from error


def is_own_film(path: Path) -> bool:
    """Whether `write_film` made it."""
    import av

    try:
        with av.open(os.path.abspath(path)) as film:
            return film.metadata.get("comment") == SIGNATURE
    except (OSError, av.FFmpegError):
        return False


def film_size(height: int, width: int, max_side: int | None = None) -> tuple[int, int]:
    """The size of a film: the video's, a multiple of it where the shorter side is below `MIN_SIDE`, or a smaller one.

    Even, since H.264 holds colour for two by two pixels.
    """
    scale = min(max(1, -(-MIN_SIDE // min(height, width))), (max_side or MAX_SIDE) / max(height, width))
    return max(2, int(height * scale) // 2 * 2), max(2, int(width * scale) // 2 * 2)


class _Writer:
    """Encodes the frames of a film, and takes over the sound of the video that they come from."""

    def __init__(self, film: Any, container: Any, stream: VideoStream, size: tuple[int, int]) -> None:
        from av.video.reformatter import VideoReformatter

        self.scaler: Any = VideoReformatter()  # one for all frames: it keeps what it has worked out
        self.film, self.container, self.stream, self.size = film, container, stream, size
        self.source = container.streams[stream.index]
        prepare_decoder(self.source, stream.limits)
        self.video = film.add_stream("libx264", rate=USUAL_FPS, options=dict(ENCODER))
        self.video.height, self.video.width = size
        self.video.pix_fmt, self.video.codec_context.time_base = "yuv420p", CLOCK
        self.video.thread_type = "FRAME"  # the encoder works while the next frame is drawn
        self.last = -1
        self.sound = next(iter(container.streams.audio), None)
        self.copies = self.sound is not None and self.sound.codec_context.name in COPIED
        self.voice: Any = None
        if self.copies:
            self.voice = film.add_stream_from_template(self.sound)
        elif self.sound is not None:
            layout = "mono" if self.sound.channels == 1 else "stereo"
            self.voice = film.add_stream("aac", rate=SOUND_RATE, layout=layout)
        first = stream.pts[0] if len(stream.pts) else self.source.start_time or 0
        # Sound is moved as the frames are, which begin at 0.
        self.begin = Fraction(int(first)) * self.source.time_base

    def frames(self) -> Iterator[Pixels]:
        """The frames (H, W, 3) uint8 as they are shown, of one even size; sound is written on the way."""
        seen = 0
        for packet in self.container.demux([s for s in (self.source, self.sound) if s is not None]):
            if packet.stream is self.sound:
                self._add_sound(packet)
                continue
            seen += 1
            if seen - 1 in self.stream.skipped:
                continue
            for frame in packet.decode():
                turned = self.stream.orientation
                height, width = self.size[:: -1 if turned.transpose else 1]
                kind = "POINT" if height > frame.height else "BICUBIC"  # enlarged pixels stay what they are
                scaled = self.scaler.reformat(frame, width, height, "rgb24", interpolation=kind)
                yield np.ascontiguousarray(turned.apply(scaled.to_ndarray()))

    def add(self, pixels: Pixels, seconds: float) -> None:
        """Encodes a frame; a later frame has a later time."""
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self.last = max(round(seconds / CLOCK), self.last + 1)
        frame.pts, frame.time_base = self.last, CLOCK
        self.film.mux(self.video.encode(frame))

    def _add_sound(self, packet: Any) -> None:
        """Copies a packet, or encodes what it holds; None: what the encoder holds back.

        A piece that FFmpeg refuses is left out.
        """
        import av

        try:
            if not self.copies:
                for frame in [None] if packet is None else packet.decode():
                    if frame is not None and frame.pts is not None:
                        frame.pts -= round(self.begin / frame.time_base)
                    self.film.mux(self.voice.encode(frame))
            elif packet is not None and packet.dts is not None:
                shift = round(self.begin / packet.time_base)
                packet.pts, packet.dts = (None if t is None else t - shift for t in (packet.pts, packet.dts))
                packet.stream = self.voice
                self.film.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise

    def finish(self) -> None:
        """Writes what the encoders hold back."""
        self.film.mux(self.video.encode())
        if self.sound is not None:
            self._add_sound(None)
