"""Batches that do not fit: halved once, then reported with what fits. A limit stands in for a GPU's memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_papr.core.errors import ConfigError
from video_papr.evaluation.memory import FittingBatch, out_of_memory


class Memory:
    """Work that fits up to `room` views at a time; keeps the sizes that were tried."""

    def __init__(self, room: int, views: int) -> None:
        self.room, self.views, self.tried = room, views, []

    def __call__(self, size: int) -> list[int]:
        self.tried.append(size)
        chunks = [len(chunk) for chunk in torch.arange(self.views).split(size)]
        if max(chunks) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
        return chunks


@given(size=st.integers(1, 256), views=st.integers(1, 300), room=st.integers(0, 300))
def test_all_views_are_done_or_a_size_is_named(size: int, views: int, room: int) -> None:
    told: list[int] = []
    batch, work = FittingBatch(size, told.append), Memory(room, views)
    largest = min(size, views)
    if room >= largest // 2 >= 1 or room >= largest:
        assert sum(batch.run(work, views)) == views
        assert len(work.tried) <= 2
        assert told == ([] if room >= largest else [largest // 2])
        work.tried.clear()
        batch.run(work, views)
        assert work.tried == [batch.size], "what did not fit is not tried again"
    else:
        with pytest.raises(ConfigError) as error:
            batch.run(work, views)
        text = str(error.value)
        assert text.startswith(f"runtime.batch_size={size}: out of memory") and "\n" not in text
        if room >= 1:
            fits = int(text.split("runtime.batch_size=")[2].split()[0])
            assert fits == next(half for half in (largest >> turn for turn in range(1, 9)) if half <= room)
            FittingBatch(fits).run(Memory(room, views), views)
        else:
            assert "even with a single view" in text
        assert told == []


def test_memory_that_runs_out_a_second_time_ends_the_run() -> None:
    batch = FittingBatch(8)
    batch.run(Memory(4, 8), 8)
    with pytest.raises(ConfigError, match=r"runtime.batch_size=2 fits"):
        batch.run(Memory(2, 8), 8)


def test_other_errors_pass() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        FittingBatch(8).run(broken, 8)


def test_memory_of_the_cpu_counts_too() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(error.value) is not None
    assert out_of_memory(MemoryError()) == "MemoryError"
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory.\nGPU 0")) == "CUDA out of memory."
    assert out_of_memory(ValueError("no")) is None
