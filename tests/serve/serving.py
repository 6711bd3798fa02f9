"""A service in this process, with or without a port, an engine that can be held up, and pictures."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from declip import serve
from tests.fakes import HeldEngine as FakeEngine  # noqa: F401 (for the tests)


def picture(seed: int = 0, size: tuple[int, int] = (48, 64), kind: str = "PNG") -> bytes:
    """Noise, brighter to the right; the same seed gives the same bytes."""
    noise = np.random.default_rng(seed).integers(0, 128, (*size, 3))
    ramp = np.linspace(0, 127, size[1])[None, :, None]
    stream = io.BytesIO()
    Image.fromarray((noise + ramp).astype(np.uint8)).save(stream, format=kind)
    return stream.getvalue()


@contextlib.contextmanager
def running(localizers: Any, limits: serve.Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """A client that calls a started service directly, without a port. It may be used by several threads."""
    app = serve.create_app(localizers, limits, **options)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def on_a_port(localizers: Any, limits: serve.Limits | None = None, **options: Any) -> Iterator[str]:
    """The address of a service that runs in a thread."""
    app = serve.create_app(localizers, limits, **options)
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, server_header=False, ws="none")
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        until(lambda: runner.started or not thread.is_alive())
        yield f"http://127.0.0.1:{runner.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        runner.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def leaving(client: TestClient, *pictures: bytes, path: str = "/v1/localize", share: float = 1.0) -> Iterator[None]:
    """A client that sends this share of its request, waits as long as the `with` lasts, and then hangs up."""
    request = client.build_request("POST", path, files=files(*pictures))
    body, gone = request.read(), threading.Event()
    messages = [{"type": "http.request", "body": body[: round(share * len(body))], "more_body": share < 1}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        while not gone.is_set():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        """Nobody reads the answer."""

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    assert client.portal is not None
    task = client.portal.start_task_soon(client.app, scope | {"client": ("192.0.2.1", 1)}, receive, send)
    try:
        yield
    finally:
        gone.set()
        task.result(60)


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def value(client: TestClient | httpx.Client, name: str, **headers: str) -> float:
    """A number of /metrics, 0 where it is not there yet."""
    text = client.get("/metrics", headers=headers).text
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def files(*pictures: bytes | tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """The `files` of httpx for several pictures of the field "file"."""
    named = [each if isinstance(each, tuple) else (f"{i}.png", each) for i, each in enumerate(pictures)]
    return [("file", pair) for pair in named]
