"""Synthetic splits on disk: reproducible, disjoint, whole or absent."""

import hashlib
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from video_papr.core.errors import ConfigError
from video_papr.core.paths import default_cache_dir
from video_papr.data.annotations import read_folder
from video_papr.data.decoding import decode_clips
from video_papr.synthetic import drawing, scenes
from video_papr.synthetic import videos as synthetic
from video_papr.synthetic.videos import SyntheticSplit, generate, read_actors


def make(cache, split="test", **options):
    asked = {"num_videos": 2, "clutter": 0.0, **options}  # a video without clutter is made in no time
    workers = asked.pop("workers", 1)
    return generate(SyntheticSplit(split, **asked), cache_dir=cache, workers=workers, progress=False)


def videos(root):
    """Name -> digest of the file's bytes."""
    files = sorted(root.rglob("*.mp4"))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def folders(cache):
    return sorted(path.name for path in (cache / "synthetic").iterdir())


@pytest.fixture(scope="module")
def split_root(tmp_path_factory):
    """14 videos of the full task, made by two processes."""
    return make(tmp_path_factory.mktemp("cache"), num_videos=14, clutter=1.0, workers=2)


# ---- content ----


def test_classes_are_balanced_and_complete(split_root):
    listed = read_folder(split_root)
    assert listed.class_names == tuple(sorted(scenes.ACTIONS))
    counts = Counter(record.label for record in listed.records)
    assert len(counts) == 12
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(listed) == 14


def test_every_class_has_its_number_also_in_a_split_smaller_than_the_classes(tmp_path):
    listed = read_folder(make(tmp_path, num_videos=2))
    assert listed.class_names == tuple(sorted(scenes.ACTIONS))
    assert [listed.class_names[record.label] for record in listed.records] == ["move_left", "move_right"]


def test_videos_decode_to_what_was_drawn_with_a_track_for_every_frame(split_root):
    actors = read_actors(split_root)
    assert set(actors) == set(videos(split_root))
    for index in (0, 7, 11):
        rng = np.random.default_rng([synthetic.SPLIT_STREAMS["test"], 0, index])
        scene = scenes.sample_scene(rng, scenes.ACTIONS[index], clutter=1.0)
        frames, circles = drawing.render(scene, rng)
        name = f"{scenes.ACTIONS[index]}/{index:05d}.mp4"
        path = scene.shapes[-1].path
        assert np.array_equal(actors[name][:, :3], circles)
        assert np.allclose(actors[name][:, 3:], np.stack([path.angle, path.visible], 1))
        decoded = decode_clips(split_root / name, lambda count: np.arange(count)[None])
        assert decoded.num_video_frames == len(frames)
        assert decoded.fps == pytest.approx(scene.fps, rel=0.02)
        error = np.abs(decoded.frames[0].astype(int) - frames)  # H.264 loses some
        assert error.mean() < 8


def test_the_same_frames_give_the_same_bytes(tmp_path):
    """x264's defaults do not: about every second scene differed from run to run, by up to 65 grey levels."""
    for index in (2, 7, 9):
        rng = np.random.default_rng(index)
        frames, _ = drawing.render(scenes.sample_scene(rng, scenes.ACTIONS[index]), rng)
        for copy in range(4):
            synthetic.write_h264(tmp_path / f"{index}-{copy}.mp4", frames, fps=15)
        assert len({path.read_bytes() for path in tmp_path.glob(f"{index}-*.mp4")}) == 1


# ---- what decides the content ----


def test_number_of_workers_changes_no_byte(split_root, tmp_path):
    alone = make(tmp_path, num_videos=14, clutter=1.0, workers=1)
    assert videos(alone) == videos(split_root)
    for name, track in read_actors(split_root).items():
        assert np.array_equal(read_actors(alone)[name], track)


def test_a_scene_depends_on_split_seed_and_index_alone(tmp_path):
    short, longer = make(tmp_path, num_videos=2), make(tmp_path, num_videos=3)
    assert videos(short).items() < videos(longer).items()
    everything = [*videos(longer).values()]
    for split, seed in (("train", 0), ("val", 0), ("test", 1), ("train", 1), ("val", 1)):
        everything += videos(make(tmp_path, split, seed=seed, num_videos=3)).values()
    everything += videos(make(tmp_path, clutter=0.5)).values()
    everything += videos(make(tmp_path, clutter=0.5, camera="calm")).values()
    assert len(set(everything)) == len(everything) == 22


