"""Verdicts in words: the numbers in them, and what is never promised."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from declip.regions import MaskRule
from declip.report import wording
from declip.results import Localization
from declip.spec import Calibration

CALIBRATION = Calibration(
    threshold=0.5,
    untouched=(tuple(i / 100 for i in range(199)), tuple(i / 100 for i in range(40)), ()),
    photos=(199, 19, 0),
    mode="tiled",
)
MANIPULATED, INCONCLUSIVE, WEAK = 900, 765, 100  # flagged px of 10,000; with logits of 6.9 evidence 2.07, 1.91, 0.69


def found(
    flagged: int, calibration: Calibration | None = CALIBRATION, size: int = 100, *, scope: str | None = None
) -> Localization:
    scores = np.zeros((size, size), np.float32)
    scores.ravel()[: flagged * size * size // 10_000] = 0.999
    rule = MaskRule(threshold=0.5, calibration=calibration)
    return Localization(
        name="a", scores=scores, rule=rule, image_score=0.321, out_of_scope=scope, model="m", sha256="", mode="tiled"
    )


def words(flagged: int) -> wording.Wording:
    return wording.explain(found(flagged), CALIBRATION)


@pytest.mark.parametrize(
    ("flagged", "tone", "title", "numbers", "meant"),
    [
        (
            MANIPULATED,
            "manipulated",
            "Traces of manipulation were found",
            ("99.5 % of untouched photos of its size (under 0.5 MP)", "the 199 that"),
            "on average at most 10 get this verdict.",
        ),
        (
            INCONCLUSIVE,
            "inconclusive",
            "Inconclusive",
            ("96 % of untouched photos", "asks for 99 %"),
            "on average at most 50 get this verdict or a stronger one",
        ),
        (WEAK, "nothing", "Nothing found", ("35 % of untouched photos", "from 95 % on"), "95 % or more"),
        (0, "nothing", "Nothing found", ("No part of this photo stands out",), "95 % or more"),
    ],
)
def test_numbers_are_those_of_the_calibration(
    flagged: int, tone: str, title: str, numbers: tuple[str, ...], meant: str
) -> None:
    said = words(flagged)
    assert said.tone == tone and said.title.startswith(title)
    assert all(number in said.summary for number in numbers), said.summary
    assert meant in " ".join(said.meaning)


def test_few_and_cut_photos_are_told() -> None:
    said = wording.explain(found(100, size=800), CALIBRATION)
    assert said.tone == "inconclusive"
    assert "the 19 that it was compared with (with pieces of them 40 pictures) tell" in said.summary
    assert "a stronger one" not in " ".join(said.meaning)
    assert "no photo of this size is called “manipulated”" in said.summary
    none = wording.explain(found(100, size=1800), CALIBRATION)
    assert none.tone == "none" and "too few untouched photos of this size for a verdict: 0." in none.summary


def test_why_there_is_no_verdict() -> None:
    never = wording.explain(found(MANIPULATED, None), None)
    assert never.tone == "none" and "0.321" in never.summary and "never calibrated" in never.summary
    own = wording.explain(found(MANIPULATED, None), CALIBRATION)
    assert "a threshold of your own" in own.summary
    other = wording.explain(dataclasses.replace(found(MANIPULATED, None), mode="whole"), CALIBRATION)
    assert "calibrated in tiled mode" in other.summary and "this ran in whole mode" in other.summary
    shown = wording.explain(found(MANIPULATED, None, scope="This is no photograph."), CALIBRATION)
    assert "This is no photograph. The model is wrong about many such pictures." in shown.summary
    scope = wording.explain(found(MANIPULATED, scope="This is no photograph."), CALIBRATION)
    assert scope.title == "Not examined" and scope.summary.startswith("This is no photograph. ")
    assert scope.flagged == "No part of the picture is flagged."
    assert scope.caution == "It is no finding of either kind."


def test_what_is_flagged_and_that_nothing_is_promised() -> None:
    assert words(0).caution == "It is no proof that the photo is genuine."
    assert words(MANIPULATED).caution.startswith("It is no probability")
    assert words(MANIPULATED).flagged == "9 % of the picture is flagged, in 1 part."
    assert words(WEAK).flagged == words(0).flagged == "No part of the picture is flagged."


def test_percents_are_short_and_ranks_are_rounded_down() -> None:
    ranks = {0: "0 %", 0.9499: "94.9 %", 0.95: "95 %", 0.99479: "99.4 %", 0.9999: "99.9 %"}
    assert {rank: wording.rank_percent(rank) for rank in ranks} == ranks
    shares = {0: "0 %", 0.00001: "< 0.01 %", 0.0123: "1.23 %", 0.05: "5 %", 1: "100 %"}
    assert {share: wording.percent(share) for share in shares} == shares
