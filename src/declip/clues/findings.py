"""What a clue finds, and how seldom untouched photos show as much."""

from __future__ import annotations

import importlib.resources
import json
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.results import Photo

__all__ = ["Clue", "Finding", "Kind", "strongest_of_untouched"]

Kind: TypeAlias = Literal["copy-move"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Finding:
    """A part of a photo that a clue points at, and why.

    mask: (H, W) bool. evidence: >= 0, in the clue's own unit. rate: share of untouched photos with as much evidence or
    more, in [0, 1], never below one in the number of photos that were measured. reason: one sentence or two for people.
    source: (H, W) bool, the part that it repeats, if there is one; transform: (2, 3) maps (x, y) px of `mask` to it.
    """

    kind: Kind
    mask: NDArray[np.bool_] = field(repr=False)
    evidence: float
    rate: float
    reason: str
    source: NDArray[np.bool_] | None = field(default=None, repr=False)
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


def turned_and_scaled(transform: NDArray[np.float64]) -> str:
    """Say in words what an affine map (2, 3) does to a part, apart from moving it; empty if nothing."""
    turn = transform[:, :2]
    words = []
    if np.linalg.det(turn) < 0:
        words.append("mirrored")
        turn = turn @ np.diag([-1.0, 1.0])
    degrees = math.degrees(math.atan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))
    scale = math.sqrt(abs(float(np.linalg.det(turn))))
    if abs(degrees) >= 2:
        words.append(f"turned by {abs(degrees):.0f}°")
    if abs(scale - 1) >= 0.03:
        words.append(f"scaled to {100 * scale:.0f} %")
    return ", ".join(words)
