"""The paper's numbers, as rows; data only. `declip reproduce` prints them beside its own.

Values are percent, as they were printed. `kind` says where a value comes from: "notebook" = printed in the authors'
result notebook, "re-run" = measured by others with the released weights or code, "quoted" = from a third party's table.

tolerance, in percent points: by how much a repetition with another seed may differ. It is this project's choice, not a
measurement, since nobody published a spread. It grows with how few trainings a number stands on, and is larger where a
generator was not trained on: there the same training, done twice, agrees less. A quoted number has the protocol of
others, too. A difference within it says "no contradiction", not "proof".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FUSION", "ID", "NUMBERS", "OOD", "RN50", "VIT", "WORST", "Number", "find"]

Kind = Literal["notebook", "re-run", "quoted"]

# Models, as `declip reproduce` names them.
VIT = "vit_large_patch14_clip_quickgelu_224:20"
RN50 = "resnet50_clip_gap:3"
FUSION = f"{VIT}+{RN50}"

# Rows that are means over pairs (tested on, trained on).
ID = "ID mean"  # tested on what was trained on
OOD = "OOD mean"  # tested on another generator
WORST = "worst pair"

# Of a cell of the matrix that was trained on; of one that was not; and of their means.
_SEEN, _UNSEEN, _SEEN_MEAN, _UNSEEN_MEAN = 4.0, 8.0, 3.0, 5.0
# Others' protocol on top.
_QUOTED = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One printed number.

    model: "BACKBONE:LAYER+…, DECODER", or a rival's name. row: what was tested on, or a mean. column: what was trained
    on; "" where the row is a mean over trainings. figure: as in `evaluation.Figures`.
    value: percent. tolerance: percent points.
    """

    model: str
    row: str
    column: str = ""
    figure: str = "iou"
    value: float
    kind: Kind
    tolerance: float


def _matrix() -> list[Number]:
    """ViT + RN50, conv-20: rows tested on, columns trained on."""
    names = ("ldm", "repaint-p2-9k", "lama", "pluralistic")
    values = ((51.1, 27.4, 21.6, 4.9), (44.7, 74.0, 29.5, 8.1), (43.5, 42.4, 86.5, 51.9), (56.4, 54.2, 32.0, 83.7))
    return [
        Number(
            model=f"{FUSION}, conv-20",
            row=row,
            column=column,
            value=value,
            kind="notebook",
            tolerance=_SEEN if row == column else _UNSEEN,
        )
        for row, line in zip(names, values, strict=True)
        for column, value in zip(names, line, strict=True)
    ]


def _means(model: str, kind: Kind, seen: float | None, unseen: float | None) -> list[Number]:
    extra = _QUOTED if kind == "quoted" else 0.0
    pairs = ((ID, seen, _SEEN_MEAN), (OOD, unseen, _UNSEEN_MEAN))
    return [
        Number(model=model, row=row, value=value, kind=kind, tolerance=tolerance + extra)
        for row, value, tolerance in pairs
        if value is not None
    ]


def _released(model: str, rows: dict[str, tuple[float, float, float, float]]) -> list[Number]:
    """Return the released weights that were trained on LDM; IoU of the fusion is in the matrix already."""
    figures = ("iou", "f1_best_oracle", "f1", "ap")
    return [
        Number(
            model=f"{model}, conv-20",
            row=row,
            column="ldm",
            figure=figure,
            value=value,
            kind="re-run",
            tolerance=_SEEN if row == "ldm" else _UNSEEN,
        )
        for row, values in rows.items()
        for figure, value in zip(figures, values, strict=True)
        if not (model == FUSION and figure == "iou")
    ]


NUMBERS: tuple[Number, ...] = (
    *_matrix(),
    *_means(f"{FUSION}, conv-20", "notebook", 73.85, 34.72),
    Number(model=f"{FUSION}, conv-20", row=WORST, value=4.9, kind="notebook", tolerance=_UNSEEN),
    *_means(f"{VIT}, conv-20", "re-run", 67.2, 32.8),
    *_means(f"{RN50}, conv-20", "re-run", 71.2, 31.4),
    *_means(f"{VIT}, linear", "quoted", 36.2, 18.5),
    *_means("Patch Forensics", "quoted", 69.3, 20.4),
    *_means("PSCC-Net", "quoted", 81.0, 21.6),
    # Trained on one generator, mean over the three others: which is best to train on.
    *(
        Number(model=f"{FUSION}, conv-20", row=OOD, column=name, value=value, kind="notebook", tolerance=_UNSEEN_MEAN)
        for name, value in (("ldm", 48.2), ("repaint-p2-9k", 41.3), ("lama", 27.7), ("pluralistic", 21.6))
    ),
    *_released(
        VIT,
        {
            "ldm": (48.70, 69.7, 56.2, 69.5),
            "repaint-p2-9k": (43.71, 67.4, 51.6, 67.3),
            "lama": (42.63, 68.2, 50.1, 67.1),
            "pluralistic": (55.55, 75.6, 62.6, 75.6),
        },
    ),
    *_released(
        FUSION,
        {
            "ldm": (51.03, 72.6, 60.4, 72.7),
            "repaint-p2-9k": (44.75, 69.3, 54.9, 69.0),
            "lama": (43.55, 69.4, 53.0, 68.7),
            "pluralistic": (56.46, 78.2, 65.5, 78.7),
        },
    ),
    # Three generators → the fourth, with as many pictures as one has; mean over the four.
    Number(model=f"{FUSION}, conv-12", row="unseen fourth", value=47.0, kind="re-run", tolerance=_UNSEEN_MEAN),
    # Whole pictures, real or fake, by a linear probe.
    Number(
        model=f"{VIT}, linear", row="full fakes", figure="detection_ap", value=93.0, kind="quoted", tolerance=_QUOTED
    ),
    Number(
        model=f"{VIT}, linear", row="local edits", figure="detection_ap", value=73.0, kind="quoted", tolerance=_QUOTED
    ),
)


def find(model: str, row: str, column: str = "", figure: str = "iou") -> Number | None:
    """Return the paper's number for this, if it has one."""
    wanted = (model, row, column, figure)
    return next((n for n in NUMBERS if (n.model, n.row, n.column, n.figure) == wanted), None)
