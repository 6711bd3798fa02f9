"""Clues from the history of a JPEG: parts that were saved less often than the rest, or on another grid of blocks."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from declip.clues import grid
from declip.clues.blocks import BLOCK
from declip.clues.double_jpeg import votes_for_once
from declip.clues.findings import Finding, Kind, rate_of
from declip.clues.votes import Area, stand_out
from declip.errors import MissingExtraError
from declip.images import jpeg
from declip.images.orientation import to_upright
from declip.results import Photo

__all__ = ["ForeignGrid", "SavedOnce", "foreign_areas", "saved_once_areas"]

_MOST = 0.05  # of untouched photos; what more of them show is not worth a word
_LARGEST_SHARE = 0.5  # of the photo: a larger area is not a part of it
_ZERO = (0.5, 2.0)  # levels: as saved, and under the noise of a later saving
_JPEG_SIDE = 65500  # px; libjpeg's limit


class SavedOnce:
    """Find parts that were saved as JPEG once where the rest of the photo was saved twice on the same grid.

    When a JPEG is opened, changed and saved again, the coefficients of its untouched parts leave out certain values.
    Values that the rest leaves out are counted in each area, and compared with how often they occur in other areas of
    the same photo: a photo that was just saved twice has none that stands out. A picture that is no JPEG is read on the
    grid that its pixels show. Needs the extra `data` (jpeglib).
    """

    kind: Kind = "saved-once"

    def examine(self, photo: Photo) -> list[Finding]:
        """Return the parts, the strongest evidence first: those that at most 5 % of untouched photos match.

        Raises MissingExtraError without jpeglib, and ImageError for unreadable coefficients.
        """
        found = []
        for mask, area in saved_once_areas(photo):
            reason = (
                "This part was saved as JPEG less often than the rest of the photo, as parts changed before the last "
                f"saving are: {_percent(area.votes / area.trials)} of its coefficients have values that two savings "
                f"leave out, against at most {_percent(area.usual)} in almost all other places."
            )
            found.append(_finding(self.kind, mask, area.evidence, reason))
        return [finding for finding in found if finding.rate <= _MOST]


class ForeignGrid:
    """Find parts that were saved as JPEG on another grid of 8×8 blocks than the rest of the photo.

    A part of another JPEG brings its grid along, which hardly ever lies as the photo's does. A photo that was cropped
    and saved again has two grids, too, but everywhere. Grids that share rows or columns with the photo's own are not
    told from it. A later saving at about the same quality or a lower one removes the trace.
    """

    kind: Kind = "foreign-grid"

    def examine(self, photo: Photo) -> list[Finding]:
        """Return the parts, the strongest evidence first: those that at most 5 % of untouched photos match."""
        found = []
        for mask, area, (down, right) in foreign_areas(photo):
            reason = (
                "This part was saved as JPEG on another 8×8 grid than the rest of the photo (shifted by "
                f"{right} px to the right and {down} px down), as parts pasted from another picture are: {area.votes} "
                f"of its {area.trials} blocks that tell a grid agree on that one, against at most "
                f"{_percent(area.usual)} in almost all other places."
            )
            found.append(_finding(self.kind, mask, area.evidence, reason))
        return [finding for finding in found if finding.rate <= _MOST]


def saved_once_areas(photo: Photo) -> list[tuple[NDArray[np.bool_], Area]]:
    """Return the areas that were saved once, each as (H, W) bool with its votes, the strongest first."""
    if importlib.util.find_spec("jpeglib") is None:
        raise MissingExtraError("jpeglib", "data")
    if max(photo.size) > _JPEG_SIDE:
        return []
    down = right = 0
    seen = photo
    if not photo.data.startswith(b"\xff\xd8\xff"):
        down, right = grid.place(grid.phase_of(photo.pixels))
        seen = Photo(pixels=np.ascontiguousarray(photo.pixels[down:, right:]), name=photo.name)
    stored = jpeg.read_coefficients(seen)
    votes, trials = votes_for_once(stored, seen.pixels)
    found = []
    for area in stand_out(votes, trials, side=5, chance=0.02, usual=0.99):
        blocks = np.asarray(to_upright(_enlarged(area.blocks, 1), stored.orientation))
        found.append((_placed(blocks, (down, right), photo.size), area))
    return [(mask, area) for mask, area in found if mask.mean() <= _LARGEST_SHARE]


def foreign_areas(photo: Photo) -> list[tuple[NDArray[np.bool_], Area, tuple[int, int]]]:
    """Return the areas on a foreign grid, each as (H, W) bool with its votes and shift (y, x) px, the strongest first.

    The shift is against the photo's own grid, in [0, 8).
    """
    phase, step, both = grid.votes(photo.pixels, _ZERO)
    down, right = grid.place(phase)
    found = []
    for cast in both:
        trials = (cast >= 0).astype(np.float32)
        for other in np.unique(cast[cast >= 0]):
            votes = (cast == other).astype(np.float32)
            y, x = grid.place(int(other))
            shift = (y - down) % BLOCK, (x - right) % BLOCK
            found += [(area, shift) for area in stand_out(votes, trials, side=7, chance=1 / 49, usual=0.95)]
    found.sort(key=lambda pair: -pair[0].evidence)
    kept: list[tuple[NDArray[np.bool_], Area, tuple[int, int]]] = []
    for area, shift in found:
        mask = _placed(_enlarged(area.blocks, step), (0, 0), photo.size)
        # One part is found with both meanings of zero.
        if mask.mean() <= _LARGEST_SHARE and not any((mask & there).any() for there, _, _ in kept):
            kept.append((mask, area, shift))
    return kept


def _enlarged(blocks: NDArray[np.bool_], step: int) -> NDArray[np.bool_]:
    return blocks.repeat(step * BLOCK, axis=0).repeat(step * BLOCK, axis=1)


def _placed(blocks: NDArray[np.bool_], start: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Put an area on the photo: cut, or filled with False. start: (y, x) px of its first pixel."""
    mask = np.zeros(size, bool)
    there = mask[start[0] :, start[1] :]
    cut = blocks[: there.shape[0], : there.shape[1]]
    there[: cut.shape[0], : cut.shape[1]] = cut
    return mask


def _finding(kind: Kind, mask: NDArray[np.bool_], evidence: float, reason: str) -> Finding:
    return Finding(kind=kind, mask=mask, evidence=evidence, rate=rate_of(kind, evidence), reason=reason)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
