"""One thread beside the workers, for what is asked of one picture at a time: its metadata, its report.

A job is a function of nothing. It is given up where nobody waits for it any more: before it begins, or inside a network
that it runs (`work.Stoppable`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from declip.serve.problems import ProblemError

__all__ = ["Desk", "Job"]

T = TypeVar("T")

# How long `stop` waits for a job that runs.
_STOP_SECONDS = 5


class Job(Generic[T]):
    """work, once, for whoever waits for its future. May raise ProblemError."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.future: Future[T] = Future()

    def run(self) -> None:
        """Settle the future, unless it is cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except Exception as error:  # told to who waits; the thread lives on for the next job
            if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
                message = "there is not enough memory for this picture now; try again"
                error = ProblemError(503, message, retry=10)
            self.future.set_exception(error)


class Desk:
    """A thread that does one job after the other. room: jobs that may wait."""

    def __init__(self, name: str, room: int) -> None:
        self._jobs: queue.Queue[Job[object] | None] = queue.Queue()
        self._room = room
        self._stopping = False
        # A daemon, as the workers: a job that cannot be stopped must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=f"declip-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    def submit(self, job: Job[T]) -> None:
        """Queue a job. Raises ProblemError 503 where there is no room, or the service stops."""
        if self._stopping:
            raise ProblemError(503, "the service is stopping", retry=5)
        if self._jobs.qsize() >= self._room:
            raise ProblemError(503, f"{self._room} pictures wait already, as many as are taken", retry=10)
        self._jobs.put(job)  # type: ignore[arg-type]  # what a job gives is its own business

    def stop(self) -> None:
        """End the thread after the job it has; what waits is cancelled."""
        self._stopping = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.future.cancel()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # nothing of an answered request is held while the next one is waited for
