"""Many files, by several processes, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from rich.console import Console
from rich.progress import track

__all__ = ["stream"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def stream(
    function: Callable[[_In], _Out], tasks: Sequence[_In], workers: int, progress: bool, title: str
) -> Iterator[_Out]:
    """function of each task, in order, by so many processes."""
    console = Console(stderr=True)
    if workers == 1 or len(tasks) < 2:
        yield from track(map(function, tasks), title, len(tasks), console=console, disable=not progress)
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        results = executor.map(function, tasks, chunksize=8)
        yield from track(results, title, len(tasks), console=console, disable=not progress)
    finally:
        executor.shutdown(cancel_futures=True)
