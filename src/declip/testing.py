"""A fake engine for tests of what uses declip: no network, no weight file, the same numbers on every machine.

from declip import Localizer
from declip.testing import FakeEngine

result = Localizer(FakeEngine())("photo.jpg")  # bright pixels are manipulated
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.spec import BackboneSpec, DecoderSpec, ModelSpec, Precision

__all__ = ["SPEC", "Compute", "FakeEngine", "brightness"]

# Logits (N, T, T) of a batch of inputs (N, 3, S, S), both float32.
Compute: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Inputs of 32 px in [-1, 1], maps of 16 px, whole photos, no calibration.
SPEC = ModelSpec(
    backbones=(BackboneSpec(name="residual-statistics", layer=0),),
    decoder=DecoderSpec(kind="linear"),
    input_size=32,
    output_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def brightness(images: NDArray[np.float32], side: int, gain: float = 8.0) -> NDArray[np.float32]:
    """Return `gain` times the mean brightness of each cell: (N, 3, S, S) → (N, side, side); side divides S."""
    grey = images.mean(axis=1)
    cell = grey.shape[-1] // side
    logits: NDArray[np.float32] = gain * grey.reshape(len(grey), side, cell, side, cell).mean(axis=(2, 4))
    return logits


class FakeEngine:
    """Compute logits with a plain function instead of a network.

    spec: describes the inputs and maps. compute: takes a batch of inputs, (N, 3, S, S) float32, and returns its logits,
    (N, T, T); by default 8 × `brightness`. model, sha256: as in results.

    `batches` lists how many inputs each call of `logits` had. It can be pickled where `compute` can.
    """

    precision: Precision = "exact"

    def __init__(
        self, spec: ModelSpec = SPEC, compute: Compute | None = None, *, model: str = "fake", sha256: str = "00" * 32
    ) -> None:
        self.spec = spec
        self.compute = compute or partial(brightness, side=spec.output_size)
        self.model = model
        self.sha256 = sha256
        self.batches: list[int] = []

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return nothing: tiles need nothing of the photo."""
        return {}

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the logits of {"image": (N, 3, S, S) float32}: (N, T, T) float32."""
        images = inputs["image"]
        self.batches.append(len(images))
        return self.compute(images).astype(np.float32, copy=False)
