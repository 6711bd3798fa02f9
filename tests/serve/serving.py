"""A service on a port of this process, an engine that can be held up, and pictures."""

from __future__ import annotations

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

from declip import serve
from declip.localize.localizer import Localizer
from declip.serve import app as app_module
from tests.fakes import HeldEngine as FakeEngine  # noqa: F401 (for the tests)


def picture(seed: int = 0, size: tuple[int, int] = (48, 64), kind: str = "PNG") -> bytes:
    """Noise, brighter to the right; the same seed gives the same bytes."""
    noise = np.random.default_rng(seed).integers(0, 128, (*size, 3))
    ramp = np.linspace(0, 127, size[1])[None, :, None]
    stream = io.BytesIO()
    Image.fromarray((noise + ramp).astype(np.uint8)).save(stream, format=kind)
    return stream.getvalue()


@contextlib.contextmanager
def running(localizers: Any, limits: serve.Limits | None = None, **options: Any) -> Iterator[httpx.Client]:
    """A client of a service that runs in a thread; `client.service` is its Service."""
    app = serve.create_app(localizers, limits, **options)
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none"
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        until(lambda: runner.started or not thread.is_alive())
        port = runner.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        runner.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def service_of(localizer: Localizer, **options: Any) -> app_module.Service:
    """The state of an app that is not started."""
    found = serve.create_app(localizer, **options).state.service
    assert isinstance(found, app_module.Service)
    return found


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def value(client: httpx.Client, name: str, **headers: str) -> float:
    """A number of /metrics, 0 where it is not there yet."""
    text = client.get("/metrics", headers=headers).text
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def files(*pictures: bytes | tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """The `files` of httpx for several pictures of the field "file"."""
    named = [each if isinstance(each, tuple) else (f"{i}.png", each) for i, each in enumerate(pictures)]
    return [("file", pair) for pair in named]
