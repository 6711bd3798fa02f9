"""Find areas of a photo whose blocks vote otherwise than the rest of the photo does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

__all__ = ["Area", "stand_out"]

Counts = NDArray[np.float32]

_SUSPICIOUS = 1.5  # decimal digits of the chance of a window that an area is grown from
_USUAL = 0.75  # quantile of the windows, for growing areas
_FEWEST = 4  # blocks of an area
_FEWEST_REST = 30  # windows of the rest; with fewer, nothing is known of the rest
_FEWEST_VOTES = 12  # that were asked for in a window which counts among the rest
_APART = 3  # blocks between an area and its rest


class Area(NamedTuple):
    """Connected blocks with more votes than usual.

    blocks: (H8, W8) bool. votes: for it, of so many trials. usual: the share of votes that the rest of the photo
    reaches in places. evidence: −log10 of a bound of the probability of so many votes, if that share is theirs, too.
    """

    blocks: NDArray[np.bool_]
    votes: int
    trials: int
    usual: float
    evidence: float


def stand_out(votes: Counts, trials: Counts, side: int, chance: float, usual: float) -> list[Area]:
    """Find areas with more votes than chance and the rest of the photo explain, the strongest evidence first.

    votes, trials: (H8, W8), of each block. side: of the windows, in blocks. chance: share of votes where nothing is to
    be found, at least. usual: quantile of the rest's windows; the share of votes there is taken for the rest's own.
    The bound is Chernoff's, of the binomial distribution.
    """
    cast, asked = (side * side * ndimage.uniform_filter(grid, side, mode="constant") for grid in (votes, trials))
    known = asked >= _FEWEST_VOTES
    if np.count_nonzero(known) < _FEWEST_REST:
        return []
    share = cast / np.maximum(asked, 1)
    common = max(chance, float(np.quantile(share[known], _USUAL)))
    labels, _ = ndimage.label(known & (_digits(share, asked, common) > _SUSPICIOUS))
    found = []
    for label, place in enumerate(ndimage.find_objects(labels), 1):
        # A window that lies half in the area has half of its excess.
        inside = share[place][labels[place] == label]
        border = (common + float(np.quantile(inside, _USUAL))) / 2
        blocks = (labels == label) & (share >= border)
        if np.count_nonzero(blocks[place]) < _FEWEST:
            continue
        rest = known & ~ndimage.binary_dilation(blocks, iterations=side // 2 + _APART)
        if np.count_nonzero(rest) < _FEWEST_REST:
            continue
        level = max(chance, float(np.quantile(share[rest], usual)))
        cast_here, asked_here = float(votes[blocks].sum()), float(trials[blocks].sum())
        evidence = float(_digits(np.array(cast_here / max(asked_here, 1)), np.array(asked_here), level))
        if evidence > 0:
            found.append(Area(blocks, round(cast_here), round(asked_here), level, evidence))
    return sorted(found, key=lambda area: -area.evidence)


def _digits(share: NDArray[np.floating], trials: NDArray[np.floating], chance: float) -> NDArray[np.float64]:
    """Return −log10 of the bound on the probability of such a share of votes or more; 0 at or below chance."""
    chance = min(chance, 0.999)
    excess = special.xlogy(share, share / chance) + special.xlogy(1 - share, (1 - share) / (1 - chance))
    return np.asarray(np.where(share > chance, trials * excess, 0.0) / np.log(10))
