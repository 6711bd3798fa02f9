"""What tools/photo_statistics.py makes of maps."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the tool's pictures need declip[synthesis]")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("photo_statistics")
    sys.path.remove(str(ROOT / "tools"))


def row(scores: np.ndarray, mask: np.ndarray | None = None, **fields: Any) -> dict[str, Any]:
    mask = np.zeros(scores.shape, np.bool_) if mask is None else mask
    return {"scores": scores.astype(np.float16), "mask": mask, "gain": np.nan, "seam": 1.0, **fields}


def test_thresholds_flag_the_same_share_of_untouched_pixels(tool: Any) -> None:
    rng = np.random.default_rng(0)
    rows = {f"untouched/valid/{i}": row(rng.uniform(0, 0.5, (100, 100))) for i in range(20)}
    mask = np.zeros((100, 100), np.bool_)
    mask[20:60, 20:60] = True
    found = np.where(mask, 0.8, 0.1)
    for i, condition in enumerate(("as is", "JPEG 90")):
        rows[f"{condition}/one/0"] = row(found, mask, gain=0.5)
        rows[f"{condition}/other/1"] = row(np.where(mask, 0.8 - i, 0.1), mask, gain=0.1)
    figures = tool.figures(rows)
    assert figures["threshold"] == pytest.approx(0.4975, abs=0.002)
    assert (figures["as is: IoU"], figures["JPEG 90: IoU"]) == (1.0, 0.5)
    assert figures["as is: AP − share"] == pytest.approx(0.3)
    assert figures["as is: stronger than 95 % of the untouched"] == 2
    assert figures["JPEG 90: stronger than 95 % of the untouched"] == 1
    assert figures["as is, other: IoU"] == 1
    assert (
        tool.gained({"tile": rows, "photo": rows}, "as is")
        == "IoU +0.000 (+0.000 to +0.000), median of the sets +0.000"
    )


def test_crops_are_compared_where_both_are(tool: Any) -> None:
    scores = np.zeros((116, 116))
    scores[60:100, 60:100] = 1
    same = row(scores, cropped=scores[36:, 36:].astype(np.float16))
    none = row(scores, cropped=np.zeros((80, 80), np.float16))
    empty = row(scores * 0, cropped=np.zeros((80, 80), np.float16))
    assert tool._after_crop([same, none, empty, row(scores)], 0.5) == 0.5


def test_seams_are_steps_in_the_overlaps(tool: Any) -> None:
    smooth = np.tile(np.linspace(0, 1, 900, dtype=np.float32), (320, 1))
    assert tool.seam_ratio(smooth) == pytest.approx(1, abs=0.01)
    steps = smooth.copy()
    steps[:, 300:] += 0.5
    assert tool.seam_ratio(steps) > 5


def test_both_ways_stand_side_by_side(tool: Any) -> None:
    text = tool.table({"tile": {"IoU": 0.25}, "photo": {"IoU": 0.5}})
    assert text.splitlines()[0] == "| | statistics of the tile | statistics of the photo |"
    assert text.splitlines()[2] == "| IoU | 0.250 | 0.500 |"
