"""A calibration for fakes whose bright pixels are manipulated."""

from __future__ import annotations

from declip.spec import Calibration, Mode

__all__ = ["calibration"]


def calibration(mode: Mode = "whole", threshold: float = 0.5) -> Calibration:
    """Compare with 199 photos of each size: 190 without any part, nine whose strongest part has the evidence 6.

    With scores of 0.9997 (logits of 8) and a threshold of 0.5, all of a picture is "manipulated" (evidence 8), half of
    it "inconclusive" (5.7: stronger than 190 of 200), and nothing of it "nothing found".
    """
    values = (0.0,) * 190 + (6.0,) * 9
    return Calibration(threshold=threshold, untouched=(values,) * 3, photos=(199,) * 3, mode=mode)
