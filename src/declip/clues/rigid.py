"""Search a photo for copies that were only moved: parts that repeat others to the grain.

They need no key points, so that grass, gravel and water count as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from declip.clues.copies import Copy, enlarged, without_repeats
from declip.clues.pieces import Pieces, find_pieces, luma_of
from declip.clues.repeating import repeating

__all__ = ["find_rigid_copies"]

_MOST_SHIFTS = 8
_NEAR = 1  # px between the shifts of pieces of one copy
_LEAST = 3.0  # digits
# Digits that count as much as one match of key points: untouched photos reach as much of both about as seldom.
_DIGITS = 4.0
_SMALLEST = 200  # px, of a part


def find_rigid_copies(pixels: NDArray[np.uint8]) -> list[Copy]:
    """Find parts of a photo that repeat others at the same size and angle, the strongest evidence first.

    pixels: (H, W, 3) uint8 RGB. The evidence of a copy is that of its pieces together. Photos over 2 MP are
    searched at 2 MP.
    """
    luma = luma_of(pixels)
    pieces = find_pieces(luma)
    found = [_copy(luma, pieces, which) for which in _shifts(pieces)]
    copies = without_repeats([copy for copy in found if copy is not None])
    height, width = pixels.shape[:2]
    return copies if luma.shape == (height, width) else [enlarged(copy, height, width) for copy in copies]


def _shifts(pieces: Pieces) -> list[NDArray[np.bool_]]:
    """Return for each of the strongest shifts which pieces share it, (N,)."""
    left = pieces.evidence.copy()
    found = []
    for _ in range(_MOST_SHIFTS):
        if not left.any():
            break
        near = np.abs(pieces.shift - pieces.shift[left.argmax()]).max(axis=1) <= _NEAR
        which = near & (left > 0)
        if left[which].sum() >= _LEAST:
            found.append(which)
        left[near] = 0
    return found


def _copy(luma: NDArray[np.uint8], pieces: Pieces, which: NDArray[np.bool_]) -> Copy | None:
    """Return the part that repeats at the shift of some pieces; None if it is too small."""
    down, right = pieces.shift[np.argmax(pieces.evidence * which)]
    transform = np.array([[1, 0, right], [0, 1, down]], np.float64)
    y, x = np.nonzero(pieces.mask(which))
    one, other = repeating(luma, transform, np.column_stack([x, y]))
    if np.count_nonzero(one) < _SMALLEST:
        return None
    return Copy(one, other, transform, 0, float(pieces.evidence[which].sum()) / _DIGITS)
