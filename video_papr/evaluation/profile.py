"""Where the time of an evaluation goes: the share of each stage in the time on the clock, and what holds the run up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from .cost import Runs
from .runner import Evaluation

Item = TypeVar("Item")

BUSY = 0.9  # a run is as fast as its hardware where networks or decoders work for so much of the time
ADVICE = {
    "waiting": "decoding: the networks wait for videos. Give it more processes (runtime.workers), or keep its outcome "
    "(dataset.clip_cache=auto)",
    "preprocess": "resizing and cropping; dataset.clip_cache=auto keeps their outcome",
    "score": "the scorer; pruner=x3d_xs and pruner=motion cost less",
    "backbone": "the backbone; a smaller pruner.keep_ratio makes it faster",
    "dense": "the dense model, which runs for comparison only; baseline=false leaves it out",
    "rest": "neither networks nor decoding: starting up, warming up, or writing answers; more videos in a run make it "
    "matter less",
}
NAMES = {
    "waiting": "waiting for decoded videos",
    "preprocess": "resize, crop",
    "score": "score and select",
    "backbone": "backbone",
    "dense": "dense model, for comparison",
    "rest": "rest (warm-up, answers, files)",
}


class Waiting:
    """Measures how long whoever reads from an iterable waits for it; `seconds` grows on the way."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items."""
        rest = iter(items)
        while True:
            start = perf_counter()
            try:
                item = next(rest)
            except StopIteration:
                return
            finally:
                self.seconds += perf_counter() - start
            yield item


@dataclass(frozen=True)
class Profile:
    """Seconds of one session of an evaluation.

    Attributes:
        total: on the clock.
        stages: one after the other, under the keys of `NAMES`; they add up to `total`.
        decoding: that decoders worked, in all processes together, beside the stages.
        workers: processes that decode; 0 where the main process does, which is then "waiting".
    """

    total: float
    stages: dict[str, float]
    decoding: float
    workers: int

    @property
    def networks_busy(self) -> float:
        """The share of the time in which the device works."""
        return sum(self.stages[name] for name in ("preprocess", "score", "backbone", "dense")) / self.total

    @property
    def decoders_busy(self) -> float:
        """The share of the time in which the decoding processes work."""
        return min(1.0, self.decoding / (max(1, self.workers) * self.total))

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time."""
        return max(self.stages, key=self.stages.__getitem__)

    def record(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "seconds": self.total,
            "stages_seconds": self.stages,
            "decoding_seconds": self.decoding,
            "workers": self.workers,
            "networks_busy": self.networks_busy,
            "decoders_busy": self.decoders_busy,
            "bottleneck": self.bottleneck,
        }


def profile(evaluation: Evaluation, *, total: float, waiting: float, workers: int) -> Profile:
    """The profile of the videos of `evaluation`, which took `total` seconds.

    Args:
        waiting: seconds that this process waited for videos. A GPU works on meanwhile, so that of these only those
            count that its work leaves.
    """

    def seconds(runs: Runs) -> float:
        return sum(ms for ms, _ in runs) / 1000

    times, dense = evaluation.pruned, evaluation.dense
    stages = {
        "waiting": waiting,
        "preprocess": seconds(times.preprocess),
        "score": seconds(times.score),
        "backbone": seconds(times.backbone),
        "dense": 0.0 if dense is None else seconds(dense.score) + seconds(dense.backbone),
    }
    stages["waiting"] = max(0.0, min(waiting, total + waiting - sum(stages.values())))
    stages["rest"] = max(0.0, total - sum(stages.values()))
    return Profile(total, stages, seconds(times.decode), workers)


def print_profile(found: Profile, console: Console) -> None:
    """Prints the share of each stage, how busy device and decoders are, and what to turn."""
    table = Table(title=f"where {found.total:.1f} s went", title_justify="left")
    table.add_column("stage")
    table.add_column("s", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in found.stages.items():
        table.add_row(NAMES[name], f"{seconds:.1f}", f"{100 * seconds / found.total:.1f} %")
    console.print(table)
    by = f"{found.workers} processes" if found.workers else "the main process"
    console.print(
        f"Networks are busy {100 * found.networks_busy:.0f} % of the time, decoding ({by}) "
        f"{100 * found.decoders_busy:.0f} %.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Bottleneck: {ADVICE[found.bottleneck]}.", highlight=False, soft_wrap=True)
    if max(found.networks_busy, found.decoders_busy) < BUSY:
        console.print(
            f"Neither is busy {100 * BUSY:.0f} % of the time, so the machine could do more.",
            highlight=False,
            soft_wrap=True,
        )
