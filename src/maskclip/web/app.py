"""The service and the page as one application: its limits, its errors, its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, check_key, printable
from maskclip.data.images import TooLargeError
from maskclip.tasks.label.review import Review
from maskclip.web.answers import json_bytes, public_line
from maskclip.web.asking import DEFAULT_LIMITS, Asker, Limits
from maskclip.web.engine import BusyError, Engine
from maskclip.web.errors import ReadingRoute, request_line, unread_line
from maskclip.web.guard import Guard, local_hosts
from maskclip.web.label_studio import add_label_studio
from maskclip.web.page import add_page
from maskclip.web.reading import SlowError
from maskclip.web.review import add_review
from maskclip.web.service import add_reference, add_service
from maskclip.web.task_files import TaskFiles

_BETWEEN = 60.0  # seconds


def create_app(
    engine: Engine,
    *,
    limits: Limits = DEFAULT_LIMITS,
    key: str | None = None,
    host: str = "127.0.0.1",
    names: Collection[str] = (),
    files: TaskFiles | None = None,
    review: Review | None = None,
) -> FastAPI:
    """Return the service and the page.

    Args:
        engine: answers questions; it is stopped with the service.
        limits: what is taken, and kept.
        key: which requests must bring; None for none.
        host: the address that the service is bound to: on this machine alone, it is known by the
            names of this machine alone.
        names: further names by which it is known then, as that of a proxy before it.
        files: which files of Label Studio's tasks may be read; None for none.
        review: of a labelling, at review.html; None for none.

    Raises:
        MaskCLIPError: the key cannot be sent.
    """
    if key is not None:
        check_key(key)
    MultiPartParser.spool_max_size = limits.max_upload  # nothing of a visitor reaches the disk

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(lambda: (engine.held, photos.held)))
        yield
        sweeping.cancel()
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="maskclip",
        description="Words and images in, a label for every pixel out.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    hosts = local_hosts(host)
    app.add_middleware(
        Guard,
        key=key,
        hosts=None if hosts is None else hosts | {name.lower() for name in names},
        max_body=limits.max_upload,
        max_bodies=limits.max_uploads * limits.max_upload,
        timeout=limits.timeout,
    )
    _add_errors(app)
    app.router.route_class = ReadingRoute
    app.state.engine = engine
    asker = Asker(engine, limits)
    add_service(app, asker)
    add_label_studio(app, asker, files or TaskFiles(max_bytes=limits.max_upload))
    photos = add_page(app, asker)
    if review is not None:
        add_review(app, review)
    add_reference(app)
    static = resources.files("maskclip.web") / "static"
    app.mount("/", StaticFiles(directory=str(static), html=True), name="page")
    return app


async def _sweep(look: Callable[[], object]) -> None:
    """Look at what is kept now and then: what nobody has used for long goes, though none asks."""
    while True:
        await asyncio.sleep(_BETWEEN)
        look()


def _add_errors(app: FastAPI) -> None:
    """Let every error be one line of JSON that tells nothing of this machine."""

    def line(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
        body = json_bytes({"error": printable(text)})
        return Response(body, status, headers, media_type="application/json")

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return line(422, request_line(request, error)[:300])

    async def refused(_: Request, error: Exception) -> Response:
        return line(413 if isinstance(error, TooLargeError) else 422, public_line(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, MaskCLIPError):  # FastAPI wraps what reads a body
            return await refused(request, error.__cause__)
        unread = unread_line(error) if error.status_code == 400 else None
        if unread is not None:
            return line(400, unread[:300])
        if error.detail == HTTPStatus(error.status_code).phrase:  # of the router
            return nowhere(request)
        return line(error.status_code, str(error.detail), dict(error.headers or {}))

    def nowhere(request: Request) -> Response:
        scope = request.scope
        there = [one for one in app.routes if one.matches(scope)[0] is Match.PARTIAL]
        taken = sorted({method for one in there for method in getattr(one, "methods", None) or ()})
        if taken:
            text = f"expected {' or '.join(taken)}, got {brief(request.method)}"
            return line(405, text, {"Allow": ", ".join(taken)})
        return line(404, "nothing is here: what can be called is described at /docs")

    async def busy(_: Request, error: Exception) -> Response:
        return line(503, f"busy: {error}; try again in a moment", {"Retry-After": "2"})

    async def slow(_: Request, __: Exception) -> Response:
        return line(504, "this took too long: take a smaller photo, or fewer words")

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(MaskCLIPError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(BusyError, busy)
    app.add_exception_handler(SlowError, slow)
