"""What all generators share: their signature, the row that describes one, pasting, and windows around masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declip.synthesis.masks import AREA
from declip.synthesis.steps import Mask, Pixels

__all__ = ["Apply", "Family", "Fill", "Generator", "draw_feather", "filled", "paste", "to_uint8", "window_of"]

Family = Literal["in-painting", "regeneration", "splice", "copy-move", "local-edit"]
Apply: TypeAlias = Callable[[Pixels, Mask, np.random.Generator, Pixels | None], tuple[Pixels, Mask]]
# (picture, mask, rng) → a picture (H, W, 3) of any dtype, of which only what is inside the mask is used.
Fill: TypeAlias = Callable[[Pixels, Mask, np.random.Generator], NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generator:
    """A row of the table of generators.

    apply: the function; None where `Networks.method` gives it.
    needs_donor: whether it takes content from another photo.
    place: where its mask is drawn: in the picture, in the donor, or nowhere, since everything is changed.
    max_area: largest share of the picture its masks should have (speed, or where it stops looking like anything).
    max_pixels: the same as an absolute number of pixels, where the time grows with it.
    """

    family: Family
    apply: Apply | None = None
    needs_donor: bool = False
    place: Literal["picture", "donor", "everywhere"] = "picture"
    max_area: float = AREA[1]
    max_pixels: int | None = None

    def area(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the smallest and largest share of a picture of `size` (height, width) px that its masks may have."""
        largest = self.max_area
        if self.max_pixels is not None:
            largest = min(largest, self.max_pixels / (size[0] * size[1]))
        return min(AREA[0], largest / 2), largest


def filled(fill: Fill, *, feather: float = 0.0, whole: bool = False) -> Apply:
    """Make a generator of what fills a mask.

    feather: half of the time the outline blends over 1 px to so many. whole: what `fill` changes outside stays, too.
    """

    def apply(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
        made = fill(pixels, mask, rng)
        return made if whole else paste(pixels, made, mask, draw_feather(rng, feather) if feather else 0.0), mask

    return apply


def paste(pixels: Pixels, filled: NDArray[Any], mask: Mask, feather: float = 0.0) -> Pixels:
    """Return `filled` inside the mask and `pixels` outside; both (H, W, 3), `filled` of any dtype, clipped to [0, 255].

    feather: px over which the two blend, inwards from the outline, so that nothing outside the mask changes.
    """
    if feather > 0:
        depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        # A thin mask still reaches full opacity along its middle.
        alpha = np.clip(depth / min(feather, max(float(depth.max()), 1.0)), 0, 1)[..., None]
        filled = pixels + (filled.astype(np.float32) - pixels) * alpha
    return np.where(mask[..., None], to_uint8(filled), pixels)


def draw_feather(rng: np.random.Generator, most: float) -> float:
    """Draw the width of an outline in px: half of the time 0, else 1 to `most`."""
    return float(rng.uniform(1, most)) if rng.random() < 0.5 else 0.0


def to_uint8(values: NDArray[Any]) -> Pixels:
    """Round and clip values to 0-255."""
    return values if values.dtype == np.uint8 else np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def window_of(mask: Mask, margin: int, step: int = 1) -> tuple[slice, slice]:
    """Return the bounding box of a mask that is not empty, with a margin in px, inside the picture.

    step: the box begins at multiples of it.
    """
    rows, columns = (
        slice(max(0, side.start - margin) // step * step, min(length, side.stop + margin))
        for side, length in zip(ndimage.find_objects(mask.astype(np.uint8))[0], mask.shape, strict=True)
    )
    return rows, columns
