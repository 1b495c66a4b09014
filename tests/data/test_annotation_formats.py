"""The official files of SSv2, UCF101 and HMDB51, as small copies: read right, and one clear line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from video_papr.core.errors import ConfigError, DataError
from video_papr.data.annotations import (
    VideoList,
    kinetics400_class_names,
    read_class_names,
    read_csv,
    read_hmdb51,
    read_ssv2,
    read_ucf101,
)
from video_papr.data.annotations.classes import class_lookup
from video_papr.data.datasets import build_video_list


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pairs(videos: VideoList) -> list[tuple[str, int]]:
    return [(record.name, record.label) for record in videos.records]


def refused(read: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(DataError) as error:
        read()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# Something-Something v2

SSV2_LABELS = (
    '{"Holding something": "1", "Approaching something with your camera": "0", "Closing something": "2"}'
)
SSV2_LIST = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": 42326, "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
    {
        "id": "100904",
        "label": "x",
        "template": "Approaching [something] with your camera",
        "placeholders": [],
    },
]


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    touch(tmp_path, "videos/78687.webm", "videos/42326.mp4")  # the second is re-encoded, the third is gone
    write(tmp_path / "labels.json", SSV2_LABELS)
    return write(tmp_path / "something-something-v2-validation.json", json.dumps(SSV2_LIST, indent=1))


def test_ssv2(ssv2: Path) -> None:
    videos = read_ssv2(ssv2.parent / "videos", ssv2)
    assert pairs(videos) == [("78687.webm", 1), ("42326.mp4", 2)]
    assert videos.missing == ("100904.webm",)
    names = ("Approaching something with your camera", "Holding something", "Closing something")
    assert videos.class_names == names
    one_line = write(ssv2.parent / "one.json", json.dumps(SSV2_LIST))
    assert read_ssv2(ssv2.parent / "videos", one_line) == videos
    other = write(ssv2.parent / "elsewhere" / "list.json", json.dumps(SSV2_LIST))
    refused(
        lambda: read_ssv2(ssv2.parent / "videos", other), "list.json", "labels.json", "dataset.class_names"
    )
    assert read_ssv2(ssv2.parent / "videos", other, class_names=names) == videos


def test_ssv2_text_list(ssv2: Path) -> None:
    videos = read_ssv2(ssv2.parent / "videos", write(ssv2.parent / "val.csv", "78687.mp4 1\n42326.mp4 2\n"))
    assert pairs(videos) == [("78687.webm", 1), ("42326.mp4", 2)]
    assert videos.class_names is not None and videos.class_names[2] == "Closing something"
    refused(
        lambda: read_ssv2(ssv2.parent, write(ssv2.parent / "val.csv", "78687.mp4 3\n")), "val.csv:1", "0..2"
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[{"id": "1"},\n{"id": "2", "template": "Holding [something]"}]', ["list.json:1", "video 1 has no"]),
        ('[\n\n{"template": "Holding [something]"}]', ["list.json:3", '"id" is None']),
        ('[\n{"id": "../1", "template": "Closing [something]"}]', ["list.json:2", "'../1'"]),
        (
            '[\n{"id": "1", "template": "Eating [something]"}]',
            ["list.json:2", "'Eating [something]'", "3 classes"],
        ),
        ('[\n{"id": "1", "template": 7}]', ["list.json:2", "template of video 1: '7'"]),
        ('[\n{"id": "78687", "template": "Holding [something]"},\n"word"]', ["list.json:3", '"word"']),
        (
            '[{"id": "78687", "template": "Holding [something]"},\n'
            '{"id": "78687", "template": "Closing [something]"}]',
            ["list.json:2", "'78687.webm' is listed already", "(1, here 2)"],
        ),
        (
            '[{"id": "78687", "template": "Holding [something]"}\n{"id": "2"}]',
            ["list.json:2", "no JSON", ", or ]"],
        ),
        ('[{"id": "78687", "template": "Holding [something]"},\n{"id": ', ["list.json:2", "no JSON"]),
        ('{"id": "1"}', ["list.json:1", "expected a JSON list"]),
        ("[]", ["list.json", "empty"]),
        ("[", ["list.json:1", "no JSON"]),
    ],
)
def test_ssv2_mistakes(ssv2: Path, text: str, parts: list[str]) -> None:
    annotations = write(ssv2.parent / "list.json", text)
    refused(lambda: read_ssv2(ssv2.parent / "videos", annotations), *parts)


# UCF101

CLASS_INDEX = "1 ApplyEyeMakeup\n2 Hammering\n3 HammerThrow\n4 HandstandPushups\n"


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    names = ("ApplyEyeMakeup", "Hammering", "HammerThrow")
    touch(tmp_path, *(f"UCF-101/{name}/v_{name}_g01_c01.avi" for name in names))
    touch(tmp_path, "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi")
    write(tmp_path / "splits/classInd.txt", CLASS_INDEX)
    return tmp_path


def test_ucf101(ucf101: Path) -> None:
    test = "HammerThrow/v_HammerThrow_g01_c01.avi\nHandstandPushups/v_HandStandPushups_g01_c01.avi\n"
    test += "Hammering/v_Hammering_g09_c01.avi\n"
    videos = read_ucf101(ucf101 / "UCF-101", write(ucf101 / "splits/testlist01.txt", test))
    assert [label for _, label in pairs(videos)] == [2, 3]
    assert videos.missing == ("Hammering/v_Hammering_g09_c01.avi",)
    assert videos.class_names == ("ApplyEyeMakeup", "Hammering", "HammerThrow", "HandstandPushups")
    train = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\r\nHammering/v_Hammering_g01_c01.avi 2\r\n"
    videos = read_ucf101(ucf101 / "UCF-101", write(ucf101 / "splits/trainlist01.txt", train))
    assert [label for _, label in pairs(videos)] == [0, 1]


def test_ucf101_without_its_files(ucf101: Path) -> None:
    """The order of classInd.txt is alphabetical regardless of case: not the order in which Python sorts."""
    videos = read_ucf101(ucf101 / "UCF-101")
    assert videos.class_names == read_class_names(ucf101 / "splits/classInd.txt")
    text = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 0\nHammerThrow/v_HammerThrow_g01_c01.avi 2\n"
    for folder in ("splits", "elsewhere"):
        from_list = read_ucf101(ucf101 / "UCF-101", write(ucf101 / folder / "test.csv", text))
        assert [label for _, label in pairs(from_list)] == [0, 2]
        assert (from_list.class_names is None) == (folder == "elsewhere")
    lone = write(ucf101 / "elsewhere/testlist01.txt", "Hammering/v_Hammering_g01_c01.avi\n")
    refused(
        lambda: read_ucf101(ucf101 / "UCF-101", lone), "testlist01.txt", "classInd.txt", "dataset.class_names"
    )


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("Hammering/v_Hammering_g01_c01.avi 3", ["trainlist02.txt:2", "'3'", "Hammering has the number 2"]),
        ("Hammering/v_Hammering_g01_c01.avi 0", ["trainlist02.txt:2", "'0'", "number 2"]),
        ("Dancing/v_Dancing_g01_c01.avi 2", ["trainlist02.txt:2", "'Dancing' is none of the 4 classes"]),
        ("v_Hammering_g01_c01.avi 2", ["trainlist02.txt:2", "expected 'Class/video.avi'"]),
        ("Hammering/v_Hammering_g01_c01 2", ["trainlist02.txt:2", "expected 'Class/video.avi'"]),
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", ["trainlist02.txt:2", "listed already at", ":1"]),
    ],
)
def test_ucf101_mistakes(ucf101: Path, line: str, parts: list[str]) -> None:
    text = f"ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n{line}\n"
    annotations = write(ucf101 / "splits/trainlist02.txt", text)
    refused(lambda: read_ucf101(ucf101 / "UCF-101", annotations), *parts)


# HMDB51


@pytest.fixture
def hmdb51(tmp_path: Path) -> Path:
    touch(
        tmp_path, "videos/brush_hair/April (1) [x]_goo_0.avi", "videos/brush_hair/b.avi", "videos/wave/c.avi"
    )
    for fold in (1, 2):
        flags = "2", "1", "0"
        lines = f"April (1) [x]_goo_0.avi {flags[fold - 1]} \nb.avi {flags[fold]} \nunused.avi 0 \n"
        write(tmp_path / f"splits/brush_hair_test_split{fold}.txt", lines)
        write(tmp_path / f"splits/wave_test_split{fold}.txt", f"c.avi {fold} \n")
    write(tmp_path / "splits/README", "not a split file\n")
    return tmp_path


def test_hmdb51(hmdb51: Path) -> None:
    test = read_hmdb51(hmdb51 / "videos", hmdb51 / "splits")
    assert pairs(test) == [("brush_hair/April (1) [x]_goo_0.avi", 0)]
    assert test.class_names == ("brush_hair", "wave") and test.missing == ()
    train = read_hmdb51(hmdb51 / "videos", hmdb51 / "splits", split="train")
    assert pairs(train) == [("brush_hair/b.avi", 0), ("wave/c.avi", 1)]
    assert pairs(read_hmdb51(hmdb51 / "videos", hmdb51 / "splits", fold=2)) == [("wave/c.avi", 1)]
    assert len(read_hmdb51(hmdb51 / "videos")) == 3
    listed = write(hmdb51 / "list.csv", "wave/c.avi 1\n")
    assert pairs(read_hmdb51(hmdb51 / "videos", listed)) == [("wave/c.avi", 1)]


def test_hmdb51_mistakes(hmdb51: Path) -> None:
    videos, splits = hmdb51 / "videos", hmdb51 / "splits"
    refused(lambda: read_hmdb51(videos, splits, fold=3), str(splits), "_test_split3.txt", "dataset.fold")
    refused(
        lambda: read_hmdb51(videos, splits, class_names=["wave"]), "brush_hair_test_split1.txt", "1 classes"
    )
    with pytest.raises(ConfigError, match="dataset.split='val'"):
        read_hmdb51(videos, splits, split="val")
    for line in ("c.avi", "c.avi 3", "c.avi two", " 2"):
        write(splits / "wave_test_split1.txt", f"\n{line}\n")
        refused(
            lambda: read_hmdb51(videos, splits),
            "wave_test_split1.txt:2",
            "flag 0, 1 or 2",
            repr(line.strip()),
        )
    write(splits / "wave_test_split1.txt", "c.avi 2\nc.avi 2\n")
    refused(lambda: read_hmdb51(videos, splits), "wave_test_split1.txt:2", "listed already", "split1.txt:1")


# class names


def test_spellings_of_kinetics_stay_apart(tmp_path: Path) -> None:
    """torchvision writes blanks as "_" and leaves out quotes and brackets; others write hyphens or other quotes."""
    names = kinetics400_class_names()
    bare = str.maketrans({" ": "_", "'": "", "(": "", ")": ""})
    touch(tmp_path, *(f"{name.translate(bare)}/{label}.mp4" for label, name in enumerate(names)))
    videos = build_video_list("k400", root=tmp_path)
    assert [(record.label, record.path.stem) for record in videos.records] == [
        (int(record.path.stem), record.path.stem) for record in videos.records
    ]
    assert len(videos) == 400
    label_of = class_lookup(names)
    for spelling in ("massaging person\u2019s head", "Massaging-Persons  Head", "massagingpersonshead"):
        assert label_of(spelling) == names.index("massaging person's head")
    assert class_lookup(["a+b", "a-b"])("a-b") == 1 and class_lookup(["a+b", "a-b"])("a b") is None
    refused(
        lambda: build_video_list("k400", root=touch(tmp_path, "abseilling/x.mp4")),
        "did you mean 'abseiling'?",
    )


@pytest.mark.parametrize(
    "text",
    ["run\nair drumming\n", "0 run\n1 air drumming\n", "1 run\r\n2 air drumming", "\n0,run\n1,air drumming\n"]
    + ["air drumming 1\nrun 0\n", "run 1\nair drumming 2\n"]
    + ["id,name\n1,air drumming\n0,run\n", "run\t0\nair drumming\t1\n", "air drumming\t2\nrun\t1\n"]
    + ["name;id\nair drumming;1\nrun;0\n", 'id,name\n0,run\n1,"air drumming"\n', '"run"\n"air drumming"\n']
    + ["- run\n- air drumming\n", "1: air drumming\n0: run\n", '- "run"\n- "air drumming"\n']
    + ['["run", "air drumming"]', '{"air drumming": 1, "run": "0"}', '{"\\"air drumming\\"": 1, "run": 0}']
    + ['{"0": "run", "1": "air drumming"}', '{"id2label": {"1": "air drumming", "0": "run"}, "x": 1}'],
)
def test_class_names(tmp_path: Path, text: str) -> None:
    assert read_class_names(write(tmp_path / "names", text)) == ("run", "air drumming")


@pytest.mark.parametrize("text", ["zone 0\nzone 1\n", "run 1\njump 3\n", "run 2\njump 3\n", "run 1\njump\n"])
def test_numbers_that_belong_to_the_names(tmp_path: Path, text: str) -> None:
    assert read_class_names(write(tmp_path / "names", text)) == tuple(text.splitlines())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty"]),
        ("run\nRUN\n", ["0 and 1", "'RUN'"]),
        ("1 run\n3 jump\n", ["names:2", "class number 3 but no 2", "'3 jump'"]),
        ("7 run\n8 jump\n", ["names:1", "7", "0 or 1"]),
        ("0 run\n0 jump\n", ["names:2", "class number 0 is there twice"]),
        ("run\t0\njump\t2\n", ["names:2", "class number 2 but no 1"]),
        ('{"run": 0, "jump": 0}', ["'jump'", "0..1"]),
        ('{"run": 0, "jump": "last"}', ["'jump'", "'last'"]),
        ("[1, 2]", ["expected a list of names"]),
        ('["run",\n', ["names:", "no JSON"]),
    ],
)
def test_class_names_mistakes(tmp_path: Path, text: str, parts: list[str]) -> None:
    refused(lambda: read_class_names(write(tmp_path / "names", text)), str(tmp_path / "names"), *parts)


def test_class_names_of_the_four_datasets(clips_dir: Path) -> None:
    counts = {"kinetics400": 400, "ssv2": 174, "ucf101": 101, "hmdb51": 51}
    for name, count in counts.items():
        path = clips_dir.parent / "labels" / f"{name}.txt"
        if path.is_file():
            assert len(read_class_names(path)) == count


# for all of them


def test_wrong_entries_can_be_collected(ssv2: Path, ucf101: Path, hmdb51: Path) -> None:
    """tools/prepare_data.py wants all mistakes, and the rest of the list."""
    problems: list[str] = []
    text = json.dumps([{"id": "9"}, *SSV2_LIST, SSV2_LIST[0]])
    found = read_ssv2(ssv2.parent / "videos", write(ssv2, text), on_invalid=problems.append)
    assert len(found) == 2 and len(problems) == 2
    write(ucf101 / "splits/testlist03.txt", "Hammering/v_Hammering_g01_c01.avi\nDancing/x.avi\nx\n")
    videos = build_video_list(
        "ucf101",
        root=ucf101 / "UCF-101",
        annotations=ucf101 / "splits/testlist03.txt",
        on_invalid=problems.append,
    )
    assert len(videos) == 1 and len(problems) == 4
    write(hmdb51 / "splits/brush_hair_test_split1.txt", "b.avi 2\nb.avi 2\nb.avi 7\n")
    assert len(read_hmdb51(hmdb51 / "videos", hmdb51 / "splits", on_invalid=problems.append)) == 1
    assert len(problems) == 6
    listed = write(hmdb51 / "list.csv", "wave/c.avi 1\nwave/c.avi 0\nbrush_hair/b.avi x\nbrush_hair/b.avi\n")
    assert len(read_csv(listed, hmdb51 / "videos", on_invalid=problems.append)) == 1
    assert len(problems) == 9 and all("\n" not in line for line in problems)
