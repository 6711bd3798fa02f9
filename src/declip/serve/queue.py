"""The queue of pictures, and the threads that localize them.

The pictures of one HTTP request are a `Request`: it is queued as a whole or not at all, waits with those of all other
clients, and gets one `Item` per picture. A thread takes a picture, decodes it, and, where the model looks at whole
pictures, adds others that wait for the same model, so that the network computes them together. In tiled mode each photo
fills the network with its own tiles. No score depends on the batch.

A request that is dropped (its client left, or its time is over) is skipped where it waits, and stopped before its next
batch of tiles where it is being computed.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.engines import Engine, Wrapped
from declip.errors import ImageError, SpecError
from declip.images.read import read_photo
from declip.localize.folder import error_row
from declip.localize.localizer import Localizer
from declip.localize.pipeline import HELD_PIXELS, Reading, compute, read_one
from declip.results import Localization, Photo
from declip.serve.forms import Options, Upload
from declip.serve.limits import Limits
from declip.serve.monitor import Monitor
from declip.serve.problems import ProblemError, out_of_memory
from declip.spec import Mode

__all__ = ["DroppedError", "Item", "Render", "Request", "Stoppable", "Workers", "read"]

# How long `stop` waits for a thread that is inside the network.
_STOP_SECONDS = 10

_log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One picture's part of an answer: its row, and the maps that were asked for, as files by name."""

    row: dict[str, Any]
    maps: dict[str, bytes]


# Makes the item of a result, inside the threads. May raise ProblemError, and ImageError for its row.
Render: TypeAlias = Callable[[Photo, Localization], Item]


class Request:
    """The pictures of one HTTP request; futures has one Item for each, in order."""

    def __init__(self, uploads: Sequence[Upload], options: Options, render: Render) -> None:
        self.uploads = tuple(uploads)
        self.options = options
        self.render = render
        self.futures: tuple[Future[Item], ...] = tuple(Future() for _ in uploads)
        self.dropped = threading.Event()  # nobody waits for it any more

    def drop(self) -> None:
        """Give it up: what has not begun is not computed, what has is stopped soon."""
        self.dropped.set()
        for future in self.futures:
            future.cancel()


def read(upload: Upload, limits: Limits) -> Photo:
    """Read an upload as a photo of its name. Raises ImageError."""
    photo = read_photo(upload.data, max_pixels=limits.pixels, max_bytes=limits.request_bytes)
    return dataclasses.replace(photo, name=upload.name)


class _Task(NamedTuple):
    """One picture of a request."""

    request: Request
    upload: Upload
    future: Future[Item]

    @property
    def key(self) -> tuple[str, Mode]:
        return self.request.options.model, self.request.options.mode


class DroppedError(Exception):
    """Raised inside the network's loop when nobody waits for its result."""


class Stoppable(Wrapped):
    """An engine that raises DroppedError before its next batch once `stop` returns True."""

    def __init__(self, engine: Engine, stop: Callable[[], bool]) -> None:
        super().__init__(engine)
        self.stop = stop

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Learn as `Engine.state`."""
        if self.stop():
            raise DroppedError
        return super().state(views)

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute as `Engine.logits`."""
        if self.stop():
            raise DroppedError
        return super().logits(inputs)


