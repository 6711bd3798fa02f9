"""What a clue does, and how seldom untouched photos show as much as it finds."""

from __future__ import annotations

import importlib.resources
import json
from bisect import bisect_left
from functools import cache
from typing import Protocol

from declip.regions import Finding, Kind
from declip.results import Photo

__all__ = ["Clue", "Finding", "Kind", "rate_of", "strongest_of_untouched"]


class Clue(Protocol):
    """Something that can be looked for in a photo without a network."""

    kind: Kind

    def examine(self, photo: Photo) -> list[Finding]:
        """Return what is found, the strongest evidence first."""
        ...


@cache
def strongest_of_untouched(kind: Kind) -> tuple[float, ...]:
    """Return the strongest evidence of each of many untouched photos, ascending; measured by tools/clues.py."""
    text = (importlib.resources.files("declip") / "assets/clues.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)[kind]["strongest"])


def rate_of(kind: Kind, evidence: float) -> float:
    """Return the share of untouched photos with as much evidence or more, in (0, 1]."""
    untouched = strongest_of_untouched(kind)
    return (len(untouched) - bisect_left(untouched, evidence) + 1) / (len(untouched) + 1)
