"""Job queue of the app: one job at a time, a limited number waiting, results kept for a while."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import VideoPaprError

Task = Callable[[Path, Callable[[str], None]], dict[str, Any]]
"""(folder of the job, which is told what is being done) -> its result; what the browser fetches lies in the folder."""


class QueueFullError(Exception):
    """As many jobs are waiting, or being uploaded, as may be."""


class Jobs:
    """Runs tasks one by one in a thread, because two at once would spoil each other's timing.

    Args:
        max_waiting: jobs that may wait beside the one that runs.
        max_kept: finished jobs whose result and files are kept; the oldest go first.
    """

    def __init__(self, *, max_waiting: int, max_kept: int = 32) -> None:
        self.max_waiting, self.max_kept = max_waiting, max_kept
        self.root = Path(tempfile.mkdtemp(prefix="video_papr-demo-"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="demo")
        self._jobs: OrderedDict[str, Future[dict[str, Any]]] = OrderedDict()
        self._arriving = 0
        self._doing = ""  # of the job that runs
        self._lock = threading.Lock()

    @contextmanager
    def arriving(self) -> Iterator[Path]:
        """The folder of a job that is being put together; it is removed unless `add` took it.

        Raises QueueFullError: too many jobs are waiting or arriving.
        """
        with self._lock:
            self._check_room()
            if self._arriving > self.max_waiting:
                raise QueueFullError
            self._arriving += 1
        folder = self.root / secrets.token_urlsafe(16)  # a name that cannot be guessed
        try:
            folder.mkdir()
            yield folder
        finally:
            with self._lock:
                self._arriving -= 1
                taken = folder.name in self._jobs
            if not taken:
                shutil.rmtree(folder, ignore_errors=True)

    def add(self, task: Task, folder: Path) -> str:
        """Queues a task, and returns the job's name. `folder`: from `arriving`, with what the task needs.

        Raises QueueFullError: too many are waiting.
        """
        with self._lock:
            self._check_room()
            self._jobs[folder.name] = self._thread.submit(self._run, task, folder)
            finished = [name for name, job in self._jobs.items() if job.done()]
            for name in finished[: max(0, len(finished) - self.max_kept)]:
                del self._jobs[name]
                shutil.rmtree(self.root / name, ignore_errors=True)
        return folder.name

    def state(self, name: str) -> dict[str, Any] | None:
        """What became of a job: `state`, "waiting", "running", "done" or "failed"; None: there is no such job.

        Beside it `ahead`, how many come first, `doing`, a line, `result`, or `error`, one line.
        """
        with self._lock:
            job = self._jobs.get(name)
            names = [other for other, future in self._jobs.items() if not future.done()]
        if job is None:
            return None
        if not job.done():
            ahead = names.index(name) if name in names else 0
            return (
                {"state": "running", "doing": self._doing}
                if job.running()
                else {"state": "waiting", "ahead": ahead}
            )
        if job.cancelled():
            return None
        error = job.exception()
        if error is None:
            return {"state": "done", "result": job.result()}
        if isinstance(error, VideoPaprError):
            return {"state": "failed", "error": str(error)}
        logging.getLogger(__name__).error("a job failed", exc_info=error)
        return {"state": "failed", "error": "Something went wrong on the server; its log says what."}

    def close(self) -> None:
        """Drops what waits, lets the running job end, and removes all files."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def _check_room(self) -> None:
        waiting = sum(not job.done() for job in self._jobs.values()) - 1
        if waiting >= self.max_waiting:
            raise QueueFullError

    def _run(self, task: Task, folder: Path) -> dict[str, Any]:
        """Runs a task; when it fails, nobody will ask for its files."""
        self._doing = ""
        try:
            return task(folder, partial(setattr, self, "_doing"))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
