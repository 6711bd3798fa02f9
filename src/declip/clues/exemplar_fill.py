"""The clue exemplar fill: a part of a photo that is put together of pieces of its surroundings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip.clues.findings import Finding, Kind, rate_of
from declip.results import Photo

__all__ = ["ExemplarFill", "Fill", "find_fills"]

_MOST = 0.05  # of untouched photos; what more of them show is not worth a word
_CLOSE = 25  # px between pieces of one part
_NEAR = 1  # px between shifts that are one
_FEWEST = 3  # shifts
_LARGEST_SHARE = 0.5  # of the photo


class Fill(NamedTuple):
    """A part that is put together of pieces. mask: (H, W) bool, the part; sources: (H, W) bool, where its pieces come
    from. pieces: how many; evidence: theirs together, in digits, without those of the strongest shift: one shift alone
    is a copy."""

    mask: NDArray[np.bool_]
    sources: NDArray[np.bool_]
    pieces: int
    evidence: float


class ExemplarFill:
    """Find parts that were filled with pieces of other places of the photo, as content-aware fill and PatchMatch do.

    Which are the pieces and which their sources cannot be told from the repetition alone: the part whose pieces lie
    together is taken for the filled one. Photos over 2 MP are searched at 2 MP. Fills of smooth areas (sky, walls) are
    not found. Meshes and grilles can be taken for fills; the rate says how seldom.
    """

    kind: Kind = "exemplar-fill"

    def examine(self, photo: Photo) -> list[Finding]:
        """Return the parts, the strongest evidence first: those that at most 5 % of untouched photos match."""
        found = []
        for fill in find_fills(photo.pixels):
            rate = rate_of(self.kind, fill.evidence)
            if rate <= _MOST:
                reason = (
                    f"This part is put together of {fill.pieces} pieces that repeat other places of the photo to the "
                    "grain, moved by different distances, as content-aware fill does."
                )
                found.append(
                    Finding(
                        kind=self.kind,
                        mask=fill.mask | fill.sources,
                        parts=(fill.mask, fill.sources),
                        evidence=fill.evidence,
                        rate=rate,
                        reason=reason,
                    )
                )
        return found


def find_fills(pixels: NDArray[np.uint8]) -> list[Fill]:
    """Find parts of a photo (H, W, 3) that are put together of pieces of others, the strongest evidence first."""
    import cv2

    from declip.clues.pieces import find_pieces, luma_of

    luma = luma_of(pixels)
    pieces = find_pieces(luma)
    sure = pieces.evidence > 0
    joined = cv2.morphologyEx(pieces.mask(sure).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((_CLOSE, _CLOSE), np.uint8))
    count, parts = cv2.connectedComponents(joined)
    # The part of each piece: that of its first pixel.
    numbers, first = np.unique(pieces.labels, return_index=True)
    part_of = np.zeros(len(sure), np.int64)
    part_of[numbers[numbers >= 0]] = parts.ravel()[first[numbers >= 0]]
    found = []
    for part in range(1, count):
        which = sure & (part_of == part)
        by_shift = _by_shift(pieces.shift[which], pieces.evidence[which])
        if len(by_shift) < _FEWEST or (parts == part).mean() > _LARGEST_SHARE:
            continue
        evidence = sum(by_shift) - max(by_shift)
        sources = pieces.sources(which)
        found.append(Fill((parts == part) & ~sources, sources, int(which.sum()), float(evidence)))
    found.sort(key=lambda fill: -fill.evidence)
    kept: list[Fill] = []
    for fill in found:  # sources repeat what was filled
        if fill.mask.any() and not any((fill.mask & there.sources).any() for there in kept):
            kept.append(fill)
    return kept if luma.shape == pixels.shape[:2] else [_enlarged(fill, pixels.shape[:2]) for fill in kept]


def _by_shift(shift: NDArray[np.int32], evidence: NDArray[np.float64]) -> list[float]:
    """Add up the evidence of pieces that were moved alike."""
    left, sums = evidence.copy(), []
    while left.any():
        near = np.abs(shift - shift[left.argmax()]).max(axis=1) <= _NEAR
        sums.append(float(left[near].sum()))
        left[near] = 0
    return sums


def _enlarged(fill: Fill, size: tuple[int, ...]) -> Fill:
    """Bring what was found in a smaller picture to the photo's own size."""
    import cv2

    mask, sources = (
        cv2.resize(part.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST) > 0
        for part in (fill.mask, fill.sources)
    )
    return fill._replace(mask=mask, sources=sources)
