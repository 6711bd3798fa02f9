"""Thresholds: the guarantee they give, and the condition they keep."""

from __future__ import annotations

import numpy as np
import pytest

from declip import calibration, metrics
from declip.errors import DatasetError


def test_image_thresholds_take_the_conformal_rank() -> None:
    scores = np.arange(1, 100) / 100  # 99 photos: 1 % is the largest score, 5 % the fifth largest
    (one, at_one), (five, at_five) = calibration.image_thresholds(scores, (0.05, 0.01))
    assert (one, five) == (0.01, 0.05)
    assert at_one == np.nextafter(0.99, 1)
    assert at_five == np.nextafter(0.95, 1)


def test_a_rate_too_small_for_the_photos_is_refused() -> None:
    with pytest.raises(DatasetError, match="needs at least 99"):
        calibration.image_thresholds(np.linspace(0, 1, 98), (0.01,))


def test_the_false_alarm_rate_is_kept_over_200_splits() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        scores = np.round(rng.beta(1, 8, 400), 2)  # with many ties
        ((_, threshold),) = calibration.image_thresholds(scores[:170], (0.05,))
        rates.append(np.mean(scores[170:] >= threshold))
    # Guaranteed is the mean, and that within its own uncertainty.
    assert np.mean(rates) <= 0.05 + 2 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) > 0.01


def test_mask_threshold_is_the_best_mean_iou() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(3):
        mask = rng.random((40, 50)) < 0.3
        scores = np.clip(0.35 * mask + 0.5 * rng.random(mask.shape), 0, 1).astype(np.float32)
        pairs.append((scores, mask))
    best = max(calibration.STEPS, key=lambda t: np.mean([metrics.iou(s >= np.float32(t), m) for s, m in pairs]))
    assert calibration.mask_threshold(pairs, []) == pytest.approx(best)


def test_mask_threshold_leaves_untouched_photos_alone() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    scores = np.where(mask, 0.4, 0.1).astype(np.float32)
    assert calibration.mask_threshold([(scores, mask)], []) <= 0.4
    reals = [("as they are", np.full((10, 10), 0.6, np.float32))]
    assert calibration.mask_threshold([(scores, mask)], reals) == pytest.approx(0.61)


def test_mask_threshold_holds_for_each_kind_of_untouched_photo() -> None:
    """One in thirty flagged is allowed in all, but not one in ten of those re-saved."""
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    fakes = [(np.where(mask, 0.4, 0.1).astype(np.float32), mask)]
    quiet, loud = np.zeros((10, 10), np.float32), np.full((10, 10), 0.6, np.float32)
    alike = [("as they are", s) for s in [quiet] * 29 + [loud]]
    assert calibration.mask_threshold(fakes, alike) <= 0.4
    apart = [("as they are", quiet)] * 20 + [("re-saved", s) for s in [quiet] * 9 + [loud]]
    assert calibration.mask_threshold(fakes, apart) == pytest.approx(0.61)


def test_mask_threshold_needs_fakes() -> None:
    with pytest.raises(DatasetError, match="needs manipulated pictures"):
        calibration.mask_threshold([], [])
