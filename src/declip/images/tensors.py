"""Turn pixels into what networks take, and their logits into scores on the photo's own grid.

Arrays are (height, width, …); networks take (3, height, width).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import special

from declip.images.arrays import from_image
from declip.spec import ModelSpec

__all__ = ["normalise", "resize_scores", "squash", "to_input", "to_scores"]


def normalise(pixels: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """Convert (H, W, 3) uint8 → (3, H, W) float32: / 255, − mean, / std of the spec; the bits torch would compute."""
    planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    planes /= np.float32(255)
    planes -= np.array(spec.mean, dtype=np.float32)[:, None, None]
    planes /= np.array(spec.std, dtype=np.float32)[:, None, None]
    return planes


def to_input(pixels: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """Convert (H, W, 3) uint8 → (3, S, S) float32, S = spec.input_size.

    The whole picture squashed, aspect ratio and all, with Pillow's antialiased bilinear filter on uint8, as the paper
    does it; then `normalise`.
    """
    return normalise(squash(pixels, spec.input_size), spec)


def squash(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 → (side, side, 3) uint8, as in `to_input`; a picture of that size stays as it is."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def to_scores(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return sigmoid(logits / temperature), float32 of any shape, safe for any magnitude; logits are kept."""
    if temperature == 1.0:
        return np.asarray(special.expit(np.asarray(logits, dtype=np.float32)))
    scaled = np.divide(logits, np.float32(temperature), dtype=np.float32)
    return np.asarray(special.expit(scaled, out=scaled))


def resize_scores(scores: NDArray[np.float32], size: tuple[int, int], *, bicubic: bool = False) -> NDArray[np.float32]:
    """Resize (h, w) float32 scores to (H, W) in [0, 1]; bilinear, antialiased where it shrinks. size: (H, W) px."""
    kind = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(scores, dtype=np.float32))
    resized = from_image(image.resize((width, height), kind))
    return np.clip(resized, 0, 1, out=resized)
