"""Metrics against the official values, scikit-learn, and small cases worked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from declip.evaluation import metrics

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "metrics_golden.json"
# The official code gives an empty mask AP −0 and F1s of 1e-32; here they are undefined.
EMPTY = {9, 19, 29, 39}


def golden_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores and the mask of a golden value, by the recipe that comes with them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    h, w = rng.integers(48, 200), rng.integers(48, 200)
    cy, cx = rng.integers(0, h), rng.integers(0, w)
    ry, rx = rng.integers(8, h // 2 + 9), rng.integers(8, w // 2 + 9)
    y, x = np.mgrid[:h, :w]
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    if seed % 10 == 9:
        mask[:] = False
    noise = rng.standard_normal((h, w)).astype(np.float32)
    logits = (2 * mask.astype(np.float32) - 1) * np.float32(0.3 + 0.1 * (seed % 7)) + noise
    scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    if seed % 13 == 12:
        scores = np.round(8 * scores) / 8
    return scores, mask


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared golden values are not here")
@pytest.mark.parametrize("seed", range(40))
def test_golden(seed: int) -> None:
    expected = json.loads(GOLDEN.read_text())[seed]
    scores, mask = golden_pair(seed)
    assert (*mask.shape, np.count_nonzero(mask)) == (expected["h"], expected["w"], expected["positives"])
    assert metrics.iou(scores > 0.5, mask) == pytest.approx(expected["iou_percent"] / 100, abs=1e-6)
    # The official search of the best drops its last threshold; in none of these pairs is that the best one.
    figures = {"f1_fixed": metrics.f1, "f1_best": metrics.best_f1, "ap": metrics.average_precision}
    for name, figure in figures.items():
        wanted = np.nan if seed in EMPTY else expected[name]
        assert figure(scores, mask) == pytest.approx(wanted, abs=1e-6, nan_ok=True), name


def test_average_precision_by_hand() -> None:
    mask = np.array([True, False, True, False])
    # Precision 1 at the first positive, 2/3 at the second.
    assert metrics.average_precision(np.array([0.9, 0.8, 0.7, 0.1]), mask) == pytest.approx((1 + 2 / 3) / 2)
    soft = metrics.average_precision(np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.51, 0.5, 1, 0]))
    assert soft == pytest.approx((1 + 2 / 3) / 2)
    # All equal: one threshold, precision = the share of positives.
    assert metrics.average_precision(np.full(4, 0.5), mask) == 0.5


def test_iou_by_hand() -> None:
    empty = np.zeros((4, 4), dtype=bool)
    half = empty.copy()
    half[:2] = True
    assert metrics.iou(empty, empty) == 1.0
    assert metrics.iou(half, empty) == 0.0
    assert metrics.iou(half, ~half) == 0.0
    assert metrics.iou(half, ~empty) == 0.5
    assert metrics.iou(half, half.astype(np.float32)) == 1.0


def brute_force_f1(scores: np.ndarray, mask: np.ndarray, threshold: float) -> float:
    """TruFor's F1 from its words: windows around each pixel, borders mirrored."""
    positives = np.zeros_like(mask)
    negatives = np.zeros_like(mask)
    eroding, dilating = np.pad(mask, 7, "symmetric"), np.pad(mask, 5, "symmetric")
    for i, j in np.ndindex(mask.shape):
        positives[i, j] = eroding[i : i + 15, j : j + 15].all()
        negatives[i, j] = not dilating[i : i + 11, j : j + 11].any()
    flagged = scores > threshold
    tp, fp = (flagged & positives).sum(), (flagged & negatives).sum()
    return 2 * tp / (2 * tp + fp + (~flagged & positives).sum())