class Workers:
    """Threads that localize requests; `submit` and `drop` may be called from any thread.

    localizers: by the names of their models.
    """

    def __init__(self, localizers: Mapping[str, Localizer], limits: Limits, monitor: Monitor, count: int) -> None:
        if count < 1:
            raise SpecError(f"workers is {count}; expected >= 1")
        self._localizers = dict(localizers)
        self._limits = limits
        self._monitor = monitor
        self._waiting: deque[_Task] = deque()
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = 1.0  # that a picture took lately; at first a guess
        # Daemons: a network that cannot be stopped must not hold up the end of the process.
        self._threads = [threading.Thread(target=self._run, name=f"declip-{i}", daemon=True) for i in range(count)]

    def start(self) -> None:
        """Start the threads, once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after the picture each has; what waits is cancelled."""
        with self._change:
            self._stopping = True
            left = list(self._waiting)
            self._waiting.clear()
            self._change.notify_all()
        for task in left:
            task.request.drop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_STOP_SECONDS)

    @property
    def alive(self) -> bool:
        """Return whether all threads run."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Return how many pictures are in the queue."""
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ProblemError 503 where the queue has no room for all of it, or the service stops."""
        with self._change:
            if self._stopping:
                raise ProblemError(503, "the service is stopping", retry=5)
            if len(self._waiting) + len(request.uploads) > self._limits.queue:
                # By then half of the queue should be done.
                seconds = math.ceil(len(self._waiting) * self._seconds / len(self._threads) / 2)
                message = f"{len(self._waiting)} pictures wait already, as many as are taken"
                raise ProblemError(503, message, retry=max(1, min(60, seconds)))
            self._waiting.extend(map(_Task, [request] * len(request.uploads), request.uploads, request.futures))
            self._change.notify(len(request.uploads))

    def drop(self, request: Request) -> None:
        """Give a request up: what waits leaves the queue with its uploads, what is computed is stopped soon."""
        request.drop()
        with self._change:
            self._waiting = deque(task for task in self._waiting if task.request is not request)

    # --- inside the threads ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._turn():
            pass  # a turn ends before the next one waits, so nothing of an answered request stays in memory

    def _turn(self) -> bool:
        """Compute one batch. Return False when the service stops."""
        task = self._next()
        if task is None:
            return False
        tasks = [task]
        start = time.perf_counter()
        try:
            self._localize(tasks)
        except Exception as error:  # of the model or the machine: the thread lives on for the next picture
            for unanswered in (item for item in tasks if not item.future.done()):
                self._fail(unanswered, error)
        self._seconds = 0.8 * self._seconds + 0.2 * (time.perf_counter() - start) / len(tasks)
        return True

    def _next(self, key: tuple[str, Mode] | None = None) -> _Task | None:
        """Wait for a picture and take it; None when the service stops. With a key: one that waits for this model and
        mode, or None at once."""
        with self._change:
            while True:
                if key is None:
                    self._change.wait_for(lambda: self._waiting or self._stopping)
                task = next((task for task in self._waiting if key in (None, task.key)), None)
                if self._stopping or task is None:
                    return None
                self._waiting.remove(task)
                if task.future.set_running_or_notify_cancel():
                    return task

    def _localize(self, tasks: list[_Task]) -> None:
        """Localize the one picture in tasks, and add to tasks those that are computed with it."""
        model, mode = key = tasks[0].key
        served = self._localizers[model]
        engine = Stoppable(served.engine, lambda: all(task.request.dropped.is_set() for task in tasks))
        localizer = served.variant(engine=engine, mode=mode)
        batch: list[Reading[_Task]] = []
        task: _Task | None = tasks[0]
        while task is not None:
            batch.append(
                read_one(localizer, task, lambda task: read(task.upload, self._limits), lambda task: task.upload.name)
            )
            full = len(batch) == self._limits.batch_size or sum(one.pixels for one in batch) >= HELD_PIXELS
            task = None if mode == "tiled" or full else self._next(key)
            tasks += [task] if task else []
        if readable := sum(reading.photo is not None for reading in batch):
            self._monitor.batch.observe(readable)
        for task, photo, result in compute(localizer, batch, self._limits.batch_size):
            if isinstance(result, Exception):
                self._fail(task, result)
            elif photo is not None:
                self._finish(task, photo, result)

    def _finish(self, task: _Task, photo: Photo, result: Localization) -> None:
        threshold = task.request.options.threshold
        if threshold is not None:
            rule = self._localizers[task.request.options.model].variant(threshold=threshold).rule
            result = dataclasses.replace(result, rule=rule, findings=(), clues=())
        try:
            if task.request.dropped.is_set():
                raise DroppedError
            done = task.request.render(photo, result)
        except Exception as error:
            self._fail(task, error)
        else:
            self._monitor.pictures.labels("localized").inc()
            task.future.set_result(done)

    def _fail(self, task: _Task, error: Exception) -> None:
        """Answer a picture that has no result: by its row, or, where all of the request fails with it, by the error."""
        error = out_of_memory(error) or error
        match error:
            case DroppedError():
                task.future.set_exception(error)
                return
            case ProblemError():
                self._monitor.pictures.labels("overload").inc()
                task.future.set_exception(error)
                return
            case ImageError():
                kind, message = error.kind, error.message
            case _:  # nothing about the picture itself
                _log.error("unforeseen error", exc_info=error)
                kind, message = "internal", "the service could not localize it; its log says why"
        self._monitor.pictures.labels(kind).inc()
        name = task.upload.name
        task.future.set_result(Item(error_row(name, kind, f"{name}: {message}"), {}))
