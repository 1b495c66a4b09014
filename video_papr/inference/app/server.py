"""HTTP server of the app: the page, example clips and jobs. Nothing is sent to another machine, and nothing fetched
but weights, when somebody asks for them.

GET  /                       the page
GET  /api/options            pruners, examples, limits, the model
POST /api/jobs?pruner=&keep_ratio=&name=     a video as the body -> {"job": ...}; no body, but example=NUMBER or
                             again=JOB, takes an example, or the upload of another job
POST /api/models/NAME        changes the model, for everybody -> {"job": ...}
GET  /api/jobs/JOB           its state, see jobs.Jobs.state
GET  /files/JOB/NAME         the film or the table
GET  /examples/NUMBER        a clip to pick

Whatever is refused is answered with JSON, {"error": one line}.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.escape import shorten
from .jobs import Jobs, QueueFullError
from .look import FILM, TABLE, Tell
from .offer import Model, Offer

PAGE = Path(__file__).parent / "page"
# The browser refuses whatever comes from elsewhere, should the page ever ask for it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
STALLED_SECONDS = 20  # without a byte of an upload
UPLOAD_SECONDS = 600  # for a whole upload
OUT = "out"  # folder of what is made of a video, beside the upload
KINDS = {FILM: "video/mp4", TABLE: "text/csv"}
LONGEST_NAME = 255  # bytes of a file name, which no file system exceeds


def build_app(model: Model, jobs: Jobs, offer: Offer) -> Starlette:
    """The application, for any ASGI server."""
    desk = _Desk(model, jobs, offer)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        yield
        jobs.close()

    return Starlette(
        routes=[
            Route("/", desk.page),
            Route("/api/options", desk.options),
            Route("/api/jobs", desk.add, methods=["POST"]),
            Route("/api/jobs/{job}", desk.state),
            Route("/api/models/{name}", desk.change, methods=["POST"]),
            Route("/files/{job}/{name}", desk.file),
            Route("/examples/{number}", desk.example),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(_Guard, hosts=offer.hosts)],
        exception_handlers={HTTPException: _refused, QueueFullError: _full, Exception: _broken},
        lifespan=lifespan,
    )


class _Guard:
    """ASGI middleware: turns away requests that a page of another origin makes, and sets the headers of all answers."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        asked, said = Headers(scope=scope), None

        async def send_with_headers(message: Message) -> None:
            nonlocal said
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if message["status"] >= 400 and headers["content-type"].startswith("text/plain"):
                    # FileResponse writes no JSON.
                    part = shorten(asked.get("range", ""), 40)
                    said = _problem(message["status"], f"The file has no such part: Range: {part}.")
                    headers.update(said.headers)
            elif said is not None:
                message = {**message, "body": said.body}
            await send(message)

        refused = self._refuse(asked)
        await (refused or self.app)(scope, receive, send_with_headers)

    def _refuse(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = re.sub(r":\d+$", "", host).lower()
        if "*" not in self.hosts and name not in self.hosts:  # a name elsewhere that was made to point here
            return _problem(400, "This server does not go by that name; see host= of the command.")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _problem(403, "A page of another site may not use this server.")
        return None


class _Desk:
    """The endpoints."""

    def __init__(self, model: Model, jobs: Jobs, offer: Offer) -> None:
        self.model, self.jobs, self.offer = model, jobs, offer
        self.examples = {str(number): example for number, example in enumerate(offer.examples)}

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def options(self, request: Request) -> Response:
        model, offer = self.model, self.offer
        return JSONResponse(
            {
                "pruners": [
                    {"name": name, "about": model.about.get(name, "")} for name in model.looker.pruners
                ],
                "pruner": model.pruner,
                "keep_ratio": model.keep_ratio,
                "examples": [example.title for example in offer.examples],
                "models": list(offer.models),
                "max_upload_mb": offer.max_upload_mb,
                "max_seconds": model.looker.max_seconds,
                "model": dict(model.said),
            }
        )

    async def change(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.offer.models:
            return _problem(404, f"There is no model {shorten(name, 20)}.")

        def task(folder: Path, tell: Tell) -> dict[str, Any]:
            tell("Downloading, unless it is there already")
            self.model = self.offer.models[name]()
            return {}

        with self.jobs.arriving() as folder:
            return JSONResponse({"job": self.jobs.add(task, folder)}, 202)

    async def add(self, request: Request) -> Response:
        asked = request.query_params
        pruner, number, again = (
            asked.get("pruner", self.model.pruner),
            asked.get("example"),
            asked.get("again"),
        )
        try:
            keep_ratio = float(asked.get("keep_ratio", self.model.keep_ratio))
        except ValueError:
            return _problem(400, f"keep_ratio={asked['keep_ratio']} must be a number above 0 and at most 1.")
        if number is not None and number not in self.examples:
            return _problem(404, f"There is no example {shorten(number, 20)}.")
        name = asked.get("name", "")
        if len(name.encode("utf-8", "replace")) > LONGEST_NAME:
            return _problem(400, f"The file name is too long: at most {LONGEST_NAME} bytes.")
        with self.jobs.arriving() as folder:
            problem = None
            if number is not None:
                video = self.examples[number].path
            elif again is not None:
                video, problem = self._link(again, folder)
            else:
                video = folder / plain_name(name)
                problem = await self._save(request, video)
            if problem is not None:
                return problem

            def task(folder: Path, tell: Tell) -> dict[str, Any]:
                return self._look(video, pruner, keep_ratio, folder, tell)

            return JSONResponse({"job": self.jobs.add(task, folder)}, 202)

    def _look(self, video: Path, pruner: str, keep_ratio: float, folder: Path, tell: Tell) -> dict[str, Any]:
        """The answer of the model that is there when the job's turn comes."""
        model, own = self.model, video.parent == folder
        named = own != model.said["synthetic"]  # examples are synthetic
        found = model.looker.look(
            video, pruner=pruner, keep_ratio=keep_ratio, out=folder / OUT, named=named, tell=tell
        )
        words = [*model.words.get(pruner, ()), f"pruner={pruner}", f"pruner.keep_ratio={keep_ratio:g}"]
        said = f"video={video.name if own else video}"
        found["command"] = shlex.join(["video-papr", "predict", said, *words, *found.pop("words")])
        return found

    def _link(self, job: str, folder: Path) -> tuple[Path, Response | None]:
        """The upload of another job, which stays when that job's folder goes."""
        try:
            if self.jobs.state(job) is None:
                raise FileNotFoundError
            [video] = (path for path in (self.jobs.root / job).iterdir() if path.name != OUT)
            os.link(video, folder / video.name)
        except (OSError, ValueError):
            return folder, _problem(404, "This video is no longer kept. Please choose it again.")
        return folder / video.name, None

    async def _save(self, request: Request, path: Path) -> Response | None:
        """Writes the body as it comes; says no as soon as it is too large or stalls, whatever its header promised."""
        largest = self.offer.max_upload_mb * 2**20
        too_large = _problem(
            413, f"The file is too large: at most {self.offer.max_upload_mb:g} MB are taken."
        )
        promised = request.headers.get("content-length", "")
        if promised.isdecimal() and (len(promised) > 20 or int(promised) > largest):
            return too_large
        received, end = 0, monotonic() + UPLOAD_SECONDS
        chunks = request.stream()
        try:
            with path.open("wb") as file:
                while monotonic() < end:
                    chunk = await asyncio.wait_for(anext(chunks), STALLED_SECONDS)
                    received += len(chunk)
                    if received > largest:
                        return too_large
                    file.write(chunk)
        except StopAsyncIteration:
            return None if received else _problem(400, "The file is empty.")
        except (asyncio.TimeoutError, TimeoutError):
            return _problem(408, "The upload stalled.")
        except ClientDisconnect:
            return _problem(400, "The upload broke off.")
        except OSError as error:
            return _problem(507, f"The server cannot store the file: {error.strerror}.")
        return _problem(408, f"The upload took more than {UPLOAD_SECONDS / 60:g} minutes.")

    async def state(self, request: Request) -> Response:
        found = self.jobs.state(request.path_params["job"])
        return (
            _problem(404, "This result is no longer kept. Please look again.")
            if found is None
            else JSONResponse(found)
        )

    async def file(self, request: Request) -> Response:
        job, name = request.path_params["job"], request.path_params["name"]
        path = self.jobs.root / job / OUT / name
        if name not in KINDS or self.jobs.state(job) is None or not path.is_file():
            return _problem(404, "This file is no longer kept. Please look again.")
        return FileResponse(path, media_type=KINDS[name])

    async def example(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number not in self.examples:
            return _problem(404, f"There is no example {shorten(number, 20)}.")
        return FileResponse(self.examples[number].path, media_type="video/mp4")


def plain_name(name: str) -> str:
    """The name of an upload as a file of its own folder: its last part, without what a file system might not take."""
    last = re.split(r"[\\/]", name)[-1]
    kept = re.sub(r"[^\w.\- ()]+", "_", last).strip(" .")[-80:]
    return kept if kept and kept != OUT else f"video_{kept}"


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, f"{error.detail}.")


async def _full(request: Request, error: Exception) -> Response:
    return _problem(503, "Too many people are waiting. Please try again in a minute.")


async def _broken(request: Request, error: Exception) -> Response:
    return _problem(500, "Something went wrong on the server; its log says what.")