@pytest.mark.parametrize("seed", range(2))
def test_f1_and_best_f1_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((36, 44), dtype=bool)
    top, left = rng.integers(0, 12, 2)
    mask[top : top + 21, left : left + 25] = True
    scores = (rng.integers(0, 12, mask.shape) / 12 + 0.3 * mask).astype(np.float32)
    thresholds = [-1.0, *np.unique(scores)]
    values = [brute_force_f1(scores, mask, t) for t in thresholds]
    assert metrics.f1(scores, mask, 0.5) == pytest.approx(brute_force_f1(scores, mask, 0.5))
    before = scores.copy(), mask.copy()
    assert metrics.best_f1(scores, mask) == pytest.approx(max(values), abs=1e-12)
    assert np.array_equal(scores, before[0]) and np.array_equal(mask, before[1])


def test_best_f1_tries_the_threshold_that_flags_everything() -> None:
    # The best that constant scores allow is to flag all of it: the official search drops just that and says nan.
    mask = np.zeros((60, 60), dtype=bool)
    mask[:, :30] = True
    scores = np.full((60, 60), 0.2, dtype=np.float32)
    positives, negatives = 60 * (30 - 7), 60 * (30 - 5)
    assert metrics.f1(scores, mask, 0.5) == 0.0
    assert metrics.best_f1(scores, mask) == pytest.approx(2 * positives / (2 * positives + negatives))


def test_f1_ignores_the_band_around_the_border() -> None:
    mask = np.zeros((60, 60), dtype=bool)
    mask[20:40, 20:40] = True
    smaller, larger = np.zeros((60, 60), np.float32), np.zeros((60, 60), np.float32)
    smaller[27:33, 27:33] = 1
    larger[15:45, 15:45] = 1
    assert metrics.f1(smaller, mask) == metrics.f1(larger, mask) == 1.0
    larger[14, 30] = 1  # one false pixel beyond the band, against 36 true ones
    assert metrics.f1(larger, mask) == pytest.approx(72 / 73)


def test_f1_is_undefined_for_a_mask_thinner_than_the_erosion() -> None:
    mask = np.zeros((60, 60), dtype=bool)
    mask[20:34, 5:50] = True
    scores = mask.astype(np.float32)
    assert np.isnan([metrics.f1(scores, mask), metrics.best_f1(scores, mask)]).all()
    assert metrics.average_precision(scores, mask) == 1.0


def test_a_score_equal_to_the_threshold_is_not_flagged() -> None:
    mask, scores = np.ones((20, 20), dtype=bool), np.full((20, 20), 0.5, np.float32)
    assert (metrics.f1(scores, mask, 0.5), metrics.f1(scores, mask, 0.49)) == (0, 1)


def test_wrong_inputs_say_what_was_expected() -> None:
    mask = np.ones((20, 20), dtype=bool)
    scores = np.zeros((20, 20), np.float32)
    with pytest.raises(ValueError, match=r"\(20, 20\) and \(20, 21\) differ"):
        metrics.iou(mask, np.ones((20, 21), dtype=bool))
    with pytest.raises(ValueError, match="uint8; expected bool"):
        metrics.average_precision(scores, mask.astype(np.uint8) * 255)
    with pytest.raises(ValueError, match="none of them nan"):
        metrics.best_f1(np.full((20, 20), np.nan, np.float32), mask)
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        metrics.f1(scores.ravel(), mask.ravel())


# --- AUC, other conventions, whole pictures -------------------------------------------------------------------------


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with few or many ties, and a mask that may be empty or full."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    scores = draw(npst.arrays(np.int64, shape, elements=st.integers(0, levels)))
    return (scores / levels).astype(np.float32), draw(npst.arrays(np.bool_, shape))


SLOWLY = settings(deadline=None, max_examples=30)


