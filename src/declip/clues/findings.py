"""What a clue does, and how seldom untouched photos show as much as it finds."""

from __future__ import annotations

import importlib.resources
import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Protocol

from declip.regions import Finding, Kind, Region
from declip.results import Photo

__all__ = ["Clue", "Finding", "Kind", "facts_of", "rate_of", "scale_of", "strongest_of_untouched", "without_doubles"]


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


def scale_of(kind: Kind) -> tuple[float, float]:
    """Return the evidence that 5 % and 1 % of untouched photos reach, as a `Scale` has it; at least 1 and 2.

    Hardly an untouched photo shows any of some clues.
    """
    untouched = strongest_of_untouched(kind)
    common, rare = (untouched[-max(1, round(share * len(untouched)))] for share in (0.05, 0.01))
    common = max(common, 1.0)
    return common, max(rare, 2 * common)


def without_doubles(findings: Iterable[Finding], beside: Sequence[Finding] = ()) -> list[Finding]:
    """Return findings, the rarest first, without a part and its repetition that another clue shows.

    Of two such findings the rarer one is kept; those in `beside` go first.
    """
    kept: list[Finding] = []
    for one in sorted(findings, key=lambda finding: finding.rate):
        others = (there for there in (*beside, *kept) if there.kind != one.kind and there.parts and one.parts)
        if not any((one.mask & there.mask).sum() > 0.5 * (one.mask | there.mask).sum() for there in others):
            kept.append(one)
    return kept


def facts_of(finding: Finding, region: Region) -> dict[str, Any]:
    """Return what is known of a finding, ready for JSON. boxes: of its parts, (x0, y0, x1, y1) px, half-open."""
    known = {name: getattr(region, name) for name in ("area", "reason", "transform", "directed")}
    own = {"kind": finding.kind, "evidence": finding.evidence, "rate": finding.rate}
    return own | known | {"boxes": region.parts or (region.bbox,)}
