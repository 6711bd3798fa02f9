"""What a model's scores mean: the calibration that is stored in its description."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from declip.spec.choices import Found, Mode, Precision, check, check_choice

__all__ = ["MODEL", "SIZE_CLASSES", "Calibration", "Scale", "Step"]

MODEL = "model"  # what the network's own evidence is called beside that of clues


class Step(NamedTuple):
    """A verdict that a part of a photo can have, and the share of untouched photos that have such a part, at most."""

    word: Found
    rate: float


class Scale(NamedTuple):
    """What evidence of one clue is worth beside that of others.

    clue: MODEL, or the kind of a clue. common, rare: evidence that 5 % and 1 % of untouched photos reach.
    """

    clue: str
    common: float
    rare: float

    def strength(self, evidence: float) -> float:
        """Return the strength of evidence: 1 at `common`, 2 at `rare`, and so on by the logarithm of the evidence.

        One number would not do: the evidence of copy-moves is spread over a hundred times what that of networks is. A
        multiple of what is common would then mean much in the one and little in the other.
        """
        if evidence <= self.common:
            return evidence / self.common
        return 1 + math.log(evidence / self.common) / math.log(self.rare / self.common)


# Photos are compared with untouched ones of their own size. Bounds in pixels: the first is of the next class already,
# the second still of its own.
SIZE_CLASSES = ("under 0.5 MP", "0.5 to 3 MP", "over 3 MP")
_MEDIUM, _LARGE = 500_000, 3_000_000
# A class in which a part of a photo would be called inconclusive more often than this gives no verdict.
_COARSEST = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What a model's scores mean, measured on photos that took no part in its training.

    temperature: divides the logits before the sigmoid (in `to_scores`).
    threshold: on scores; connected scores at or above it are a part of the map (`regions.find_parts`).
    untouched: for each of SIZE_CLASSES, the strength of the strongest part of each untouched photo, rising; 0 of a
        photo without any part. Empty where no photo of that size was at hand.
    scales: of the model and of each clue that was looked for. Without any, the model's evidence is the strength.
    saves: each photo counts with its strongest of so many copies more, each saved again once more than the one before.
    photos: for each of SIZE_CLASSES, how many photos these values come from: fewer than values where large photos were
        cut into pieces.
    rates: of "manipulated", and of "inconclusive" where there are two: the share of untouched photos that may reach it.
    mode, precision: how the photos were localized; a verdict is given only when both agree.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    untouched: tuple[tuple[float, ...], ...] = field(default=((), (), ()), repr=False)
    photos: tuple[int, ...] = (0, 0, 0)
    scales: tuple[Scale, ...] = ()
    saves: int = 0
    rates: tuple[float, ...] = (0.01, 0.05)
    mode: Mode = "whole"
    precision: Precision = "exact"

    def __post_init__(self) -> None:
        untouched = tuple(tuple(map(float, values)) for values in self.untouched)
        object.__setattr__(self, "untouched", untouched)
        object.__setattr__(self, "photos", tuple(self.photos))
        object.__setattr__(self, "rates", tuple(map(float, self.rates)))
        object.__setattr__(self, "scales", tuple(Scale(*scale) for scale in self.scales))
        check(self.temperature > 0, f"temperature is {self.temperature}; expected > 0")
        check(0 <= self.threshold <= 1, f"threshold is {self.threshold}; expected in [0, 1]")
        check(
            len(untouched) == len(self.photos) == len(SIZE_CLASSES),
            f"untouched and photos have {len(untouched)} and {len(self.photos)} classes; expected {len(SIZE_CLASSES)}",
        )
        check(all(list(values) == sorted(values) for values in untouched), "untouched is not in rising order")
        check(
            all(0 <= count <= len(values) for count, values in zip(self.photos, untouched, strict=True)),
            f"photos are {self.photos}; expected at most as many as there are values",
        )
        check(
            len(self.rates) in (1, 2) and all(0 < rate < 1 for rate in self.rates),
            f"false-alarm rates are {self.rates}; expected one or two in (0, 1)",
        )
        check(list(self.rates) == sorted(set(self.rates)), f"false-alarm rates are {self.rates}; expected rising ones")
        named = [scale.clue for scale in self.scales]
        check(not named or MODEL in named, f"scales are those of {named}; expected {MODEL!r} among them")
        check(len(set(named)) == len(named), f"scales are those of {named}; expected each once")
        for scale in self.scales:
            check(0 < scale.common < scale.rare, f"got {scale}; expected 0 < common < rare")
        check(self.saves >= 0, f"saves is {self.saves}; expected >= 0")
        check_choice(self.mode, Mode, "calibration mode")
        check_choice(self.precision, Precision, "calibration precision")

    @staticmethod
    def size_class(pixels: int) -> int:
        """Return the index into SIZE_CLASSES of a photo of so many pixels."""
        return 0 if pixels < _MEDIUM else 1 if pixels <= _LARGE else 2

    @property
    def clues(self) -> tuple[str, ...]:
        """The kinds of clues that take part in the verdict, beside the model."""
        return tuple(scale.clue for scale in self.scales if scale.clue != MODEL)

    def strength(self, clue: str, evidence: float) -> float:
        """Return how strong evidence of the model or of a clue is; 0 of a clue that takes no part."""
        if not self.scales:
            return evidence if clue == MODEL else 0.0
        return next((scale.strength(evidence) for scale in self.scales if scale.clue == clue), 0.0)

    def rank(self, strength: float, size_class: int) -> float:
        """Return the share of untouched photos that are weaker: 0.993 = stronger than 99.3 % of them.

        One further photo is counted as stronger, so that an untouched photo reaches a rank of 1 - rate with a
        probability of at most `rate` (split conformal prediction), whatever the distribution.
        """
        values = self.untouched[size_class]
        return bisect.bisect_left(values, strength) / (len(values) + 1)

    def steps(self, size_class: int) -> tuple[Step, ...]:
        """Return the verdicts that photos of this size can have, the strictest first.

        n photos support no rate below 1 / (n + 1), into however many pieces they were cut. Where that is above the rate
        of "manipulated" this word is not given; where it is above that of "inconclusive", that word stands for
        1 / (n + 1) instead, up to 10 %.
        """
        least = 1 / (self.photos[size_class] + 1)
        words = get_args(Found)[: len(self.rates)]
        steps = [Step(word, rate) for word, rate in zip(words, self.rates, strict=True) if rate >= least]
        if not steps and least <= _COARSEST:
            steps = [Step("inconclusive", least)]
        return tuple(steps)
