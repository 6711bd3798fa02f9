"""`create_app`: the REST service as an ASGI application.

    GET  /              the page for people; the files in static/ are all it needs
    POST /v1/localize   pictures → rows and maps; see `answers` for the forms of the answer
    POST /v1/metadata   a picture → what its file says of itself
    POST /v1/report     a picture → the self-contained page of `declip report`
    POST /v1/detectability   a picture → which small edits would have been found in it
    GET  /v1/models     what is served, and the limits of a request
    GET  /healthz       the process answers
    GET  /readyz        it takes pictures
    GET  /metrics       for Prometheus
    GET  /docs          a description for people; /openapi.json for machines

HEAD is answered wherever GET is, with the same headers, and OPTIONS with the methods of a path. Errors are problem
JSON. A token, where there is one, is needed for /v1/ and /metrics. No URL is ever fetched, there is no CORS, and
nothing is written to the disk unless `keep` says where.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from declip._version import __version__
from declip.errors import SpecError
from declip.localize.localizer import Localizer
from declip.models import catalog
from declip.results import check_type
from declip.serve import answers, schemas
from declip.serve.forms import describe, discard
from declip.serve.guard import Guard
from declip.serve.limits import Limits
from declip.serve.problems import ProblemError
from declip.serve.queue import DroppedError
from declip.serve.service import Service
from declip.spec import SIZE_CLASSES, Calibration

__all__ = ["create_app"]


# Counted by name in the metrics.
_PATHS = (
    *("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"),
    *("/v1/localize", "/v1/metadata", "/v1/report", "/v1/detectability", "/v1/models"),
)
_HERE = Path(__file__).parent

_bearer = HTTPBearer(auto_error=False, description="Where the service was started with a token.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Responses = dict[int | str, dict[str, Any]]


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
    check_type(limits := limits or Limits(), Limits, "serve.Limits(pixels=20_000_000)")
    if isinstance(hosts, str):
        raise SpecError(f"hosts is {hosts!r}; expected a list of names: [{hosts!r}]")
    folder = None if keep is None else Path(keep)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # an error now is better than one at the first picture
    given = localizers if isinstance(localizers, Iterable) and not isinstance(localizers, str) else (localizers,)
    service = Service(given, limits, workers=workers, token=token, keep=folder)

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
    _add_uploads(app, service)
    _add_facts(app, service)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    return app


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error.response()


async def _answer_http(request: Request, error: Exception) -> Response:
    """Answer what no route does: an unknown path, a method that a path does not have, or OPTIONS."""
    assert isinstance(error, HTTPException)
    headers, detail = dict(error.headers or {}), str(error.detail)
    if error.status_code == 405:
        methods = set(headers.get("Allow", "GET").replace(" ", "").split(",")) | {"OPTIONS"}
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        if request.method == "OPTIONS":  # allows pages of other sites nothing: there is no CORS
            return Response(status_code=204, headers={"Allow": headers["Allow"]})
        detail = f"{request.url.path} takes {headers['Allow']}, and this is {request.method}"
    elif error.status_code == 404:
        path = request.scope["path"]
        without = path.rstrip("/")
        detail = f"there is no {path}" + (f"; {without} has no slash at its end" if without in _PATHS else "")
    return ProblemError(error.status_code, detail, headers=headers).response()


def _problems(*statuses: int) -> Responses:
    """Describe these statuses for OpenAPI."""
    return {status: {"model": schemas.Problem, "content": {"application/problem+json": {}}} for status in statuses}


def _add_uploads(app: FastAPI, service: Service) -> None:
    """Add the paths that take pictures."""
    models = list(service.localizers)
    refused = _problems(400, 401, 403, 408, 413, 415, 422, 429, 500, 503)

    def taking(answer: Callable[[Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        async def endpoint(request: Request, bearer: Bearer) -> Response:
            try:
                service.check(bearer)
                return await answer(request)
            except ProblemError:
                await discard(request)  # what is left of a refused body is read, not cut off
                raise
            except (ClientDisconnect, DroppedError):
                service.monitor.left.inc()
                return Response(status_code=499)  # nobody reads it

        return endpoint

    app.post(
        "/v1/localize",
        name="localize",
        summary="Localize manipulations in one or several pictures.",
        responses={200: {"model": schemas.Results, "content": answers.CONTENT}, **refused, **_problems(406)},
        openapi_extra=describe("localize", models, service.limits.files),
    )(taking(service.localize))
    app.post(
        "/v1/metadata",
        name="read_metadata",
        summary="Read what the file of one picture says of itself: EXIF, software, JPEG tables, content credentials.",
        responses={200: {"model": schemas.MetadataBody}, **refused},
        openapi_extra=describe("metadata", models),
    )(taking(service.metadata))
    app.post(
        "/v1/report",
        name="write_report",
        summary="Examine one picture, and write a page on it to be filed: one HTML file that needs no other.",
        response_class=HTMLResponse,
        responses={200: {"content": {"text/html": {}}}, **refused},
        openapi_extra=describe("report", models),
    )(taking(service.report))
    app.post(
        "/v1/detectability",
        name="try_edits",
        summary="Put small known edits into one picture, and tell which of them are found: it is no verdict on it.",
        responses={200: {"model": schemas.DetectabilityBody}, **refused},
        openapi_extra=describe("detectability", models),
    )(taking(service.detectability))


def _add_facts(app: FastAPI, service: Service) -> None:
    """Add the paths that only tell something."""

    @app.get(
        "/v1/models",
        summary="The models that are served.",
        responses={200: {"model": schemas.Models}, **_problems(400, 401, 403)},
    )
    async def models(bearer: Bearer) -> Response:
        service.check(bearer)
        return JSONResponse(_models(service))

    @app.get(
        "/metrics",
        summary="For Prometheus.",
        responses={200: {"content": {"text/plain": {}}}, **_problems(400, 401, 403)},
    )
    async def metrics(bearer: Bearer) -> Response:
        service.check(bearer)
        return Response(service.monitor.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get(
        "/healthz", summary="The process answers.", responses={200: {"model": schemas.State}, **_problems(400, 403)}
    )
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get(
        "/readyz", summary="It takes pictures.", responses={200: {"model": schemas.State}, **_problems(400, 403, 503)}
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


def _models(service: Service) -> dict[str, Any]:
    """Return the body of /v1/models, as `schemas.Models`."""
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
                "verdicts": [] if calibration is None else _verdicts(calibration),
                **{key: getattr(card, key, None) for key in ("summary", "trained_on", "license")},
            }
        )
    told = ("request_bytes", "files", "pixels", "seconds")
    return {"models": rows, "limits": {key: getattr(service.limits, key) for key in told}}


def _verdicts(calibration: Calibration) -> list[dict[str, Any]]:
    """Tell what photos of each size are compared with, as `schemas.SizeVerdicts`."""
    return [
        {
            "size": size,
            "untouched": calibration.photos[i],
            "pieces": len(calibration.untouched[i]),
            "steps": [step._asdict() for step in calibration.steps(i)],
        }
        for i, size in enumerate(SIZE_CLASSES)
    ]


def _page(schema: dict[str, Any]) -> str:
    """Render the OpenAPI description as a page without a script."""
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    return pages.get_template("docs.html").render(schema=schema)
