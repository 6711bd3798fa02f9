"""The parts of a photo that stand out, how strong the evidence of each is, and which of them are flagged.

Everything that is said of a photo rests on its parts: which of them are in the mask, and what the verdict is. Parts are
the connected ones of the model's map, and what clues point at (`Finding`). A calibration brings the evidence of both to
one scale, their strength, and says how seldom untouched photos have so strong a part, whoever found it. So nothing has
to be shared out between model and clues, and the rate that is promised holds for all of them together.

The evidence of a part is how far the logits of its scores lie above that of the threshold, on average, times the square
root of its share of the photo: a small part needs high scores, a large one may be fainter. Among the formulas that were
compared (docs/models.md) none told forged from untouched photos clearly better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from declip.errors import SpecError
from declip.spec import MODEL, Calibration, Found, ModelSpec

__all__ = [
    "MOST",
    "SMALLEST",
    "Box",
    "Decision",
    "Finding",
    "Kind",
    "MaskRule",
    "Part",
    "Parts",
    "Region",
    "Verdict",
    "box_of",
    "describe",
    "find_parts",
]

Verdict = Literal["manipulated", "inconclusive", "nothing found", "not examined"]
Kind: TypeAlias = Literal["copy-move", "exemplar-fill", "foreign-grid", "repeated-grain", "saved-once"]  # of clues
Box: TypeAlias = tuple[int, int, int, int]  # (x0, y0, x1, y1) px, half-open
# Smaller parts than this share of the photo are specks, which no list and no verdict takes into account.
SMALLEST = 1e-4
# More parts than this are not listed.
MOST = 50

_EIGHT = np.ones((3, 3), dtype=bool)
# A float32 score carries no larger logit.
_LARGEST_LOGIT = 16.0


class Part(NamedTuple):
    """An 8-connected part of a map.

    label: its number in the map of labels. bbox: (x0, y0, x1, y1) px, half-open. share: of the photo, in [0, 1].
    score: mean of its scores, in [0, 1]. evidence: mean of (logit − logit of the threshold) × √share, >= 0.
    """

    label: int
    bbox: Box
    share: float
    score: float
    evidence: float


class Parts(NamedTuple):
    """All parts of at least SMALLEST, the strongest evidence first, and the map they are in.

    labels: (H, W) int32, 0 = below the threshold; specks have labels, too.
    """

    labels: NDArray[np.int32]
    found: tuple[Part, ...]


def find_parts(scores: NDArray[np.float32], threshold: float) -> Parts:
    """Find the 8-connected parts of scores at or above a threshold. scores: (H, W) in [0, 1]."""
    above = scores >= np.float32(threshold)
    labels = np.zeros(scores.shape, np.int32)
    count = ndimage.label(above, structure=_EIGHT, output=labels)
    if count == 0:
        return Parts(labels, ())
    # Of flagged pixels only: bincount makes copies of eight bytes each.
    inside, values = labels[above], scores[above].astype(np.float64)
    height = _logit(values) - _logit(np.float64(np.float32(threshold)))
    sizes = np.bincount(inside, minlength=count + 1)[1:]
    score = np.bincount(inside, weights=values, minlength=count + 1)[1:] / sizes
    mean = np.bincount(inside, weights=height, minlength=count + 1)[1:] / sizes
    share = sizes / scores.size
    evidence = mean * np.sqrt(share)
    boxes = ndimage.find_objects(labels)
    found = []
    for i in np.argsort(-evidence, kind="stable"):
        if share[i] < SMALLEST:
            continue
        rows, columns = boxes[i]
        bbox = (columns.start, rows.start, columns.stop, rows.stop)
        found.append(Part(int(i) + 1, bbox, float(share[i]), float(score[i]), float(evidence[i])))
    return Parts(labels, tuple(found))


def _logit(scores: Any) -> Any:
    """Return logits within what a float32 score can carry."""
    return np.clip(special.logit(scores), -_LARGEST_LOGIT, _LARGEST_LOGIT)


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


# Of 1 - rate, which no binary fraction is.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRule:
    """What of a map is in the mask.

    threshold: on scores, in [0, 1]. calibration: None = all scores at or above the threshold are in the mask, and there
    is no verdict; the same goes for photos of a size that it has too few untouched ones of. Otherwise those connected
    parts of such scores are in the mask that are stronger than nearly all untouched photos of this size have, and the
    verdict is that of the strongest one.
    """

    threshold: float
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SpecError(f"threshold is {self.threshold}; expected in [0, 1], as scores are")

    @classmethod
    def of(cls, spec: ModelSpec) -> MaskRule:
        """Return a model's own rule, for photos that are localized as its calibration was made."""
        if spec.calibration is None:
            return cls(threshold=spec.threshold)
        return cls(threshold=spec.calibration.threshold, calibration=spec.calibration)

    def decide(self, scores: NDArray[np.float32], findings: Sequence[Finding] = ()) -> Decision:
        """Apply the rule to a map, (H, W) float32 in [0, 1], and to what clues found: those that the calibration knows.

        A clue that did not look takes strength away and adds none, so the rates of false alarms still hold.
        """
        labels, found = find_parts(scores, self.threshold)
        calibration, size_class = self.calibration, Calibration.size_class(scores.size)
        steps = () if calibration is None else calibration.steps(size_class)
        if calibration is None or not steps:
            largest = sorted(found, key=lambda part: -part.share)[:MOST]
            return Decision(mask=labels > 0, regions=tuple(map(_region, largest)))
        parts = [(MODEL, part.evidence, _region(part), part.label) for part in found[:MOST]]
        known = [finding for finding in findings if finding.kind in calibration.clues]
        seen = [(one.kind, one.evidence, describe(one, scores, self.threshold), one.mask) for one in known]
        mask, regions, chosen = np.zeros(labels.shape, dtype=bool), list[Region](), list[int]()
        highest = calibration.rank(0.0, size_class)
        for clue, evidence, region, place in (*parts, *seen):
            rank = calibration.rank(calibration.strength(clue, evidence), size_class)
            highest = max(highest, rank)
            word = next((step.word for step in steps if rank >= 1 - step.rate - _ROUNDING), None)
            if word is None:
                continue
            regions.append(dataclasses.replace(region, rank=rank, verdict=word))
            if isinstance(place, int):
                chosen.append(place)
            else:
                mask |= place
        if chosen:
            kept = np.zeros(int(labels.max()) + 1, dtype=bool)
            kept[chosen] = True
            mask |= kept[labels]
        regions.sort(key=lambda region: -(region.rank or 0.0))
        word = regions[0].verdict if regions else None
        return Decision(
            mask=mask,
            regions=tuple(regions),
            verdict=word or "nothing found",
            rank=highest,
            false_alarm_rate=next((step.rate for step in steps if step.word == word), steps[-1].rate),
            untouched=calibration.photos[size_class],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decision:
    """What a rule makes of a map: mask and verdict are one thing.

    mask: (H, W) bool. regions: its parts; all of them where there is a verdict, else the 50 largest of at least 0.01 %.
    verdict: None without a calibration for such a photo. rank: of the strongest part, in [0, 1). false_alarm_rate: the
    share of untouched photos that get this verdict or a stronger one; of "nothing found", that get one at all.
    untouched: with how many untouched photos this one was compared.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    regions: tuple[Region, ...] = ()
    verdict: Verdict | None = None
    rank: float | None = None
    false_alarm_rate: float | None = None
    untouched: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A part of a mask: 8-connected where the model found it, of any form where a clue did.

    bbox: (x0, y0, x1, y1) px, half-open. area: share of the photo, in [0, 1]. score: mean of the model's scores in it.
    rank: the share of untouched photos of this size whose strongest part is weaker. verdict: what that rank stands for;
    both None where the photo has no verdict.
    clue: "model", or the kind of clue that found it. reason: a sentence or two for people; None of the model, which
    knows none. parts: boxes of a part and of its repetition; transform: maps (x, y) px of the first to the second:
    (a x + b y + c, d x + e y + f) of (a, b, c, d, e, f). directed: the second is likely the copy of the first.
    """

    bbox: Box
    area: float
    score: float
    rank: float | None = None
    verdict: Found | None = None
    clue: str = MODEL
    reason: str | None = None
    parts: tuple[Box, ...] = ()
    transform: tuple[float, ...] | None = None
    directed: bool = False


def _region(part: Part) -> Region:
    return Region(bbox=part.bbox, area=part.share, score=part.score)


# A part that the model marks, and one that it leaves: at least and at most so much of it is above the threshold.
_MARKED, _LEFT = 0.5, 0.1
_EITHER = "Either may be a copy of the other."
_LIKELY = "The model marks one of them alone, so that one is likely the copy."


def describe(finding: Finding, scores: NDArray[np.float32], threshold: float) -> Region:
    """Return what a clue found as a region without a rank, with what the model's map, (H, W), says of its parts."""
    region = Region(
        bbox=box_of(finding.mask),
        area=float(finding.mask.mean()),
        score=float(scores[finding.mask].mean(dtype=np.float64)),
        clue=finding.kind,
        reason=finding.reason,
    )
    if finding.parts is None or finding.transform is None:
        return region
    one, other = (float((scores[part] >= np.float32(threshold)).mean()) for part in finding.parts)
    directed = max(one, other) >= _MARKED and min(one, other) <= _LEFT
    boxes, moved = [box_of(part) for part in finding.parts], finding.transform
    if directed and one > other:
        boxes, turn = boxes[::-1], np.linalg.inv(moved[:, :2])
        moved = np.column_stack([turn, -turn @ moved[:, 2]])
    return dataclasses.replace(
        region,
        reason=f"{finding.reason} {_LIKELY if directed else _EITHER}",
        parts=tuple(boxes),
        transform=tuple(map(float, moved.ravel())),
        directed=directed,
    )


def box_of(mask: NDArray[np.bool_]) -> Box:
    """Return the box around a mask (H, W); it must not be empty."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