@SLOWLY
@given(pairs())
def test_ap_and_auc_are_sklearns(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, mask = pair
    if not mask.any():
        assert np.isnan(metrics.average_precision(scores, mask))
    else:
        expected = sklearn.average_precision_score(mask.ravel(), scores.ravel())
        assert metrics.average_precision(scores, mask) == pytest.approx(expected, abs=1e-12)
    if mask.all() or not mask.any():
        assert np.isnan(metrics.auc(scores, mask))
    else:
        expected = sklearn.roc_auc_score(mask.ravel(), scores.ravel())
        assert metrics.auc(scores, mask) == pytest.approx(expected, abs=1e-12)
        assert metrics.auc(1 - scores, mask) == pytest.approx(1 - expected, abs=1e-6)
        assert metrics.auc(scores, ~mask) == pytest.approx(1 - expected, abs=1e-12)


@SLOWLY
@given(pairs())
def test_iou_and_pixel_f1_are_sklearns(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, mask = pair
    flagged = scores > 0.4
    truth, found = mask.ravel(), flagged.ravel()
    assert metrics.iou(flagged, mask) == pytest.approx(sklearn.jaccard_score(truth, found, zero_division=1), abs=1e-12)
    (tn, fp), (fn, tp) = sklearn.confusion_matrix(truth, found, labels=[False, True])
    assert metrics.confusion(flagged, mask) == (tp, fp, fn, tn)
    f1 = sklearn.f1_score(truth, found, zero_division=0)
    assert metrics.imdl_f1(flagged, mask) == pytest.approx(f1, abs=1e-12)
    assert metrics.pixel_f1(flagged, mask) == pytest.approx(f1 if mask.any() else np.nan, abs=1e-12, nan_ok=True)


@SLOWLY
@given(pairs())
def test_equal_error_rate_is_where_the_roc_curve_crosses(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, labels = pair[0].ravel(), pair[1].ravel()
    rate = metrics.equal_error_rate(scores, labels)
    if labels.all() or not labels.any():
        assert np.isnan(rate)
        return
    false_alarms, found, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    # 1 − FPR crosses TPR at the rate: by bisection on the polyline, independent of the code's own interpolation.
    low, high = 0.0, 1.0
    along = np.linspace(0, 1, len(found))
    for _ in range(60):
        middle = (low + high) / 2
        fpr, tpr = np.interp(middle, along, false_alarms), np.interp(middle, along, found)
        low, high = (middle, high) if fpr < 1 - tpr else (low, middle)
    assert rate == pytest.approx(np.interp(high, along, false_alarms), abs=1e-9)


def test_auc_by_hand() -> None:
    mask = np.array([True, False, True, False])
    # Of the four pairs (manipulated, untouched) three are in the right order.
    assert metrics.auc(np.array([0.9, 0.8, 0.7, 0.1]), mask) == 0.75
    assert metrics.auc(np.array([0.5, 0.5, 0.5, 0.1]), mask) == 0.75  # two right, two ties
    assert metrics.auc(np.full(4, 0.5), mask) == 0.5


def test_equal_error_rate_by_hand() -> None:
    labels = np.array([False] * 4 + [True] * 4)
    # At a threshold of 0.5 one of four is missed and one of four is a false alarm.
    assert metrics.equal_error_rate(np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.8, 0.9]), labels) == 0.25
    assert metrics.equal_error_rate(np.arange(8.0), labels) == 0.0
    assert metrics.equal_error_rate(-np.arange(8.0), labels) == 1.0
    assert metrics.equal_error_rate(np.zeros(8), labels) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_best_accuracy_tries_every_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random(30) < 0.4
    scores = rng.integers(0, 9, 30) / 9 + 0.2 * labels
    tried = [np.mean((scores >= t) == labels) for t in (*scores, 9.0)]
    assert metrics.best_accuracy(scores, labels) == pytest.approx(max(tried), abs=1e-12)
    assert np.isnan(metrics.best_accuracy(scores[:0], labels[:0]))


def test_imdl_f1_counts_an_untouched_picture_as_a_failure() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    assert metrics.imdl_f1(mask, mask) == metrics.imdl_f1(~mask, mask) == 0.0
    mask[:4] = True
    flagged = np.zeros_like(mask)
    flagged[2:] = True
    precision, recall = 16 / (48 + 1e-8), 16 / (32 + 1e-8)  # with the benchmark's own ε
    assert metrics.imdl_f1(flagged, mask) == pytest.approx(
        2 * precision * recall / (precision + recall + 1e-8), abs=1e-7
    )
