"""Where the time of an evaluation goes: the share of each stage in the time on the clock, and what holds the run up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import Any

from ..core.console import Terminal
from ..core.tables import Table
from ..data.datasets import VideoSample
from .answers import Evaluation
from .cost import Runs

BUSY = 0.9  # a run is as fast as its hardware where networks or decoders work for so much of the time
ADVICE = {
    "waiting": "decoding: the networks wait for videos. Give it more processes (runtime.workers), or keep its outcome "
    "(dataset.clip_cache=auto)",
    "preprocess": "resizing and cropping; dataset.clip_cache=auto keeps their outcome",
    "score": "the scorer; pruner=x3d_xs and pruner=motion cost less",
    "backbone": "the backbone; keeping fewer tokens makes it faster",
    "dense": "the dense model, which runs for comparison only; baseline=false leaves it out",
    "warmup": "warming up: the first batch runs once beforehand, and compiled networks are made then; more videos in a "
    "run make it matter less",
    "rest": "neither networks nor decoding: starting up, or writing answers; more videos in a run make it matter less",
}
NAMES = {
    "waiting": "waiting for decoded videos",
    "preprocess": "resize, crop",
    "score": "score and select",
    "backbone": "backbone",
    "dense": "dense model, for comparison",
    "warmup": "warm-up",
    "rest": "rest (answers, files)",
}


class Waiting:
    """Watches the samples on their way: how long their reader waits for them, and what they cost in this session.

    Attributes:
        seconds: of waiting.
        decoding: seconds that decoding took, of failed attempts too; what a clip cache had was not decoded.
        decoded: videos that were decoded, each in one pass for all its views.
        remembered: seconds that cutting those out of the cache took once; they are among the stages' times, not on
            this session's clock.
    """

    def __init__(self) -> None:
        self.seconds = self.decoding = self.remembered = 0.0
        self.decoded = 0

    def watch(self, batches: Iterable[Sequence[VideoSample]]) -> Iterator[Sequence[VideoSample]]:
        """The same batches."""
        rest = iter(batches)
        while True:
            start = perf_counter()
            try:
                batch = next(rest)
            except StopIteration:
                return
            finally:
                self.seconds += perf_counter() - start
            for sample in batch:
                if sample.views is not None:
                    self.remembered += sample.preprocess_ms / 1000
                else:
                    self.decoding += sample.decode_ms / 1000
                    self.decoded += sample.error is None
            yield batch


@dataclass(frozen=True)
class Profile:
    """Seconds of one session of an evaluation."""

    total: float  # on the clock
    stages: dict[str, float]  # one after the other, under the keys of `NAMES`; they add up to `total`
    decoding: float  # that decoders worked, in all processes together, beside the stages
    workers: int  # processes that decode; 0 where the main process does, which is then "waiting"
    decoded: int  # videos that were decoded, once each
    views: int  # views of a video
    cores: int  # that networks and decoders share; 0 where the networks run on a GPU
    processor: float  # seconds that this process and its decoders computed, see `processor_seconds`

    @property
    def networks_busy(self) -> float:
        """The share of the time, after the warm-up, in which the device works."""
        work = sum(self.stages[name] for name in ("preprocess", "score", "backbone", "dense"))
        return work / max(self.total - self.stages["warmup"], 1e-9)

    @property
    def decoders_busy(self) -> float:
        """The share of the time in which the decoding processes work."""
        return min(1.0, self.decoding / (max(1, self.workers) * self.total))

    @property
    def cores_busy(self) -> float:
        """The share of all cores that this run got, by the system's own count; 0 where the networks run on a GPU.

        What other programs take is missing in it, though networks and decoders wait for that too.
        """
        return min(1.0, self.processor / (self.cores * self.total)) if self.cores else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time."""
        return max(self.stages, key=self.stages.__getitem__)

    def record(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "seconds": self.total,
            "processor_seconds": self.processor,
            "stages_seconds": self.stages,
            "decoding_seconds": self.decoding,
            "workers": self.workers,
            "networks_busy": self.networks_busy,
            "decoders_busy": self.decoders_busy,
            **({"cores_busy": self.cores_busy} if self.cores else {}),
            "videos_decoded": self.decoded,
            "views_per_video": self.views,
            "bottleneck": self.bottleneck,
        }


def profile(
    evaluation: Evaluation,
    *,
    total: float,
    waiting: Waiting,
    workers: int,
    views: int,
    cores: int,
    processor: float,
) -> Profile:
    """The profile of the videos of `evaluation`, which took `total` seconds.

    Args:
        waiting: how this process waited for videos. A GPU works on meanwhile, so that of these seconds only those count
            that its work leaves.
        workers, views, cores, processor: see `Profile`.
    """

    def seconds(*runs: Runs) -> float:
        return sum(ms for ms, _ in chain(*runs)) / 1000

    times, dense, warmup = evaluation.pruned, evaluation.dense, evaluation.warmup
    stages = {
        "waiting": waiting.seconds,
        "preprocess": max(0.0, seconds(times.preprocess) - waiting.remembered),
        "score": seconds(times.score),
        "backbone": seconds(times.backbone),
        "dense": 0.0 if dense is None else seconds(dense.score, dense.backbone),
        "warmup": seconds(warmup.score, warmup.backbone),
    }
    left = total + waiting.seconds - sum(stages.values())
    stages["waiting"] = max(0.0, min(waiting.seconds, left))
    stages["rest"] = max(0.0, total - sum(stages.values()))
    return Profile(total, stages, waiting.decoding, workers, waiting.decoded, views, cores, processor)


def processor_seconds() -> float:
    """Of this process, its threads, and the processes that it started and that ended."""
    return sum(os.times()[:4])


def print_profile(found: Profile, console: Terminal) -> None:
    """Prints the share of each stage, how busy device and decoders are, and what to turn."""
    rows = [
        [NAMES[name], f"{seconds:.1f}", f"{100 * seconds / found.total:.1f} %"]
        for name, seconds in found.stages.items()
    ]
    Table(["stage", "s", "share"], rows, title=f"where {found.total:.1f} s went").print(console)
    by = f"{found.workers} processes" if found.workers else "the main process"
    together = (
        f" They computed for {found.processor:.1f} s, {100 * found.cores_busy:.0f} % of {found.cores} cores."
    )
    console.print(
        f"Networks are busy {100 * found.networks_busy:.0f} % of the time after the warm-up, decoding ({by}) "
        f"{100 * found.decoders_busy:.0f} %.{together if found.cores else ''}"
    )
    if found.decoded:
        each = 1000 * found.decoding / found.decoded
        views = "its view" if found.views == 1 else f"its {found.views} views together"
        console.print(f"{found.decoded} videos were decoded, each once for {views}: {each:.0f} ms a video.")
    console.print(f"Bottleneck: {ADVICE[found.bottleneck]}.")
    if (found.cores_busy if found.cores else max(found.networks_busy, found.decoders_busy)) < BUSY:
        console.print(
            f"Nothing is busy {100 * BUSY:.0f} % of the time, so the machine could do more, or did other work."
        )
