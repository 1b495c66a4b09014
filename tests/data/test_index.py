"""The index of a dataset: what is found, how it is judged, that runs go on, and that equal files give equal bytes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_papr.core.errors import DataError
from video_papr.data import index_probe
from video_papr.data.annotations import VideoList, VideoRecord, read_folder
from video_papr.data.datasets import VideoDataset
from video_papr.data.index import (
    COLUMNS,
    STATUSES,
    IndexEntry,
    Probe,
    apply_index,
    build_index,
    index_text,
    read_index,
)
from video_papr.data.index_probe import probe_video, probe_videos
from video_papr.data.index_report import count_statuses, report_text
from video_papr.data.sampling import dense_clips

WriteVideo = Callable[..., Path]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> Path:
    """Two classes: two good videos, a copy in the same class, one in the other, a short one, and four damaged ones."""
    root = tmp_path_factory.mktemp("damaged")
    good = write_video(root / "run/good.mp4", 30, gop=10, size=(96, 128), options={"preset": "fast"})
    write_video(root / "jump/other.mkv", 24, seed=1, fps=12.5)
    write_video(root / "jump/short.mp4", 7, seed=2)
    shutil.copy(root / "jump/short.mp4", root / "jump/copy of short.mp4")
    shutil.copy(good, root / "jump/same as good.mp4")
    content = good.read_bytes()
    (root / "run/empty.mp4").write_bytes(b"")
    (root / "run/text.mp4").write_text("no video")
    (root / "run/truncated.mp4").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    for place in range(len(content) // 2, len(content) // 2 + 2000, 100):
        flipped[place] ^= 0xFF
    (root / "run/flipped.mp4").write_bytes(flipped)
    return root


def probes_of(videos: VideoList, folder: Path, **options: object) -> dict[str, Probe]:
    paths = {record.name: record.path for record in videos.records}
    return dict(probe_videos(paths, folder / "progress.jsonl", **options))  # type: ignore[arg-type]


def test_what_is_found(damaged: Path, tmp_path: Path) -> None:
    videos = read_folder(damaged)
    entries = build_index(videos, probes_of(videos, tmp_path, workers=0), min_frames=10)
    by_name = {entry.path: entry for entry in entries}
    assert [entry.path for entry in entries] == sorted(by_name)
    assert {name: entry.status for name, entry in by_name.items()} == {
        "run/good.mp4": "label",
        "run/empty.mp4": "corrupt",
        "run/text.mp4": "corrupt",
        "run/truncated.mp4": "corrupt",
        "run/flipped.mp4": "corrupt",
        "jump/other.mkv": "ok",
        "jump/copy of short.mp4": "short",
        "jump/short.mp4": "duplicate",
        "jump/same as good.mp4": "label",
    }
    assert by_name["run/good.mp4"].reason == "same content as jump/same as good.mp4, which has the label jump"
    assert (
        by_name["jump/short.mp4"].reason
        == "same content as jump/copy of short.mp4; 7 frames, a clip needs 10"
    )
    assert by_name["run/empty.mp4"].reason == "the file is empty (0 bytes)"
    assert by_name["run/truncated.mp4"].reason.startswith("truncated: ")
    assert by_name["run/flipped.mp4"].reason.startswith("pyav: ")
    assert all(str(damaged) not in entry.reason for entry in entries), (
        "the index does not say where it was made"
    )
    other = by_name["jump/other.mkv"]
    assert (other.frames, other.fps, other.width, other.height, other.codec) == (24, 12.5, 64, 48, "h264")
    assert other.duration_seconds == pytest.approx(24 / 12.5, abs=0.05)
    assert other.bytes == (damaged / "jump/other.mkv").stat().st_size
    assert sum(count_statuses(entries).values()) == 9


def test_packets_see_less(damaged: Path) -> None:
    """The quick check opens every file, and misses what is damaged inside a stream."""
    assert probe_video(damaged / "run/truncated.mp4", check="packets").error is not None
    assert probe_video(damaged / "run/flipped.mp4", check="packets").error is None
    assert probe_video(damaged / "run/good.mp4", check="packets") == probe_video(damaged / "run/good.mp4")


def test_long_videos_are_read_in_pieces(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe_video(damaged / "run/good.mp4")
    monkeypatch.setattr(index_probe, "_PIECE_BYTES", 1)  # the least, 16 frames at a time
    assert probe_video(damaged / "run/good.mp4") == whole
    assert probe_video(damaged / "run/flipped.mp4").error is not None


def test_same_bytes_for_any_number_of_workers_and_any_place(damaged: Path, tmp_path: Path) -> None:
    texts = set()
    for workers in (0, 1, 3):
        root = tmp_path / f"copy{workers}"
        shutil.copytree(damaged, root)
        for path in root.rglob("*.m*"):
            os.utime(path, (workers, workers))
        videos = read_folder(root)
        texts.add(index_text(build_index(videos, probes_of(videos, root, workers=workers), min_frames=10)))
    assert len(texts) == 1


def test_a_stopped_run_goes_on(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "videos"
    shutil.copytree(damaged, root)
    videos = read_folder(root)
    opened: list[str] = []
    real = probe_video

    def spy(path: Path, **options: str) -> Probe:
        opened.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(index_probe, "probe_video", spy)
    paths = {record.name: record.path for record in videos.records}
    progress = tmp_path / "out" / "progress.jsonl"
    run = probe_videos(paths, progress, workers=0)
    first = dict(next(run) for _ in range(4))
    run.close()  # as a kill does, but for the last line
    assert len(opened) == 4
    progress.write_bytes(progress.read_bytes()[:-20])  # the fourth line was cut off
    found = dict(probe_videos(paths, progress, workers=0))
    assert len(opened) == 4 + 6 and {name: found[name] for name in first} == first
    assert dict(probe_videos(paths, progress, workers=0)) == found and len(opened) == 10
    (root / "run/text.mp4").write_text("another text")  # a file that changed, and another kind of check
    dict(probe_videos(paths, progress, workers=0))
    assert opened[10:] == ["text.mp4"]
    dict(probe_videos(paths, progress, workers=0, check="packets"))
    assert len(opened) == 11 + 9


def crash(path: Path, **_: str) -> Probe:
    if path.name == "other.mkv":
        os._exit(11)
    return Probe(1, "0")


def hang(path: Path, **_: str) -> Probe:
    if path.name == "other.mkv":
        time.sleep(600)
    return Probe(1, "0")


@pytest.mark.parametrize(("fault", "said"), [(crash, "the decoder crashed"), (hang, "no answer within 2 s")])
def test_a_crash_or_a_hang_costs_one_video(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Probe], said: str
) -> None:
    monkeypatch.setattr(index_probe, "probe_video", fault)
    monkeypatch.setattr(index_probe, "STALLED_S", 2.0)
    found = probes_of(read_folder(damaged), tmp_path, workers=2)
    assert len(found) == 9
    assert {name: probe.error for name, probe in found.items() if probe.error} == {"jump/other.mkv": said}


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert probe_video(tmp_path / "gone.mp4").error == "cannot be read: No such file or directory"


# judging, without files

names = st.sampled_from(["a", "b", "c", "d", "e", "f"])
files = st.dictionaries(
    names,
    st.tuples(st.integers(0, 2), st.sampled_from("xyz"), st.one_of(st.none(), st.integers(1, 20))),
    min_size=1,
)


@given(files, st.integers(1, 20))
def test_judging_always(found: dict[str, tuple[int, str, int | None]], min_frames: int) -> None:
    records = tuple(VideoRecord(Path(name), label, name) for name, (label, _, _) in found.items())
    probes = {
        name: Probe(1, digest, frames, error=None if frames else "damaged")
        for name, (_, digest, frames) in found.items()
    }
    missing = tuple(name.upper() for name in found)
    entries = build_index(VideoList(records, None, missing), probes, min_frames=min_frames)
    assert len(entries) == 2 * len(found)
    assert sum(entry.status == "missing" for entry in entries) == len(found)
    for entry in entries:
        if entry.status == "missing":
            continue
        label, digest, frames = found[entry.path]
        twins = {name: other for name, other in found.items() if other[1] == digest and name != entry.path}
        other_labels = any(other[0] != label for other in twins.values())
        assert (entry.status == "corrupt") == (frames is None)
        assert ("has the label" in entry.reason) == other_labels
        if not other_labels:  # the first by name is no duplicate
            assert (f"same content as {min([*twins, '~'])}" in entry.reason) == (
                min([*twins, "~"]) < entry.path
            )
        assert ("a clip needs" in entry.reason) == (frames is not None and frames < min_frames)
        assert (entry.status == "ok") == (entry.reason == "")


def test_empty_files_are_no_twins() -> None:
    records = tuple(VideoRecord(Path(name), number, name) for number, name in enumerate("ab"))
    probes = {name: Probe(0, "same", error="the file is empty (0 bytes)") for name in "ab"}
    assert [entry.status for entry in build_index(VideoList(records, None), probes)] == ["corrupt", "corrupt"]


# reading and using


def test_round_trip(tmp_path: Path) -> None:
    entries = [
        IndexEntry(
            'odd, "name"\n.mp4', 3, 250, 29.97, 8.341667, 340, 256, "h264", 12345, "ab", "short", "why; so"
        ),
        IndexEntry("gone.mp4", *[None] * 9, "missing", "listed, but not on disk"),
        IndexEntry("bytes \udcff.mp4", 0, *[None] * 6, 7, "cd", "corrupt", "damaged"),
    ]
    path = tmp_path / "index.csv"
    path.write_bytes(index_text(entries).encode("utf-8", "surrogateescape"))
    assert list(read_index(path).values()) == entries


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("path,label\n", ":1: no index: expected the columns path,label,frames"),
        ("", ":1: no index"),
        (",".join(COLUMNS) + "\na.mp4,0\n", ":2: 2 fields, expected 12"),
        (",".join(COLUMNS) + "\na.mp4,0,x,,,,,,,,ok,\n", ":2: frames 'x' is no number"),
        (
            ",".join(COLUMNS) + "\na.mp4,0,,,,,,,,,fine,\n",
            ":2: status 'fine' is unknown; expected one of missing,",
        ),
        (",".join(COLUMNS) + f"\na.mp4,0,{'9' * 5000},,,,,,,,ok,\n", ":2: frames '999"),
    ],
)
def test_wrong_index(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "index.csv"
    with pytest.raises(DataError, match=r"dataset\.index=.*does not exist; tools/prepare_data.py writes one"):
        read_index(path)
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_index(path)
    assert str(error.value).startswith(f"{path}{part}")


def test_use(damaged: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    shutil.copytree(damaged, root)
    videos = read_folder(root)
    index = {entry.path: entry for entry in build_index(videos, probes_of(videos, tmp_path, workers=0))}
    del index["jump/other.mkv"]
    shutil.copy(root / "run/good.mp4", root / "run/text.mp4")  # a damaged file was replaced
    known, use = apply_index(videos, index, source="index.csv")
    assert (use.unreadable, use.unlisted, use.changed) == (3, 1, 1)
    assert set(known.unreadable) == {"run/empty.mp4", "run/truncated.mp4", "run/flipped.mp4"}
    (root / "run/truncated.mp4").unlink()  # nobody looks
    dataset = VideoDataset(known, lambda n: dense_clips(n, num_frames=2, frame_stride=1, num_clips=1))
    samples = {sample.name: sample for sample in (dataset[i] for i in range(len(dataset)))}
    assert {name for name, sample in samples.items() if sample.error} == set(known.unreadable)
    assert "says dataset.index" in str(samples["run/truncated.mp4"].error)
    with pytest.raises(DataError, match=r"dataset\.index=index\.csv has none of the 9 videos"):
        apply_index(videos, {}, source="index.csv")


def test_report(damaged: Path) -> None:
    text = report_text("title", [], ["list.csv:3: label 9 is out of range"])
    assert (
        "0 videos" in text
        and "- list.csv:3: label 9 is out of range" in text
        and "no file can be read" in text
    )
    entries = [
        IndexEntry(f"{i:03}.mp4", 0, 9, 25.0, 1.0, 8, 8, "h264", 1, "a", "short", "why") for i in range(60)
    ]
    text = report_text("title", entries, [])
    assert "| short | 60 |" in text and "- and 10 more" in text and "25 (60)" in text
    assert all(f"| {status} |" in text for status in STATUSES)
