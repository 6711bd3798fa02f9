"""What one request, one client and all of them together may cost."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from declip.errors import SpecError
from declip.images.read import MAX_BYTES
from declip.serve.problems import ProblemError

__all__ = ["Budget", "Gate", "Limits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the service; each is > 0.

    Of a request: `request_bytes` of its body, `files` in it, `pixels` of each picture (checked before decoding).
    Of a client (an address): `client_requests` in flight at once.
    Of all: `requests` in flight, `queue` pictures that wait, `held_bytes` of uploads and of answers in memory.
    Seconds: `upload_seconds` until a body has come, `seconds` from there to the answer, `drain_seconds` for what was
    accepted before the service was told to stop.
    `batch_size`: pictures (whole) or tiles (tiled) that the network computes at once; it changes no score.
    """

    request_bytes: int = MAX_BYTES
    files: int = 16
    pixels: int = 100_000_000  # fewer than elsewhere: memory is shared with other clients
    client_requests: int = 16
    requests: int = 64
    queue: int = 128
    held_bytes: int = 1_000_000_000
    upload_seconds: float = 60
    seconds: float = 120
    drain_seconds: float = 20
    batch_size: int = 8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise SpecError(f"the limit {field.name} is {value}; expected a number > 0")


class Budget:
    """Bytes in memory that all requests share. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes in use."""
        return self._taken

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """A share for the time of a request, empty at first; all of it is given back at the end."""
        claim = Claim(self)
        try:
            yield claim
        finally:
            claim.close()

    def _change(self, size: int) -> bool:
        with self._lock:
            if size > 0 and self._taken + size > self._size:
                return False
            self._taken += size
            return True


class Claim:
    """One request's share of a Budget. Thread-safe."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0
        self._closed = False
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Take more bytes. Raises ProblemError 503 if they are not to be had; after `close` it takes none."""
        with self._lock:
            if self._closed:
                return
            if not self._budget._change(size):
                raise ProblemError(
                    503, "the pictures of all requests together need too much memory; try again", retry=5
                )
            self._taken += size

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._closed = True
            self._budget._change(-self._taken)
            self._taken = 0


class Gate:
    """Counts the requests in flight, of all clients and of each. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._clients: Counter[str] = Counter()

    @property
    def inside(self) -> int:
        """Requests in flight."""
        return self._clients.total()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Be in flight. Raises ProblemError 429 where this client has too many requests, 503 where all have."""
        if self._clients[client] >= self._limits.client_requests:
            raise ProblemError(429, f"at most {self._limits.client_requests} requests of one client at a time", retry=1)
        if self.inside >= self._limits.requests:
            raise ProblemError(503, f"at most {self._limits.requests} requests are taken at a time; try again", retry=2)
        self._clients[client] += 1
        try:
            yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]  # or every address ever seen would be kept
