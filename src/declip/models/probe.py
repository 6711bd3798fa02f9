"""Check a fast engine when it is opened, by a fixed picture: it is refused if its answer is not close to the exact one.

Machines and libraries choose lower precision in ways that no version number shows.
"""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

from declip.errors import SpecError
from declip.images.tensors import normalise, to_scores
from declip.spec import ModelSpec

__all__ = ["MOST_DRIFT", "MOST_SCORE", "check", "distance", "pack", "picture", "unpack"]

# The mean difference of scores that a fast engine may have, and that of logits (root of the mean square) as a share of
# their deviation: where all scores are near 0 or 1, a wrong logit would not be seen in them.
MOST_SCORE = 0.01
MOST_DRIFT = 0.2

_SIDE = 32


def picture(spec: ModelSpec) -> NDArray[np.float32]:
    """Return an input, (1, 3, S, S) normalised: smooth colours with noise, stronger in a disc in the middle."""
    y, x = np.mgrid[0 : spec.input_size, 0 : spec.input_size].astype(np.float64)
    planes = []
    middle = (y - spec.input_size / 2) ** 2 + (x - spec.input_size / 2) ** 2 < (spec.input_size / 4) ** 2
    for channel in range(3):
        smooth = 128 + 60 * np.sin(x / 23 + channel) + 40 * np.cos(y / 31 - channel)
        # Noise as shaders make it: the same everywhere, whatever becomes of a library's random generators.
        noise = np.modf(np.abs(np.sin(12.9898 * x + 78.233 * y + channel) * 43758.5453))[0] - 0.5
        planes.append(smooth + noise * np.where(middle, 24, 6))
    pixels = np.clip(np.rint(np.stack(planes, axis=-1)), 0, 255).astype(np.uint8)
    return normalise(pixels, spec)[None]


def pack(logits: NDArray[np.float32]) -> str:
    """Return logits (1, T, T) of the picture as text: at most 32 × 32 of them, evenly spread, in float32."""
    return base64.b64encode(_thin(logits).astype("<f4").tobytes()).decode()


def unpack(text: str) -> NDArray[np.float32]:
    """Return what `pack` was given, thinned: (n,) float32."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def check(spec: ModelSpec, expected: NDArray[np.float32], found: NDArray[np.float32], *, what: str) -> None:
    """Compare the answers to the picture: expected as of `unpack`, found (1, T, T).

    Raises SpecError, which names `what` computed it, where they differ by more than MOST_SCORE or MOST_DRIFT.
    """
    answer = _thin(found)
    scores, exact = (to_scores(logits, spec.temperature) for logits in (answer, expected))
    score = float(np.abs(scores - exact).mean())
    drift = float(np.sqrt(np.mean((answer - expected) ** 2)) / (expected.std() + 1e-12))
    if not (score <= MOST_SCORE and drift <= MOST_DRIFT):  # not: also catches nan
        raise SpecError(
            f"{what} computes something else here: on the probe its scores differ from the exact ones by {score:.3f} "
            f"on average (at most {MOST_SCORE}), its logits by {drift:.2f} of their deviation (at most {MOST_DRIFT}); "
            "use precision 'exact'"
        )


def distance(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the largest difference of logits on the probe; arguments as of `check`."""
    return float(np.abs(_thin(found) - expected).max())


def _thin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    step = max(1, logits.shape[-1] // _SIDE)
    return logits[0, ::step, ::step].ravel()
