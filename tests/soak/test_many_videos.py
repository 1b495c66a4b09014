"""A long run with faults: every video answered once, and memory that does not grow with the number of videos."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from video_papr.backbones.builders import build_backbone
from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.data.datasets import VideoDataset, VideoSample
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import dense_clips
from video_papr.data.transforms import resize_and_crop
from video_papr.evaluation.cost import Engine
from video_papr.evaluation.evaluator import Evaluator
from video_papr.evaluation.journal import open_journal
from video_papr.evaluation.observers import Observer
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner

SAMPLER = partial(dense_clips, num_frames=4, frame_stride=1, num_clips=1)


class Simulated(VideoDataset):
    """Frames from nowhere, 0.6 MB each, and two faults in a hundred: damage, a crash, and now and then a hang."""

    def read(self, index, decoder, max_bytes=None):
        record = self.videos.records[index]
        if index % 100 == 17:
            return VideoSample(index, record.name, record.label, None, "damaged", 1.0, None, 0, 0.0)
        if index % 100 == 50:
            if index % 2000 == 50:
                while True:
                    ctypes.CDLL(None).usleep(10_000_000)
            os._exit(1)
        frames = torch.full((1, 4, 220, 240, 3), index % 256, dtype=torch.uint8)
        return VideoSample(
            index, record.name, record.label, frames, None, 1.0, np.zeros((1, 4), np.int64), 4, 25.0
        )


def memory_mb():
    """What this process holds and others do not; the decoding processes come and go."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon in /proc/self/status")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_stays_flat(tmp_path, amount, record):
    count = amount("LONG_RUN", 20_000)
    records = tuple(VideoRecord(Path(f"{i}.mp4"), i % 7, f"{i}.mp4") for i in range(count))
    dataset = Simulated(VideoList(records, None), SAMPLER)
    pipeline = Pipeline(
        build_backbone("videomae_tiny", num_classes=7, num_frames=4, input_size=16), build_pruner("motion")
    )
    journal, _ = open_journal(tmp_path, {"run": "long"}, {})
    curve: list[float] = []

    class Curve(Observer):
        def on_batch(self, part):
            if part.answers[-1].index % (count // 20) < len(part.answers):
                curve.append(memory_mb())

    begin = time.monotonic()
    found = Evaluator(
        pipeline,
        prepare=partial(resize_and_crop, size=16),
        views_per_video=1,
        batch_size=8,
        engine=Engine(torch.device("cpu")),
        observers=[journal, Curve()],
    ).run(chain.from_iterable(iter_samples(dataset, workers=2, timeout_s=5)))
    journal.close()
    reasons = Counter(
        re.sub(r"^cannot decode \S+ \((.*); tried twice\)$", r"\1", answer.error)
        for answer in found.answers
        if answer.error
    )
    failed = sum(answer.error is not None for answer in found.answers)
    assert [answer.index for answer in found.answers] == list(range(count))
    assert failed == 2 * count // 100
    grown = curve[-1] - curve[1]
    kept = (tmp_path / "progress/journal.jsonl").stat().st_size / 2**20
    record(
        "many videos",
        videos=count,
        failed=failed,
        reasons=dict(reasons),
        memory_mb_after_10_percent=round(curve[1], 1),
        memory_mb_at_the_end=round(curve[-1], 1),
        growth_mb=round(grown, 1),
        journal_mb=round(kept, 1),
        seconds=round(time.monotonic() - begin),
    )
    assert grown < 16 + 4 * kept, "memory grows by more than the answers need"
