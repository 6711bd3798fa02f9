"""Say how figures were measured, and what makes them doubtful."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from declip._version import __version__
from declip.evaluation.figures import Row, Summary
from declip.evaluation.maps import Maps
from declip.models import catalog
from declip.results import Predictor, Sample
from declip.spec import SIZE_CLASSES, ModelSpec

__all__ = ["Asked", "describe", "find_warnings", "number"]

# A source needs so many groups before its figures are called inverted: fewer may lie below chance by chance alone.
CLEAR_GROUPS = 5

_IMAGE_SCORES = {
    "mean": "mean of the scores on the network's grid",
    "mean-logit": "sigmoid of the mean logit",
    "top": "mean of the highest 1 % of the scores, at least 64",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the caller of `evaluate` chose. None: the predictor's own."""

    threshold: float | None
    score_threshold: float | None
    resamples: int
    seed: int


def find_warnings(
    samples: Sequence[Sample], rows: Sequence[Row], overall: Summary, sources: Mapping[str, Summary]
) -> Iterator[str]:
    """Yield what makes the figures doubtful, worst first."""
    if _points_backwards(overall):
        yield _backwards("over all fakes", overall)
    else:
        for name, summary in sources.items():
            # A few pictures of one source lie below chance together by chance alone.
            if summary.groups >= CLEAR_GROUPS and _points_backwards(summary):
                yield _backwards(f"over the fakes of source {name or '-'!r}", summary)
    covered = [row.manipulated for row in rows if row.label == "fake" and 0 < row.manipulated < 1]
    if covered and np.mean(covered) > 0.5:
        yield (
            f"The masks call {100 * np.mean(covered):.0f} % of the fakes' area manipulated. If that is too much, "
            "fake_is in the manifest names the wrong colour."
        )
    failed = sum(bool(row.error) for row in rows)
    if failed:
        yield f"{failed} of {len(rows)} samples failed and are in no figure; images.csv names them and the causes."
    marked = sum(row.label == "real" and row.manipulated > 0 for row in rows)
    if marked:
        yield f"{marked} samples are labelled real and have a mask with manipulated pixels."
    stretched = sum(row.stretched for row in rows)
    if stretched:
        yield f"The scores of {stretched} pictures had another shape than the mask and were stretched onto it."
    fakes, reals = _suffixes(samples, "fake"), _suffixes(samples, "real")
    if fakes and reals and not fakes.keys() & reals.keys():
        yield (
            f"The file format alone tells fakes ({', '.join(fakes)}) from reals ({', '.join(reals)}): the detection "
            "figures may measure just that."
        )


def _points_backwards(summary: Summary) -> bool:
    """Return whether the mean AUC is below chance, and clearly so if there is an interval."""
    return (summary.mean.auc if math.isnan(summary.high.auc) else summary.high.auc) < 0.5


def _backwards(where: str, summary: Summary) -> str:
    return (
        f"The scores point the wrong way: AUC {number(summary.mean.auc)}{_interval(summary, 'auc')} {where}, and the "
        f"inverted map would have {number(1 - summary.mean.auc)}. Either the masks are inverted (fake_is in the "
        "manifest names the wrong colour), or the maps are (1.0 must mean manipulated), or the method does worse than "
        "chance here. Do not use these figures before you know which."
    )


def _suffixes(samples: Sequence[Sample], label: str) -> Counter[str]:
    return Counter(sample.image.suffix.lower().lstrip(".") or "-" for sample in samples if sample.label == label)


