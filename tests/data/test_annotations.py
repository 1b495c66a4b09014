"""Lists of videos: the layouts that are read, and one clear line for everything that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from video_papr.core.errors import DataError
from video_papr.data.annotations import (
    VideoList,
    kinetics400_class_names,
    read_csv,
    read_folder,
    read_kinetics,
)


def touch(root: Path, *names: str) -> Path:
    """Creates files; annotations never open a video, so any content will do."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listing(root: Path, *lines: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = root / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def pairs(videos: VideoList) -> list[tuple[str, int]]:
    return [(record.name, record.label) for record in videos.records]


def assert_one_line(error: pytest.ExceptionInfo[DataError], parts: Iterable[str]) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# folder


def test_folder(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.mp4", "run/a.AVI", "run/day 2/c.mkv", "jump/x.webm", "jump/notes.txt")
    touch(tmp_path, ".git/hidden.mp4", "run/.hidden.mp4", "README.md")
    (tmp_path / "empty class").mkdir()
    videos = read_folder(tmp_path)
    assert videos.class_names == ("empty class", "jump", "run")
    assert pairs(videos) == [("jump/x.webm", 1), ("run/a.AVI", 2), ("run/b.mp4", 2), ("run/day 2/c.mkv", 2)]
    assert all(record.path == tmp_path / record.name for record in videos.records)
    assert videos.missing == () and len(videos) == 4


def test_folder_with_class_names(tmp_path: Path) -> None:
    touch(tmp_path, "air_drumming/a.mp4", "Abseiling/b.mp4")
    videos = read_folder(tmp_path, class_names=["abseiling", "air drumming", "yoga"])
    assert sorted(pairs(videos)) == [("Abseiling/b.mp4", 0), ("air_drumming/a.mp4", 1)]
    assert videos.class_names == ("abseiling", "air drumming", "yoga")
    with pytest.raises(DataError, match="'air_drumming' is none of the 1 classes"):
        read_folder(tmp_path, class_names=["abseiling"])


def test_folder_follows_links_once(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "a.mp4")
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "run" / "linked").symlink_to(store, target_is_directory=True)
    (root / "run" / "loop").symlink_to(root / "run", target_is_directory=True)
    (root / "jump").symlink_to(store, target_is_directory=True)
    assert pairs(read_folder(root)) == [("jump/a.mp4", 0), ("run/linked/a.mp4", 1)]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_folder(tmp_path / "absent")
    assert_one_line(error, [f"dataset.root={tmp_path / 'absent'}", "does not exist"])
    with pytest.raises(DataError, match="is not a directory"):
        read_folder(touch(tmp_path, "file.mp4") / "file.mp4")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: no videos found; expected root/<class>/<video>"):
        read_folder(empty)
    (empty / "class").mkdir()
    with pytest.raises(DataError, match="no videos found"):
        read_folder(empty)
    touch(empty, "class/a.mp4", "stray.mp4")
    with pytest.raises(DataError, match=r"1 videos lie outside of class directories \(first: stray.mp4\)"):
        read_folder(empty)


# csv


@pytest.mark.parametrize(
    "lines",
    [
        ["a.mp4,0", "sub/b.mp4,2"],
        ["path,label", "a.mp4,0", "sub/b.mp4,2"],
        ["a.mp4 0", "sub/b.mp4 2"],
        ["path label", "a.mp4\t0", "", "  sub/b.mp4   2  ", ""],
        ['"a.mp4", 0', "sub/b.mp4, 2"],
        ["\ufeffa.mp4,0\r", "sub/b.mp4,2\r"],
    ],
)
def test_csv_forms(tmp_path: Path, lines: list[str]) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mp4")
    videos = read_csv(listing(tmp_path, *lines), tmp_path, num_classes=3)
    assert pairs(videos) == [("a.mp4", 0), ("sub/b.mp4", 2)]
    assert videos.class_names is None and videos.missing == ()


