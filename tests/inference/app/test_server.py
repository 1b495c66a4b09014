"""The demo over HTTP: uploads, limits, the queue, and what it refuses."""

import json
import shutil
import socket
import threading
import time
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the extra [app] is not installed")
from video_papr.inference.app import server
from video_papr.inference.app.look import FILM, TABLE
from video_papr.inference.app.server import OUT, plain_name


def call(url, body=None, **headers):
    """Status, content (parsed where it is JSON), headers."""
    request = Request(url, data=body, method="POST" if body is not None else "GET", headers=headers)
    try:
        with urlopen(request, timeout=20) as reply:
            status, content, found = reply.status, reply.read(), dict(reply.headers)
    except HTTPError as error:
        status, content, found = error.code, error.read(), dict(error.headers)
    named = found.get("content-type", "")
    return status, json.loads(content) if named == "application/json" else content, found


def result(address, job):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        _, state, _ = call(f"{address}/api/jobs/{job}")
        if state["state"] in ("done", "failed"):
            return state
        time.sleep(0.02)
    raise AssertionError("no answer within 20 s")


def test_an_upload_its_files_and_the_same_again(demo_server, demo_clip):
    address, jobs = demo_server
    name = quote("../../my <clip>.mp4", safe="")
    status, said, _ = call(
        f"{address}/api/jobs?pruner=center&keep_ratio=0.5&name={name}", demo_clip.read_bytes()
    )
    assert status == 202
    state = result(address, said["job"])
    assert state["state"] == "done"
    assert (state["result"]["dense"]["tokens"], state["result"]["pruned"]["tokens"]) == (4, 2)
    assert state["result"]["video"]["name"] == "my _clip_.mp4"
    assert not state["result"]["named"]  # the weights know synthetic actions only
    assert state["result"]["command"] == (
        "video-papr predict 'video=my _clip_.mp4' pruner=center pruner.keep_ratio=0.5"
    )
    for file, kind in {FILM: "video/mp4", TABLE: "text/csv; charset=utf-8"}.items():
        status, content, headers = call(f"{address}/files/{said['job']}/{file}")
        assert (status, headers["content-type"]) == (200, kind)
        assert content == (jobs.root / said["job"] / OUT / file).read_bytes()
    again = f"{address}/api/jobs?pruner=center&keep_ratio=0.25&again={said['job']}"
    status, other, _ = call(again, b"")
    assert status == 202
    assert result(address, other["job"])["result"]["pruned"]["tokens"] == 1
    shutil.rmtree(jobs.root / said["job"])  # as if newer jobs had come
    assert (jobs.root / other["job"] / "my _clip_.mp4").read_bytes() == demo_clip.read_bytes()
    gone = {"error": "This video is no longer kept. Please choose it again."}
    for job in (said["job"], "..", "", quote("/etc", safe="")):
        assert call(f"{address}/api/jobs?again={job}", b"")[:2] == (404, gone)


def test_another_model(demo_server, looker):
    address, _ = demo_server
    status, said, _ = call(f"{address}/api/models/k400", b"")
    assert status == 202
    assert result(address, said["job"])["error"] == "it was not downloaded (no network)"
    assert call(f"{address}/api/options")[1]["model"]["synthetic"]
    status, said, _ = call(f"{address}/api/models/real", b"")
    assert result(address, said["job"])["state"] == "done"
    assert call(f"{address}/api/options")[1]["model"]["backbone"] == "large"
    _, said, _ = call(f"{address}/api/jobs?example=0", b"")
    assert not result(address, said["job"])["result"]["named"]  # and now the examples are strange
    assert call(f"{address}/api/models/x", b"")[0] == 404
    assert call(f"{address}/api/models/real")[0] == 405


def test_examples(demo_server, demo_clip):
    address, _ = demo_server
    status, content, _ = call(f"{address}/examples/1")
    assert (status, content) == (200, demo_clip.read_bytes())
    status, said, _ = call(f"{address}/api/jobs?example=1", b"")
    state = result(address, said["job"])
    assert (state["result"]["pruner"], state["result"]["keep_ratio"]) == ("motion", 0.5)
    unknown = ["/examples/2", f"/examples/{'9' * 5000}", f"/api/jobs?example={'9' * 5000}", "/nothing"]
    unknown += [
        "/files/x/film.mp4",
        "/files/..%2f../film.mp4",
        "/api/jobs/x",
        "/page/../server.py",
        "/page/x",
        "/examples/\N{BALLOT X}",
    ]
    for url in map(partial(quote, safe="/?=.%"), unknown):
        status, said, _ = call(address + url, b"" if "?" in url else None)
        assert status == 404 and set(said) == {"error"}, url
    size = len(demo_clip.read_bytes())
    for part, status in {f"bytes={size}-": 416, "bytes=9-1": 400, "lines=1": 400}.items():
        found, said, _ = call(f"{address}/examples/1", Range=part)
        assert (found, set(said)) == (status, {"error"}) and part in said["error"]
    assert call(f"{address}/examples/1", Range="bytes=1-2")[:2] == (206, demo_clip.read_bytes()[1:3])
    assert call(f"{address}/api/jobs")[0] == 405
    assert call(f"{address}/api/jobs?example=2", b"")[:2] == (404, {"error": "There is no example 2."})


