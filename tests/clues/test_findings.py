"""Findings: how rare their evidence is among untouched photos, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from declip.clues import CLUES, CopyMove
from declip.clues.copy_move import _change
from declip.clues.findings import Finding, rate_of, strongest_of_untouched, without_doubles
from declip.results import Photo
from tests.clues.test_copies import copied, scene


def test_rates_count_the_photo_itself() -> None:
    untouched = strongest_of_untouched("copy-move")
    for kind in CLUES:
        assert list(strongest_of_untouched(kind)) == sorted(strongest_of_untouched(kind))
        assert len(strongest_of_untouched(kind)) > 300
    assert rate_of("copy-move", 0.0) == 1.0
    assert rate_of("copy-move", untouched[-1]) == pytest.approx(2 / (len(untouched) + 1))
    assert rate_of("copy-move", untouched[-1] + 1) == pytest.approx(1 / (len(untouched) + 1))


@pytest.mark.parametrize(
    ("second", "rates", "kept"), [(0, (0.02, 0.01), [1]), (0, (0.01, 0.02), [0]), (30, (0.02, 0.01), [1, 0])]
)
def test_of_two_findings_of_one_copy_the_rarer_one_is_kept(
    second: int, rates: tuple[float, float], kept: list[int]
) -> None:
    findings = []
    for kind, start, rate in zip(("copy-move", "repeated-grain"), (0, second), rates, strict=True):
        parts = tuple(np.zeros((60, 60), bool) for _ in range(2))
        parts[0][start : start + 20, :20] = parts[1][start : start + 20, 40:] = True
        mask = parts[0] | parts[1]
        findings.append(Finding(kind=kind, mask=mask, evidence=9.0, rate=rate, reason="", parts=parts))
    assert without_doubles(findings) == [findings[i] for i in kept]


def test_a_copy_is_a_finding_with_both_parts_and_a_reason() -> None:
    pixels, source, target = copied(scene(), degrees=30)
    (finding,) = CopyMove().examine(Photo(pixels=pixels, name="copy"))
    assert finding.kind == "copy-move" and finding.rate <= 0.01
    assert finding.parts is not None and finding.transform is not None
    np.testing.assert_array_equal(finding.mask, finding.parts[0] | finding.parts[1])
    assert (finding.mask & (source | target)).sum() / (finding.mask | source | target).sum() > 0.75
    assert "turned by 30°" in finding.reason


def test_an_untouched_picture_has_no_finding() -> None:
    assert CopyMove().examine(Photo(pixels=scene(seed=3), name="untouched")) == []


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ([[1, 0], [0, 1]], ""),
        ([[0, -1], [1, 0]], "turned by 90°"),
        ([[0.5, 0], [0, 0.5]], "scaled to 50 %"),
        ([[-1, 0], [0, 1]], "mirrored"),
        ([[0, 1.5], [1.5, 0]], "mirrored and turned by 90° and scaled to 150 %"),
    ],
)
def test_what_a_map_does_is_said_in_words(turn: list[list[float]], words: str) -> None:
    assert _change(np.column_stack([np.array(turn, float), [7.0, 9.0]])) == words