def test_csv_keeps_its_order_and_takes_blanks_commas_and_absolute_paths(tmp_path: Path) -> None:
    touch(tmp_path, "root/my video.mp4", "root/one, two.mp4", "elsewhere/far.mp4")
    far = tmp_path / "elsewhere" / "far.mp4"
    expected = [("my video.mp4", 1), ("one, two.mp4", 0), (str(far), 2)]
    for lines in (
        ["my video.mp4,1", "one, two.mp4,0", f"{far},2"],
        ["my video.mp4,1", '"one, two.mp4",0', f"{far},2"],
        ["my video.mp4 1", "one, two.mp4 0", f"{far} 2"],
    ):
        assert pairs(read_csv(listing(tmp_path, *lines), tmp_path / "root")) == expected
    spaces_first = ["one, two.mp4 0", "my video.mp4 1"]
    assert pairs(read_csv(listing(tmp_path, *spaces_first), tmp_path / "root"))[0] == ("one, two.mp4", 0)


def test_csv_class_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    names = ["abseiling", "air drumming", "yoga"]
    annotations = listing(tmp_path, "path,label", "a.mp4,air drumming", "b.mp4,Yoga", "c.mp4,0")
    videos = read_csv(annotations, tmp_path, class_names=names)
    assert pairs(videos) == [("a.mp4", 1), ("b.mp4", 2), ("c.mp4", 0)]
    assert videos.class_names == tuple(names)
    with pytest.raises(DataError) as error:
        read_csv(listing(tmp_path, "a.mp4,0", "b.mp4,swimming"), tmp_path, class_names=names)
    assert_one_line(error, ["list.csv:2", "'swimming'", "abseiling"])


def test_csv_missing_videos_are_kept_apart(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4")
    videos = read_csv(listing(tmp_path, "a.mp4,0", "b.mp4,1", "c.mp4,0"), tmp_path)
    assert pairs(videos) == [("b.mp4", 1)]
    assert videos.missing == ("a.mp4", "c.mp4")


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["a.mp4,0", "b.mp4,3"], ["list.csv:2", "label 3", "0..2"]),
        (["a.mp4,0", "b.mp4,-1"], ["list.csv:2", "label -1", "0..2"]),
        (["a.mp4,0", "b.mp4,one"], ["list.csv:2", "'one'", "integer"]),
        (["a.mp4,0", "b.mp4,1.5"], ["list.csv:2", "'1.5'"]),
        (["path,label", "", "a.mp4"], ["list.csv:3", "expected 'path,label'", "'a.mp4'"]),
        (["a.mp4,0", ",1"], ["list.csv:2", "expected 'path,label'", "',1'"]),
        (["a.mp4,0", "b.mp4,"], ["list.csv:2", "expected 'path,label'"]),
        (["a.mp4 0", "b.mp4"], ["list.csv:2", "expected 'path label'", "'b.mp4'"]),
        (["a.mp4,zero"], ["list.csv:1", "'zero'"]),
        (["a.mp4"], ["list.csv:1", "expected 'path label'"]),
        (["a.mp4,0", "b.mp4,1", "./a.mp4,1"], ["list.csv:3", "./a.mp4", "list.csv:1", "(0, here 1)"]),
        ([""], ["list.csv", "empty"]),
        (["path,label"], ["list.csv", "empty"]),
        (["x.mp4,0", "y.mp4,1"], ["none of the 2 listed videos exists", "first: x.mp4", "root"]),
    ],
)
def test_csv_errors(tmp_path: Path, lines: list[str], parts: list[str]) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(DataError) as error:
        read_csv(listing(tmp_path, *lines), tmp_path, num_classes=3)
    assert_one_line(error, parts)


def test_csv_that_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=re.escape(f"dataset.annotations={tmp_path / 'no.csv'} does not exist")
    ):
        read_csv(tmp_path / "no.csv", tmp_path)
    with pytest.raises(DataError, match="is not a file"):
        read_csv(tmp_path, tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_csv(listing(tmp_path, "a.mp4,0"), tmp_path / "absent")
    (tmp_path / "video.mp4").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"video.mp4: no UTF-8 text at byte 128"):
        read_csv(tmp_path / "video.mp4", tmp_path)


# Kinetics


def test_kinetics_names() -> None:
    names = kinetics400_class_names()
    assert len(names) == len(set(names)) == 400
    assert names == tuple(sorted(names))
    assert (names[0], names[1], names[399]) == ("abseiling", "air drumming", "zumba")


