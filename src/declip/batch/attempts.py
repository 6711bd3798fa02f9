"""What workers died of: so that a file that kills its process becomes a row, and not the end of the job.

A decoder can crash and a photo can exhaust the memory; then no exception is left to be caught, and the part is
computed anew by another process. From its second attempt on, a worker says what it is about to touch before it does.
Files that it died of are then computed alone, and one that it died of again is left out. For deaths before a worker is
ready there is no file to blame: they are counted, since Ray starts workers again for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

__all__ = ["Attempts", "remote"]

# Deaths after which a file is left out.
_FATAL = 2


class Attempts:
    """The memory of a run, in a process of its own; places are those of files in their part."""

    def __init__(self) -> None:
        self._starting = 0
        self._begun: Counter[int] = Counter()
        self._touched: dict[int, list[int]] = {}
        self._deaths: dict[int, Counter[int]] = {}

    def start(self) -> int:
        """Note that a worker starts; return how many have since one was last ready: they are at it, or died of it."""
        self._starting += 1
        return self._starting

    def ready(self) -> None:
        """Note that a worker is ready."""
        self._starting = 0

    def begin(self, part: int) -> tuple[int, list[int], list[int]]:
        """Begin a part; return (how often it was begun before, places to compute alone, places to leave out)."""
        before = self._begun[part]
        self._begun[part] += 1
        deaths = self._deaths.setdefault(part, Counter())
        deaths.update(self._touched.pop(part, []))
        fatal = [place for place, count in deaths.items() if count >= _FATAL]
        return before, [place for place in deaths if place not in fatal], fatal

    def touch(self, part: int, places: Sequence[int]) -> None:
        """Note that these files are about to be computed; none are, if it is empty."""
        self._touched[part] = list(places)


def remote(actor: Any) -> Any:
    """Return an `Attempts` whose methods are those of a Ray actor, and wait for its answer."""
    return SimpleNamespace(**{name: partial(_ask, actor, name) for name in ("start", "ready", "begin", "touch")})


def _ask(actor: Any, method: str, *arguments: Any) -> Any:
    import ray

    return ray.get(getattr(actor, method).remote(*arguments))
