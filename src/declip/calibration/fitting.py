"""The rules that calibrations follow: how many photos a rate needs, and which temperature and threshold fit masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from declip.errors import DatasetError
from declip.regions import MaskRule
from declip.spec import Calibration

__all__ = ["THRESHOLDS", "false_alarm_range", "fit_temperature", "fit_threshold", "rank_of"]

# Thresholds that `fit_threshold` is given to choose from.
THRESHOLDS = tuple(i / 10 for i in range(1, 10))

# Temperatures beyond these mean that the scores say nothing, or everything, about the masks.
_COLDEST, _HOTTEST = 0.05, 20.0
# Of a float32 score no larger logit can be read.
_LARGEST_LOGIT = 16.0


def rank_of(rate: float, photos: int) -> int:
    """Return which of the strongest untouched photos bounds a false-alarm rate, from 1.

    Raises DatasetError where so many photos support no such rate.
    """
    rank = math.floor(rate * (photos + 1) + 1e-9)
    if rank < 1:
        raise DatasetError(
            f"a false-alarm rate of {rate:g} cannot be guaranteed by {photos} untouched photos of one size; "
            f"it needs at least {math.ceil(1 / rate - 1e-9) - 1}"
        )
    return rank


def false_alarm_range(rate: float, photos: int, *, confidence: float = 0.9) -> tuple[float, float]:
    """Return the range in which the true false-alarm rate of one calibration lies: (low, high) in [0, 1].

    A calibration keeps its rate on average over calibrations. The rate of a single one is random, since its photos are:
    with rank k of n photos it follows Beta(k, n + 1 − k) (for continuous values; with ties it is lower). These are that
    distribution's quantiles with this confidence, as much left out below as above.
    Raises DatasetError for a rate below 1 / (photos + 1).
    """
    rank = rank_of(rate, photos)
    low, high = special.betaincinv(rank, photos + 1 - rank, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def fit_temperature(
    fakes: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
    used: float = 1.0,
    *,
    pixels: int = 20_000,
    seed: int = 0,
) -> float:
    """Return the temperature at which scores are closest to how often pixels are manipulated.

    fakes: (scores (H, W) in [0, 1], mask (H, W) bool) of manipulated pictures. used: the temperature of these scores.
    Minimises the mean over pictures of the mean binary cross-entropy of sigmoid(logits / temperature), on at most
    `pixels` of each picture drawn by seed. Logits are read back from the scores, up to ±16 · used: where scores were
    blended or resized they are those that would have given the result.
    Returns a temperature in (0.05, 20). Raises DatasetError without fakes, or where none in there is best: where the
    scores say nothing about the masks, their opposite, or all.
    """
    generator = np.random.default_rng(seed)
    logits, truth, weights = [], [], []
    for scores, mask in fakes:
        chosen = generator.choice(mask.size, min(pixels, mask.size), replace=False, shuffle=False)
        found = special.logit(scores.ravel()[chosen].astype(np.float64))
        logits.append(used * np.clip(found, -_LARGEST_LOGIT, _LARGEST_LOGIT))
        truth.append(mask.ravel()[chosen])
        weights.append(np.full(len(chosen), 1 / len(chosen)))
    if not logits:
        raise DatasetError(
            "fitting a temperature needs manipulated pictures with masks; expected samples labelled fake"
        )
    all_logits, share = np.concatenate(logits), np.concatenate(weights) / len(logits)
    # The cross-entropy is log(1 + exp(z)) for untouched pixels and log(1 + exp(−z)) for manipulated ones.
    signed = np.where(np.concatenate(truth), -all_logits, all_logits)

    def loss(log_temperature: float) -> float:
        return float(share @ np.logaddexp(0, signed * math.exp(-log_temperature)))

    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    best = float(optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4}).x)
    if not low + 1e-2 < best < high - 1e-2:
        raise DatasetError(
            f"no temperature in {_COLDEST:g}–{_HOTTEST:g} fits the scores of {len(logits)} manipulated pictures: they "
            "say nothing about the masks, their opposite, or all; are the masks inverted (`declip index --check`)?"
        )
    return math.exp(best)


def fit_threshold(
    fakes: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]], calibrations: Sequence[Calibration]
) -> Calibration:
    """Return that calibration, of several with different thresholds, whose masks fit known ones best (mean IoU).

    fakes: (scores (H, W) in [0, 1], mask (H, W) bool) of manipulated pictures. Raises DatasetError without any.
    """
    total, count = np.zeros(len(calibrations)), 0
    for scores, mask in fakes:
        for i, calibration in enumerate(calibrations):
            found = MaskRule(threshold=calibration.threshold, calibration=calibration).decide(scores).mask
            total[i] += (found & mask).sum() / max(1, (found | mask).sum())
        count += 1
    if not count:
        raise DatasetError("choosing a threshold needs manipulated pictures with masks")
    return calibrations[int(np.argmax(total))]
