"""The demo over HTTP: a page, its examples, and jobs. Nothing is fetched from, or told to, another machine.

GET  /                       the page
GET  /api/options            pruners, examples, limits, the model
POST /api/jobs?pruner=&keep_ratio=&name=     a video as the body, or with example= and no body -> {"job": ...}
GET  /api/jobs/JOB           its state, see jobs.Jobs.state
GET  /films/JOB              the film of what was kept
GET  /examples/NUMBER        a clip to pick
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .jobs import Jobs, QueueFullError
from .look import FILM, Looker

PAGE = Path(__file__).parent / "page"
# The browser refuses whatever comes from elsewhere, should the page ever ask for it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Example:
    """A clip to pick: what it shows, and its file."""

    title: str
    path: Path


@dataclass(frozen=True)
class Offer:
    """What the page offers.

    Attributes:
        examples: clips to pick.
        pruner, keep_ratio: chosen at first.
        about: pruner -> one sentence.
        model: what the page says about the model: `backbone`, `device`, `knows`.
        max_upload_mb: largest file that is taken.
        hosts: names by which a browser may call the server; "*": any.
    """

    examples: Sequence[Example]
    pruner: str
    keep_ratio: float
    about: Mapping[str, str]
    model: Mapping[str, Any]
    max_upload_mb: float
    hosts: Sequence[str]


def build_app(looker: Looker, jobs: Jobs, offer: Offer) -> Starlette:
    """The application, for any ASGI server."""
    desk = _Desk(looker, jobs, offer)

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
            Route("/films/{job}", desk.film),
            Route("/examples/{number:int}", desk.example),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[
            # A page elsewhere that makes its own name point to this machine is turned away.
            Middleware(TrustedHostMiddleware, allowed_hosts=list(offer.hosts)),
            Middleware(_Headers),
        ],
        lifespan=lifespan,
    )


class _Headers(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response


class _Desk:
    """The endpoints."""

    def __init__(self, looker: Looker, jobs: Jobs, offer: Offer) -> None:
        self.looker, self.jobs, self.offer = looker, jobs, offer

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def options(self, request: Request) -> Response:
        offer = self.offer
        return JSONResponse(
            {
                "pruners": [
                    {"name": name, "about": offer.about.get(name, "")} for name in self.looker.pruners
                ],
                "pruner": offer.pruner,
                "keep_ratio": offer.keep_ratio,
                "examples": [example.title for example in offer.examples],
                "max_upload_mb": offer.max_upload_mb,
                "max_seconds": self.looker.max_seconds,
                "model": dict(offer.model),
            }
        )

    async def add(self, request: Request) -> Response:
        asked = request.query_params
        pruner, number = asked.get("pruner", self.offer.pruner), asked.get("example")
        try:
            keep_ratio = float(asked.get("keep_ratio", self.offer.keep_ratio))
        except ValueError:
            return _problem(400, f"keep_ratio={asked['keep_ratio']} must be a number above 0 and at most 1.")
        try:
            self.jobs.check_room()
            folder = self.jobs.folder()
            if number is not None:
                if not number.isdecimal() or int(number) >= len(self.offer.examples):
                    shutil.rmtree(folder)
                    return _problem(404, f"There is no example {number}.")
                video = self.offer.examples[int(number)].path
            else:
                video = folder / plain_name(asked.get("name", ""))
                try:
                    problem = await self._save(request, video)
                except ClientDisconnect:
                    problem = _problem(400, "The upload broke off.")
                if problem is not None:
                    shutil.rmtree(folder)
                    return problem
            job = self.jobs.add(
                lambda folder: self.looker.look(video, pruner=pruner, keep_ratio=keep_ratio, folder=folder),
                folder,
            )
        except QueueFullError:
            return _problem(503, "Too many people are waiting. Please try again in a minute.")
        return JSONResponse({"job": job}, 202)

    async def _save(self, request: Request, path: Path) -> Response | None:
        """Writes the body as it comes; says no as soon as it is too large, whatever its header promised."""
        largest = self.offer.max_upload_mb * 2**20
        too_large = _problem(
            413, f"The file is too large: at most {self.offer.max_upload_mb:g} MB are taken."
        )
        promised = request.headers.get("content-length", "")
        if promised.isdecimal() and int(promised) > largest:
            return too_large
        received = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                received += len(chunk)
                if received > largest:
                    return too_large
                file.write(chunk)
        return None if received else _problem(400, "The file is empty.")

    async def state(self, request: Request) -> Response:
        found = self.jobs.state(request.path_params["job"])
        return (
            _problem(404, "This result is no longer kept. Please look again.")
            if found is None
            else JSONResponse(found)
        )

    async def film(self, request: Request) -> Response:
        job = request.path_params["job"]
        path = self.jobs.root / job / FILM
        if self.jobs.state(job) is None or not path.is_file():
            return _problem(404, "This film is no longer kept. Please look again.")
        return FileResponse(path, media_type="video/mp4")

    async def example(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.offer.examples):
            return _problem(404, f"There is no example {number}.")
        return FileResponse(self.offer.examples[number].path, media_type="video/mp4")


def plain_name(name: str) -> str:
    """The name of an upload as a file of its own folder: its last part, without what a file system might not take."""
    last = re.split(r"[\\/]", name)[-1]
    kept = re.sub(r"[^\w.\- ()]+", "_", last).strip(" .")[-80:]
    return kept if kept and kept != FILM else f"video_{kept}"


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)
