"""`create_app`: the REST service as an ASGI application.

    GET  /              the page for people; the files in static/ are all it needs
    POST /v1/localize   pictures → rows and maps; see `answers` for the forms of the answer
    POST /v1/metadata   a picture → what its file says of itself
    POST /v1/report     a picture → the self-contained page of `declip report`
    GET  /v1/models     what is served, and the limits of a request
    GET  /healthz       the process answers
    GET  /readyz        it takes pictures
    GET  /metrics       for Prometheus
    GET  /docs          a description for people; /openapi.json for machines

HEAD is answered wherever GET is, with the same headers, and OPTIONS with what a path takes. Errors are problem JSON. A
token, where there is one, is needed for /v1/ and /metrics. No URL is ever fetched, there is no CORS, and nothing is
written to the disk unless `keep` says where.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jinja2
import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from declip import report
from declip._version import __version__
from declip.errors import ImageError, SpecError
from declip.images.read import read_photo
from declip.localize import outputs
from declip.localize.localizer import Localizer
from declip.models import catalog
from declip.report import metadata
from declip.results import Photo
from declip.serve import answers, forms, keeping, schemas
from declip.serve.desk import Desk, Job
from declip.serve.guard import STACK, Guard
from declip.serve.limits import Budget, Claim, Gate, Limits
from declip.serve.monitor import Monitor
from declip.serve.problems import ProblemError, status_of
from declip.serve.work import DroppedError, Order, Piece, Stoppable, Workers, modes_of

__all__ = ["Service", "create_app"]

_PATHS = (
    "/",
    "/v1/localize",
    "/v1/metadata",
    "/v1/report",
    "/v1/models",
    "/healthz",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
)
_HERE = Path(__file__).parent

_bearer = HTTPBearer(auto_error=False, description="Where the service was started with a token.")
# What may stand in a form beside its files.
_LOCALIZE_FIELDS = ("model", "mode", "threshold", "maps")
_REPORT_FIELDS = ("model", "mode", "threshold", "position")
_METADATA_FIELDS = ("position",)

T = TypeVar("T")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class Service:
    """The state of one app: its models, its threads, and what is in flight."""

    def __init__(
        self,
        localizers: Iterable[Localizer],
        limits: Limits,
        *,
        workers: int,
        token: str | None,
        keep: Path | None,
    ) -> None:
        self.localizers: dict[str, Localizer] = {}
        for localizer in localizers:
            if localizer.model in self.localizers:
                raise SpecError(f"two models are called {localizer.model}; requests choose by name: rename a file")
            self.localizers[localizer.model] = localizer
        if not self.localizers:
            raise SpecError("there is no model to serve; give at least one Localizer")
        if token is not None and not token:
            raise SpecError("the token is empty; give one of random characters, or None for no token")
        self.modes = {name: modes_of(localizer) for name, localizer in self.localizers.items()}
        self.limits = limits
        self.token = token
        self.monitor = Monitor()
        self.budget = Budget(limits.held_bytes)
        self.gate = Gate(limits)
        keeper = None if keep is None else functools.partial(keeping.keep, keep)
        self.workers = Workers(self.localizers, limits, self.monitor, workers, keep=keeper)
        # Apart from the pictures' queue, and from each other: a report takes as long as many pictures do.
        self.desks = {name: Desk(name, limits.queue) for name in ("metadata", "report")}
        self.ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()
        self.monitor.watch("requests_in_flight", "Requests taken and not yet answered.", lambda: self.gate.inside)
        self.monitor.watch("queue_pictures", "Pictures that wait.", lambda: self.workers.waiting)
        self.monitor.watch("held_bytes", "Uploads and answers in memory.", lambda: self.budget.taken)

    async def start(self) -> None:
        """Try every model once, and start the threads. Raises DeclipError where a model cannot run here."""
        self._loop = asyncio.get_running_loop()
        grey = Photo(pixels=np.full((64, 64, 3), 128, np.uint8), name="<a first try>")
        for localizer in self.localizers.values():
            await asyncio.to_thread(next, localizer.map([grey]))
        self.workers.start()
        for desk in self.desks.values():
            desk.start()
        self.ready = True

    def stop_soon(self) -> None:
        """Take nothing new; what was accepted has `drain_seconds` to be answered. Safe to call in a signal handler."""
        self.ready = False
        if self._loop is not None and not self._loop.is_closed():
            loop = self._loop
            loop.call_soon_threadsafe(lambda: loop.call_later(self.limits.drain_seconds, self._over.set))

    async def stop(self) -> None:
        """End the threads."""
        self.ready = False
        for desk in self.desks.values():
            await asyncio.to_thread(desk.stop)
        await asyncio.to_thread(self.workers.stop)

    def check(self, given: HTTPAuthorizationCredentials | None) -> None:
        """Raise ProblemError 401 unless the token is the service's, or it has none."""
        if self.token is None:
            return
        # As the bytes that came: headers are read as Latin-1.
        if given is None or not hmac.compare_digest(given.credentials.encode("latin-1"), self.token.encode()):
            header = {"WWW-Authenticate": "Bearer"}
            raise ProblemError(401, "this needs the header 'Authorization: Bearer TOKEN'", headers=header)

    async def localize(self, request: Request, body: forms.Body) -> Response:
        """Answer POST /v1/localize. Raises ProblemError, or ClientDisconnect if the client leaves."""
        kind = answers.accepted(",".join(request.headers.getlist("accept")))
        claim = self._enter(request)
        pieces = await self._pieces(request, body, kind, claim)
        failed = [piece.row for piece in pieces if "error" in piece.row]
        if len(failed) == len(pieces):
            status = status_of([row["kind"] for row in failed])
            raise ProblemError(status, _summary(failed), errors=failed, retry=10 if status == 503 else None)
        return await asyncio.to_thread(answers.answer, kind, pieces)

    async def metadata(self, request: Request, body: forms.Body) -> Response:
        """Answer POST /v1/metadata. Raises as `localize`."""
        claim = self._enter(request)
        form = await self._form(request, body, claim, _METADATA_FIELDS, files=1)
        (upload,), position = form.files, forms.parse_position(form.fields)

        def work() -> Response:
            found = metadata.read(self._photo(upload), position=position)
            assert found is not None  # it came from a file
            return answers.metadata_answer(upload.name, found)

        return await self._at_desk("metadata", request, upload.name, work, threading.Event())

    async def report(self, request: Request, body: forms.Body) -> Response:
        """Answer POST /v1/report. Raises as `localize`."""
        claim = self._enter(request)
        form = await self._form(request, body, claim, _REPORT_FIELDS, files=1)
        (upload,), position = form.files, forms.parse_position(form.fields)
        options = forms.parse_options(form.fields, self.modes)
        served, dropped = self.localizers[options.model], threading.Event()
        stoppable = Stoppable(served.engine, dropped.is_set)
        localizer = served.variant(engine=stoppable, mode=options.mode, threshold=options.threshold)

        def work() -> Response:
            found = report.examine(self._photo(upload), localizer, date=datetime.now(UTC), position=position)
            page = found.to_html().encode()
            claim.take(len(page))
            return HTMLResponse(page, headers={"Content-Disposition": 'attachment; filename="report.html"'})

        return await self._at_desk("report", request, upload.name, work, dropped)

    def _enter(self, request: Request) -> Claim:
        """Be in flight until the answer is sent. Raises ProblemError where that cannot be."""
        if not self.ready:
            raise ProblemError(503, "the service is starting or stopping", retry=5)
        stack: contextlib.ExitStack = request.scope[STACK]
        stack.enter_context(self.gate.enter(request.client.host if request.client else ""))
        return stack.enter_context(self.budget.claim())

    async def _form(
        self, request: Request, body: forms.Body, claim: Claim, fields: Sequence[str], files: int | None = None
    ) -> forms.Form:
        header = request.headers.get
        limits = self.limits if files is None else dataclasses.replace(self.limits, files=files)
        return await forms.read_form(
            body, header("content-type", ""), header("content-length", ""), limits, claim, fields
        )

    def _photo(self, upload: forms.Upload) -> Photo:
        photo = read_photo(upload.data, max_pixels=self.limits.pixels, max_bytes=self.limits.request_bytes)
        return dataclasses.replace(photo, name=upload.name)

    async def _at_desk(
        self, name: str, request: Request, picture: str, work: Callable[[], Response], dropped: threading.Event
    ) -> Response:
        """What work gives, done at one of the desks; dropped is set where nobody waits for it any more."""
        job = Job(work)
        self.desks[name].submit(job)
        try:
            (response,) = await self._wait(request, (job.future,))
        except ImageError as error:
            row = outputs.error_row(picture, error.kind, f"{picture}: {error.message}")
            raise ProblemError(status_of([error.kind]), row["error"], errors=[row]) from error
        finally:
            dropped.set()  # a no-op for what is done
            job.future.cancel()
        return response

    async def _pieces(self, request: Request, body: forms.Body, kind: answers.AnswerType, claim: Claim) -> list[Piece]:
        form = await self._form(request, body, claim, _LOCALIZE_FIELDS)
        options = forms.parse_options(form.fields, self.modes)
        maps = answers.maps_of(kind, options.maps, len(form.files))
        words = answers.words_of(self.localizers[options.model])
        order = Order(form.files, options, answers.renderer(kind, maps, claim, words))
        self.workers.submit(order)
        try:
            return await self._wait(request, order.futures)
        finally:
            self.workers.drop(order)  # a no-op for what is done

    async def _wait(self, request: Request, futures: Sequence[Future[T]]) -> list[T]:
        """What futures give, unless the client leaves first, or the time is over."""
        pieces = asyncio.gather(*map(asyncio.wrap_future, futures))
        left = asyncio.create_task(_left(request))
        over = asyncio.create_task(self._over.wait())
        try:
            done, _ = await asyncio.wait(
                (pieces, left, over), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if pieces in done:
                return pieces.result()
            if left in done:
                raise ClientDisconnect
            if over in done:
                raise ProblemError(503, "the service stops, and this was not done in time; send it again", retry=5)
            raise ProblemError(
                503,
                f"not done within {self.limits.seconds:g} s; send fewer or smaller pictures, or try again",
                retry=10,
            )
        finally:
            for waiting in (pieces, left, over):
                waiting.cancel()


async def _left(request: Request) -> None:
    """Return when the client is gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _summary(failed: list[dict[str, Any]]) -> str:
    return failed[0]["error"] if len(failed) == 1 else f"none of the {len(failed)} pictures could be localized"


def create_app(
    localizers: Localizer | Iterable[Localizer],
    limits: Limits | None = None,
    *,
    workers: int = 1,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    keep: str | Path | None = None,
) -> FastAPI:
    """Make the service of one or several models; the first is the default.

    workers: pictures computed at once, by threads that share the models. token: a bearer token that requests must
    carry; None = whoever reaches the port can use the service, so give one where that is not this machine alone.
    hosts: the names under which it may be called (None = any). keep: a folder for every picture and its maps.
    Each request is logged as one line of JSON by the logger "declip.access", at the level INFO.
    Raises SpecError for two models of one name, and for an empty token; OSError if the folder cannot be made.
    """
    limits = limits or Limits()
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)  # rather now than at the first picture
    given = (localizers,) if isinstance(localizers, Localizer) else localizers
    service = Service(given, limits, workers=workers, token=token, keep=None if keep is None else Path(keep))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="declip",
        summary="Shows where a photograph has been manipulated.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(Guard, monitor=service.monitor, hosts=hosts, paths=_PATHS)
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http)
    _add_routes(app, service)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    return app


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error.response()


async def _answer_http(request: Request, error: Exception) -> Response:
    """Answer what no route does: an unknown path, a method that a path does not have, or the question which it has."""
    assert isinstance(error, HTTPException)
    headers, detail = dict(error.headers or {}), str(error.detail)
    if error.status_code == 405:
        methods = set(headers.get("Allow", "GET").replace(" ", "").split(",")) | {"OPTIONS"}
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        if request.method == "OPTIONS":  # allows no page of another site anything: there is no CORS
            return Response(status_code=204, headers={"Allow": headers["Allow"]})
        detail = f"{request.url.path} takes {headers['Allow']}, and this is {request.method}"
    elif error.status_code == 404:
        path = request.scope["path"]
        without = path.rstrip("/")
        detail = f"there is no {path}" + (f"; {without} has no slash at its end" if without in _PATHS else "")
    return ProblemError(error.status_code, detail, headers=headers).response()


def _add_routes(app: FastAPI, service: Service) -> None:
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": schemas.ProblemBody, "content": {"application/problem+json": {}}}
        for status in (400, 401, 403, 406, 408, 413, 415, 422, 429, 500, 503)
    }

    asked = {status: problem for status, problem in problems.items() if status != 406}

    @app.post(
        "/v1/localize",
        summary="Localize manipulations in one or several pictures.",
        responses={200: {"model": schemas.Results, "content": answers.CONTENT}, **problems},
        openapi_extra={"requestBody": schemas.localize_body(list(service.localizers), service.limits.files)},
    )
    async def localize(request: Request, bearer: Bearer) -> Response:
        return await _answered(service, service.localize, request, bearer)

    @app.post(
        "/v1/metadata",
        summary="Read what the file of one picture says of itself: EXIF, software, JPEG tables, content credentials.",
        responses={200: {"model": schemas.MetadataBody}, **asked},
        openapi_extra={"requestBody": schemas.metadata_body()},
    )
    async def read_metadata(request: Request, bearer: Bearer) -> Response:
        return await _answered(service, service.metadata, request, bearer)

    @app.post(
        "/v1/report",
        summary="Examine one picture, and write a page on it to be filed: one HTML file that needs no other.",
        response_class=HTMLResponse,
        responses={200: {"content": {"text/html": {}}}, **asked},
        openapi_extra={"requestBody": schemas.report_body(list(service.localizers))},
    )
    async def write_report(request: Request, bearer: Bearer) -> Response:
        return await _answered(service, service.report, request, bearer)

    few: dict[int | str, dict[str, Any]] = {status: problems[status] for status in (400, 401, 403)}

    @app.get("/v1/models", summary="The models that are served.", responses={200: {"model": schemas.Models}, **few})
    async def models(bearer: Bearer) -> Response:
        service.check(bearer)
        return JSONResponse(_models(service))

    @app.get("/metrics", summary="For Prometheus.", responses={200: {"content": {"text/plain": {}}}, **few})
    async def metrics(bearer: Bearer) -> Response:
        service.check(bearer)
        return Response(service.monitor.text(), media_type=CONTENT_TYPE_LATEST)

    open_: dict[int | str, dict[str, Any]] = {status: problems[status] for status in (400, 403)}

    @app.get("/healthz", summary="The process answers.", responses={200: {"model": schemas.State}, **open_})
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get(
        "/readyz", summary="It takes pictures.", responses={200: {"model": schemas.State}, **open_, 503: problems[503]}
    )
    async def readyz() -> Response:
        if not (service.ready and service.workers.alive):
            raise ProblemError(503, "the service is starting or stopping", retry=5)
        return JSONResponse({"status": "ok"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_HERE / "static" / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_page(app.openapi()))


async def _answered(
    service: Service,
    answer: Callable[[Request, forms.Body], Awaitable[Response]],
    request: Request,
    bearer: HTTPAuthorizationCredentials | None,
) -> Response:
    """What answer gives, for who has the token; the rest of a body that is refused is read, not cut off."""
    body = forms.Body(request)
    try:
        service.check(bearer)
        return await answer(request, body)
    except ProblemError:
        await body.discard()
        raise
    except (ClientDisconnect, DroppedError):
        service.monitor.left.inc()
        return Response(status_code=499)  # nobody reads it


def _models(service: Service) -> dict[str, Any]:
    cards = {card.name: card for card in catalog.MODELS}
    rows: list[dict[str, Any]] = []
    for name, localizer in service.localizers.items():
        card, calibration = cards.get(name), localizer.spec.calibration
        rows.append(
            {
                "name": name,
                "sha256": localizer.sha256,
                "default": not rows,
                "modes": service.modes[name],
                "threshold": localizer.rule.threshold,
                "input_size": localizer.spec.input_size,
                "calibrated_mode": calibration.mode if calibration and any(calibration.untouched) else None,
                "verdicts": schemas.verdicts_of(calibration),
                "summary": card.summary if card else None,
                "trained_on": card.trained_on if card else None,
                "license": card.license if card else None,
            }
        )
    limits = {name: getattr(service.limits, name) for name in ("request_bytes", "files", "pixels", "seconds")}
    return {"models": rows, "limits": limits}


def _page(schema: dict[str, Any]) -> str:
    """The OpenAPI description as a page without a script."""
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    return pages.get_template("docs.html").render(schema=schema)
