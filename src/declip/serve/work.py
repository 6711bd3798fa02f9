"""The queue of pictures, and the threads that localize them.

A request's pictures are an `Order`: it is taken as a whole or not at all, waits in one queue with those of all other
clients, and gives one `Piece` per picture. A thread takes a picture, decodes it, and, where the model looks at whole
pictures, adds those that wait for the same model, so that the network computes them together: while it is busy, the
next batch gathers. In tiled mode each photo fills the network with its own tiles. No score depends on the batch.

An order that is dropped (its client left, or its time is over) is skipped where it waits, and stopped between two
batches of tiles where it is being computed.
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip.engines import Wrapped
from declip.errors import ImageError, SpecError
from declip.images.read import read_photo
from declip.localize import outputs
from declip.localize.localizer import Localizer
from declip.results import Engine, Localization, MaskRule, Photo
from declip.serve.forms import Options, Upload
from declip.serve.limits import Limits
from declip.serve.monitor import Monitor
from declip.serve.problems import ProblemError
from declip.spec import Mode

__all__ = ["DroppedError", "Order", "Piece", "Render", "Stoppable", "Workers", "modes_of"]

# Decoded photos that wait for the network together stay below this many pixels.
_HELD_PIXELS = 16_000_000
# How long `stop` waits for a thread that is inside the network.
_STOP_SECONDS = 10

_log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """One picture's part of an answer: its row, and what was asked for beside it, by name."""

    row: dict[str, Any]
    maps: dict[str, bytes]


# What an answer shows of a result, as bytes by name; runs in the threads. May raise ProblemError.
Render = Callable[[Photo, Localization], dict[str, bytes]]


class Order:
    """The pictures of one request; futures has one Piece for each, in order."""

    def __init__(self, uploads: Sequence[Upload], options: Options, render: Render) -> None:
        self.uploads = tuple(uploads)
        self.options = options
        self.render = render
        self.futures: tuple[Future[Piece], ...] = tuple(Future() for _ in uploads)
        self._dropped = threading.Event()

    @property
    def dropped(self) -> bool:
        """Nobody waits for it any more."""
        return self._dropped.is_set()

    def drop(self) -> None:
        """Give it up: what has not begun is not computed, what has is stopped soon."""
        self._dropped.set()
        for future in self.futures:
            future.cancel()


class _Task(NamedTuple):
    order: Order
    number: int

    @property
    def upload(self) -> Upload:
        return self.order.uploads[self.number]

    @property
    def future(self) -> Future[Piece]:
        return self.order.futures[self.number]

    @property
    def key(self) -> tuple[str, Mode]:
        return self.order.options.model, self.order.options.mode


class _Decoded(NamedTuple):
    task: _Task
    photo: Photo
    seconds: float  # that reading took


class DroppedError(Exception):
    """Raised inside the network's loop when nobody waits for its result."""


class Stoppable(Wrapped):
    """An engine that stops before its next batch once `stop` says so, raising DroppedError. For one thread."""

    def __init__(self, engine: Engine, stop: Callable[[], bool] = lambda: False) -> None:
        super().__init__(engine)
        self.stop = stop

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """As `Engine.logits`."""
        if self.stop():
            raise DroppedError
        return super().logits(inputs)


def modes_of(localizer: Localizer) -> tuple[Mode, ...]:
    """The modes that a localizer's model can run in, its own first."""
    other: Mode = "whole" if localizer.mode == "tiled" else "tiled"
    if localizer.spec.traits.reads_coefficients:  # its coefficients are of the photo's own grid
        return (localizer.mode,)
    try:
        Localizer(localizer.engine, mode=other)
    except SpecError:
        return (localizer.mode,)
    return localizer.mode, other


