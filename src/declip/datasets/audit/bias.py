"""Measure what can be reached without looking at pixels: from how the files were saved, or from nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from declip.datasets.audit.facts import Facts, Picture, photo_of, px
from declip.datasets.audit.report import Baseline, Bias, Finding, make_finding
from declip.results import Sample

__all__ = ["baselines", "find_bias"]

# A classifier that sees only how files were saved should do no better than chance. Above these AUCs it is reported.
WARNING, ERROR = 0.60, 0.75
FOLDS = 5
# Columns of `_traits`.
TRAITS = {"file type": (0,), "JPEG quality": (1,), "chroma subsampling": (2,), "size": (3, 4)}

_Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def find_bias(samples: Sequence[Sample], facts: Sequence[Facts]) -> tuple[Bias | None, list[Finding]]:
    """Measure how well real and fake are told apart by how they were saved, and report it if it is a fault."""
    from sklearn.model_selection import StratifiedGroupKFold

    pictures = {i: one.picture for i, one in enumerate(facts) if one.picture is not None}
    fake = np.array([samples[i].label == "fake" for i in pictures], dtype=bool)
    numbers = {photo: number for number, photo in enumerate(dict.fromkeys(photo_of(samples, i) for i in pictures))}
    groups = np.array([numbers[photo_of(samples, i)] for i in pictures])
    fakes, reals = int(fake.sum()), int((~fake).sum())
    if min(fakes, reals) < 10 or len(numbers) < FOLDS:
        return None, []
    table = _traits(list(pictures.values()))
    splitter = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=0)
    folds = list(splitter.split(table, fake, groups))
    by = tuple((name, _auc(table[:, columns], fake, folds)) for name, columns in TRAITS.items())
    auc = _auc(table, fake, folds)
    bias = Bias(auc=auc, by=by, real=reals, fake=fakes)
    # Two standard errors of the AUC of a classifier that guesses: in a small set, chance reaches far.
    chance = 2 * math.sqrt((fakes + reals + 1) / (12 * fakes * reals))
    if not auc > max(WARNING, 0.5 + chance):
        return bias, []
    strongest = max(by, key=lambda row: row[1])[0]
    mostly = []
    for label in ("real", "fake"):
        shown = [_show(picture, strongest) for i, picture in pictures.items() if samples[i].label == label]
        ((name, count),) = Counter(shown).most_common(1)
        mostly.append(f"{label} mostly {name} ({count / len(shown):.0%})")
    text = (
        f"how the files were saved tells real from fake: AUC {auc:.2f}, the {strongest} above all "
        f"({', '.join(mostly)}); save both in the same way"
    )
    return bias, [make_finding("format-bias", "error" if auc > ERROR else "warning", samples, (), text)]


def _traits(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """Return (N, 5): file type, JPEG quality, chroma subsampling, height, width; nan where a file has none."""
    types = sorted({picture.format for picture in pictures})
    rows = [(types.index(p.format), p.quality, p.chroma, *p.size) for p in pictures]
    return np.array(rows, dtype=np.float64)  # None becomes nan


def _show(picture: Picture, trait: str) -> str:
    match trait:
        case "JPEG quality":
            return "none" if picture.quality is None else str(picture.quality)
        case "chroma subsampling":
            return {0: "4:4:4", 1: "4:2:2", 2: "4:2:0", None: "none"}.get(picture.chroma, "another")
        case "size":
            return px(picture.size)
    return picture.format


def _auc(table: NDArray[np.float64], fake: NDArray[np.bool_], folds: _Folds) -> float:
    """Return the mean AUC over the folds that hold both labels; nan if none does."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    areas = []
    with threadpool_limits(1):  # with so little work, threads would only wait for each other
        for train, test in folds:
            if len(set(fake[test])) < 2 or len(set(fake[train])) < 2:
                continue
            # The classifier refuses traits that no file has, as the quality of JPEGs where there are none.
            seen = np.isfinite(table[train]).any(axis=0)
            if not seen.any():
                areas.append(0.5)
                continue
            classifier = HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=5, random_state=0)
            classifier.fit(table[train][:, seen], fake[train])
            areas.append(float(roc_auc_score(fake[test], classifier.predict_proba(table[test][:, seen])[:, 1])))
    return float(np.mean(areas)) if areas else math.nan


def baselines(samples: Sequence[Sample], facts: Sequence[Facts]) -> tuple[Baseline, Baseline]:
    """Return what the answers "all fake" and "all real" reach on these samples."""
    masks = [one.mask for sample, one in zip(samples, facts, strict=True) if sample.label == "fake" and one.mask]
    reals = sum(sample.label == "real" for sample in samples)
    area, f1 = (np.array([getattr(mask, name) for mask in masks], dtype=np.float64) for name in ("area", "f1"))
    # Two empty masks agree. All that is real has no F1; on fakes, "all real" has none where "all fake" has none.
    return (
        _baseline("all fake", area, f1, np.append(area, np.zeros(reals))),
        _baseline("all real", (area == 0).astype(np.float64), f1 * 0, np.append(area == 0, np.ones(reals))),
    )


def _baseline(
    answer: Literal["all fake", "all real"], iou: NDArray[Any], f1: NDArray[np.float64], iou_all: NDArray[Any]
) -> Baseline:
    mean, undefined = _mean(f1), int(np.isnan(f1).sum())
    return Baseline(answer=answer, iou=_mean(iou), f1=mean, iou_all=_mean(iou_all), f1_all=mean, f1_undefined=undefined)


def _mean(values: NDArray[Any]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
