"""Lists of videos: the layouts that are read, and one clear line for everything that is wrong with them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from video_papr.core.errors import DataError
from video_papr.data.annotations import (
    VideoList,
    kinetics400_class_names,
    read_class_names,
    read_csv,
    read_folder,
    read_hmdb51,
    read_kinetics,
    read_ucf101,
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


def test_splits_are_no_classes(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/run/a.mp4",
        "train/jump/b.mp4",
        "val/run/c.mp4",
        "val/jump/d.mp4",
        "__MACOSX/run/._c.mp4",
    )
    for read in (read_folder, read_ucf101, read_hmdb51):
        with pytest.raises(DataError) as error:
            read(tmp_path)
        assert_one_line(
            error, ["holds splits (train, val), not classes", f"dataset.root={tmp_path / 'val'}?"]
        )
    assert len(read_folder(tmp_path / "val")) == 2
    one = touch(tmp_path / "one", "test/run/a.mp4")
    with pytest.raises(DataError, match=r"holds splits \(test\)"):
        read_folder(one)
    for number, splits in enumerate(
        [("train_256", "val_256"), ("fold1", "fold2"), ("videos/train", "videos/val")]
    ):
        root = touch(
            tmp_path / f"of{number}", *(f"{split}/{name}/a.mp4" for split in splits for name in "ab")
        )
        with pytest.raises(DataError, match="holds splits"):
            read_folder(root)
    rides = touch(tmp_path / "rides", "train_ride/a.mp4", "test_drive/b.mp4")
    assert read_folder(rides).class_names == ("test_drive", "train_ride")
    assert read_folder(touch(tmp_path / "vehicles", "train/a.mp4", "car/b.mp4")).class_names == (
        "car",
        "train",
    )


def test_junk_is_no_class(tmp_path: Path) -> None:
    junk = (
        "__MACOSX/run",
        "@eaDir",
        "lost+found",
        "$RECYCLE.BIN",
        ".Trashes",
        "#recycle",
        "System Volume Information",
    )
    touch(
        tmp_path,
        "run/a.mp4",
        "jump/b.mp4",
        "run/@eaDir/a.mp4",
        "run/._a.mp4",
        *(f"{name}/x.mp4" for name in junk),
    )
    assert pairs(read_folder(tmp_path)) == [("jump/b.mp4", 0), ("run/a.mp4", 1)]


def test_other_endings_are_read_or_told_of(tmp_path: Path) -> None:
    names = [
        f"run/{k}.{end}" for k, end in enumerate(["MTS", "m2ts", "vob", "asf", "gif", "y4m", "divx", "mxf"])
    ]
    videos = read_folder(touch(tmp_path, *names))
    assert [record.name for record in videos.records] == sorted(names) and videos.notes == ()
    touch(
        tmp_path,
        "run/x.dat",
        "run/y.r3d",
        "run/z",
        "run/notes.txt",
        "run/cover.jpg",
        "run/sound.mp3",
        "run/.hid.dat",
    )
    (note,) = read_folder(tmp_path).notes
    assert "3 files of endings that are not read were passed over (none, .dat, .r3d)" in note
    with pytest.raises(DataError, match=r"no videos found.*1 files of endings .*\(.dat\)"):
        read_folder(touch(tmp_path / "other", "run/x.dat"))


def test_names_that_are_not_utf8_can_be_written_anywhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / os.fsdecode(b"caf\xe9.mp4")
    path.write_bytes(b"x")
    (record,) = read_folder(tmp_path).records
    assert (record.name, record.path) == ("run/caf\\udce9.mp4", path)


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
        ["a.mp4;0", "sub/b.mp4;2"],
        ["video;label", "a.mp4;0", "sub/b.mp4;2"],
        ["a.mp4\t0", "sub/b.mp4\t2"],
        [",path,label", "0,a.mp4,0", "1,sub/b.mp4,2"],
        ["label,path", "0,a.mp4", "2,sub/b.mp4"],
        ["filename,split,label", '"a.mp4",val,0', "sub/b.mp4,val,2"],
        ["0,a.mp4,0", "1,sub/b.mp4,2"],
        ["0 a.mp4 0", "1 sub/b.mp4 2"],
        ["0,a.mp4", "2,sub/b.mp4"],
        ["0 a.mp4", "2 sub/b.mp4"],
        ["a.mp4,0.0", "sub/b.mp4,2.0"],
        ["a.mkv,0", r"sub\b.mp4,2"],
        ["path frames label", "a.mp4 300 0", "sub/b.mp4 250 2"],
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


def test_a_missing_video_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of whole data sets name 100,000 videos that were never downloaded, on network storage."""
    touch(tmp_path, "here.mp4", "other ending.MKV")
    lines = [f"{k}.mp4,0" for k in range(500)] + [
        "here.mp4,0",
        "other ending.mp4,0",
        f"{'x' * 300}.mp4,0",
        "a\0b.mp4,0",
    ]
    asked: list[object] = []
    for name in ("stat", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, real=real, **more: (asked.append(args), real(*args, **more))[1]
        )
    videos = read_csv(listing(tmp_path, *lines), tmp_path)
    assert [record.name for record in videos.records] == ["here.mp4", "other ending.MKV"]
    assert len(videos.missing) == 502 and len(asked) < 530


