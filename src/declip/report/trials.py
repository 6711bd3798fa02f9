"""Was a small known edit found? Its place is compared with the flagged parts that touch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from declip.images.tensors import resize_scores
from declip.report.pictures import Box, fit
from declip.report.probes import Kind, Probe

__all__ = ["LEAST_IOU", "Trial", "judge"]

LEAST_IOU = 0.2
_SIDE = 180  # px, of the pictures of a trial


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trial:
    """One edit, and what came of it.

    box: around its place, (x0, y0, x1, y1) px, half-open. area: share of the photo. iou: of the place with the flagged
    parts that touch it. picture: (h, w, 3) uint8, the place with its surroundings as it was saved, at most _SIDE px;
    place, flagged: (h, w) bool, there.
    """

    kind: Kind
    box: Box
    area: float
    iou: float
    picture: NDArray[np.uint8] = field(repr=False)
    place: NDArray[np.bool_] = field(repr=False)
    flagged: NDArray[np.bool_] = field(repr=False)

    @property
    def found(self) -> bool:
        """Whether a part with a verdict lies there."""
        return self.iou >= LEAST_IOU


def judge(probes: Sequence[Probe], pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> list[Trial]:
    """Say of each edit in a photo whether it was found.

    pixels: (H, W, 3) uint8, with the edits, as they were saved. mask: (H, W) bool, what is flagged there.
    """
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    return [_judged(probe, pixels, labels) for probe in probes]


def _judged(probe: Probe, pixels: NDArray[np.uint8], labels: NDArray[Any]) -> Trial:
    """Compare a place with the flagged parts that touch it. labels: (H, W), 0 where nothing is flagged."""
    x0, y0, x1, y1 = probe.box
    under = labels[y0:y1, x0:x1][probe.mask]
    parts = np.unique(under[under > 0])
    inside, area = np.count_nonzero(under), np.count_nonzero(probe.mask)
    flagged = np.isin(labels, parts) if parts.size else np.zeros(labels.shape, dtype=bool)
    around = _around(probe.box, labels.shape)
    place = np.zeros(labels.shape, dtype=bool)
    place[y0:y1, x0:x1] = probe.mask
    size = fit((around[0].stop - around[0].start, around[1].stop - around[1].start), _SIDE)
    small = Image.fromarray(pixels[around]).resize(size[::-1], Image.Resampling.LANCZOS)
    return Trial(
        kind=probe.kind,
        box=probe.box,
        area=area / labels.size,
        iou=float(inside / (area + np.count_nonzero(flagged) - inside)),
        picture=np.asarray(small),
        place=_smaller(place[around], size),
        flagged=_smaller(flagged[around], size),
    )


def _around(box: Box, size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the box with half of its sides on each side, within the photo."""
    x0, y0, x1, y1 = box
    down, across = (y1 - y0) // 2, (x1 - x0) // 2
    return slice(max(0, y0 - down), min(size[0], y1 + down)), slice(max(0, x0 - across), min(size[1], x1 + across))


def _smaller(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(resize_scores(mask.astype(np.float32), size) >= 0.5, dtype=bool)
