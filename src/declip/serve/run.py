"""`serve`: run the service on a socket until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from declip.errors import DeclipError, SpecError
from declip.serve.guard import ACCESS
from declip.serve.service import Service

__all__ = ["LOOPBACK", "serve"]

# Names of this machine that only it can use.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

# Beside the drain of the service: time to send its answers.
_SENDING_SECONDS = 3

_log = logging.getLogger(__name__)


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    proxies: Sequence[str] = (),
    access_log: bool = False,
    started: Callable[[str], None] | None = None,
) -> None:
    """Run an app of `create_app` until SIGTERM or SIGINT; what was accepted by then is answered first.

    port 0 takes a free one. proxies: addresses, networks (10.0.0.0/8) or "*", from which X-Forwarded-For is believed:
    a client is then the address that it names. access_log: write a line of JSON on each request to stderr. started is
    called with the URL once the port is open. Returns when all is done, normally also after a signal, so that a process
    ends with 0. Main thread only. Raises OSError if the port cannot be had, SpecError for a proxy that is no address,
    DeclipError if a model cannot run here.
    """
    for proxy in proxies:
        _check_proxy(proxy)
    service: Service = app.state.service
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            # The address of a client is not what a header says, unless a proxy is known to write it.
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=int(service.limits.drain_seconds) + _SENDING_SECONDS,
        )
        server = _Server(config, service)
        # uvicorn raises a signal again when it has stopped, which would end the process by it. These handlers are
        # what it then finds; before it listens, they stop it themselves.
        before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        name = f"[{host}]" if family == socket.AF_INET6 else host
        if started is not None:
            started(f"http://{name}:{listener.getsockname()[1]}")
        try:
            with _logging(access_log):
                server.run(sockets=[listener])
        except SystemExit as error:  # uvicorn's way to say that the app could not start; its log has the reason
            raise DeclipError("the service could not start; the lines above say why") from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _check_proxy(proxy: str) -> None:
    if proxy == "*":
        return
    try:
        ipaddress.ip_network(proxy)
    except ValueError as error:
        raise SpecError(
            f"the proxy is {proxy!r}; expected an address as 127.0.0.1, a network as 10.0.0.0/8, or * for any"
        ) from error


@contextlib.contextmanager
def _logging(wanted: bool) -> Iterator[None]:
    """Write the log of requests to stderr while inside, or nowhere."""
    logger = logging.getLogger(ACCESS)
    handler = logging.StreamHandler() if wanted else logging.NullHandler()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO if wanted else logging.CRITICAL)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Server(uvicorn.Server):
    """A server that tells the service at once when to stop; uvicorn does so after the last connection is closed."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop as uvicorn does; a second SIGINT waits for nothing."""
        if not self.should_exit:
            self._service.stop_soon()
        super().handle_exit(sig, frame)