def test_limits(demo_server):
    address, jobs = demo_server
    large = bytes(300_000)
    url = f"{address}/api/jobs?name=large.mp4"
    assert call(url, large)[:2] == (413, {"error": "The file is too large: at most 0.2 MB are taken."})
    # An upload in chunks promises no length.
    request = Request(url, data=iter([large[:100_000]] * 3), method="POST")
    with pytest.raises(HTTPError) as caught:
        urlopen(request, timeout=20)
    assert caught.value.code == 413
    assert call(url, b"")[:2] == (400, {"error": "The file is empty."})
    assert call(f"{url}&keep_ratio=much", b"x")[0] == 400
    too_long = quote("\U00020000" * 80)
    assert call(f"{address}/api/jobs?name={too_long}", b"x")[:2] == (
        400,
        {"error": "The file name is too long: at most 255 bytes."},
    )
    assert list(jobs.root.iterdir()) == []
    for words, reason in {
        "name=text.mp4": "text.mp4 cannot be read as a video: ",
        "name=text.mp4&keep_ratio=2": "keep_ratio=2.0 must be above 0 and at most 1",
        "name=text.mp4&pruner=best": "pruner=best is not on offer",
    }.items():
        status, said, _ = call(f"{address}/api/jobs?{words}", b"no video")
        assert status == 202
        assert result(address, said["job"])["error"].startswith(reason)
    assert list(jobs.root.iterdir()) == []


def test_a_full_queue_says_so(demo_server):
    address, jobs = demo_server
    gate = threading.Event()
    try:
        for _ in range(3):
            with jobs.arriving() as folder:
                jobs.add(lambda folder, tell: {"waited": gate.wait(20)}, folder)
        status, said, _ = call(f"{address}/api/jobs?example=0", b"")
        assert (status, said["error"]) == (503, "Too many people are waiting. Please try again in a minute.")
    finally:
        gate.set()


def test_the_page_is_whole_and_asks_nobody_else(demo_server):
    address, _ = demo_server
    status, page, headers = call(address)
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    names = [word.split('"')[1] for word in page.decode().split() if word.startswith(("href=", "src="))]
    assert names and all(name.startswith("/page/") for name in names)
    for name in names:
        status, content, _ = call(address + name)
        assert status == 200
        assert b"//" not in content.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"")


def test_pages_of_other_sites_are_turned_away(demo_server):
    address, jobs = demo_server
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[9.9]", "[::", ""):
        status, said, _ = call(address, Host=host)
        assert status == 400 and "does not go by that name" in said["error"]
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"{address}.evil.example"):
        status, said, headers = call(f"{address}/api/jobs?name=a.mp4", b"x", Origin=origin)
        assert (status, said) == (403, {"error": "A page of another site may not use this server."})
        assert "default-src 'none'" in headers["content-security-policy"]
    assert list(jobs.root.iterdir()) == []
    assert call(f"{address}/api/options", Origin=address)[0] == 200


def test_what_breaks_is_said_in_json(demo_server, monkeypatch):
    address, jobs = demo_server
    monkeypatch.setattr(jobs, "state", lambda name: {"result": float("nan")})  # which JSON cannot hold
    status, said, _ = call(f"{address}/api/jobs/x")
    assert (status, said) == (500, {"error": "Something went wrong on the server; its log says what."})


def test_an_upload_that_stalls_is_ended(demo_server, monkeypatch):
    address, jobs = demo_server
    head = b"POST /api/jobs?name=a.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nsome"
    for name, said in {
        "STALLED_SECONDS": b"The upload stalled.",
        "UPLOAD_SECONDS": b"more than 0 minutes.",
    }.items():
        with (
            monkeypatch.context() as patch,
            socket.create_connection(urlsplit(address).netloc.split(":")) as wire,
        ):
            patch.setattr(server, name, 0)
            wire.sendall(head)
            answer = wire.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408") and said in answer + wire.recv(4096)
    assert list(jobs.root.iterdir()) == []


def test_a_full_disk_is_said(demo_server, monkeypatch):
    address, jobs = demo_server
    monkeypatch.setattr(server, "plain_name", lambda name: "x" * 300)  # which the file system refuses as well
    status, said, _ = call(f"{address}/api/jobs?name=a.mp4", b"x")
    assert status == 507 and said["error"].startswith("The server cannot store the file: File name too long")
    assert list(jobs.root.iterdir()) == []


@given(st.text(max_size=200))
def test_names_of_uploads_stay_in_their_folder(name):
    plain = plain_name(name)
    assert plain and Path(plain).name == plain and plain not in (".", "..", OUT)
    assert len(plain) <= 90 and plain.isprintable()
    assert len(plain.encode()) <= 255 or len(name.encode("utf-8", "replace")) > 255
