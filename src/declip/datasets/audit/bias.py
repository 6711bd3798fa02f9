"""What an answer reaches that looks at no pixel: at how files were saved, or at nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from declip.datasets.audit.facts import Facts, Picture, photo_of, px, trivial
from declip.datasets.audit.report import Baseline, Bias, Finding, Severity, make_finding
from declip.results import Sample

__all__ = ["baselines", "find_bias"]

# Bias. A classifier that sees only how files were saved should do no better than chance.
BIAS_WARNING, BIAS_ERROR = 0.60, 0.75
FOLDS = 5
TRAITS = ("file type", "JPEG quality", "chroma subsampling", "size")


Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


def find_bias(samples: Sequence[Sample], facts: Sequence[Facts]) -> tuple[Bias | None, list[Finding]]:
    """How well real and fake are told apart by how they were saved, and whether that is a fault."""
    readable = [i for i, one in enumerate(facts) if one.picture is not None]
    pictures = [one.picture for one in facts if one.picture is not None]
    fake = np.array([samples[i].label == "fake" for i in readable], dtype=bool)
    names = {name: number for number, name in enumerate(dict.fromkeys(photo_of(samples, i) for i in readable))}
    groups = np.array([names[photo_of(samples, i)] for i in readable])
    fakes, reals = int(fake.sum()), int((~fake).sum())
    if min(fakes, reals) < 10 or len(names) < FOLDS:
        return None, []
    table = _traits(pictures)
    folds = _folds(fake, groups)
    by = tuple((name, _auc(table[:, columns], fake, folds)) for name, columns in _columns())
    auc = _auc(table, fake, folds)
    bias = Bias(auc=auc, by=by, real=reals, fake=fakes)
    # Two standard errors of the AUC of a classifier that guesses: in a small set, chance reaches far.
    chance = 2 * math.sqrt((fakes + reals + 1) / (12 * fakes * reals))
    if not auc > max(BIAS_WARNING, 0.5 + chance):
        return bias, []
    strongest = max(by, key=lambda row: row[1])[0]
    usual = {
        label: Counter(
            _show(picture, strongest) for picture, is_fake in zip(pictures, fake, strict=True) if is_fake == of
        )
        for label, of in (("real", False), ("fake", True))
    }
    mostly = ", ".join(
        f"{label} mostly {name} ({count / counts.total():.0%})"
        for label, counts in usual.items()
        for name, count in counts.most_common(1)
    )
    text = (
        f"how the files were saved tells real from fake: AUC {auc:.2f}, the {strongest} above all ({mostly}); "
        "save both in the same way"
    )
    severity: Severity = "error" if auc > BIAS_ERROR else "warning"
    return bias, [make_finding("format-bias", severity, samples, (), text)]


def _traits(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """(N, 5): file type, JPEG quality, chroma subsampling, height, width; nan where a file has none."""
    types = sorted({picture.format for picture in pictures})
    rows = [
        (
            types.index(p.format),
            math.nan if p.quality is None else p.quality,
            math.nan if p.chroma is None else p.chroma,
        )
        for p in pictures
    ]
    return np.hstack([np.array(rows, dtype=np.float64), np.array([p.size for p in pictures], dtype=np.float64)])


def _columns() -> tuple[tuple[str, slice], ...]:
    return tuple(zip(TRAITS, (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 5)), strict=True))


def _show(picture: Picture, trait: str) -> str:
    match trait:
        case "JPEG quality":
            return "none" if picture.quality is None else str(picture.quality)
        case "chroma subsampling":
            return {0: "4:4:4", 1: "4:2:2", 2: "4:2:0", None: "none"}.get(picture.chroma, "another")
        case "size":
            return px(picture.size)
    return picture.format


_Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _folds(fake: Mask, groups: NDArray[np.int64]) -> _Folds:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=0)
    return list(splitter.split(np.zeros((len(fake), 1)), fake, groups))


def _auc(table: NDArray[np.float64], fake: Mask, folds: _Folds) -> float:
    """Mean over the folds that hold both labels; nan if none does."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    areas = []
    for train, test in folds:
        if len(set(fake[test])) < 2 or len(set(fake[train])) < 2:
            continue
        classifier = HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=5, random_state=0)
        classifier.fit(table[train], fake[train])
        areas.append(float(roc_auc_score(fake[test], classifier.predict_proba(table[test])[:, 1])))
    return float(np.mean(areas)) if areas else math.nan


def baselines(samples: Sequence[Sample], facts: Sequence[Facts]) -> tuple[Baseline, ...]:
    """What "all fake" and "all real" reach on these samples."""
    fakes = []
    reals = []
    untouched = trivial(np.zeros((1, 1), dtype=np.bool_))
    for sample, one in zip(samples, facts, strict=True):
        if sample.label == "real":
            reals.append(untouched)
        elif one.mask is not None:
            fakes.append(one.mask.trivial)
    on_fakes = np.array(fakes, dtype=np.float64).reshape(-1, 4)
    on_all = np.array(fakes + reals, dtype=np.float64).reshape(-1, 4)
    answers: tuple[tuple[Literal["all fake", "all real"], int], ...] = (("all fake", 0), ("all real", 2))
    return tuple(
        Baseline(
            answer=answer,
            iou=_mean(on_fakes[:, at]),
            f1=_mean(on_fakes[:, at + 1]),
            iou_all=_mean(on_all[:, at]),
            f1_all=_mean(on_all[:, at + 1]),
            f1_undefined=int(np.isnan(on_fakes[:, at + 1]).sum()),
        )
        for answer, at in answers
    )


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
