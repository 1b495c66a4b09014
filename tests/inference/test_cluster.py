"""Predictions on a local Ray of two workers: every video once, also when a worker is killed, and after a new start."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from video_papr.core.errors import ConfigError, DataError
from video_papr.inference import cluster

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
from pyarrow import parquet  # noqa: E402

from video_papr.config import COMMANDS, check  # noqa: E402
from video_papr.config.hydra import compose_words  # noqa: E402

SMALL = (
    "backbone.num_frames=4",
    "backbone.input_size=16",
    "backbone.weights=null",
    "pruner=motion",
    "runtime=cpu",
)
OPTIONS = (*SMALL, "runtime.engine=torch", "runtime.cluster=ray", "progress=false", "output_dir=unused")


@pytest.fixture(scope="module", autouse=True)
def two_workers() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def videos(video_root: Path, tmp_path: Path) -> list[str]:
    """24 videos, of which three cannot be read."""
    found = []
    for number in range(24):
        path = tmp_path / "videos" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_text("no video") if number % 8 == 3 else shutil.copy(video_root / "left/b.mp4", path)
        found.append(str(path))
    return found


def config(*words: str):
    return check(COMMANDS["predict"], compose_words([*OPTIONS, *words], config="predict"))


def rows(out: Path) -> list[dict]:
    return [
        row for path in (out / "shards").glob("*.parquet") for row in parquet.read_table(path).to_pylist()
    ]


def workers() -> list[int]:
    """Process ids of Ray's actors."""
    titles = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(pid) for pid, title in titles.items() if title.startswith(b"ray::MapWorker")]


def kill_after_the_first_shard(out: Path, killed: list[int]) -> None:
    """Ends one of the actors for good as soon as there is a shard, and notes its process."""
    for _ in range(60_000):
        if any((out / "shards").glob("*.parquet")):
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            return
        time.sleep(0.005)


def test_every_video_once_though_a_worker_is_killed(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PER_SHARD", 1)
    killed: list[int] = []
    out = tmp_path / "out"
    killer = threading.Thread(target=kill_after_the_first_shard, args=(out, killed), daemon=True)
    killer.start()
    assert cluster.run_on_ray(config(), videos, out) == (24, 3)
    killer.join()
    assert len(killed) == 1
    found = rows(out)
    assert sorted(row["video"] for row in found) == sorted(videos)
    failed = [row["video"] for row in found if row["error"]]
    assert sorted(failed) == sorted(videos[3::8])
    assert all(len(row["labels"]) == len(row["probabilities"]) == 5 for row in found if not row["error"])


def test_a_new_start_leaves_out_what_is_stored(videos, tmp_path, monkeypatch, capsys):
    out, few = tmp_path / "out", [*videos[:4], videos[0]]
    assert cluster.run_on_ray(config(), few, out) == (4, 1)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    (out / "shards" / ".half.parquet.abc.partial").write_bytes(b"PAR1")
    assert cluster.run_on_ray(config(), videos[:6], out) == (6, 1)
    assert "4 of 6 videos are in" in capsys.readouterr().err
    after = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    assert len(rows(out)) == 6


def test_features(videos, tmp_path):
    out = tmp_path / "out"
    assert cluster.run_on_ray(config("features=true", "views=1x3"), videos[:4], out) == (4, 1)
    vectors = [row["features"] for row in rows(out) if not row["error"]]
    assert [(len(views), len(views[0])) for views in vectors] == [(3, 192)] * 3


def test_frames_without_vectors_are_counted(videos, tmp_path):
    for pruner, known in (("codec", True), ("motion", False)):
        out = tmp_path / pruner
        assert cluster.run_on_ray(config(f"pruner={pruner}"), videos[2:4], out) == (2, 1)
        counts = {bool(row["error"]): row["frames_without_vectors"] for row in rows(out)}
        assert counts[True] is None
        assert (counts[False] is not None and 0 <= counts[False] <= 4) is known


def test_a_video_that_is_stored_twice_is_told(videos, tmp_path):
    out = tmp_path / "out"
    cluster.run_on_ray(config(), videos[:1], out)
    cluster.write_shard(
        out / "shards", [{"video": video, "error": None} for video in videos[:2]], features=False
    )
    with pytest.raises(DataError, match="1 videos are in several shards, 0 of 2 in none"):
        cluster.run_on_ray(config(), videos[:2], out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("window_seconds=2",), r"^window_seconds=2\.0: not with runtime\.cluster"),
        (("runtime.cluster=null", "features=true"), r"^features=true: needs runtime\.cluster=ray"),
    ],
)
def test_what_does_not_go_together(words, said):
    with pytest.raises(ConfigError, match=said):
        config(*words)
