"""Verdicts in words: the numbers in them, and what is never promised."""

from __future__ import annotations

import numpy as np
import pytest

from declip import verdicts
from declip.types import Calibration, Localization

CALIBRATION = Calibration(image_thresholds=((0.01, 0.9), (0.05, 0.6)), photos=100, mode="tiled")


def words(score: float, *, flagged: int = 0, calibration: Calibration | None = CALIBRATION) -> verdicts.Wording:
    scores = np.zeros((50, 50), np.float32)
    scores[:flagged, :10] = 0.8
    verdict = (None, None, None) if calibration is None else calibration.verdict(score)
    found = Localization(
        name="a",
        scores=scores,
        threshold=0.5,
        score=score,
        verdict=verdict[0],
        false_alarm_rate=verdict[1],
        score_threshold=verdict[2],
        model="m",
        sha256="",
    )
    return verdicts.explain(found, calibration, mode="tiled", precision="exact")


@pytest.mark.parametrize(
    ("score", "tone", "title", "numbers", "meant"),
    [
        (0.95, "manipulated", "Traces of manipulation were found", ("0.950", "0.900", "at most 1 %"), "about 10 would"),
        (0.7, "inconclusive", "Inconclusive", ("0.700", "0.600", "0.900", "at most 5 %"), "about 50 would"),
        (0.1, "nothing", "Nothing found", ("0.100", "0.600", "at most 5 %"), "95 % or more"),
    ],
)
def test_numbers_are_those_of_the_calibration(
    score: float, tone: str, title: str, numbers: tuple[str, ...], meant: str
) -> None:
    said = words(score)
    assert said.tone == tone and said.title.startswith(title)
    assert all(number in said.summary for number in numbers)
    assert meant in " ".join(said.meaning)


def test_nothing_is_promised() -> None:
    assert words(0.1).caution == "It is no proof that the photo is genuine."
    assert words(0.95).caution.startswith("It is no probability")
    assert "never calibrated" in words(0.95, calibration=None).summary
    assert words(0.95, calibration=None).tone == "none"


def test_what_is_flagged() -> None:
    assert words(0.95, flagged=5).flagged == "2 % of the picture is flagged, in 1 part."
    assert "too weak" in words(0.1, flagged=5).flagged
    assert words(0.1).flagged == "No part of the picture is flagged."
    assert "rests on its highest values" in words(0.95).flagged


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.00001, "< 0.01 %"), (0.0123, "1.23 %"), (0.05, "5 %"), (1, "100 %")]
)
def test_percent(share: float, text: str) -> None:
    assert verdicts.percent(share) == text