class Workers:
    """Threads that localize orders; `submit` may be called from any thread.

    localizers: by the names of their models; the first is the default. keep: called with every picture and its result
    before it is answered; raises OSError where that fails.
    """

    def __init__(
        self,
        localizers: Mapping[str, Localizer],
        limits: Limits,
        monitor: Monitor,
        count: int,
        keep: Callable[[Photo, Localization], object] | None = None,
    ) -> None:
        if count < 1:
            raise SpecError(f"workers is {count}; expected >= 1")
        self._localizers = dict(localizers)
        self._limits = limits
        self._monitor = monitor
        self._keep = keep
        self._waiting: deque[_Task] = deque()
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = 1.0  # of a picture, lately; a first guess
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
            task.order.drop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_STOP_SECONDS)

    @property
    def alive(self) -> bool:
        """All threads run."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._waiting)

    def submit(self, order: Order) -> None:
        """Queue an order. Raises ProblemError 503 where the queue has no room for all of it, or the service stops."""
        with self._change:
            if self._stopping:
                raise ProblemError(503, "the service is stopping", retry=5)
            if len(self._waiting) + len(order.uploads) > self._limits.queue:
                raise ProblemError(
                    503, f"{len(self._waiting)} pictures wait already, as many as are taken", retry=self._patience()
                )
            self._waiting.extend(_Task(order, number) for number in range(len(order.uploads)))
            self._change.notify(len(order.uploads))

    def drop(self, order: Order) -> None:
        """Give an order up: what waits leaves the queue with its uploads, what is computed is stopped soon."""
        order.drop()
        with self._change:
            self._waiting = deque(task for task in self._waiting if task.order is not order)

    def _patience(self) -> int:
        """Seconds after which half of the queue should be done."""
        return max(1, min(60, math.ceil(len(self._waiting) * self._seconds / len(self._threads) / 2)))

    # --- in the threads -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        engines = {name: Stoppable(localizer.engine) for name, localizer in self._localizers.items()}
        while self._turn(engines):
            pass  # each turn ends before the next one waits, so that nothing of an answered request is held

    def _turn(self, engines: Mapping[str, Stoppable]) -> bool:
        """One batch; False when the service stops."""
        task = self._next()
        if task is None:
            return False
        tasks = [task]
        start = time.perf_counter()
        try:
            self._batch(tasks, engines[task.key[0]])
        except Exception as error:  # of the model or the machine: the thread lives on for the next picture
            for unanswered in (item for item in tasks if not item.future.done()):
                self._break(unanswered, error)
        self._seconds = 0.8 * self._seconds + 0.2 * (time.perf_counter() - start) / len(tasks)
        return True

    def _next(self) -> _Task | None:
        """The next picture, once there is one; None when the service stops."""
        with self._change:
            while True:
                self._change.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return None
                task = self._waiting.popleft()
                if task.future.set_running_or_notify_cancel():
                    return task

    def _another(self, key: tuple[str, Mode]) -> _Task | None:
        """The next picture for this model and mode, if one waits."""
        with self._change:
            for task in [task for task in self._waiting if task.key == key]:
                self._waiting.remove(task)
                if task.future.set_running_or_notify_cancel():
                    return task
        return None

    def _batch(self, tasks: list[_Task], engine: Stoppable) -> None:
        """Localize the one picture in tasks; tasks grows by those that are computed with it."""
        first = tasks[0]
        model, mode = first.key
        decoded = [found] if (found := self._decode(first)) else []
        while mode == "whole" and len(decoded) < self._limits.batch_size and _pixels(decoded) < _HELD_PIXELS:
            other = self._another(first.key)
            if other is None:
                break
            tasks.append(other)
            if found := self._decode(other):
                decoded.append(found)
        if not decoded:
            return
        self._monitor.batch.observe(len(decoded))
        localizer = self._localizers[model].variant(engine=engine, mode=mode)
        engine.stop = lambda: all(item.task.order.dropped for item in decoded)
        try:
            results = outputs.outcomes(localizer, [item.photo for item in decoded], self._limits.batch_size)
            for item, outcome in zip(decoded, results, strict=True):
                self._settle(item, outcome)
        finally:
            engine.stop = lambda: False

    def _decode(self, task: _Task) -> _Decoded | None:
        """The decoded picture; None, and its row, if there is none."""
        start = time.perf_counter()
        name = task.upload.name
        try:
            photo = read_photo(task.upload.data, max_pixels=self._limits.pixels, max_bytes=self._limits.request_bytes)
        except ImageError as error:
            self._refuse(task, error.kind, error.message)
            return None
        except Exception as error:
            self._break(task, error)
            return None
        return _Decoded(task, dataclasses.replace(photo, name=name), time.perf_counter() - start)

    def _settle(self, item: _Decoded, outcome: Localization | ImageError | Exception) -> None:
        """Turn the outcome of one picture into its Piece."""
        task = item.task
        if isinstance(outcome, DroppedError):
            task.future.set_exception(outcome)
        elif isinstance(outcome.__cause__ if isinstance(outcome, ImageError) else None, MemoryError):
            self._break(task, MemoryError())  # which may be of other pictures' doing
        elif isinstance(outcome, ImageError):
            self._refuse(task, outcome.kind, outcome.message)
        elif isinstance(outcome, Exception):
            self._break(task, outcome)
        elif not task.order.dropped:
            self._finish(item, outcome)
        else:
            task.future.set_exception(DroppedError())

    def _finish(self, item: _Decoded, found: Localization) -> None:
        task = item.task
        threshold = task.order.options.threshold
        rule = found.rule if threshold is None else MaskRule(threshold=threshold)
        result = dataclasses.replace(found, rule=rule, seconds=found.seconds + item.seconds)
        try:
            if self._keep is not None:
                self._keep(item.photo, result)
            piece = Piece(result.to_dict(), task.order.render(item.photo, result))
        except OSError as error:
            _log.error("cannot keep a picture", exc_info=error)
            self._refuse(task, "write", f"the service cannot keep this picture: {error.strerror or error}")
        except Exception as error:
            self._break(task, error)
        else:
            self._monitor.pictures.labels("localized").inc()
            task.future.set_result(piece)

    def _refuse(self, task: _Task, kind: str, message: str) -> None:
        self._monitor.pictures.labels(kind).inc()
        name = task.upload.name
        task.future.set_result(Piece(outputs.error_row(name, kind, f"{name}: {message}"), {}))

    def _break(self, task: _Task, error: Exception) -> None:
        """Nothing in the picture's own fault stopped it."""
        if isinstance(error, MemoryError):
            error = ProblemError(503, "there is not enough memory for this picture now; try again", retry=10)
        if isinstance(error, ProblemError):
            self._monitor.pictures.labels("overload").inc()
            task.future.set_exception(error)
            return
        _log.error("unforeseen error", exc_info=error)
        self._refuse(task, "internal", "the service could not localize it; its log says why")


def _pixels(decoded: Sequence[_Decoded]) -> int:
    return sum(item.photo.size[0] * item.photo.size[1] for item in decoded)
