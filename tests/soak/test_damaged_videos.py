"""Real clips, damaged in thousands of ways, through the loader that evaluations use: none may end the run."""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.data.annotations.files import videos_below
from video_papr.data.datasets import VideoDataset
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import dense_clips

SAMPLER = partial(dense_clips, num_frames=4, frame_stride=4, num_clips=1)
LIES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00FFFFFF)
BOXES = (
    *(b"moov", b"mdat", b"trak", b"mdhd", b"mvhd", b"tkhd", b"stts", b"stsc", b"stsz", b"stco", b"avcC"),
    *(b"strh", b"idx1"),  # of AVI
)


def flip_bits(data, chance):
    for _ in range(chance.choice([1, 1, 10, 100])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def truncate(data, chance):
    del data[chance.randrange(len(data)) :]


def swap_boxes(data, chance):
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


def lie_in_header(data, chance):
    """A field of a header holds an extreme number."""
    places = [place for name in BOXES if (place := data.find(name)) >= 4] or [chance.randrange(256)]
    place = chance.choice(places) + 4 * chance.randrange(-1, 8)
    place = min(max(place, 0), len(data) - 4)
    data[place : place + 4] = chance.choice(LIES).to_bytes(4, chance.choice(["big", "little"]))


ATTACKS = (flip_bits, truncate, swap_boxes, lie_in_header)


class Damaged(VideoDataset):
    """Each item is a clip that is damaged anew when it is read; item i is always the same."""

    clips: list[Path]

    def read(self, index, max_bytes=None):
        chance = random.Random(index)
        data = bytearray(chance.choice(self.clips).read_bytes())
        ATTACKS[index % len(ATTACKS)](data, chance)
        path = self.videos.records[index].path
        path.write_bytes(data)
        try:
            return super().read(index, max_bytes)
        finally:
            path.unlink()


def test_damaged_videos(tmp_path, clips_dir, amount, record):
    count, timeout_s = amount("VIDEOS", 2000), 60
    clips = sorted(videos_below(clips_dir), key=lambda path: path.stat().st_size)[:20]
    records = tuple(
        VideoRecord(tmp_path / f"{i}{clips[0].suffix}", 0, f"{ATTACKS[i % len(ATTACKS)].__name__} {i}")
        for i in range(count)
    )
    dataset = Damaged(VideoList(records, None), SAMPLER)
    dataset.clips = clips
    begin = time.monotonic()
    batches = iter_samples(dataset, workers=2, timeout_s=timeout_s)
    samples = [sample for batch in batches for sample in batch]
    outcomes: dict[str, Counter[str]] = {attack.__name__: Counter() for attack in ATTACKS}
    for sample in samples:
        outcomes[sample.name.split()[0]][outcome(sample)] += 1
        assert "\n" not in (sample.error or "")
    assert [sample.index for sample in samples] == list(range(count))
    record(
        "damaged videos",
        videos=count,
        clips=len(clips),
        answers=len(samples),
        outcomes=dict(sum(outcomes.values(), Counter())),
        by_attack=outcomes,
        decode_timeout_s=timeout_s,
        seconds=round(time.monotonic() - begin),
    )
    for sample in samples:
        if outcome(sample) not in ("decoded", "refused"):
            print(f"  {sample.error}")


def outcome(sample):
    """What became of a video: hangs, crashes and bloats cost a decoding process twice."""
    if sample.error is None:
        return "decoded"
    if "tried twice" not in sample.error:
        return "refused"
    if "no answer within" in sample.error:
        return "hang"
    return "out of memory" if "out of memory" in sample.error else "crash"


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_do_something(attack):
    data = bytes(range(256)) * 8
    damaged = [bytearray(data) for _ in range(20)]
    for seed, one in enumerate(damaged):
        attack(one, random.Random(seed))
    assert sum(bytes(one) != data for one in damaged) >= 15
