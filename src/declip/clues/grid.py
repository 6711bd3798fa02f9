"""Read from pixels on which grid of 8×8 blocks a part of a photo was saved as JPEG.

Saving as JPEG makes most DCT coefficients of a block 0, and they are only on the grid of that saving. So each block
votes for the phase of the grid, of 64, on which it has the most zeros (after Nikoukhah et al., ZERO, IPOL 2021).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from declip.clues.blocks import BLOCK

__all__ = ["PHASES", "phase_of", "place", "votes"]

PHASES = BLOCK * BLOCK
LARGEST = 3_000_000  # px; of larger photos, every second, third … block of each row and column votes
STRIP = 32  # rows of blocks that are worked on at a time
_MOST_ZEROS = PHASES - 2  # of the 63; flat blocks have all of them on each grid
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CENTRE = 64  # blocks, of the side of the part that tells the photo's own grid

Votes = NDArray[np.int16]


def votes(pixels: NDArray[np.uint8], withins: tuple[float, ...]) -> tuple[int, int, list[Votes]]:
    """Return the phase of the photo's own grid, and what its blocks vote for among all other grids.

    A phase is 8 × y + x, of the first whole block. Grids that share rows or columns with the photo's own have no votes:
    that one's zeros would be theirs, too. withins: coefficients below it count as 0, in levels; votes are cast with
    each. Returns the phase; the step in blocks, 1 up to 3 MP; and for each of withins (H8, W8) phases, -1 for no vote.
    """
    step = math.ceil(math.sqrt(pixels.shape[0] * pixels.shape[1] / LARGEST)) or 1
    counts = _zeros(pixels, withins, step)
    phase = _own(_most(counts[0]))
    down, right = place(phase)
    # Flat blocks of the own grid have zeros on those that cut them in halves, too.
    flat = ndimage.maximum_filter(counts[0][:, :, phase], (2, 2), origin=(-1, -1)) >= _MOST_ZEROS
    cast = []
    for zeros in counts:
        for line in range(BLOCK):
            zeros[:, :, [BLOCK * down + line, BLOCK * line + right]] = 0
        cast.append(np.where(flat, np.int16(-1), _most(zeros)))
    return phase, step, cast


def phase_of(pixels: NDArray[np.uint8]) -> int:
    """Return the phase of the photo's own grid, as its middle shows it best; 0 if it shows none."""
    spans = []
    for side in pixels.shape[:2]:
        start = max(0, side // 2 - _CENTRE * BLOCK // 2) // BLOCK * BLOCK
        spans.append(slice(start, start + _CENTRE * BLOCK))
    return _own(_most(_zeros(pixels[tuple(spans)], (0.5,), 1)[0]))


def place(phase: int) -> tuple[int, int]:
    """Return (y, x) of a phase, px."""
    return divmod(phase, BLOCK)


def _own(cast: Votes) -> int:
    """Return the phase that most votes are for; 0 if there are none."""
    return int(np.bincount(cast[cast >= 0], minlength=PHASES).argmax())


def _most(zeros: NDArray[np.uint8]) -> Votes:
    """Return the phase on which each block has the most zeros, (H8, W8); -1 where there is no single one."""
    most = zeros.max(axis=2, initial=0)
    single = (zeros == most[:, :, None]).sum(axis=2) == 1
    return np.where(single & (most > 0) & (most < _MOST_ZEROS), zeros.argmax(axis=2), -1).astype(np.int16)


def _zeros(pixels: NDArray[np.uint8], withins: tuple[float, ...], step: int) -> list[NDArray[np.uint8]]:
    """Count the coefficients of each block that are 0 on each grid, (H8, W8, 64), without the means."""
    rows, columns = (max(0, -(-(side // BLOCK - 1) // step)) for side in pixels.shape[:2])
    counts = [np.zeros((rows, columns, PHASES), np.uint8) for _ in withins]
    if rows == 0 or columns == 0:
        return counts
    wide = 2 * BLOCK
    for top in range(0, rows, STRIP):
        first, last = top * step * BLOCK, (min(top + STRIP, rows) - 1) * step * BLOCK
        luma = pixels[first : last + wide] @ _LUMA
        tiles = np.lib.stride_tricks.sliding_window_view(luma, (wide, wide))[:: step * BLOCK, :: step * BLOCK]
        tiles = tiles[:, :columns]
        for phase in range(PHASES):
            down, right = place(phase)
            cut = np.ascontiguousarray(tiles[:, :, down : down + BLOCK, right : right + BLOCK])
            spectrum = np.abs(fft.dctn(cut, axes=(2, 3), norm="ortho", overwrite_x=True))
            spectrum[:, :, 0, 0] = np.inf
            for zeros, within in zip(counts, withins, strict=True):
                zeros[top : top + STRIP, :, phase] = (spectrum < within).sum(axis=(2, 3), dtype=np.uint8)
    return counts
