"""The clue copy–move: parts of a photo that repeat other parts of it, with the reason in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from declip.clues.copies import Copy, find_copies
from declip.clues.findings import Finding, Kind, rate_of
from declip.results import Photo

__all__ = ["CopyMove", "findings_of"]

# Findings that more untouched photos than this show are not worth a word.
_MOST = 0.05


class CopyMove:
    """Find parts of a photo that were copied to another place of it: moved, turned, scaled by ½ to 2, or mirrored.

    Photos over 2 MP are searched at 2 MP. Copies without texture or below some 20 px are not found. Things that are
    printed or built alike can be taken for copies; the rate of a finding says how seldom.
    """

    kind: Kind = "copy-move"

    def examine(self, photo: Photo) -> list[Finding]:
        """Return the copies, the strongest evidence first: those that at most 5 % of untouched photos match."""
        return findings_of(self.kind, find_copies(photo.pixels), _reason)


def findings_of(kind: Kind, copies: Iterable[Copy], reason: Callable[[Copy], str]) -> list[Finding]:
    """Return the copies that at most 5 % of untouched photos match, each with its reason in words."""
    rates = [(copy, rate_of(kind, copy.evidence)) for copy in copies]
    return [
        Finding(
            kind=kind,
            mask=copy.mask,
            parts=(copy.one, copy.other),
            transform=copy.transform,
            evidence=copy.evidence,
            rate=rate,
            reason=reason(copy),
        )
        for copy, rate in rates
        if rate <= _MOST
    ]


def _reason(copy: Copy) -> str:
    change = _change(copy.transform)
    condition = f", if one is {change}" if change else ""
    return f"Two parts of the photo show the same: {copy.matches} details agree{condition}."


def _change(transform: NDArray[np.float64]) -> str:
    """Say in words what an affine map (2, 3) does to a part, apart from moving it; empty if nothing."""
    turn, words = transform[:, :2], []
    if np.linalg.det(turn) < 0:
        words.append("mirrored")
        turn = turn @ np.diag([-1.0, 1.0])
    degrees = abs(math.degrees(math.atan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1])))
    if degrees >= 2:
        words.append(f"turned by {degrees:.0f}°")
    scale = math.sqrt(abs(float(np.linalg.det(turn))))
    if abs(scale - 1) >= 0.03:
        words.append(f"scaled to {100 * scale:.0f} %")
    return " and ".join(words)
