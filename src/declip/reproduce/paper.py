"""The paper's numbers, from the rows of paper.csv. `declip reproduce` prints them beside its own.

kind says where a value comes from: "notebook" = printed in the authors' result notebook, "re-run" = measured by others
with the released weights or code, "quoted" = from a third party's table.

tolerance, in percent points: by how much a repetition with another seed may differ. It is this project's choice, not a
measurement, since nobody published a spread: 4 for a pair whose generator was trained on, 8 for another one, since
there the same training, done twice, agrees less; 3 and 5 for means; 8 more for a quoted number, which has the protocol
of others, too. A difference within it says "no contradiction", not "proof".
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["FUSION", "ID", "OOD", "RN50", "VIT", "WORST", "Number", "find", "numbers"]

# Models, as `declip reproduce` names them; the rows say ViT and RN50.
VIT = "vit_large_patch14_clip_quickgelu_224:20"
RN50 = "resnet50_clip_gap:3"
FUSION = f"{VIT}+{RN50}"

# Rows that are means over pairs (tested on, trained on).
ID = "ID mean"  # tested on what was trained on
OOD = "OOD mean"  # tested on another generator
WORST = "worst pair"


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One printed number.

    model: "BACKBONE:LAYER+…, DECODER", or a rival's name. row: what was tested on, or a mean. column: what was trained
    on; "" where the row is a mean over trainings. figure: as in `evaluation.Figures`.
    value: percent, as printed. tolerance: percent points.
    """

    model: str
    row: str
    column: str = ""
    figure: str = "iou"
    value: float
    kind: str
    tolerance: float


@cache
def numbers() -> tuple[Number, ...]:
    """Return all numbers."""
    found = []
    with Path(__file__).with_name("paper.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            name, comma, decoder = line["model"].partition(", ")
            model = {"ViT": VIT, "RN50": RN50, "ViT+RN50": FUSION}.get(name, name) + comma + decoder
            text = {key: line[key] for key in ("row", "column", "figure", "kind")}
            value, tolerance = float(line["value"]), float(line["tolerance"])
            found.append(Number(model=model, value=value, tolerance=tolerance, **text))
    return tuple(found)


def find(model: str, row: str, column: str = "", figure: str = "iou") -> Number | None:
    """Return the paper's number for this, if it has one."""
    wanted = (model, row, column, figure)
    return next((n for n in numbers() if (n.model, n.row, n.column, n.figure) == wanted), None)
