"""What is measured: the figures, the row of one picture, the summary of many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["FIGURES", "FLAGGED", "PER_PICTURE", "Figures", "Over", "Row", "Summary"]

# An untouched picture is a false alarm if more than this share of its area is flagged.
FLAGGED = 0.02

Over = Literal["fakes", "reals", "all"]


def _over(over: Over, title: str) -> Any:
    return field(default=math.nan, metadata={"over": over, "title": title})


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One number per figure, in [0, 1], or nan where it is not defined. They are printed in this order.

    The metadata of each field say which pictures the figure is over, and its title. Figures that `Row` has too are
    means over pictures; the others are computed from all pictures together.
    """

    iou: float = _over("fakes", "IoU")
    f1: float = _over("fakes", "F1-fixed (TruFor's, border band left out)")
    f1_best_oracle: float = _over("fakes", "F1-best (oracle: best threshold per picture)")
    ap: float = _over("fakes", "AP")
    auc: float = _over("fakes", "AUC")
    manipulated: float = _over("fakes", "manipulated area (AP of a map that says nothing)")
    area: float = _over("reals", "flagged area")
    false_alarm: float = _over("reals", f"false-alarm rate (more than {100 * FLAGGED:g} % of the area flagged)")
    detection_ap: float = _over("all", "detection AP")
    detection_auc: float = _over("all", "detection AUC")
    detection_eer: float = _over("all", "detection EER")
    accuracy: float = _over("all", "accuracy at the calibrated threshold")
    hits: float = _over("fakes", "found at the calibrated threshold")
    verdict_false_alarm: float = _over("reals", "false alarms at the calibrated threshold")
    accuracy_half: float = _over("all", "accuracy at 0.5 (the paper's)")
    accuracy_best_oracle: float = _over("all", "accuracy (oracle: best threshold)")
    iou_pooled: float = _over("fakes", "IoU, pixels pooled")
    f1_pooled: float = _over("fakes", "F1, pixels pooled")
    f1_pixels: float = _over("fakes", "F1 over all pixels")
    f1_imdl: float = _over("all", "F1 of IMDL-BenCo (reals count as 0)")


FIGURES = {figure.name: figure.metadata for figure in dataclasses.fields(Figures)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The result of one sample: a line of images.csv. Fields that `Figures` has too mean the same, for one picture.

    height, width: px, of the mask, or of the scores where an untouched picture has no mask. threshold: lowest score
    that is flagged. area: flagged share of the picture. score: of the whole picture; 0 if it was not examined. called:
    whether the verdict is "manipulated", or the score reaches the threshold that was given; None if there is neither.
    true, false, missed: numbers of pixels. resized: whether the scores had another size than the mask; stretched: and
    another shape. error, kind: as in `ImageError`; then the sample is in no figure.
    """

    image: str
    label: str
    source: str
    split: str
    group: str
    height: int = 0
    width: int = 0
    threshold: float = math.nan
    score: float = math.nan
    verdict: str | None = None
    called: bool | None = None
    manipulated: float = math.nan
    area: float = math.nan
    false_alarm: float = math.nan
    iou: float = math.nan
    f1: float = math.nan
    f1_best_oracle: float = math.nan
    ap: float = math.nan
    auc: float = math.nan
    f1_pixels: float = math.nan
    f1_imdl: float = math.nan
    true: int = 0
    false: int = 0
    missed: int = 0
    resized: bool = False
    stretched: bool = False
    error: str = ""
    kind: str = ""


PER_PICTURE = tuple(name for name in FIGURES if name in {column.name for column in dataclasses.fields(Row)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Figures over a set of pictures.

    low, high: ends of the 95 % bootstrap intervals over groups; nan for a single group. undefined: how many of the
    pictures that a figure is over have no such value.
    """

    fakes: int
    reals: int
    groups: int
    mean: Figures
    low: Figures
    high: Figures
    undefined: Mapping[str, int]
