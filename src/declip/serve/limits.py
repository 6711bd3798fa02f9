"""What one request, one client and all of them together may use."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from declip.errors import SpecError
from declip.images.read import MAX_BYTES
from declip.serve.problems import ProblemError

__all__ = ["Budget", "Claim", "Gate", "Limits"]


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
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int | float) or not value > 0:
                raise SpecError(f"the limit {name} is {value!r}; expected a number > 0")


@dataclass(slots=True)
class Budget:
    """Bytes in memory that all requests share. taken: those in use."""

    size: int
    taken: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Claim:
    """One request's share of a Budget, empty at first; `close` gives all of it back. Thread-safe."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0
        self._closed = False

    def take(self, size: int) -> None:
        """Take more bytes. Raises ProblemError 503 if they are not to be had. After `close` nothing is taken."""
        with self._budget.lock:
            if self._closed:
                return
            if self._budget.taken + size > self._budget.size:
                message = "the pictures of all requests together need too much memory; try again"
                raise ProblemError(503, message, retry=5)
            self._budget.taken += size
            self._taken += size

    def close(self) -> None:
        """Give everything back, once."""
        with self._budget.lock:
            if not self._closed:
                self._budget.taken -= self._taken
            self._closed = True


class Gate:
    """Count the requests in flight, of all clients and of each. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._clients: Counter[str] = Counter()

    @property
    def inside(self) -> int:
        """Return how many requests are in flight."""
        return self._clients.total()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count a request. Raises ProblemError 429 where this client has too many in flight, 503 where all have."""
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
                del self._clients[client]  # otherwise every address ever seen would be kept
