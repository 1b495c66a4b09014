"""What reading a video costs: the readers beside the plainest use of PyAV that gives the same pixels.

    python benchmarks/decoding.py FOLDER [--videos 12] [--repeats 7]     # -> benchmarks/results/decoding/results.json

Takes so many videos from anywhere below FOLDER, drawn with a fixed seed, and reads one clip, and five overlapping
clips, of 16 frames at stride 4 from each. Processor time of this process on one thread; the ways take turns, and the
median of the repeats counts. Prints the medians over videos of each way's time divided by that of plain PyAV, which
opens the file, decodes up to the last frame and converts those that are wanted: no check, no seek, no second pass.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import av
import numpy as np
import torch

from video_papr.core.console import make_console
from video_papr.core.errors import VideoDecodeError
from video_papr.core.tables import Table
from video_papr.data.annotations.files import videos_below
from video_papr.data.decoding import decode_clips
from video_papr.data.readers.packets import read_stream
from video_papr.data.sampling import dense_clips
from video_papr.evaluation.results import command_line, describe_device, git_commit, to_json, versions

WAYS = ("packets", "pyav", "pyav, motion", "decord", "torchcodec")
OUT = Path(__file__).parent / "results" / "decoding" / "results.json"


def plain(path: Path, indices: np.ndarray) -> np.ndarray:
    """indices (C, T) -> (C, T, H, W, 3) uint8, as a script would read them."""
    wanted, places = np.unique(indices, return_inverse=True)
    found = []
    with av.open(str(path)) as container:
        video = container.streams.best("video")
        video.thread_type, video.codec_context.thread_count = "NONE", 1
        for number, frame in enumerate(container.decode(video)):
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if number == wanted[-1]:
                break
    return np.stack(found)[places.reshape(indices.shape)]


def measure(path: Path, clips: int, repeats: int) -> dict[str, Any]:
    """Medians of milliseconds by way; a way that refuses the file is left out."""
    choose = partial(dense_clips, num_frames=16, frame_stride=4, num_clips=clips)
    indices = decode_clips(path, choose, decoder="pyav").frame_indices
    ways: dict[str, Callable[[], Any]] = {
        "plain": partial(plain, path, indices),
        "packets": partial(read_stream, path),
        "pyav": partial(decode_clips, path, choose, decoder="pyav"),
        "pyav, motion": partial(decode_clips, path, choose, decoder="pyav", motion=True),
        "decord": partial(decode_clips, path, choose, decoder="decord"),
        "torchcodec": partial(decode_clips, path, choose, decoder="torchcodec"),
    }
    spent: dict[str, list[float]] = {}
    for number in range(1 + repeats):  # the first one warms up
        for name, way in list(ways.items()):
            start = process_time()
            try:
                way()
            except VideoDecodeError:
                del ways[name]
                continue
            if number:
                spent.setdefault(name, []).append(1000 * (process_time() - start))
    stream = read_stream(path)
    return {
        "video": path.name,
        "size": f"{stream.size[1]}x{stream.size[0]}",
        "codec": stream.codec,
        "frames": stream.num_frames,
        "clips": clips,
        "ms": {name: median(times) for name, times in spent.items()},
    }


def main() -> None:
    asked = argparse.ArgumentParser(description="What reading a video costs, beside plain PyAV.")
    asked.add_argument("folder", type=Path)
    asked.add_argument("--videos", type=int, default=12)
    asked.add_argument("--repeats", type=int, default=7)
    given = asked.parse_args()
    torch.set_num_threads(1)
    paths = sorted(videos_below(given.folder))
    random.Random(0).shuffle(paths)
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += [measure(path, clips, given.repeats) for clips in (1, 5)]
        except (VideoDecodeError, av.FFmpegError, UnicodeDecodeError) as error:
            print(f"left out: {path.name}: {' '.join(str(error).split())[:100]}")
        if len(rows) == 2 * given.videos:
            break
    names = [name for name in WAYS if any(name in own["ms"] for own in rows)]
    ratios = {
        str(clips): {
            name: median(
                own["ms"][name] / own["ms"]["plain"]
                for own in rows
                if own["clips"] == clips and name in own["ms"]
            )
            for name in names
        }
        for clips in (1, 5)
    }
    table = [[clips, *(f"{ratios[clips][name]:.2f}" for name in names)] for clips in ratios]
    Table(["clips", *(f"{name} / plain PyAV" for name in names)], table).print(make_console())
    made = {"command": command_line(), "git_commit": git_commit(), "versions": versions()}
    device = describe_device(torch.device("cpu"))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(to_json({"ratios": ratios, "videos": rows, "device": device, **made}))


if __name__ == "__main__":
    main()
