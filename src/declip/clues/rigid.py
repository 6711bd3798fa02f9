"""The clue repeated grain: copies that were only moved, neither turned nor scaled.

They need no key points, so that grass, gravel and water count as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from declip.clues.copies import Copy, enlarged, without_repeats
from declip.clues.copy_move import findings_of
from declip.clues.findings import Finding, Kind
from declip.clues.pieces import Pieces, find_pieces, luma_of
from declip.clues.repeating import repeating
from declip.results import Photo

__all__ = ["RepeatedGrain", "find_rigid_copies"]

_MOST_SHIFTS = 8
_NEAR = 1  # px between the shifts of pieces of one copy
_LEAST = 3.0  # digits
_SMALLEST = 200  # px, of a part


class RepeatedGrain:
    """Find parts that repeat others to the grain, at the same size and angle.

    Photos over 2 MP are searched at 2 MP. Copies of smooth areas (sky, walls) are not found. Patterns can be taken for
    copies; the rate of a finding says how seldom.
    """

    kind: Kind = "repeated-grain"

    def examine(self, photo: Photo) -> list[Finding]:
        """Return the copies, the strongest evidence first: those that at most 5 % of untouched photos match."""
        return findings_of(self.kind, find_rigid_copies(photo.pixels), _reason)


def _reason(copy: Copy) -> str:
    right, down = copy.transform[:, 2]
    return (
        f"Two parts of the photo show the same to the grain, moved by {abs(right):.0f} px sideways "
        f"and {abs(down):.0f} px up or down, as copies do."
    )


def find_rigid_copies(pixels: NDArray[np.uint8]) -> list[Copy]:
    """Find parts of a photo that repeat others at the same size and angle, the strongest evidence first.

    pixels: (H, W, 3) uint8 RGB. The evidence of a copy is that of its pieces together, in digits. Photos over 2 MP are
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
    return Copy(one, other, transform, 0, float(pieces.evidence[which].sum()))
