"""Measure a predictor on samples with known masks.

    evaluation = declip.evaluate(declip.load(), samples)
    evaluation.mean.iou, evaluation.low.iou, evaluation.high.iou
    evaluation.save("out")      # images.csv, summary.json, report.html

Localization (IoU, F1, AP, AUC) is averaged over fakes, as in the paper; untouched pictures have the flagged area and
the false alarms; both together have detection. What is not defined is nan, left out of its mean and counted. A sample
that failed is a row with an error, in no figure, and a warning. Figures whose name ends in "_oracle" looked at the
known mask or label to choose something: nobody can reach them on a new photo. docs/evaluate.md explains each figure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.progress import track

from declip.errors import DatasetError, ImageError
from declip.evaluation import metrics
from declip.evaluation.evaluation import Evaluation
from declip.evaluation.figures import FLAGGED, Row
from declip.evaluation.gallery import Gallery, Masks
from declip.evaluation.protocol import Asked, describe, find_warnings
from declip.evaluation.summary import summarise
from declip.images.mapfiles import read_mask, warn_of_empty_masks
from declip.images.read import MAX_PIXELS
from declip.images.tensors import resize_scores
from declip.regions import MaskRule
from declip.results import Localization, Predictor, Sample, check_samples, check_type

__all__ = ["evaluate"]


def evaluate(
    predictor: Predictor,
    samples: Iterable[Sample],
    *,
    threshold: float | None = None,
    score_threshold: float | None = None,
    batch_size: int = 8,
    resamples: int = 1000,
    seed: int = 0,
    cases: int = 6,
    title: str = "",
    progress: bool = False,
) -> Evaluation:
    """Measure a predictor on samples with known masks.

    threshold: scores from it on are flagged; None = the predictor's own mask. score_threshold: pictures whose score is
    at or above it are called manipulated; None = by the predictor's own verdict, where it is calibrated. resamples,
    seed: of the bootstrap, which draws groups (a sample without a group is one of its own). cases: how many worst, best
    and false-alarm pictures are kept for the report. title: names the data. progress: show a bar on stderr.

    A sample whose picture, mask or map fails becomes a row with an error, and the others go on.
    Raises DatasetError where there are no samples.
    """
    check_type(predictor, Predictor, "declip.load('mini')")
    samples = check_samples(samples, "evaluate(predictor, […])")
    if not samples:
        raise DatasetError(f"{title or 'the list'} has no samples to evaluate")
    results = predictor.map((sample.image for sample in samples), batch_size=batch_size)
    pairs = zip(samples, results, strict=True)
    console = Console(stderr=True)
    rows = []
    gallery = Gallery(cases)
    model: tuple[str, str] | None = None
    for sample, result in track(pairs, "evaluating", len(samples), console=console, disable=not progress):
        try:
            if isinstance(result, ImageError):
                raise result
            model = model or (result.model, result.sha256)
            masks, row = _measure(sample, result, threshold, score_threshold)
        except (ImageError, DatasetError, MemoryError) as failure:
            error = ImageError.out_of_memory(str(sample.image)) if isinstance(failure, MemoryError) else failure
            kind = error.kind if isinstance(error, ImageError) else "input"
            rows.append(dataclasses.replace(_blank(sample), error=str(error), kind=kind))
            continue
        rows.append(row)
        gallery.offer(sample, row, masks)
    good = [row for row in rows if not row.error]
    overall = summarise(good, resamples, seed)
    names = sorted({row.source for row in good})
    sources = {name: summarise([row for row in good if row.source == name], resamples, seed) for name in names}
    empty = [sample for sample, row in zip(samples, rows, strict=True) if row.label == "fake" and row.manipulated == 0]
    warned = warn_of_empty_masks(empty, overall.fakes)
    asked = Asked(threshold=threshold, score_threshold=score_threshold, resamples=resamples, seed=seed)
    return Evaluation(
        title=title,
        rows=tuple(rows),
        overall=overall,
        sources=sources,
        protocol=describe(predictor, model, samples, good, asked),
        warnings=(*([warned] if warned else []), *find_warnings(samples, rows, overall, sources)),
        cases=gallery.cases(),
    )


def _blank(sample: Sample) -> Row:
    """Return what is known of a sample before anything is measured."""
    name = str(sample.image)
    return Row(image=name, label=sample.label, source=sample.source, split=sample.split, group=sample.group or name)


def _measure(
    sample: Sample, result: Localization, threshold: float | None, score_threshold: float | None
) -> tuple[Masks, Row]:
    """Return what is compared at the mask's size, and the row of one sample."""
    if threshold is not None:
        result = dataclasses.replace(result, rule=MaskRule(threshold=threshold))
    scores = result.scores
    if not np.isfinite(scores).all() or not math.isfinite(result.image_score):
        raise ImageError(str(sample.image), "input", "the scores are not finite; expected floats in [0, 1]")
    untouched = sample.label == "real" and sample.mask is None
    mask = (
        np.zeros(scores.shape, dtype=bool) if untouched else read_mask(sample, max_pixels=max(MAX_PIXELS, scores.size))
    )
    resized = scores.shape != mask.shape
    stretched = resized and not _same_aspect(scores.shape, mask.shape)
    shown = result.mask
    if resized:
        scores = resize_scores(scores, (mask.shape[0], mask.shape[1]))
        # Which parts a calibration flags is decided at the photo's own size.
        shown = (
            result.rule.decide(scores).mask
            if result.rule.calibration is None
            else resize_scores(shown.astype(np.float32), (mask.shape[0], mask.shape[1])) >= 0.5
        )
    true, false, missed, _ = metrics.confusion(shown, mask)
    area = (true + false) / mask.size
    called = None if result.verdict is None else result.verdict == "manipulated"
    if score_threshold is not None:
        called = (result.score or 0.0) >= score_threshold
    fake = sample.label == "fake"
    row = dataclasses.replace(
        _blank(sample),
        height=mask.shape[0],
        width=mask.shape[1],
        threshold=result.threshold,
        score=result.score or 0.0,
        verdict=result.verdict,
        called=called,
        manipulated=(true + missed) / mask.size,
        area=area,
        false_alarm=math.nan if fake else float(area > FLAGGED),
        # The paper counts two empty masks as agreeing; here a fake with an empty mask has no figures at all.
        iou=metrics.iou(shown, mask) if fake and mask.any() else math.nan,
        f1_imdl=metrics.imdl_f1(shown, mask),
        true=true,
        false=false,
        missed=missed,
        resized=resized,
        stretched=stretched,
    )
    if fake:
        row = dataclasses.replace(
            row,
            f1=metrics.f1(shown.astype(np.float32), mask),
            f1_best_oracle=metrics.best_f1(scores, mask),
            ap=metrics.average_precision(scores, mask),
            auc=metrics.auc(scores, mask),
            f1_pixels=metrics.pixel_f1(shown, mask),
        )
    return Masks(scores, mask, shown), row


def _same_aspect(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Return whether two sizes have one shape, to a pixel of the smaller: a grid of 32×43 is one of 480×640."""
    height, width = min(first, second)
    other_height, other_width = max(first, second)
    return abs(height * other_width - width * other_height) <= max(other_height, other_width)
