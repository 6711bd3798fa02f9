"""What scores mean, measured: image thresholds for a false-alarm rate, and a mask threshold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError

__all__ = ["image_thresholds", "mask_threshold"]

STEPS = np.round(np.arange(0.02, 0.981, 0.01), 2)


def image_thresholds(scores: Sequence[float], rates: Sequence[float] = (0.01, 0.05)) -> tuple[tuple[float, float], ...]:
    """Thresholds on the image score, one per false-alarm rate, from the scores of untouched photos.

    Split conformal: of n exchangeable untouched photos' scores the floor(rate · (n + 1))-th largest is taken, so that a
    further such photo reaches the threshold with a probability of at most `rate`, whatever the distribution.

    scores: image scores in [0, 1] of photos that took no part in the training.
    Returns (rate, threshold) with rates rising, as `Calibration.image_thresholds`.
    Raises DatasetError for a rate below 1 / (n + 1), saying how many photos it needs.
    """
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    pairs = []
    for rate in sorted(rates):
        rank = math.floor(rate * (len(ordered) + 1) + 1e-9)
        if rank < 1:
            raise DatasetError(
                f"a false-alarm rate of {rate:g} cannot be guaranteed by {len(ordered)} photos; "
                f"it needs at least {math.ceil(1 / rate) - 1}"
            )
        # Just above the score itself, so that photos of equal score do not count against the guarantee.
        pairs.append((float(rate), float(np.nextafter(ordered[rank - 1], np.inf))))
    return tuple(pairs)


def mask_threshold(
    fakes: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
    reals: Iterable[tuple[str, NDArray[np.float32]]],
    *,
    area: float = 0.02,
    share: float = 0.05,
) -> float:
    """The threshold on scores of the highest mean IoU that leaves untouched photos alone.

    fakes: (scores (H, W) in [0, 1], mask (H, W) bool) of manipulated pictures. reals: (kind, scores) of untouched
    ones, kinds such as "as they are" and "re-saved". At most `share` of each kind may have more than `area` of their
    pixels at or above the threshold.
    Returns one of 0.02, 0.03, … 0.98; the highest where none keeps the condition. Raises DatasetError without fakes.
    """
    total = np.zeros(len(STEPS))
    count = 0
    for scores, mask in fakes:
        inside, outside = _counts(scores[mask]), _counts(scores[~mask])
        total += inside / np.maximum(mask.sum() + outside, 1)
        count += 1
    if not count:
        raise DatasetError("choosing a mask threshold needs manipulated pictures with masks")
    flagged: dict[str, list[NDArray[np.bool_]]] = {}
    for kind, scores in reals:
        flagged.setdefault(kind, []).append(_counts(scores.ravel()) / scores.size > area)
    allowed = np.ones(len(STEPS), bool)
    for rows in flagged.values():
        allowed &= np.mean(rows, axis=0) <= share
    if not allowed.any():
        return float(STEPS[-1])
    return float(STEPS[np.argmax(np.where(allowed, total, -1.0))])


def _counts(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values are at or above each of STEPS."""
    ordered = np.sort(values)
    return np.asarray(len(ordered) - np.searchsorted(ordered, STEPS.astype(np.float32), side="left"), np.int64)
