"""One job at a time, in order; a queue of limited length; what is old, refused or failed goes, files included."""

import threading
import time
from contextlib import ExitStack

import pytest

from video_papr.core.errors import ConfigError
from video_papr.inference.app.jobs import Jobs, QueueFullError


@pytest.fixture
def jobs():
    made = Jobs(max_waiting=2, max_kept=3)
    yield made
    made.close()
    assert not made.root.exists()


def queued(jobs, task):
    with jobs.arriving() as folder:
        return jobs.add(task, folder)


def finished(jobs, name):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        state = jobs.state(name)
        assert state is not None
        if state["state"] in ("done", "failed"):
            return state
        time.sleep(0.005)
    raise AssertionError("not finished within 10 s")


def test_one_at_a_time_in_order(jobs):
    gate, running, order = threading.Event(), [0], []

    def work(number):
        def run(folder, tell):
            running[0] += 1
            assert running[0] == 1
            tell("waiting")
            gate.wait(10)
            order.append(number)
            running[0] -= 1
            return {"number": number, "folder": folder.is_dir()}

        return run

    names = [queued(jobs, work(number)) for number in range(3)]
    while jobs.state(names[0]) != {"state": "running", "doing": "waiting"}:
        time.sleep(0.005)
    assert [jobs.state(name) for name in names[1:]] == [
        {"state": "waiting", "ahead": 1},
        {"state": "waiting", "ahead": 2},
    ]
    with pytest.raises(QueueFullError):
        queued(jobs, work(3))
    assert len(list(jobs.root.iterdir())) == 3  # what was refused left nothing
    gate.set()
    found = [finished(jobs, name) for name in names]
    assert found == [{"state": "done", "result": {"number": i, "folder": True}} for i in range(3)]
    assert order == [0, 1, 2]


def test_old_jobs_go(jobs):
    names = []
    for _ in range(6):
        names.append(queued(jobs, lambda folder, tell: {}))
        finished(jobs, names[-1])
    assert jobs.state(names[0]) is None
    assert jobs.state(names[-1]) == {"state": "done", "result": {}}
    assert not (jobs.root / names[0]).exists()
    assert len(list(jobs.root.iterdir())) <= 4  # those that are kept, and the newest


def test_errors(jobs, caplog):
    def refuse(folder, tell):
        raise ConfigError("say what is wrong")

    def break_down(folder, tell):
        raise RuntimeError("secret")

    assert finished(jobs, queued(jobs, refuse)) == {"state": "failed", "error": "say what is wrong"}
    state = finished(jobs, queued(jobs, break_down))
    assert state["state"] == "failed" and "secret" not in state["error"]
    assert "secret" in caplog.text
    assert jobs.state("nothing") is None
    assert list(jobs.root.iterdir()) == []  # nobody asks for the files of a failed job


def test_jobs_that_arrive_are_limited_and_leave_nothing(jobs):
    with ExitStack() as stack:
        folders = [stack.enter_context(jobs.arriving()) for _ in range(jobs.max_waiting + 1)]
        with pytest.raises(QueueFullError):
            stack.enter_context(jobs.arriving())
        assert sorted(jobs.root.iterdir()) == sorted(folders)
    assert list(jobs.root.iterdir()) == []
