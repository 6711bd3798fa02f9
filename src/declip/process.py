"""What a process may use of the machine (`cores`), and what its forks cannot use and make anew (`PerProcess`)."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from declip.errors import DeclipError

__all__ = ["PerProcess", "abandon", "check_process", "cores", "cpu_quota", "ending", "prefetch", "threads"]

T = TypeVar("T")

# --- cores ----------------------------------------------------------------------------------------------------------


def cores() -> int:
    """Return how many CPUs this process may use: those it is bound to, or its container's quota rounded up if less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time per time that Linux' control groups allow this process, in CPUs; None without a limit.

    It is the smallest limit of the process' own group and those around it: cpu.max of version 2, cpu.cfs_quota_us of
    version 1. root: where /proc and /sys lie.
    """
    found = [_limit(folder) for folder in _groups(root)]
    return min((limit for limit in found if limit is not None), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process' groups, each with those around it as far as they are mounted."""
    own: dict[str, PurePosixPath] = {}  # version → path of the group
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            own["cgroup2"] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            own["cgroup"] = PurePosixPath(path)
    for line in _lines(root / "proc/self/mountinfo"):
        about, _, system = line.partition(" - ")
        fields, (kind, _, options) = about.split(" "), [*system.split(" "), "", "", ""][:3]
        if kind not in own or len(fields) < 5 or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        # A space is written as \040.
        plain = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        top, place = map(PurePosixPath, plain)
        # A container may see its own group as the top, and its path as the host has it.
        inner = own[kind].relative_to(top) if own[kind].is_relative_to(top) else PurePosixPath()
        mounted = root / place.relative_to("/")
        for part in (inner, *inner.parents):
            if ".." not in part.parts:
                yield mounted / part


def _limit(folder: Path) -> float | None:
    """Return the limit of one group, in CPUs."""
    first = next(iter(_lines(folder / "cpu.max")), "").split()
    if not first:
        first = [*_lines(folder / "cpu.cfs_quota_us")[:1], *_lines(folder / "cpu.cfs_period_us")[:1]]
    # "max" and -1 are none.
    if len(first) != 2 or not all(word.isascii() and word.isdecimal() for word in first) or int(first[1]) == 0:
        return None
    return int(first[0]) / int(first[1])


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that not every system has."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


# --- forks ----------------------------------------------------------------------------------------------------------


class PerProcess(Generic[T]):
    """Something that holds threads, locks or queues: made when it is first asked for, and again in a fork.

    A fork has a copy of the parent's objects, and only the thread that forked: work for the others would wait for ever,
    and so would whoever needs a lock that one of them held. make: is called with nothing, once in each process.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._lock = threading.Lock()
        _watch_forks()
        _ALL.add(self)

    def __call__(self) -> T:
        """Return this process' own."""
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def _forked(self) -> None:
        for one in self._made:
            # The parent's stays in the fork's memory to the end: taking it down would wait for its threads.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
        self._made = []
        self._lock = threading.Lock()


_ALL: WeakSet[PerProcess[Any]] = WeakSet()


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for one in _ALL:
        one._forked()


# The threads that all of a process shares, as many as cores, for short jobs. No job may wait for another one.
threads = PerProcess(lambda: ThreadPoolExecutor(cores(), thread_name_prefix="declip"))


@contextlib.contextmanager
def ending(made: T, end: Callable[[T], object]) -> Iterator[T]:
    """Call `end` with what was made when the `with` ends, but not in a fork, which has none of its threads.

    For generators, which a fork may go on with, or drop, in the midst of the `with`.
    """
    process = os.getpid()
    try:
        yield made
    finally:
        if os.getpid() == process:
            end(made)


def abandon(pool: Executor) -> None:
    """End a pool without waiting for its threads, for `ending`.

    Python may close a generator that was dropped in any thread, also in one that is only just starting; there, to wait
    for another thread's end is to wait for ever.
    """
    pool.shutdown(wait=False, cancel_futures=True)


def check_process(process: int, what: str) -> None:
    """Raise DeclipError if this is a fork of the process of that number, where `what` began and has its threads."""
    if os.getpid() != process:
        raise DeclipError(
            f"{what} began in process {process} and cannot go on in its fork {os.getpid()}: begin anew here"
        )


def prefetch(items: Iterator[T], pool: Executor | None = None) -> Generator[T]:
    """Yield the same items; each is made in another thread while the one before it is used.

    pool: whose thread makes them; None = a thread of their own. Raises DeclipError in a fork that goes on with what its
    parent began.
    """
    process = os.getpid()
    with contextlib.ExitStack() as stack:
        if pool is None:
            own = ThreadPoolExecutor(1, thread_name_prefix="declip-prefetch")
            pool = stack.enter_context(ending(own, abandon))
        upcoming = pool.submit(next, items, None)
        try:
            while (item := upcoming.result()) is not None:
                upcoming = pool.submit(next, items, None)
                yield item
                check_process(process, "this iteration over photos")
        finally:
            if os.getpid() == process and not upcoming.cancel():
                wait([upcoming])
