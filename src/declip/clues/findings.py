"""What a clue finds, and how seldom untouched photos show as much."""

from __future__ import annotations

import importlib.resources
import json
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.results import Photo

__all__ = ["Clue", "Finding", "Kind", "rate_of", "strongest_of_untouched"]

Kind: TypeAlias = Literal["copy-move"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Finding:
    """A part of a photo that a clue points at, and why.

    mask: (H, W) bool. evidence: >= 0, in the clue's own unit. rate: share of untouched photos with as much evidence or
    more, in (0, 1], counting this photo among them. reason: one sentence or two for people.
    parts: the two parts of the mask, (H, W) bool each, if it is one part and its repetition; transform: (2, 3) float64,
    maps (x, y) px of the first to the second.
    """

    kind: Kind
    mask: NDArray[np.bool_] = field(repr=False)
    evidence: float
    rate: float
    reason: str
    parts: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = field(default=None, repr=False)
    transform: NDArray[np.float64] | None = field(default=None, repr=False)


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
