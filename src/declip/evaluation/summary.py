"""Compute the figures over many pictures, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from declip.evaluation import metrics
from declip.evaluation.figures import FIGURES, PER_PICTURE, Figures, Over, Row, Summary

__all__ = ["summarise"]


class _Columns:
    """Rows as arrays, to compute the figures of many draws of rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.fake = np.array([row.label == "fake" for row in rows], dtype=bool)
        self.values = np.array([[getattr(row, name) for name in PER_PICTURE] for row in rows], dtype=np.float64)
        for column, name in enumerate(PER_PICTURE):
            self.values[~self._of(FIGURES[name]["over"]), column] = np.nan
        self.defined = ~np.isnan(self.values)
        self.filled = np.nan_to_num(self.values)
        self.pixels = np.array([[row.true, row.false, row.missed] for row in rows], dtype=np.float64)
        self.pixels[~self.fake] = 0
        self.scores = np.array([row.score for row in rows], dtype=np.float64)
        # As floats: nan where there is no calibrated threshold.
        self.called = np.array([math.nan if row.called is None else row.called for row in rows], dtype=np.float64)

    def _of(self, over: Over) -> NDArray[np.bool_]:
        return {"fakes": self.fake, "reals": ~self.fake, "all": np.ones_like(self.fake)}[over]

    def undefined(self, mean: Figures) -> dict[str, int]:
        """Return, for each figure, how many of the pictures that it is over have no such value."""
        has = dict(zip(PER_PICTURE, self.defined.T, strict=True))
        has |= dict.fromkeys(("accuracy", "hits", "verdict_false_alarm"), ~np.isnan(self.called))
        counts = {}
        for name, about in FIGURES.items():
            known = has.get(name, ~np.isnan(self.scores)) & (not math.isnan(getattr(mean, name)))
            counts[name] = int(np.count_nonzero(self._of(about["over"]) & ~known))
        return counts

    def figures(self, weights: NDArray[np.int64]) -> list[float]:
        """Return the values of `Figures` where each row comes as often as its weight says."""
        with np.errstate(invalid="ignore"):
            means = (weights @ self.filled) / (weights @ self.defined)
        true, false, missed = (float(count) for count in weights @ self.pixels)
        found = dict(zip(PER_PICTURE, means.tolist(), strict=True))
        found["iou_pooled"] = true / (true + false + missed) if true + missed else math.nan
        found["f1_pooled"] = 2 * true / (2 * true + false + missed) if true + missed else math.nan
        found["hits"] = _mean(self.called[self.fake], weights[self.fake])
        found["verdict_false_alarm"] = _mean(self.called[~self.fake], weights[~self.fake])
        reals = int(weights[~self.fake].sum())
        if 0 < reals < weights.sum():
            drawn = np.repeat(np.arange(len(weights)), weights)
            scores, labels = self.scores[drawn], self.fake[drawn]
            found["detection_ap"] = metrics.average_precision(scores, labels)
            found["detection_auc"] = metrics.auc(scores, labels)
            found["detection_eer"] = metrics.equal_error_rate(scores, labels)
            found["accuracy_half"] = float(np.mean((scores > 0.5) == labels))
            found["accuracy_best_oracle"] = metrics.best_accuracy(scores, labels)
            found["accuracy"] = _mean(np.where(self.fake, self.called, 1 - self.called), weights)
        return [found.get(name, math.nan) for name in FIGURES]


def _mean(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    known = weights * ~np.isnan(values)
    return float(np.nan_to_num(values) @ known / known.sum()) if known.any() else math.nan


def summarise(rows: Sequence[Row], resamples: int, seed: int) -> Summary:
    """Compute the figures over rows without errors. resamples, seed: of the bootstrap."""
    if not rows:
        nothing = Figures()
        return Summary(fakes=0, reals=0, groups=0, mean=nothing, low=nothing, high=nothing, undefined={})
    columns = _Columns(rows)
    names, index = np.unique([row.group for row in rows], return_inverse=True)
    mean = _figures(columns.figures(np.ones(len(rows), dtype=np.int64)))
    low = high = Figures()
    if len(names) > 1:
        # Percentile intervals, drawing whole groups.
        rng, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
        drawn = np.array([columns.figures(rng.multinomial(len(names), even)[index]) for _ in range(resamples)])
        # A figure that half of the draws do not have has no interval.
        common = np.count_nonzero(~np.isnan(drawn), axis=0) > resamples / 2
        ends = np.full((2, drawn.shape[1]), np.nan)
        if common.any():
            ends[:, common] = np.nanquantile(drawn[:, common], (0.025, 0.975), axis=0)
        low, high = (_figures(values) for values in ends.tolist())
    fakes = int(np.count_nonzero(columns.fake))
    undefined = columns.undefined(mean)
    return Summary(
        fakes=fakes, reals=len(rows) - fakes, groups=len(names), mean=mean, low=low, high=high, undefined=undefined
    )


def _figures(values: Sequence[float]) -> Figures:
    return Figures(**dict(zip(FIGURES, values, strict=True)))
