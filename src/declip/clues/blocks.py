"""Work on blocks of 8×8 px, and enlarge their values to maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declip.errors import ImageError
from declip.images.tensors import resize_scores
from declip.results import Photo

__all__ = ["BLOCK", "STRIP", "Floats", "blocks_of", "check_sides", "spread", "window"]

Floats = NDArray[np.float32]

BLOCK = 8  # px; JPEG's
JPEG_SIDE = 65500  # px; libjpeg's limit
STRIP = 128 * BLOCK  # rows that are worked on at a time, so that no large photo is held as floats


def blocks_of(plane: NDArray[Any]) -> NDArray[Any]:
    """Cut (H, W) into blocks, (H8, W8, 64). At the far sides the last pixels are repeated."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
    rows, columns = (side // BLOCK for side in plane.shape)
    return plane.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3).reshape(rows, columns, -1)


def window(grid: Floats, side: int) -> Floats:
    """Return the mean over a window of side × side blocks."""
    return np.asarray(ndimage.uniform_filter(grid, side, output=np.float32, mode="nearest"))


def spread(grid: Floats, size: tuple[int, int]) -> Floats:
    """Enlarge (H8, W8) to (H, W) float32, clipped to [0, 1]; bilinear between the centres of blocks."""
    rows, columns = grid.shape
    scores = resize_scores(grid, (rows * BLOCK, columns * BLOCK))
    return np.ascontiguousarray(scores[: size[0], : size[1]])


def check_sides(photo: Photo) -> None:
    """Raise ImageError for a photo that cannot be saved as JPEG."""
    if max(photo.size) > JPEG_SIDE:
        raise ImageError(
            photo.name, "too-large", f"a side of a JPEG has at most {JPEG_SIDE} px; make the picture smaller first"
        )