def test_labels_that_contradict_the_folders(tmp_path: Path) -> None:
    """The list of another project counts in its own order, or from 1: accuracies near zero, and no error."""
    touch(tmp_path, *(f"{name}/{k}.mp4" for name in ("run", "jump", "swim") for k in range(4)))
    names = ["run", "jump", "swim", "yoga"]

    def read(shift: int, count: int = 12) -> VideoList:
        entries = [(f"{name}/{k}.mp4", label) for label, name in enumerate(names[:3]) for k in range(4)]
        moved = [(path, label + shift * (place < count)) for place, (path, label) in enumerate(entries)]
        return read_csv(
            listing(tmp_path, *(f"{path} {label}" for path, label in moved)), tmp_path, class_names=names
        )

    assert read(0).notes == ()
    with pytest.raises(DataError) as error:
        read(1)
    assert_one_line(error, ["the folder of 12 of 12 videos", "run/0.mp4: label 1 is 'jump'", "or from 1"])
    (note,) = read(1, count=6).notes  # half of them may be meant
    assert "the folder of 6 of 12 videos" in note
    with pytest.raises(DataError, match="the folder of 7 of 12 videos"):
        read(1, count=7)
    flat = touch(tmp_path / "flat", "a.mp4", "b.mp4", "c.mp4")
    lines = ["a.mp4 1", "b.mp4 2", "c.mp4 3"]
    (note,) = read_csv(listing(tmp_path, *lines), flat, class_names=names).notes
    assert "does the list count from 1?" in note


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
        (["a.mp4,1", "b.mp4,3"], ["list.csv:2", "label 3", "does the list count from 1?"]),
        (["a.mp4,0", f'"{"x" * 140_000}",0'], ["list.csv:2", "field larger than field limit"]),
        (["path,label,other", "a.mp4,0,1", "b.mp4"], ["list.csv:3", "expected 'path,label'"]),
        (["a.mp4"], ["list.csv:1", "expected 'path label'"]),
        (["a.mp4,0", "b.mp4,1", "./a.mp4,1"], ["list.csv:3", "./a.mp4", "list.csv:1", "(0, here 1)"]),
        ([""], ["list.csv", "empty"]),
        (["path,label"], ["list.csv", "empty"]),
        (["a.mp4 0", "b.mp4 300 1"], ["list.csv:2", "'b.mp4 300 1' has a number", "path frames label"]),
        (["a.mp4,300,1"], ["list.csv:1", "frames (as mmaction2 writes), or a second label?"]),
        (["0 b.mp4 0 300 1"], ["list.csv:1", "'0 b.mp4 0 300 1' has a number"]),
        (["some frames 1 300 2"], ["list.csv:1", "'some frames 1 300 2' is a folder of frames"]),
        (["x.mp4,0", "y.mp4,1"], ["none of the 2 listed videos exists", "first: x.mp4", "root"]),
    ],
)
def test_csv_errors(tmp_path: Path, lines: list[str], parts: list[str]) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "some frames/img_00001.jpg")
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
    (tmp_path / "page").write_text("<!DOCTYPE html><title>Sign in</title>")
    for read, what in ((partial(read_csv, root=tmp_path), "videos"), (read_class_names, "class names")):
        with pytest.raises(DataError, match=rf"expected a list of {what}; it is an HTML page \(Sign in\)"):
            read(tmp_path / "page")


@pytest.mark.parametrize(
    "text",
    ['{"path": "a.mp4", "label": 0}\n', '[{"path": "a.mp4", "label": 0}]', '[\n["a.mp4", 0]\n]', "{\n}"],
)
def test_json_in_place_of_a_list(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"list.csv: is JSON \(.+\); expected lines of a path and a label"):
        read_csv(listing(tmp_path, text), tmp_path)
    touch(tmp_path, "[a]/{1}.mp4", "{b}.mp4")
    assert pairs(read_csv(listing(tmp_path, "[a]/{1}.mp4,0", "{b}.mp4,1"), tmp_path)) == [
        ("[a]/{1}.mp4", 0),
        ("{b}.mp4", 1),
    ]


def test_class_folders_of_numbers_are_sorted_as_text_and_that_is_said(tmp_path: Path) -> None:
    """Whoever trained with torchvision has this order; whoever wrote the labels as folders has another."""
    touch(tmp_path, "9/a.mp4", "10/a.mp4")
    videos = read_folder(tmp_path)
    assert videos.class_names == ("10", "9")
    assert "class folders are numbers and sorted as text, as torchvision does (10, 9)" in videos.notes[0]
    assert read_folder(tmp_path, class_names=["9", "10"]).notes == ()
    touch(tmp_path / "few", "0/a.mp4", "1/a.mp4")
    assert read_folder(tmp_path / "few").notes == ()


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
        "yoga,short,7.0,17.0,val",
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
    semicolons = [row.replace(",", ";") for row in (header, *rows)]
    assert pairs(read_kinetics(tmp_path, listing(tmp_path, *semicolons))) == pairs(videos)
    for row, parts in (
        ("zumba,abc,nan,11,val", ["list.csv:2", "'nan'"]),
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
