"""`tools/predict.py` from its command line to its files, on small videos and a small random backbone."""

import csv
import io
import json
import os
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import pytest
from matplotlib.image import imread

from video_papr.core.errors import DataError
from video_papr.data.decoding import decode_clips
from video_papr.inference.find_videos import find_videos

SMALL = (
    "backbone.num_frames=4",
    "backbone.input_size=16",
    "backbone.weights=null",
    "pruner=motion",
    "runtime=cpu",
)


@pytest.fixture
def predict(run, tmp_path):
    """A function (words) -> exit status, stdout, stderr that runs `tools/predict.py`; files go to tmp_path/out."""
    out = f"output_dir={tmp_path / 'out'}"
    return lambda *words: run("predict", *SMALL, "progress=false", out, *words)


def records(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]


def rows(tmp_path):
    return list(csv.DictReader((tmp_path / "out/predictions.csv").open(newline="")))


def test_one_video(predict, video_root, tmp_path):
    status, shown, errors = predict(f"video={video_root / 'left/a.mp4'}", "top_k=3", "pruner.keep_ratio=0.5")
    assert status == 0
    assert errors.startswith("warning: random weights")
    (record,) = records(tmp_path)
    assert (record["video"], record["error"]) == (str(video_root / "left/a.mp4"), None)
    assert (record["num_frames"], record["fps"], record["num_tokens"]) == (40, 25, 4)
    (window,) = record["windows"]
    assert (window["start_seconds"], window["end_seconds"], window["kept_tokens"]) == (0, 1.6, 2)
    assert window["top"] == record["top"]
    assert [set(guess) for guess in record["top"]] == [{"label", "name", "probability"}] * 3
    assert [row["rank"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert float(rows(tmp_path)[0]["probability"]) == pytest.approx(record["top"][0]["probability"], abs=1e-6)
    for guess in record["top"]:
        assert guess["name"] in shown
        assert f"{100 * guess['probability']:.1f}" in shown
    assert "2 of 4 tokens read per view" in shown
    assert imread(tmp_path / "out/001_a.png").shape[2] == 4
    film = decode_clips(tmp_path / "out/001_a.mp4", lambda n: [list(range(n))])
    assert film.frames.shape[:2] == (1, 40) and film.times.seconds == pytest.approx(1.6, abs=0.04)
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert files == {"predictions.jsonl", "predictions.csv", "001_a.png", "001_a.mp4"}
    assert all(f"wrote {tmp_path / 'out' / name}" in shown for name in files)


def test_windows_of_a_video(predict, video_root, tmp_path):
    words = (
        f"video={video_root / 'left/a.mp4'}",
        "window_seconds=0.4",
        "stride_seconds=0.3",
        "views=1x3",
        "top_k=20",
    )
    status, shown, _ = predict(*words)
    assert status == 0
    (record,) = records(tmp_path)
    spans = [(window["start_seconds"], window["end_seconds"]) for window in record["windows"]]
    assert spans == [(0, 0.4), (0.32, 0.72), (0.64, 1.04), (0.96, 1.36), (1.2, 1.6)]
    for guess in record["top"]:  # all classes there are
        each = [
            own["probability"]
            for window in record["windows"]
            for own in window["top"]
            if own["label"] == guess["label"]
        ]
        assert guess["probability"] == pytest.approx(sum(each) / 5, abs=1e-6)
    assert len(rows(tmp_path)) == 5 * 12
    assert "best class over time" in shown
    segments = list(csv.DictReader((tmp_path / "out/segments.csv").open(newline="")))
    assert sum(int(row["windows"]) for row in segments) == 5
    for kind in ("srt", "vtt"):
        with av.open(str(tmp_path / f"out/001_a.{kind}")) as file:
            shown = [packet for packet in file.demux() if packet.pts is not None]
            starts = [float(packet.pts * packet.time_base) for packet in shown]
        assert starts == [float(row["start_seconds"]) for row in segments]
    assert imread(tmp_path / "out/001_a_timeline.png").shape[:2] == (360, 900)


def test_bad_videos_are_named_and_the_others_go_on(predict, video_root, tmp_path):
    root = tmp_path / "my videos, [new] 'x'"
    shutil.copytree(video_root, root)
    (root / "left/b.mp4").write_text("not a video")
    (root / "notes.txt").write_text("")
    status, _, errors = predict(f"video={root}", "visualize=1", "window_seconds=0.5")
    assert status == 1
    found = records(tmp_path)
    names = ["left/a.mp4", "left/b.mp4", "left/deeper/c.mp4", "right/d.mp4", "right/e.mkv"]
    assert [record["video"] for record in found] == [str(root / name) for name in names]
    assert [record["error"] is None for record in found] == [True, False, True, True, True]
    assert "b.mp4" in found[1]["error"] and "\n" not in found[1]["error"]
    assert [row["error"] for row in rows(tmp_path) if row["error"]] == [found[1]["error"]]
    assert "1 of 5 videos could not be read; the first: cannot decode" in errors
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1


def test_own_films_are_passed_over_and_short_videos_are_said(predict, video_root, tmp_path):
    shutil.copytree(video_root / "left", tmp_path / "videos")
    words = (f"video={tmp_path}", "dataset.sampling=dense", "dataset.frame_stride=20")
    assert predict(*words)[0] == 0
    films = sorted((tmp_path / "out").glob("*.mp4"))
    assert films
    first = records(tmp_path)
    status, _, errors = predict(*words)
    assert status == 0 and [r["video"] for r in records(tmp_path)] == [r["video"] for r in first]
    assert f"warning: video={tmp_path}: {len(films)} films that predict drew itself are passed over" in errors
    assert "shorter than the 61 frames of a clip, so frames are repeated; the first: " in errors
    assert predict(f"video={films[0]}")[0] == 0  # one that is named is meant


def test_logits_that_are_not_finite_are_failures(predict, video_root, tmp_path, monkeypatch):
    from video_papr.inference import predict as module

    monkeypatch.setattr(module, "aggregate_views", lambda logits, _: logits[:1] * float("nan"))
    status, _, errors = predict(f"video={video_root}")
    assert status == 2 and "error: no video could be answered; the first: the logits are not finite" in errors
    assert all("not finite" in record["error"] for record in records(tmp_path))


def test_a_film_that_cannot_be_made_costs_nothing_else(predict, video_root, tmp_path, monkeypatch):
    from video_papr.inference import files

    def gone(source, *args, **options):
        if source.endswith("a.mp4"):
            os.unlink(source)
        return write_film(source, *args, **options)

    write_film = files.write_film
    monkeypatch.setattr(files, "write_film", gone)
    shutil.copytree(video_root / "left", tmp_path / "videos")
    status, _, errors = predict(f"video={tmp_path / 'videos'}")
    assert status == 0 and [record["error"] for record in records(tmp_path)] == [None] * 3
    assert sorted(film.name[:3] for film in (tmp_path / "out").glob("*.mp4")) == ["002", "003"]
    assert "1 of 3 videos have no film; the first: no film of " in errors


def test_dense_model_has_no_picture(predict, video_root, tmp_path):
    status, shown, _ = predict(f"video={video_root / 'right'}", "pruner=none")
    assert status == 0
    assert len(records(tmp_path)) == 2
    assert "4 of 4 tokens read per view" in shown
    assert not list((tmp_path / "out").glob("*.png"))
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2  # with the answer, and nothing faded


@pytest.mark.parametrize(("annotate", "endings"), [("pictures", {".png"}), ("none", set())])
def test_what_is_drawn(predict, video_root, tmp_path, annotate, endings):
    assert predict(f"video={video_root / 'left/a.mp4'}", f"annotate={annotate}")[0] == 0
    drawn = {path.suffix for path in (tmp_path / "out").glob("001_*")}
    assert drawn == endings


def test_paths_from_stdin(predict, video_root, tmp_path, monkeypatch):
    lines = f"{video_root / 'left/a.mp4'}\n\n{tmp_path / 'absent.mp4'}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status, _, errors = predict("video=-", "visualize=0")
    assert status == 1
    assert [record["error"] is None for record in records(tmp_path)] == [True, False]
    assert "no such file" in errors


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_names_on_stdin_are_bytes(predict, video_root, tmp_path, monkeypatch, end):
    """`find`, and `find -print0` for names with line breaks."""
    names = [b"caf\xe9.mp4", b"two\nlines.mp4" if end == b"\0" else b" blank.mp4"]
    for name in names:
        shutil.copy(video_root / "left/b.mp4", tmp_path / os.fsdecode(name))
    given = b"".join(os.fsencode(tmp_path) + b"/" + name + end for name in names)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8", newline=""))
    status, _, errors = predict("video=-", "visualize=0")
    assert status == 0, errors
    assert [record["video"] for record in records(tmp_path)] == [
        str(tmp_path / os.fsdecode(name)) for name in names
    ]


def test_frames_that_memory_does_not_hold_fail_with_the_reason(predict, tmp_path, write_video):
    write_video(tmp_path / "a.mp4", 8, size=(480, 640))
    status, _, errors = predict(f"video={tmp_path / 'a.mp4'}", "dataset.memory_mb=4")
    assert status == 2
    assert "4 frames of 640x480 take 3 MiB, dataset.memory_mb allows 2 for one video" in errors
    words = ("dataset.memory_mb=4", "dataset.decode_size=short_side", "visualize=0")
    assert predict(f"video={tmp_path / 'a.mp4'}", *words)[0] == 0
    status, _, errors = predict(f"video={tmp_path / 'a.mp4'}", "dataset.max_pixels=1000")
    assert status == 2 and "more pixels than dataset.max_pixels=1000" in errors


def test_json_for_machines(predict, video_root, tmp_path):
    """With --json stdout is predictions.jsonl and nothing else, also where a video fails."""
    (tmp_path / "in").mkdir()
    shutil.copy(video_root / "left/a.mp4", tmp_path / "in")
    (tmp_path / "in/b.mp4").write_bytes(b"no video")
    status, shown, errors = predict(f"video={tmp_path / 'in'}", "--json", "visualize=0")
    assert status == 1
    assert [json.loads(line) for line in shown.splitlines()] == records(tmp_path)
    assert [record["error"] is None for record in records(tmp_path)] == [True, False]
    assert "predictions.jsonl" in errors
    status, shown, errors = predict(f"video={tmp_path / 'in/b.mp4'}", "--json")
    assert (status, shown) == (2, "") and "no video could be read" in errors


def test_a_live_source_is_answered_until_it_ends(predict, video_root, tmp_path):
    """40 frames through a pipe, faster than they are answered: a window is answered, or counted as skipped."""
    pipe, sent = tmp_path / "camera", tmp_path / "sent.ts"  # MP4 cannot be read from a pipe
    os.mkfifo(pipe)
    with av.open(video_root / "left/a.mp4") as file, av.open(str(sent), "w") as target:
        stream = target.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    threading.Thread(target=lambda: pipe.write_bytes(sent.read_bytes()), daemon=True).start()
    spans = ("window_seconds=0.4", "stride_seconds=0.2")
    status, out, errors = predict(f"video={pipe}", *spans)
    lines = [json.loads(line) for line in (tmp_path / "out" / "live.jsonl").read_text().splitlines()]
    assert status == 0, errors
    assert len(lines) + lines[-1]["skipped"] == 7  # they end at 0.4, 0.6, ... 1.6 s
    assert lines[-1]["end_seconds"] == pytest.approx(1.6) and "to 1.6 s" in out
    status, _, errors = predict(f"video={video_root / 'left/a.mp4'}", "show=true")
    assert status == 2 and "show=true: for live sources" in errors
    status, _, errors = predict("video=gopher://camera/1")
    assert status == 2 and "hand them to Pipeline.stream()" in errors


def test_class_names_of_a_file(predict, video_root, tmp_path):
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    names = f"dataset.class_names={tmp_path / 'names.txt'}"
    status, _, _ = predict(f"video={video_root / 'left/a.mp4'}", names, "visualize=0")
    assert status == 0
    assert {guess["name"] for guess in records(tmp_path)[0]["top"]} == {"red", "green", "blue"}
    status, _, errors = predict(f"video={video_root / 'left/a.mp4'}", names, "backbone.num_classes=2")
    assert status == 2
    assert "3 names for 2 classes" in errors


def test_a_dataset_tells_how_videos_are_read(predict, video_root):
    small = ("backbone=videomae_tiny", "visualize=0")
    for dataset in ("ssv2", "hmdb51"):
        status, _, errors = predict(f"video={video_root / 'left/b.mp4'}", f"dataset={dataset}", *small)
        assert status == 0, errors


def test_patterns(video_root, tmp_path):
    assert find_videos(f"{video_root}/*/*.mp4", [], tmp_path) == [
        str(video_root / name) for name in ("left/a.mp4", "left/b.mp4", "right/d.mp4")
    ]
    assert len(find_videos(f"{video_root}/**/*.m*", [], tmp_path)) == 5
    with pytest.raises(DataError, match="no such file or folder"):
        find_videos("", [], tmp_path)


def test_a_file_from_an_address(predict, video_root, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(video_root / "left/a.mp4", served / "a.mp4")
    shutil.copy(video_root / "left/b.mp4", served / "mit Blank & Ä %.mp4")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        status, _, errors = predict(f"video={address}/a.mp4?key=[a],b=1&y", "annotate=none")
        first = records(tmp_path)[0] if status == 0 else {}
        typed = predict(f"video={address}/mit Blank & Ä %25.mp4", "annotate=none")
        absent = predict(f"video={address}/absent.mp4", "annotate=none")
        server.shutdown()
    assert (status, first.get("num_frames")) == (0, 40), errors
    assert (tmp_path / "out/downloads/a.mp4").read_bytes() == (served / "a.mp4").read_bytes()
    assert (typed[0], records(tmp_path)[0]["num_frames"]) == (0, 12), typed[2]
    assert (tmp_path / "out/downloads/mit_Blank_.mp4").is_file()
    assert absent[0] == 2
    assert f"error: video={address}/absent.mp4: cannot be downloaded (HTTP Error 404" in absent[2]


def test_the_first_answer_is_timed_behind_a_warm_up(predict, video_root, monkeypatch):
    from video_papr.inference import predict as module

    seen = []
    real = module.classify_views

    def watched(pipeline, frames, **options):
        seen.append((len(frames), bool(frames.any())))
        return real(pipeline, frames, **options)

    monkeypatch.setattr(module, "classify_views", watched)
    assert predict(f"video={video_root / 'left'}", "views=5x3", "runtime.batch_size=4")[0] == 0
    assert seen == [(4, False), *[(15, True)] * 3]


def test_a_cluster_without_ray_is_one_line(predict, video_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, errors = predict(f"video={video_root}", "runtime.cluster=ray")
    assert status == 2
    assert errors.endswith('runtime.cluster=ray: Ray is not installed (pip install "video_papr[ray]").\n')
