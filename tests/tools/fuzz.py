"""Fuzzing: files of the corpus, damaged at random, through the readers that take what strangers made.

    python tests/tools/fuzz.py                           # a minute over all kinds, from seed 0
    python tests/tools/fuzz.py --seconds 600 --seed 1 videos weights

A reader must return a value or raise an error of ours that is one line, in bounded time and memory. What does neither
is a failure: it is written to `tests/data/corpus/KIND/`, which `tests/data/test_corpus.py` reads in every run of the
tests. Each try runs in a child process. Exit status 1 when there was a failure.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import video_papr as vp
from video_papr.core.errors import VideoPaprError
from video_papr.data.annotations import read_class_names, read_csv, read_ssv2
from video_papr.data.decoding import decode_clips
from video_papr.data.index import read_index
from video_papr.data.readers.packets import read_stream
from video_papr.data.sampling import uniform_segments

CORPUS = Path(__file__).resolve().parents[1] / "data" / "corpus"
SECONDS, MEGABYTES = 20, 2048  # of processor time and of memory beyond what is taken already
LINES = ("lists", "names", "index", "ssv2")


def _video(path: Path) -> object:
    stream = read_stream(path)
    clips = decode_clips(path, partial(uniform_segments, num_frames=4, num_clips=1), max_bytes=256 * 2**20)
    return clips.num_video_frames, list(clips.frames.shape[2:4]), stream.times.seconds is not None


def _weights(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vp.build_backbone("videomae_tiny", weights=path).num_classes


def _list(path: Path, read: Callable[..., Any] = read_csv, **options: object) -> object:
    """With the videos a.mp4 and sub/b.mp4, which need no content."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "videos")  # lists lead out of it, and what lies there is none of ours
        for name in ("a.mp4", "sub/b.mp4"):
            (root / name).parent.mkdir(exist_ok=True, parents=True)
            (root / name).touch()
        videos = read(annotations=path, root=root, **options)
        return [[record.name, record.label] for record in videos.records]


READERS: dict[str, Callable[[Path], object]] = {
    "videos": _video,
    "weights": _weights,
    "lists": partial(_list, num_classes=400),
    "ssv2": partial(_list, read=read_ssv2, class_names=["Holding something", "Closing something"]),
    "names": read_class_names,
    "index": lambda path: [[entry.path, entry.status] for entry in read_index(path).values()],
}


def outcome(path: Path) -> tuple[str, object]:
    """What the reader of `path`, which lies in a folder of its kind, makes of it: ("value", it) or ("error", a line).

    Raises:
        AssertionError: an error of ours that is not one line.
        whatever the reader raises that is no error of ours.
    """
    try:
        return "value", READERS[path.parent.name](path)
    except VideoPaprError as error:
        assert str(error).isprintable() and len(str(error)) < 1500, repr(str(error))[:2000]
        return "error", str(error)


def damaged(data: bytes, chance: random.Random, *, text: bool) -> bytes:
    """A few random changes: bytes, pieces and numbers that are cut, copied, moved, replaced or grown."""
    new = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        place = chance.randrange(len(new) + 1)
        length = chance.choice([1, 4, chance.randrange(1, max(len(new), 2))])
        piece = new[place : place + length]
        match chance.randrange(7):
            case 0:
                del new[place : place + length]
            case 1:
                new[place:place] = piece
            case 2:
                at = chance.randrange(len(new) + 1)
                new[at : at + len(piece)] = piece
            case 3 if text:
                odd = [
                    "",
                    "\x00",
                    "\n",
                    '"',
                    ",",
                    ";",
                    "\t",
                    " ",
                    "NaN",
                    "-1",
                    "1e999",
                    "[" * 3000,
                    "\u202e",
                    "{}",
                ]
                new[place : place + len(piece) % 3] = chance.choice(odd).encode()
            case 3:
                number = chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
                width = 8 if number >> 32 else 4
                new[place : place + width] = number.to_bytes(width, chance.choice(["big", "little"]))
            case 4:
                new[place : place + length] = bytes(len(piece))
            case 5 if place < len(new):
                new[place] ^= 1 << chance.randrange(8)
            case 6:
                new[place : place + 1] = bytes([chance.randrange(256)])
    return bytes(new[: 4 * len(data) + 10_000])


def fails(path: Path) -> str | None:
    """Why a file is a failure, found out in a child process; None: it is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(path, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return None
    return said or (signal.Signals(-code).name if code < 0 else f"status {code}")


def _child(path: Path, pipe: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEGABYTES * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(6 * SECONDS)
    try:
        outcome(path)
    except BaseException:
        os.write(pipe, traceback.format_exc()[-3000:].encode(errors="replace"))
        os._exit(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=list(READERS), help="of " + ", ".join(READERS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, tried, found = random.Random(options.seed), Counter[str](), Counter[str]()
    seeds = {kind: sorted(path for path in (CORPUS / kind).iterdir()) for kind in options.kinds}
    for kind in options.kinds:  # imports what the readers need, once for all children
        outcome(seeds[kind][0])
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            kind = chance.choice(options.kinds)
            seed = chance.choice(seeds[kind])
            path = Path(folder) / kind / seed.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(damaged(seed.read_bytes(), chance, text=kind in LINES))
            tried[kind] += 1
            why = fails(path)
            if why is None:
                continue
            last = why.strip().splitlines()[-1]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
            if (key := f"{kind}: {last[:80]}") not in found:  # one example of each
                shutil.copy(path, CORPUS / kind / f"found_{digest}{seed.suffix}")
                print(f"{key}\n{why}", flush=True)
            found[key] += 1
    print(f"tried {dict(tried)}, failures {dict(found)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
