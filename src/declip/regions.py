"""The connected parts of a map of scores, and how strong the evidence of each is.

Everything that is said of a photo rests on its parts: which of them are in the mask, and what the verdict is. The
evidence of a part is how far the logits of its scores lie above that of the threshold, on average, times the square
root of its share of the photo: a small part needs high scores, a large one may be fainter. Among the formulas that were
compared (docs/models.md) none told forged from untouched photos clearly better.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

__all__ = ["MOST", "SMALLEST", "Part", "Parts", "find_parts"]

# Smaller parts than this share of the photo are specks, which no list and no verdict takes into account.
SMALLEST = 1e-4
# More parts than this are not listed.
MOST = 50

_EIGHT = np.ones((3, 3), dtype=bool)
# A float32 score carries no larger logit.
_LARGEST_LOGIT = 16.0


class Part(NamedTuple):
    """An 8-connected part of a map.

    label: its number in the map of labels. bbox: (x0, y0, x1, y1) px, half-open. share: of the photo, in [0, 1].
    score: mean of its scores, in [0, 1]. evidence: mean of (logit − logit of the threshold) × √share, >= 0.
    """

    label: int
    bbox: tuple[int, int, int, int]
    share: float
    score: float
    evidence: float


class Parts(NamedTuple):
    """All parts of at least SMALLEST, the strongest evidence first, and the map they are in.

    labels: (H, W) int32, 0 = below the threshold; specks have labels, too.
    """

    labels: NDArray[np.int32]
    found: tuple[Part, ...]

    def mask(self, chosen: tuple[Part, ...]) -> NDArray[np.bool_]:
        """(H, W) bool, True in the chosen parts."""
        if not chosen:
            return np.zeros(self.labels.shape, dtype=bool)
        kept = np.zeros(int(self.labels.max()) + 1, dtype=bool)
        kept[[part.label for part in chosen]] = True
        return np.asarray(kept[self.labels])


def find_parts(scores: NDArray[np.float32], threshold: float) -> Parts:
    """Find the 8-connected parts of scores at or above a threshold. scores: (H, W) in [0, 1]."""
    above = scores >= np.float32(threshold)
    labels = np.zeros(scores.shape, np.int32)
    count = ndimage.label(above, structure=_EIGHT, output=labels)
    if count == 0:
        return Parts(labels, ())
    # Of flagged pixels only: bincount makes copies of eight bytes each.
    inside, values = labels[above], scores[above].astype(np.float64)
    height = _logit(values) - _logit(np.float64(np.float32(threshold)))
    sizes = np.bincount(inside, minlength=count + 1)[1:]
    score = np.bincount(inside, weights=values, minlength=count + 1)[1:] / sizes
    mean = np.bincount(inside, weights=height, minlength=count + 1)[1:] / sizes
    share = sizes / scores.size
    evidence = mean * np.sqrt(share)
    boxes = ndimage.find_objects(labels)
    found = []
    for i in np.argsort(-evidence, kind="stable"):
        if share[i] < SMALLEST:
            continue
        rows, columns = boxes[i]
        bbox = (columns.start, rows.start, columns.stop, rows.stop)
        found.append(Part(int(i) + 1, bbox, float(share[i]), float(score[i]), float(evidence[i])))
    return Parts(labels, tuple(found))


def _logit(scores: Any) -> Any:
    """Return logits within what a float32 score can carry."""
    return np.clip(special.logit(scores), -_LARGEST_LOGIT, _LARGEST_LOGIT)
