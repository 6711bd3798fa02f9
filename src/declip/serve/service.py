"""The state of one app, and how it answers the requests that bring pictures."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials
from starlette.requests import ClientDisconnect

from declip import report
from declip.errors import ImageError, SpecError
from declip.localize.folder import error_row
from declip.localize.localizer import Localizer
from declip.report import detectability, metadata
from declip.results import Photo, check_type
from declip.serve import answers, queue
from declip.serve.forms import FIELDS, Options, Upload, parse_options, read_form
from declip.serve.guard import STACK
from declip.serve.limits import Budget, Claim, Gate, Limits
from declip.serve.monitor import Monitor
from declip.serve.problems import ProblemError, out_of_memory, status_of
from declip.spec import Mode

__all__ = ["Service"]

T = TypeVar("T")


class Service:
    """The models of one app, its threads, and its requests in flight. Arguments as for `create_app`."""

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
            check_type(localizer, Localizer, "declip.load('mini')")
            if localizer.model in self.localizers:
                raise SpecError(f"two models are called {localizer.model}; requests choose by name: rename a file")
            self.localizers[localizer.model] = localizer
        if not self.localizers:
            raise SpecError("there is no model to serve; give at least one Localizer")
        if token is not None:
            check_type(token, str, "a bearer token of random characters")
        if token is not None and not token:
            raise SpecError("the token is empty; give one of random characters, or None for no token")
        self.modes = {name: _modes_of(localizer) for name, localizer in self.localizers.items()}
        self.limits = limits
        self._one_file = dataclasses.replace(limits, files=1)
        self.token = token
        self.monitor = Monitor()
        self.budget = Budget(limits.held_bytes)
        self.gate = Gate(limits)
        self.keep = keep
        self.workers = queue.Workers(self.localizers, limits, self.monitor, workers)
        # One thread for each, beside the queue of pictures: a report takes as long as many pictures.
        self.threads = {path: ThreadPoolExecutor(1, f"declip-{path}") for path in FIELDS if path != "localize"}
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
        for thread in self.threads.values():
            thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.workers.stop)

    def check(self, given: HTTPAuthorizationCredentials | None) -> None:
        """Raise ProblemError 401 unless the token is the service's, or it has none."""
        if self.token is None:
            return
        # The server reads headers as Latin-1, so this restores the bytes that came.
        if given is None or not hmac.compare_digest(given.credentials.encode("latin-1"), self.token.encode()):
            header = {"WWW-Authenticate": "Bearer"}
            raise ProblemError(401, "this needs the header 'Authorization: Bearer TOKEN'", headers=header)

    # --- what is asked --------------------------------------------------------------------------------------------

    async def localize(self, request: Request) -> Response:
        """Answer POST /v1/localize. Raises ProblemError, or ClientDisconnect if the client leaves."""
        kind = answers.accepted(",".join(request.headers.getlist("accept")))
        files, options, claim = await self._asked(request, "localize", self.limits)
        maps = answers.maps_of(kind, options, len(files))
        localizer = self.localizers[options.model]
        render = answers.renderer(maps, claim, localizer, words=options.words, kept=self.keep)
        queued = queue.Request(files, options, render)
        self.workers.submit(queued)
        try:
            items = await self._wait(request, queued.futures)
        finally:
            self.workers.drop(queued)  # changes nothing about what is done
        failed = [item.row for item in items if "error" in item.row]
        if len(failed) == len(items):
            status = status_of([row["kind"] for row in failed])
            one = f"none of the {len(failed)} pictures could be localized"
            detail = failed[0]["error"] if len(failed) == 1 else one
            raise ProblemError(status, detail, errors=failed, retry=10 if status == 503 else None)
        return await asyncio.to_thread(answers.answer, kind, items)

    async def metadata(self, request: Request) -> Response:
        """Answer POST /v1/metadata. Raises as `localize`."""
        (file,), options, _ = await self._asked(request, "metadata", self._one_file)

        def work() -> Response:
            found = metadata.read(queue.read(file, self.limits), position=options.position)
            assert found is not None  # it came from a file
            return answers.metadata_answer(file.name, found)

        return await self._in_thread("metadata", request, file.name, work)

    async def report(self, request: Request) -> Response:
        """Answer POST /v1/report. Raises as `localize`."""

        def made(localizer: Localizer, photo: Photo, options: Options) -> Response:
            found = report.examine(photo, localizer, date=datetime.now(UTC), position=options.position)
            tested = detectability.for_report(localizer, photo, found.result)
            page = dataclasses.replace(found, detectability=tested).to_html()
            return HTMLResponse(page, headers={"Content-Disposition": 'attachment; filename="report.html"'})

        return await self._examined("report", request, made)

    async def detectability(self, request: Request) -> Response:
        """Answer POST /v1/detectability. Raises as `localize`."""

        def made(localizer: Localizer, photo: Photo, _: Options) -> Response:
            return JSONResponse(detectability.detectability(localizer, photo).to_dict())

        return await self._examined("detectability", request, made)

    async def _examined(
        self, path: str, request: Request, made: Callable[[Localizer, Photo, Options], Response]
    ) -> Response:
        """Return what is made of one picture in the thread for this path; it ends soon where nobody waits any more."""
        (file,), options, claim = await self._asked(request, path, self._one_file)
        served, dropped = self.localizers[options.model], threading.Event()
        stoppable = queue.Stoppable(served.engine, dropped.is_set)
        localizer = served.variant(engine=stoppable, mode=options.mode, threshold=options.threshold)

        def work() -> Response:
            response = made(localizer, queue.read(file, self.limits), options)
            claim.take(len(response.body))
            return response

        try:
            return await self._in_thread(path, request, file.name, work)
        finally:
            dropped.set()

    async def _asked(self, request: Request, path: str, limits: Limits) -> tuple[tuple[Upload, ...], Options, Claim]:
        """Count a request as in flight until its answer is sent, and read its form. Raises ProblemError."""
        if not self.ready:
            raise ProblemError(503, "the service is starting or stopping", retry=5)
        stack: contextlib.ExitStack = request.scope[STACK]
        stack.enter_context(self.gate.enter(request.client.host if request.client else ""))
        claim = stack.enter_context(contextlib.closing(Claim(self.budget)))
        form = await read_form(request, limits, claim, FIELDS[path])
        return form.files, parse_options(form.fields, self.modes), claim

    async def _in_thread(self, path: str, request: Request, picture: str, work: Callable[[], Response]) -> Response:
        """Return what work returns, done in the thread for this path."""
        future = self.threads[path].submit(work)
        try:
            (response,) = await self._wait(request, (future,))
            return response
        except Exception as error:
            if busy := out_of_memory(error):
                raise busy from error
            if not isinstance(error, ImageError):
                raise
            row = error_row(picture, error.kind, f"{picture}: {error.message}")
            raise ProblemError(status_of([error.kind]), row["error"], errors=[row]) from error
        finally:
            future.cancel()

    async def _wait(self, request: Request, futures: Sequence[Future[T]]) -> list[T]:
        """Return what futures give, unless the client leaves first, or the time is over."""
        results = asyncio.gather(*map(asyncio.wrap_future, futures))
        left = asyncio.create_task(_left(request))
        over = asyncio.create_task(self._over.wait())
        try:
            done, _ = await asyncio.wait(
                (results, left, over), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if results in done:
                return results.result()
            if left in done:
                raise ClientDisconnect
            if over in done:
                raise ProblemError(503, "the service stops, and this was not done in time; send it again", retry=5)
            late = f"not done within {self.limits.seconds:g} s; send fewer or smaller pictures, or try again"
            raise ProblemError(503, late, retry=10)
        finally:
            for waiting in (results, left, over):
                waiting.cancel()


async def _left(request: Request) -> None:
    """Return when the client is gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _modes_of(localizer: Localizer) -> tuple[Mode, ...]:
    """Return the modes that a localizer's model can run in, its own first."""
    other: Mode = "whole" if localizer.mode == "tiled" else "tiled"
    if localizer.spec.traits.reads_coefficients:  # its coefficients are of the photo's own grid
        return (localizer.mode,)
    try:
        Localizer(localizer.engine, mode=other)
    except SpecError:
        return (localizer.mode,)
    return localizer.mode, other
