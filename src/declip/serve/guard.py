"""The middleware around all paths: whose pages may ask, security headers, counting and logging, HEAD as GET without a
body, and unforeseen errors as problem JSON.

It is plain ASGI: nothing is buffered, and the app inside still sees when a client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from declip.serve.monitor import Monitor
from declip.serve.problems import ProblemError

__all__ = ["ACCESS", "HEADERS", "STACK", "Guard"]

# The logger of requests, one line of each at the level INFO.
ACCESS = "declip.access"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# A client that takes none of its answer for so long is cut off: the answer is held in memory.
_STALL_SECONDS = 60
_PIECE = 1 << 18
# The key of the scope under which handlers find the ExitStack that is closed when their answer has been sent.
STACK = "declip.stack"

# The longest path or address in the log of requests.
_PATH_LENGTH = 200

_log = logging.getLogger(__name__)
_access = logging.getLogger(ACCESS)


class _StalledError(Exception):
    """Raised when a client does not take its answer."""


class Guard:
    """ASGI middleware. hosts: names under which the service may be called (None = any); paths: those that are counted
    by name."""

    def __init__(self, app: ASGIApp, monitor: Monitor, hosts: Collection[str] | None, paths: Collection[str]) -> None:
        self._app = app
        self._monitor = monitor
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0
        given = scope
        if head := scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # routes know of GET alone

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            if head and "body" in message:
                message = {**message, "body": b""}
            for piece in _pieces(message):
                try:
                    async with asyncio.timeout(_STALL_SECONDS):
                        await send(piece)
                except TimeoutError as error:
                    raise _StalledError from error

        with contextlib.ExitStack() as stack:
            scope[STACK] = stack
            try:
                if (problem := self._objection(scope["method"], Headers(scope=scope))) is not None:
                    await problem.response()(scope, receive, guarded)
                else:
                    await self._app(scope, receive, guarded)
            except _StalledError:
                _log.warning("a client took none of its answer for %d s and was cut off", _STALL_SECONDS)
            except Exception as error:
                if status:
                    raise
                _log.error("unforeseen error", exc_info=error)
                await ProblemError(500, "the service failed; its log says why").response()(scope, receive, guarded)
            finally:
                path = scope["path"] if scope["path"] in self._paths else "other"
                seconds = time.perf_counter() - start
                self._monitor.requests.labels(path, str(status)).inc()
                if path == "/v1/localize":
                    self._monitor.answer_seconds.observe(seconds)
                if _access.isEnabledFor(logging.INFO):
                    _access.info("%s", _line(given, status, seconds))

    def _objection(self, method: str, headers: Headers) -> ProblemError | None:
        """Return why a request is refused at once; None if it is not.

        Any web page can make its visitor's browser call this machine: under a name of its own that it points here (DNS
        rebinding), or by posting a form. The Host header, and what the browser says of where a request comes from, show
        such calls.
        """
        host = _split(f"//{headers.get('host', '')}").hostname or ""
        if self._hosts is not None and host not in self._hosts:
            return ProblemError(
                400, f"the service is not known as {host!r}; `declip serve --allow-host NAME` lets it be"
            )
        if method not in ("GET", "HEAD") and not _is_own(headers):
            return ProblemError(403, "pages of other sites may not call this service")
        return None


def _line(scope: Scope, status: int, seconds: float) -> str:
    """Return one line on a request. It is JSON in ASCII, so no client can begin a line or reach a terminal."""
    client = scope.get("client")
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0][:_PATH_LENGTH] if client else "",
            "method": scope["method"],
            "path": scope["path"][:_PATH_LENGTH],
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
    )


def _pieces(message: Message) -> Iterator[Message]:
    """Yield a large body in pieces: a server waits for its client only between two messages."""
    body = message.get("body", b"")
    for at in range(0, len(body) - _PIECE, _PIECE):
        yield {"type": "http.response.body", "body": body[at : at + _PIECE], "more_body": True}
    last = max(0, len(body) - 1) // _PIECE * _PIECE
    yield message if last == 0 else {**message, "body": body[last:]}


def _is_own(headers: Headers) -> bool:
    """Return whether a request is not from a page of another site, as far as a browser says. Programs say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    # Of browsers that do not send it, or not to this address.
    origin = headers.get("origin")
    return origin is None or _split(origin).netloc.lower() == headers.get("host", "").lower()


def _split(url: str) -> SplitResult:
    """Take an address apart; what is none has no parts."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