def describe(
    predictor: Predictor, model: tuple[str, str] | None, samples: Sequence[Sample], rows: Sequence[Row], asked: Asked
) -> dict[str, str]:
    """Return the protocol card: how the figures were measured, to be printed with any of them.

    model: name and SHA-256. rows: those without errors.
    """
    spec = getattr(predictor, "spec", None)
    fakes = sum(row.label == "fake" for row in rows)
    reals, groups = len(rows) - fakes, len({row.group for row in rows})
    name, sha256 = model or ("unknown", "")
    trained_on = next((card.trained_on for card in catalog.MODELS if card.name == name), "not recorded")
    limits = sorted({row.threshold for row in rows})
    polarity = Counter(sample.fake_is for sample in samples if sample.mask is not None)
    resized = sum(row.resized for row in rows)
    whose = "(the predictor's own)" if asked.threshold is None else "(given)"
    if asked.threshold is None and any(row.verdict for row in rows):
        whose = "in the parts that the predictor's calibration flags"
    formats = {label: _suffixes(samples, label) for label in ("fake", "real")}
    return {
        "declip": __version__,
        "model": f"{name}, SHA-256 {sha256}" if sha256 else name,
        "training set": trained_on,
        "samples": f"{fakes} fakes, {reals} reals, {len(samples) - len(rows)} failed; splits: "
        + ", ".join(f"{split or '-'} {count}" for split, count in Counter(s.split for s in samples).items()),
        "input size": _input(predictor, spec),
        "resize": f"scores, after the sigmoid, bilinearly to the size of the mask file; needed for {resized} of "
        f"{len(rows)} pictures",
        "threshold": f"scores >= {', '.join(f'{limit:g}' for limit in limits) or '-'} {whose}",
        "calibrated threshold": _score_threshold(spec, rows, asked.score_threshold),
        "image score": _IMAGE_SCORES.get(getattr(spec, "image_score", ""), "the predictor's own")
        if not isinstance(predictor, Maps)
        else "mean of the map",
        "polarity": "; ".join(f"{colour} = manipulated in {count} mask files" for colour, count in polarity.items())
        + ("no mask files" if not polarity else "")
        + (f"; {predictor.fake_is} = manipulated in the maps" if isinstance(predictor, Maps) else ""),
        "borders": "F1-fixed and F1-best leave out a band around the mask's border (eroded 15×15, dilated 11×11), "
        "all other figures take every pixel",
        "averaging": "mean over pictures; localization over fakes only, as in the paper; pooled: sums of pixels first",
        "reals included": "in flagged area, false alarms, detection and IMDL-BenCo's F1 only",
        "empty rule": "undefined is nan, left out and counted: a fake with an empty mask has no figure; F1 none where "
        "the eroded mask is empty; AUC none where all is manipulated",
        "intervals": f"95 % percentile bootstrap, {asked.resamples} draws of {groups} groups, seed {asked.seed}",
        "file formats": "; ".join(
            f"{label}s: {', '.join(f'{suffix} {count}' for suffix, count in found.most_common())}"
            for label, found in formats.items()
            if found
        ),
    }


def _input(predictor: Predictor, spec: Any) -> str:
    if isinstance(predictor, Maps):
        return "unknown: maps made elsewhere"
    if not isinstance(spec, ModelSpec):
        return "unknown"
    if getattr(predictor, "mode", spec.mode) == "whole":
        return f"{spec.input_size}×{spec.input_size} px, the whole picture squashed (bilinear, antialiased)"
    overlap = getattr(predictor, "overlap", spec.overlap)
    return f"tiles of {spec.input_size}×{spec.input_size} px at native resolution, overlap {overlap} px"


def _score_threshold(spec: Any, rows: Sequence[Row], given: float | None) -> str:
    if given is not None:
        return f"image score ≥ {given:g} (given)"
    if not any(row.verdict for row in rows):
        return "none: the predictor gives no verdicts"
    calibration = spec.calibration if isinstance(spec, ModelSpec) else None
    if calibration is None:
        return "the predictor's verdict 'manipulated'"
    sizes = []
    for i, (name, photos) in enumerate(zip(SIZE_CLASSES, calibration.photos, strict=True)):
        rate = next((step.rate for step in calibration.steps(i) if step.word == "manipulated"), None)
        said = "never given" if rate is None else f"at most {100 * rate:g} % of untouched photos"
        sizes.append(f"{name} {said}, by {photos} of them")
    return f"the verdict 'manipulated': {'; '.join(sizes)}"


def number(value: float) -> str:
    """Write a figure for people."""
    return "nan" if math.isnan(value) else f"{value:.3f}"


def _interval(summary: Summary, name: str) -> str:
    low, high = getattr(summary.low, name), getattr(summary.high, name)
    return "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
