"""The pictures of tools/model_card.py, on scores that are known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from declip.regions import MaskRule
from declip.results import Localization

pytest.importorskip("cv2", reason="measuring needs declip[synthesis]")
pytest.importorskip("matplotlib", reason="drawing needs declip[torch]")

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def figures() -> Iterator[Any]:
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("card_figures")
    finally:
        sys.path.remove(str(TOOLS))


class Redness:
    """Scores that are the red channel."""

    def map(self, images: Iterable[Any], batch_size: int = 8) -> Iterator[Localization]:
        return map(self, images)

    def __call__(self, pixels: NDArray[np.uint8]) -> Localization:
        scores = pixels[..., 0].astype(np.float32) / 255
        return Localization(
            name="", scores=scores, rule=MaskRule(threshold=0.5), image_score=0.5, model="redness", sha256=""
        )


def case(figures: Any, kind: str, group: str, red: int, **fields: Any) -> Any:
    """The left half is manipulated, and of this red; the rest is black."""
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[mask] = (red, 0, 0)
    return figures.Case(kind=kind, group=group, half="report", pixels=pixels, mask=mask, **fields)


def test_robustness_is_the_mean_over_kinds_of_lossless_pictures(figures: Any) -> None:
    cases = [
        case(figures, "blur", "a", 255),
        case(figures, "blur", "b", 255),
        case(figures, "noise", "a", 100),
        case(figures, "noise", "b", 255, jpeg=True),
    ]
    found = figures.robustness(Redness(), cases)
    assert found["pictures"] == 3
    assert list(found["kinds"]) == list(figures.DOSES)
    for kind, rows in found["kinds"].items():
        assert [row["level"] for row in rows] == [None, *figures.DOSES[kind]]
        # Of the two kinds one is seen wholly, the other orders its pixels rightly below the threshold.
        assert (rows[0]["ap"], rows[0]["iou"]) == (1.0, 0.5)
        assert all(0.4 < row["iou"] <= 0.5 for row in rows)
    # Noise reaches what is black: some of it outscores nothing of the mask, so that the order stays.
    assert found["kinds"]["noise"][-1]["ap"] == pytest.approx(1.0)
    figure = figures.robustness_figure(found)
    assert len(figure.axes) == len(figures.DOSES)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [100.0, 50.0]


def test_the_hardest_kinds_are_those_of_the_lowest_ap(figures: Any) -> None:
    kinds = {name: {"ap": {"mean": ap}} for name, ap in zip("abcdef", (0.9, 0.2, 0.5, 0.1, 0.6, 0.3), strict=True)}
    assert figures.hardest(kinds) == ["d", "b", "f", "c"]


def test_misses_show_the_middling_picture_of_a_photo_that_may_be_shown(figures: Any) -> None:
    cases = [
        case(figures, "blur", "kodak24-1", 0),  # AP = the mask's share
        case(figures, "blur", "kodak24-2", 255),
        case(figures, "blur", "popos-3", 255),
        case(figures, "blur", "flickr-4", 0),
        case(figures, "blur", "kodak24-5", 0, jpeg=True),
    ]
    figure = figures.misses(Redness(), cases, ["blur", "noise"])
    assert len(figure.axes) == 4
    assert figure.axes[3].get_xlabel() == "AP 1.00"