def test_key_names_everything_that_decides_the_content(tmp_path, monkeypatch):
    splits = [
        SyntheticSplit(),
        SyntheticSplit("val"),
        SyntheticSplit(seed=1),
        SyntheticSplit(num_videos=601),
        SyntheticSplit(clutter=0.5),
        SyntheticSplit(clutter=0.25),
        SyntheticSplit(camera="calm"),
        SyntheticSplit(camera="shaky"),
    ]
    assert len({split.key for split in splits}) == 8
    before = SyntheticSplit().key
    for module, docstring, number in (
        (scenes, "Draws a random scene", "0.145"),
        (drawing, "Draws a scene", "0.72"),
    ):
        changed, source = tmp_path / "changed.py", Path(module.__file__).read_text(encoding="utf-8")
        monkeypatch.setattr(module, "__file__", str(changed))
        for same in (
            source + "\n# nothing new\n",
            source.replace(f'"""{docstring}', '"""Draws'),
            source.replace("import numpy as np\n", "\nimport numpy as np  # arrays\n"),
        ):
            assert same != source
            changed.write_text(same, encoding="utf-8")
            assert SyntheticSplit().key == before
        for other in (source.replace(number, "0.73"), source + "\nDEFAULT = 'drawn otherwise'\n"):
            assert other != source
            changed.write_text(other, encoding="utf-8")
            assert SyntheticSplit().key != before
        monkeypatch.undo()
    assert SyntheticSplit().key == before
    monkeypatch.setitem(synthetic.ENCODER, "crf", "30")
    assert SyntheticSplit().key != before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"split": "dev"}, r"^dataset\.split='dev' is unknown; use one of train, val, test$"),
        ({"seed": -1}, r"^dataset\.seed=-1 must be an integer >= 0$"),
        ({"seed": 1.5}, r"^dataset\.seed=1\.5 must be"),
        ({"num_videos": 0}, r"^dataset\.num_videos=0 must be an integer >= 1$"),
        ({"clutter": 1.1}, r"^dataset\.clutter=1\.1 must lie between 0 and 1$"),
        ({"clutter": float("nan")}, r"^dataset\.clutter=nan must"),
        ({"camera": "still"}, r"^dataset\.camera='still' is unknown; use one of mixed, calm, shaky$"),
    ],
)
def test_split_out_of_range(options, line):
    with pytest.raises(ConfigError, match=line):
        SyntheticSplit(**options)


# ---- the cache ----


def test_a_split_is_made_once(tmp_path, monkeypatch):
    root = make(tmp_path)
    monkeypatch.setattr(synthetic, "_write_split", None)  # making it again would fail
    assert make(tmp_path) == root
    assert root.parent == tmp_path / "synthetic"


def test_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEO_PAPR_CACHE", str(tmp_path / "named"))
    assert default_cache_dir() == tmp_path / "named"
    monkeypatch.delenv("VIDEO_PAPR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "video_papr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "video_papr"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_generation_leaves_no_split(tmp_path, monkeypatch, error):
    render, calls = drawing.render, 0

    def stopped(*arguments):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise error
        return render(*arguments)

    monkeypatch.setattr(drawing, "render", stopped)
    with pytest.raises(error):
        make(tmp_path, num_videos=5)
    assert calls == 4
    assert folders(tmp_path) == []
    monkeypatch.setattr(drawing, "render", render)
    assert len(videos(make(tmp_path, num_videos=5))) == 5


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "file" / "cache")
    assert str(caught.value).startswith(
        f"dataset.cache_dir={tmp_path / 'file' / 'cache'} cannot be written: "
    )
    assert "\n" not in str(caught.value)


def _generate_at_the_same_time(cache, barrier, answers):
    """In a process of its own: waits for the other with a finished split in hand, so that both publish it."""
    publish = synthetic._publish

    def together(*arguments):
        barrier.wait(timeout=60)
        publish(*arguments)

    synthetic._publish = together
    answers.put(str(make(cache)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the machine cannot fork")
def test_two_processes_may_make_the_same_split(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_generate_at_the_same_time, args=(tmp_path, barrier, answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    roots = {answers.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(roots) == 1
    assert folders(tmp_path) == [Path(roots.pop()).name]
    assert len(videos(tmp_path)) == 2
