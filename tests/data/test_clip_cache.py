"""The cache of decoded views: what is read is what was kept, never too much, and never in the way."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.assembly.views import build_clip_cache
from video_papr.config import DatasetConfig, ViewsConfig
from video_papr.core.errors import ConfigError
from video_papr.data import clip_cache
from video_papr.data.clip_cache import CachedViews, ClipCache, code_version
from video_papr.evaluation.cost import Engine
from video_papr.pipeline import Pipeline

GENEROUS = 10**9


def entry(seed: int = 0, views: int = 2, side: int = 8) -> CachedViews:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (views, 3, side, side, 3), dtype=np.uint8)
    return CachedViews(pixels, rng.integers(0, 9, (views, 3)), 9, 29.97, (48, 64), 12.5, 0.25)


def same(one: CachedViews | None, two: CachedViews) -> bool:
    return one is not None and all(
        np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(CachedViews)
    )


def opened(folder: Path, limit: int = GENEROUS, **recipe: Any) -> ClipCache:
    return ClipCache(folder, limit_bytes=limit, recipe=recipe)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), views=st.integers(1, 4), side=st.integers(1, 9))
def test_what_is_read_is_what_was_kept(tmp_path_factory: Any, seed: int, views: int, side: int) -> None:
    cache = opened(tmp_path_factory.mktemp("cache"))
    kept = entry(seed, views, side)
    assert cache.load("ab" * 32) is None
    assert cache.store("ab" * 32, kept)
    assert same(cache.load("ab" * 32), kept)


def test_key_follows_file_recipe_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    cache = opened(tmp_path / "cache", size=[64, 64])
    key = cache.key(video)
    assert key == cache.key(video) == opened(tmp_path / "cache", size=[64, 64]).key(video)
    assert opened(tmp_path / "cache", size=[64, 65]).key(video) != key
    before = video.stat()
    video.write_bytes(b"two")  # as long as before, and the clock is put back
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = cache.key(video)
    assert changed != key
    (tmp_path / "b.mp4").write_bytes(b"two")
    assert cache.key(tmp_path / "b.mp4") not in (key, changed, None)
    assert cache.key(tmp_path / "absent.mp4") is None
    monkeypatch.setattr(clip_cache, "code_version", lambda: "newer")
    assert opened(tmp_path / "cache", size=[64, 64]).key(video) != changed


def test_code_version_covers_every_module_that_makes_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    now, read, package = code_version(), Path.read_bytes, Path(clip_cache.__file__).parent
    modules = {package / "decoding.py", *package.glob("*.py"), *(package / "readers").glob("*.py")}
    assert len(modules) > 12
    for module in modules:
        code_version.cache_clear()
        monkeypatch.setattr(
            Path, "read_bytes", lambda path, m=module: read(path) + (b"# changed" if path == m else b"")
        )
        assert code_version() != now, module
    monkeypatch.undo()
    code_version.cache_clear()
    assert code_version() == now


def test_key_follows_every_setting_that_shapes_the_views(tmp_path: Path) -> None:
    """The key takes in the very objects that choose, decode and cut, so no setting of theirs can be left out."""
    (tmp_path / "a.mp4").write_bytes(b"one")
    usual: dict[str, Any] = {
        "dataset": DatasetConfig(name="folder", root=str(tmp_path), clip_cache=str(tmp_path / "cache")),
        "views": ViewsConfig(clips=1, crops=1),
        "size": 224,
    }

    def key(**other: Any) -> str | None:
        now = usual | other
        size = now["size"]
        backbone = SimpleNamespace(
            num_frames=16, frame_size=(size, size), short_side=None, interpolation="bilinear"
        )
        cache = build_clip_cache(
            now["dataset"], now["views"], Pipeline(backbone), Engine(torch.device("cpu"))
        )  # type: ignore[arg-type]
        assert cache is not None
        return cache.key(tmp_path / "a.mp4")

    changes: list[dict[str, Any]] = [
        {"max_pixels": 1000},
        {"max_frames": 7},
        {"decoder": "pyav"},
        {"decode_size": "short_side"},
        {"sampling": "uniform"},
        {"frame_stride": 2},
        {"short_side": 256},
    ]
    keys = [
        key(),
        key(size=112),
        key(views=ViewsConfig(clips=2, crops=1)),
        key(views=ViewsConfig(clips=1, crops=3)),
    ]
    keys += [key(dataset=replace(usual["dataset"], **change)) for change in changes]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_entries_are_removed_and_missed(tmp_path: Path, damage: str) -> None:
    cache = opened(tmp_path)
    cache.store("cd" * 32, entry())
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    at = whole.index(entry().views.tobytes()[:16]) + 5
    if damage == "other":
        np.savez(path, views=np.zeros(3), frame_indices=np.zeros((1, 1)), known=np.array(json.dumps({})))
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b""}.get(
                damage, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            )
        )
    assert cache.load("cd" * 32) is None
    assert not path.exists()
    assert cache.store("cd" * 32, entry()) and same(cache.load("cd" * 32), entry())


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), limit=st.integers(1_000, 60_000))
def test_never_larger_than_asked_for(tmp_path_factory: Any, sizes: list[int], limit: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    for number, side in enumerate(sizes):
        cache = opened(folder, limit)
        cache.store(f"{number:064x}", entry(number, side=side))
        assert bytes_in(folder) <= limit


def aged(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*.npz"):
        used = path.stat().st_mtime - seconds
        os.utime(path, (used, used))


def test_oldest_goes_first_but_nothing_of_this_run(tmp_path: Path) -> None:
    one = entry(side=32)
    limit = 3 * (one.views.nbytes + 6000)
    for number in range(3):
        assert opened(tmp_path, limit).store(f"{number:064x}", one)
        aged(tmp_path, 100)
    cache = opened(tmp_path, limit)
    assert cache.load(f"{0:064x}") is not None  # used now: no longer the oldest
    assert cache.store(f"{3:064x}", one)
    assert [cache.load(f"{number:064x}") is not None for number in range(4)] == [True, False, True, True]
    assert not cache.store(f"{4:064x}", one)  # all three were used in this run
    assert cache.fault is None


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    other = tmp_path / "ab" / "mine.npz"
    other.write_bytes(b"x" * 50_000)
    os.utime(other, (1, 1))
    one = entry(side=32)
    opened(tmp_path, one.views.nbytes + 6000).store("ab" * 32, one)
    aged(tmp_path / "ab", 100)
    assert opened(tmp_path, one.views.nbytes + 6000).store("cd" * 32, one)
    assert other.exists() and not (tmp_path / "ab" / f"{'ab' * 32}.npz").exists()


def test_partial_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    dead, living = tmp_path / "ab" / ".partial-views-dead", tmp_path / "ab" / ".partial-views-living"
    dead.write_bytes(b"x" * 100)
    living.write_bytes(b"x" * 100)
    os.utime(dead, (1, 1))
    opened(tmp_path).store("ab" * 32, entry())
    assert not dead.exists() and living.exists()


def test_many_writers_and_readers_of_one_key(tmp_path: Path) -> None:
    """Every read gives nothing or all of one of the entries that were written."""
    written = [entry(seed, side=24) for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        cache = opened(tmp_path)
        for _ in range(20):
            cache.store("ef" * 32, written[seed])
            found = cache.load("ef" * 32)
            if not any(same(found, one) for one in written):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".npz"]


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"^dataset.clip_cache=.*file cannot be made"):
        opened(tmp_path / "file")
    cache = opened(tmp_path / "cache")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert not cache.store("ab" * 32, entry())
    assert cache.fault is not None and cache.fault.endswith("No space left on device")
    assert bytes_in(tmp_path / "cache") == 0


def test_same_results_with_and_without_and_nothing_is_decoded_twice(
    tmp_path: Path, video_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole way of a video: dataset, cutting, keeping, and the dataset again without a decoder."""
    from functools import partial

    import torch

    from video_papr.backbones.builders import build_backbone
    from video_papr.data import datasets
    from video_papr.data.annotations import read_folder
    from video_papr.data.sampling import choose_sampler
    from video_papr.data.transforms import resize_and_crop
    from video_papr.evaluation.answers import Evaluation
    from video_papr.evaluation.cost import Engine
    from video_papr.evaluation.evaluator import Evaluator
    from video_papr.evaluation.observers import AnsweredVideo, KeepViews, Observer
    from video_papr.pipeline import Pipeline

    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "bad.mp4").write_bytes(b"no video")
    for name in ("a.mp4", "b.mp4"):
        os.link(video_root / "left" / name, tmp_path / "left" / name)
    videos = read_folder(tmp_path)
    sampler = choose_sampler("uniform", num_frames=4, num_clips=2, frame_stride=1)
    cut = partial(resize_and_crop, size=16, num_crops=3)
    flow = Pipeline(build_backbone("videomae_tiny", num_classes=2, num_frames=4, input_size=16))

    def run(cache: ClipCache | None) -> tuple[torch.Tensor, list[datasets.VideoSample], Evaluation]:
        dataset = datasets.VideoDataset(videos, sampler, cache=cache)
        samples = [dataset[number] for number in range(len(videos))]
        seen: list[torch.Tensor] = []

        class Views(Observer):
            def on_video(self, video: AnsweredVideo, part: Evaluation) -> None:
                seen.append(video.views.clone())

        observers = [Views()] if cache is None else [Views(), KeepViews(cache)]
        cpu = Engine(torch.device("cpu"))
        done = Evaluator(flow, cut, 6, 12, cpu, observers=observers).run(samples)
        return torch.cat(seen), samples, done

    plain, samples, _ = run(None)
    assert [sample.error is None for sample in samples] == [True, True, False]
    filling, _, filled = run(opened(tmp_path / "cache"))

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        assert path.name == "bad.mp4", "decoded twice"
        raise datasets.VideoDecodeError(f"cannot decode {path}")

    monkeypatch.setattr(datasets, "decode_clips", refuse)
    again, cached, done = run(opened(tmp_path / "cache"))
    assert torch.equal(plain, filling) and torch.equal(plain, again)
    for one, two in zip(samples[:2], cached[:2], strict=True):
        assert np.array_equal(one.frame_indices, two.frame_indices)
        assert (one.size, one.fps, one.num_video_frames) == (two.size, two.fps, two.num_video_frames)
    assert done.pruned.decode == filled.pruned.decode
    spent = [sum(ms for ms, _ in run.pruned.preprocess) for run in (filled, done)]
    assert spent[0] == pytest.approx(spent[1])
