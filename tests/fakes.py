"""What tests use in the place of a model: see also `declip.testing`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declip.spec import Calibration, Mode
from declip.testing import SPEC, Compute, FakeEngine

__all__ = ["HeldEngine", "calibration", "fake_engine"]


def calibration(mode: Mode = "whole", threshold: float = 0.5) -> Calibration:
    """Compare with 199 photos of each size: 190 without any part, nine whose strongest part has the evidence 6.

    With scores of 0.9997 (logits of 8) and a threshold of 0.5, all of a picture is "manipulated" (evidence 8), half of
    it "inconclusive" (5.7: stronger than 190 of 200), and nothing of it "nothing found".
    """
    values = (0.0,) * 190 + (6.0,) * 9
    return Calibration(threshold=threshold, untouched=(values,) * 3, photos=(199,) * 3, mode=mode)


def fake_engine(compute: Compute | None = None, model: str = "fake", **fields: Any) -> FakeEngine:
    """Make a FakeEngine whose spec has these fields; with the calibration above unless told otherwise."""
    return FakeEngine(dataclasses.replace(SPEC, **{"calibration": calibration(), **fields}), compute, model=model)


class HeldEngine(FakeEngine):
    """A fake engine that can be held up inside the network, or told to fail.

    After `hold`, the next call waits until `go.set()`; `entered` tells that it is there. error: is raised instead.
    """

    def __init__(self, model: str = "fake", **fields: Any) -> None:
        super().__init__(dataclasses.replace(SPEC, **{"calibration": calibration(), **fields}), model=model)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.error: BaseException | None = None

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        return super().logits(inputs)

    def hold(self) -> None:
        self.go.clear()
        self.entered.clear()
