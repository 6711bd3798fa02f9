"""Measure how well scores or a mask agree with the known mask, one picture at a time.

Pure functions of NumPy and SciPy. Masks are bool, True = manipulated, or floats in [0, 1] (soft masks), which count as
manipulated above 0.5; scores are floats of the same shape. An undefined value is nan, never 0 or 1: leave it out of a
mean, and say how many were. (Two functions follow others in this, and say so: `iou` the paper, `imdl_f1` the benchmark
that it is named after.) Values are in [0, 1].

The paper's: `iou`, `f1`, `best_f1`, `average_precision`; and `auc`. Two other figures that papers also call "F1":
`pixel_f1` and `imdl_f1`. For whole pictures, with one score and one label each, (N,): `average_precision`, `auc`,
`best_accuracy`, `equal_error_rate`.

`f1` flags scores strictly above its threshold, as the paper does. `declip evaluate` uses the mask of the result
instead, whose scores are at or above the threshold.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "auc",
    "average_precision",
    "best_accuracy",
    "best_f1",
    "confusion",
    "equal_error_rate",
    "f1",
    "imdl_f1",
    "iou",
    "pixel_f1",
]

Bools = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]

# TruFor's F1 leaves out a band around the border of the mask, where annotations are not to be trusted.
EROSION = 15
DILATION = 11


def iou(mask_pred: Bools, mask: NDArray[Any]) -> float:
    """Return the intersection over union, |A ∩ B| / |A ∪ B|. Two empty masks agree: 1, as the paper counts them.

    >>> iou(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    true, false, missed, _ = confusion(mask_pred, mask)
    return true / (true + false + missed) if true + false + missed else 1.0


def f1(scores: Scores, mask: NDArray[Any], threshold: float = 0.5) -> float:
    """Return TruFor's F1 = 2 TP / (2 TP + FP + FN) of `scores > threshold`. scores, mask: (H, W).

    Positives are the mask eroded by 15×15, negatives what lies outside the mask dilated by 11×11; the band between does
    not count. nan where the eroded mask is empty.
    """
    positives, negatives = _trufor_classes(scores, mask)
    if not positives.any():
        return math.nan
    flagged = scores > threshold
    true = np.count_nonzero(flagged & positives)
    false = np.count_nonzero(flagged & negatives)
    return 2 * true / (true + false + np.count_nonzero(positives))


def best_f1(scores: Scores, mask: NDArray[Any]) -> float:
    """Return the highest `f1` that any threshold reaches on this picture; nan where the eroded mask is empty.

    An oracle: the threshold is chosen by looking at the known mask, so nobody can reach it on a new photo. Say so
    wherever it is printed.
    """
    positives, negatives = _trufor_classes(scores, mask)
    if not positives.any():
        return math.nan
    true, false = _counts(scores[positives], scores[negatives])
    return float(np.max(2 * true / (true + false + true[0])))


def average_precision(scores: Scores, mask: NDArray[Any]) -> float:
    """Return the area under the precision–recall curve, Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores.

    Exact, no binning; equal scores enter together, as in scikit-learn. nan where the mask is empty.
    """
    known = _mask(mask)
    _check_scores(scores, known)
    if not known.any():
        return math.nan
    true, false = _counts(scores[known], scores[~known])
    gained = true - np.append(true[1:], 0)
    return float(np.sum(gained * (true / (true + false))) / true[0])


def auc(scores: Scores, mask: NDArray[Any]) -> float:
    """Return the area under the ROC curve: how often manipulated pixels score above untouched ones; ties count half.

    Exact. 0.5 is chance, and an inverted map or mask gives 1 − AUC. nan where all or none is manipulated.
    """
    known = _mask(mask)
    _check_scores(scores, known)
    positives, negatives = np.sort(scores[known]), np.sort(scores[~known])
    if not positives.size or not negatives.size:
        return math.nan
    below = np.searchsorted(negatives, positives, side="left").sum(dtype=np.float64)
    not_above = np.searchsorted(negatives, positives, side="right").sum(dtype=np.float64)
    return float((below + not_above) / 2 / positives.size / negatives.size)


def confusion(mask_pred: Bools, mask: NDArray[Any]) -> tuple[int, int, int, int]:
    """Return (true positives, false positives, false negatives, true negatives) over all pixels.

    Summed over pictures they give pixel-pooled figures, in which a large picture counts for more than a small one.
    """
    predicted, known = _mask(mask_pred), _mask(mask)
    _same_shape(predicted, known)
    true = int(np.count_nonzero(predicted & known))
    false, missed = int(np.count_nonzero(predicted)) - true, int(np.count_nonzero(known)) - true
    return true, false, missed, known.size - true - false - missed


def pixel_f1(mask_pred: Bools, mask: NDArray[Any]) -> float:
    """Return 2 TP / (2 TP + FP + FN) over all pixels, the band around the border too; nan where the mask is empty."""
    return imdl_f1(mask_pred, mask) if _mask(mask).any() else math.nan


def imdl_f1(mask_pred: Bools, mask: NDArray[Any]) -> float:
    """Return the pixel-level F1 of the benchmark IMDL-BenCo: `pixel_f1`, but 0 where the mask is empty.

    It is averaged over all pictures, so that every untouched one counts as a complete failure, whatever was flagged.
    """
    true, false, missed, _ = confusion(mask_pred, mask)
    return 2 * true / (2 * true + false + missed) if true else 0.0


def best_accuracy(scores: Scores, labels: Bools) -> float:
    """Return the highest share of right labels that any threshold on the scores reaches; nan where N is 0.

    An oracle: the threshold is chosen by looking at the labels.
    """
    missed, alarms = _errors(scores, labels)
    return float(1 - np.min(missed + alarms) / labels.size) if labels.size else math.nan


def equal_error_rate(scores: Scores, labels: Bools) -> float:
    """Return the error rate at the threshold where misses and false alarms are equally frequent.

    Between two thresholds the ROC curve is taken as straight. nan where all labels are the same.
    """
    missed, alarms = _errors(scores, labels)
    if missed[-1] == 0 or alarms[0] == 0:
        return math.nan
    misses, false_alarms = missed / missed[-1], alarms / alarms[0]
    lead = false_alarms - misses  # falls from 1 to −1
    right = int(np.argmax(lead <= 0))
    share = lead[right - 1] / (lead[right - 1] - lead[right])
    return float(misses[right - 1] + share * (misses[right] - misses[right - 1]))


def _errors(scores: Scores, labels: Bools) -> tuple[Counts, Counts]:
    """Count misses and false alarms if everything from a threshold upwards is flagged.

    The thresholds are the distinct scores, rising, and one above them all.
    """
    _check_scores(scores, labels)
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
    thresholds = np.unique(scores)
    missed = np.append(np.searchsorted(positives, thresholds, side="left"), positives.size)
    alarms = negatives.size - np.append(np.searchsorted(negatives, thresholds, side="left"), negatives.size)
    return missed, alarms


def _counts(positives: Scores, negatives: Scores) -> tuple[Counts, Counts]:
    """Count true and false positives if everything from each distinct score of the positives upwards is flagged.

    From the lowest score (all positives found) to the highest. Thresholds between these only add false positives. Two
    plain sorts: a tenth of the time of one argsort over all pixels.
    """
    positives, negatives = np.sort(positives), np.sort(negatives)
    first = np.flatnonzero(np.append(True, positives[1:] != positives[:-1]))
    true = positives.size - first
    false = negatives.size - np.searchsorted(negatives, positives[first], side="left")
    return true, false


def _trufor_classes(scores: Scores, mask: NDArray[Any]) -> tuple[Bools, Bools]:
    known = _mask(mask)
    _check_scores(scores, known)
    if known.ndim != 2:
        raise ValueError(f"the mask has shape {known.shape}; expected (H, W)")
    bits = known.view(np.uint8)
    positives = ndimage.minimum_filter(bits, EROSION).view(np.bool_)
    negatives = ndimage.maximum_filter(bits, DILATION) == 0
    return positives, negatives


def _mask(mask: NDArray[Any]) -> Bools:
    if mask.dtype == np.bool_:
        return mask
    if np.issubdtype(mask.dtype, np.floating):
        return np.asarray(mask > 0.5)
    raise ValueError(f"the mask is {mask.dtype}; expected bool, or floats in [0, 1]")


def _check_scores(scores: Scores, mask: Bools) -> None:
    _same_shape(scores, mask)
    if not np.issubdtype(scores.dtype, np.floating) or np.isnan(scores).any():
        raise ValueError(f"the scores are {scores.dtype}; expected floats, none of them nan")


def _same_shape(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes {first.shape} and {second.shape} differ; resize the scores to the mask's size first")
