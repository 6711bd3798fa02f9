"""What workers died of: so that a file that kills its process becomes a row, and not the end of the job.

A decoder can crash and a photo can exhaust the memory; then no exception is left to be caught, and the part is
computed anew by another process. From its second attempt on, a worker says what it is about to touch before it does.
Files that it died of are then computed alone, and one that it died of again is left out. For deaths before a worker is
ready there is no file to blame: `Starts` counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["Attempts", "RemoteAttempts", "Starts"]

# Deaths after which a file is left out.
_FATAL = 2


class Attempts:
    """The memory of a run, in a process of its own; places are those of files in their part."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._touched: dict[int, list[int]] = {}
        self._deaths: dict[int, Counter[int]] = {}

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


class RemoteAttempts(Attempts):
    """The same, asked through Ray. actor: of the class `Attempts`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, part: int) -> tuple[int, list[int], list[int]]:
        """As `Attempts.begin`."""
        import ray

        answer: tuple[int, list[int], list[int]] = ray.get(self._actor.begin.remote(part))
        return answer

    def touch(self, part: int, places: Sequence[int]) -> None:
        """As `Attempts.touch`; it is noted when this returns."""
        import ray

        ray.get(self._actor.touch.remote(part, list(places)))


class Starts:
    """Of the workers that have begun to start since one was last ready, how many: they are at it, or died of it; and
    how often each part was begun."""

    def __init__(self) -> None:
        self._begun = 0
        self._tries: Counter[int] = Counter()

    def begin(self) -> int:
        """One more begins; how many that makes."""
        self._begun += 1
        return self._begun

    def ready(self) -> None:
        """One is ready."""
        self._begun = 0

    def tries(self, part: int) -> int:
        """Count that a worker begins this part; return how often that was."""
        self._tries[part] += 1
        return self._tries[part]
