"""Small known edits, made inside one photo to see whether they are found: see `detectability`.

Three kinds, all without learnt weights: in-painting (from the outline inwards, by fast marching or along lines of equal
brightness), a foreign part (out of one of the three photos in assets/donors, shifted to the colour of its place) and a
copy of another part of the photo. Foreign parts and copies blend into the photo over 2 px.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from declip.images.read import read_photo
from declip.report.pictures import Box

__all__ = ["AREA", "COUNT", "KINDS", "Kind", "Probe", "in_rounds", "make_probes"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Kind: TypeAlias = Literal["in-painting", "foreign part", "copy-move"]
KINDS: tuple[Kind, ...] = get_args(Kind)

COUNT = 8  # places for each kind
AREA = 0.02  # of the photo,
LARGEST = 250_000  # px at most: there is no larger donor, and in-painting takes a second for so many
_GRIDS = ((1, 8), (2, 4), (4, 2), (8, 1))  # rows and columns of COUNT cells
_ATTEMPTS = 4  # in a cell
_MARGIN = 8  # px around the place that an in-painter looks at
_FEATHER = 2.0  # px
_VISIBLE, _CHANGED = 2, 0.5  # levels by which a pixel has changed, and the share of those, as in `synthesis.forging`


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Probe:
    """An edit that is ready to be put into the photo.

    box: around the place. mask: (h, w) bool, the place within its box. patch: (h, w, 3) uint8, what the box then holds.
    source: the box that a copy was taken from.
    """

    kind: Kind
    box: Box
    mask: Mask = field(repr=False)
    patch: Pixels = field(repr=False)
    source: Box | None = None


def make_probes(pixels: Pixels, taken: Mask, rng: np.random.Generator) -> list[Probe]:
    """Make up to COUNT edits of each kind, spread evenly over the photo.

    pixels: (H, W, 3) uint8. taken: (H, W) bool, where no place may lie. A cell in which no edit could be seen, as in a
    burnt-out sky, has none.
    """
    probes = []
    for kind in KINDS:
        for cell in _cells(taken.shape[0], taken.shape[1]):
            for _ in range(_ATTEMPTS):
                box, mask = _place(cell, taken.size, rng)
                window = taken[_window(box)]
                if window.shape != mask.shape or window[mask].any():  # it leaves the photo, or covers what is taken
                    continue
                probe = _edited(kind, pixels, box, mask, rng)
                if probe is not None and _is_visible(pixels, probe):
                    probes.append(probe)
                    break
    return probes


def in_rounds(probes: Sequence[Probe], gap: float) -> list[list[Probe]]:
    """Sort edits into rounds, each for one copy of the photo: no two places of a round are nearer than `gap` px.

    The part that a copy is taken from stays as it is, too.
    """
    rounds: list[list[Probe]] = []
    for probe in probes:
        for members in rounds:
            if all(_apart(probe, other, gap) for other in members):
                members.append(probe)
                break
        else:
            rounds.append([probe])
    return rounds


def _apart(one: Probe, other: Probe, gap: float) -> bool:
    sources = ((one.source, other.box), (other.source, one.box))
    return _gap(one.box, other.box) >= gap and all(part is None or _gap(part, box) > 0 for part, box in sources)


def _gap(one: Box, other: Box) -> int:
    """Return how many px lie between two boxes, in the direction in which there are more."""
    return max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3])


def _cells(height: int, width: int) -> Iterator[Box]:
    """Yield COUNT parts of the photo, as square as can be."""
    rows, columns = min(_GRIDS, key=lambda grid: abs(math.log(height * grid[1] / (width * grid[0]))))
    y, x = (
        np.linspace(0, length, count + 1).astype(int).tolist() for length, count in ((height, rows), (width, columns))
    )
    for i in range(rows):
        for j in range(columns):
            yield x[j], y[i], x[j + 1], y[i + 1]


def _place(cell: Box, pixels: int, rng: np.random.Generator) -> tuple[Box, Mask]:
    """Draw an ellipse of AREA near the middle of a cell: its box, and the mask within it."""
    x0, y0, x1, y1 = cell
    area = min(AREA * pixels, LARGEST)
    tall = math.sqrt(area / math.pi) * math.exp(rng.uniform(-0.3, 0.3))
    # It fits in whatever the shape of the cell is: eight such places are a sixth of the photo.
    tall = min(max(tall, area / math.pi / (0.45 * (x1 - x0))), 0.45 * (y1 - y0))
    wide = area / math.pi / tall
    height, width = max(3, round(2 * tall)), max(3, round(2 * wide))
    # In the middle half of the room, so that places of neighbouring cells keep apart.
    down, across = (rng.uniform(0.25, 0.75) * (room - side) for room, side in ((y1 - y0, height), (x1 - x0, width)))
    top, left = y0 + max(0, round(down)), x0 + max(0, round(across))
    y, x = np.ogrid[:height, :width]
    inside = ((2 * y + 1) / height - 1) ** 2 + ((2 * x + 1) / width - 1) ** 2 <= 1
    return (left, top, left + width, top + height), np.asarray(inside, dtype=bool)


def _window(box: Box) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(y0, y1), slice(x0, x1)


def _edited(kind: Kind, pixels: Pixels, box: Box, mask: Mask, rng: np.random.Generator) -> Probe | None:
    """Make one edit; None where there is no room for it."""
    source = None
    match kind:
        case "in-painting":
            patch = _inpainted(pixels, box, mask, rng)
        case "foreign part":
            patch = _blended(pixels[_window(box)], _foreign(pixels[_window(box)], mask, rng), mask)
        case "copy-move":
            source = _source(pixels.shape[0], pixels.shape[1], box, rng)
            if source is None:
                return None
            patch = _blended(pixels[_window(box)], pixels[_window(source)], mask)
    return Probe(kind=kind, box=box, mask=mask, patch=patch, source=source)


def _is_visible(pixels: Pixels, probe: Probe) -> bool:
    before = pixels[_window(probe.box)][probe.mask].astype(np.int16)
    changed = np.abs(probe.patch[probe.mask] - before).max(axis=1) >= _VISIBLE
    return bool(changed.mean() >= _CHANGED)


def _inpainted(pixels: Pixels, box: Box, mask: Mask, rng: np.random.Generator) -> Pixels:
    """Fill the place from its surroundings (Telea 2004, or Bertalmio et al. 2001)."""
    x0, y0, x1, y1 = box
    top, left = max(0, y0 - _MARGIN), max(0, x0 - _MARGIN)
    around = np.ascontiguousarray(pixels[top : y1 + _MARGIN, left : x1 + _MARGIN])
    hole = np.zeros(around.shape[:2], np.uint8)
    place = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    hole[place][mask] = 255
    method = cv2.INPAINT_TELEA if rng.random() < 0.5 else cv2.INPAINT_NS
    return np.asarray(cv2.inpaint(around, hole, 3, method)[place], np.uint8)


def _foreign(here: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
    """Cut a part out of a donor, mirrored half of the time, and shift its mean colour to that of the place."""
    donors = _donors()
    donor = donors[int(rng.integers(len(donors)))]
    height, width = here.shape[:2]
    scale = max(1.0, height / donor.shape[0], width / donor.shape[1])
    if scale > 1:
        size = math.ceil(donor.shape[1] * scale), math.ceil(donor.shape[0] * scale)
        donor = np.asarray(cv2.resize(donor, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    top, left = (int(rng.integers(donor.shape[axis] - here.shape[axis] + 1)) for axis in (0, 1))
    part = donor[top : top + height, left : left + width]
    part = part[:, ::-1] if rng.random() < 0.5 else part
    if not np.ptp(here, axis=2).any():  # a grey photo
        part = np.repeat(part.mean(axis=2, keepdims=True), 3, axis=2)
    shift = here[mask].mean(axis=0) - part[mask].mean(axis=0)
    return np.asarray(np.rint(np.clip(part + shift, 0, 255)), np.uint8)


@cache
def _donors() -> tuple[Pixels, ...]:
    folder = importlib.resources.files("declip") / "assets" / "donors"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return tuple(read_photo(file.read_bytes()).pixels for file in files if file.name.endswith(".jpg"))


def _source(height: int, width: int, box: Box, rng: np.random.Generator) -> Box | None:
    """Draw where a copy is taken from: a box of the same size that does not touch that of the place."""
    x0, y0, x1, y1 = box
    for _ in range(100):
        left, top = int(rng.integers(width - (x1 - x0) + 1)), int(rng.integers(height - (y1 - y0) + 1))
        source = (left, top, left + x1 - x0, top + y1 - y0)
        if _gap(source, box) > 0:
            return source
    return None


def _blended(here: Pixels, part: Pixels, mask: Mask) -> Pixels:
    """Lay a part over the place; its outline fades inwards."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    alpha = np.clip(depth / _FEATHER, 0, 1)[..., None]
    return np.asarray(np.rint(here + alpha * (part.astype(np.float32) - here)), np.uint8)
