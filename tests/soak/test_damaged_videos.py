"""Real clips, damaged in thousands of ways, through the loader that evaluations use: none may end the run."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.data.annotations.records import videos_below
from video_papr.data.datasets import VideoDataset, VideoSample
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import dense_clips

SAMPLER = partial(dense_clips, num_frames=4, frame_stride=4, num_clips=1)
LIES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00FFFFFF)
BOXES = (
    *(b"moov", b"mdat", b"trak", b"mdhd", b"mvhd", b"tkhd", b"stts", b"stsc", b"stsz", b"stco", b"avcC"),
    *(b"strh", b"idx1"),  # of AVI
)


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 10, 100])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def swap_boxes(data: bytearray, chance: random.Random) -> None:
    """Two pieces change places: named boxes where there are two, otherwise any."""
    places = sorted(place for name in BOXES if (place := data.find(name)) >= 4)
    if len(places) >= 2:
        one, other = sorted(chance.sample(places, 2))
    else:
        one, other = sorted(chance.sample(range(4, len(data) - 64), 2))
    length = min(64, other - one, len(data) - other)
    data[one : one + length], data[other : other + length] = (
        data[other : other + length],
        data[one : one + length],
    )


def lie_in_header(data: bytearray, chance: random.Random) -> None:
    """A field of a header holds an extreme number."""
    places = [place for name in BOXES if (place := data.find(name)) >= 4] or [chance.randrange(256)]
    place = chance.choice(places) + 4 * chance.randrange(-1, 8)
    place = min(max(place, 0), len(data) - 4)
    data[place : place + 4] = chance.choice(LIES).to_bytes(4, chance.choice(["big", "little"]))


ATTACKS = (flip_bits, truncate, swap_boxes, lie_in_header)


class Damaged(VideoDataset):
    """Each item is a clip that is damaged anew when it is read; item i is always the same."""

    clips: list[Path]

    def read(self, index: int, decoder: str) -> VideoSample:
        chance = random.Random(index)
        data = bytearray(chance.choice(self.clips).read_bytes())
        ATTACKS[index % len(ATTACKS)](data, chance)
        path = self.videos.records[index].path
        path.write_bytes(data)
        try:
            return super().read(index, decoder)
        finally:
            path.unlink()


def test_damaged_videos(tmp_path: Path, clips_dir: Path, amount: Callable[[str, int], int]) -> None:
    count = amount("VIDEOS", 2000)
    clips = sorted(videos_below(clips_dir), key=lambda path: path.stat().st_size)[:20]
    records = tuple(
        VideoRecord(tmp_path / f"{i}{clips[0].suffix}", 0, f"{ATTACKS[i % len(ATTACKS)].__name__} {i}")
        for i in range(count)
    )
    dataset = Damaged(VideoList(records, None), SAMPLER)
    dataset.clips = clips
    outcomes: Counter[str] = Counter()
    odd: list[str] = []
    begin = time.monotonic()
    samples = [s for batch in iter_samples(dataset, workers=2, timeout_s=60, memory_mb=2048) for s in batch]
    for sample in samples:
        attack = sample.name.split()[0]
        if sample.error is None:
            outcomes[f"{attack}: decoded"] += 1
        elif "tried twice" in sample.error:
            outcomes[f"{attack}: took its process down"] += 1
            odd.append(sample.error)
        else:
            outcomes[f"{attack}: refused"] += 1
            assert "\n" not in sample.error
    assert [sample.index for sample in samples] == list(range(count))
    print(
        f"\n{count} damaged videos from {len(clips)} clips in {time.monotonic() - begin:.0f} s, none ended the run"
    )
    for outcome, number in sorted(outcomes.items()):
        print(f"  {outcome}: {number}")
    for error in odd[:20]:
        print(f"  {error}")


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_do_something(attack: Callable[[bytearray, random.Random], None]) -> None:
    data = bytes(range(256)) * 8
    damaged = [bytearray(data) for _ in range(20)]
    for seed, one in enumerate(damaged):
        attack(one, random.Random(seed))
    assert sum(bytes(one) != data for one in damaged) >= 15