@pytest.mark.parametrize("below", ["", "val/"])
def test_kinetics_directories(tmp_path: Path, below: str) -> None:
    touch(
        tmp_path,
        f"{below}zumba/a.mp4",
        f"{below}air_drumming/b.mp4",
        f"{below}petting animal (not cat)/c.mp4",
    )
    videos = read_kinetics(tmp_path)
    names = kinetics400_class_names()
    assert {names[record.label] for record in videos.records} == {
        "zumba",
        "air drumming",
        "petting animal (not cat)",
    }
    assert videos.class_names == names
    with pytest.raises(DataError, match="'dancing' is none of the 400 classes"):
        read_kinetics(touch(tmp_path, f"{below}dancing/d.mp4"))


def test_kinetics_lists(tmp_path: Path) -> None:
    touch(tmp_path, "val/abc_000001_000011.mp4", "val/my clip.mp4")
    for lines in (
        ["val/abc_000001_000011.mp4 399", "val/my clip.mp4 0", "val/gone.mp4 5"],  # SlowFast, VideoMAE
        ["val/abc_000001_000011.mp4,399", "val/my clip.mp4,0", "val/gone.mp4,5"],
        ["path,label", "val/abc_000001_000011.mp4,zumba", "val/my clip.mp4,abseiling", "val/gone.mp4,5"],
    ):
        videos = read_kinetics(tmp_path, listing(tmp_path, *lines))
        assert pairs(videos) == [("val/abc_000001_000011.mp4", 399), ("val/my clip.mp4", 0)]
        assert videos.missing == ("val/gone.mp4",)
        assert videos.class_names is not None and videos.class_names[399] == "zumba"
    with pytest.raises(DataError) as error:
        read_kinetics(tmp_path, listing(tmp_path, "val/abc_000001_000011.mp4 400"))
    assert_one_line(error, ["list.csv:1", "label 400", "0..399"])


def test_kinetics_official_table(tmp_path: Path) -> None:
    touch(tmp_path, "val/abc_000001_000011.mp4", "zumba/-Xy_000100_000110.mkv", "short.mp4")
    header = "label,youtube_id,time_start,time_end,split"
    rows = [
        "zumba,-Xy,100,110,val",
        '"air drumming",abc,1,11,val',
        "yoga,short,7,17,val",
        "yoga,gone,0,10,val",
    ]
    videos = read_kinetics(tmp_path, listing(tmp_path, header, *rows))
    names = kinetics400_class_names()
    assert [(record.name, names[record.label]) for record in videos.records] == [
        ("zumba/-Xy_000100_000110.mkv", "zumba"),
        ("val/abc_000001_000011.mp4", "air drumming"),
        ("short.mp4", "yoga"),
    ]
    assert videos.missing == ("gone_000000_000010",)
    for row, parts in (
        ("polka,abc,1,11,val", ["list.csv:2", "'polka'"]),
        ("zumba,abc", ["list.csv:2", "time_start"]),
        ("zumba,abc,one,11,val", ["list.csv:2", "one"]),
    ):
        with pytest.raises(DataError) as error:
            read_kinetics(tmp_path, listing(tmp_path, header, row))
        assert_one_line(error, parts)
    with pytest.raises(
        DataError, match=r"list.csv:3: 'val/abc_000001_000011.mp4' is listed already at .*:2$"
    ):
        read_kinetics(tmp_path, listing(tmp_path, header, rows[1], rows[1]))
    with pytest.raises(DataError, match="the list is empty; expected a table with rows"):
        read_kinetics(tmp_path, listing(tmp_path, header))


def test_kinetics_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.root=.*absent does not exist"):
        read_kinetics(tmp_path / "absent")
    with pytest.raises(DataError, match=r"dataset.annotations=.*absent.csv does not exist"):
        read_kinetics(tmp_path, tmp_path / "absent.csv")


def test_real_clips(clips_dir: Path) -> None:
    videos = read_folder(clips_dir / "fight" / "val")
    assert videos.class_names == ("fight", "noFight")
    assert [sum(record.label == label for record in videos.records) for label in (0, 1)] == [20, 24]
