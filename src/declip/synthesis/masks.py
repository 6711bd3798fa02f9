"""Where to manipulate: random shapes, and shapes that follow what is in the picture: objects and faces.

Everywhere pixels are (H, W, 3) uint8 RGB, sizes (height, width) px, and area is the smallest and largest share of the
picture, 0 < smallest <= largest < 1, between which a mask's own is drawn log-uniformly: small regions are as frequent
as large ones. A mask is (H, W) bool, True = to be manipulated, never empty and never the whole picture. Pictures
smaller than SMALLEST_SIDE and areas that are no range raise DatasetError.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from skimage.segmentation import slic

from declip.errors import DatasetError
from declip.synthesis.steps import Mask, Pixels

__all__ = [
    "AREA",
    "MASKS",
    "SMALLEST_SIDE",
    "Box",
    "MaskKind",
    "face_mask",
    "find_faces",
    "grabcut_mask",
    "largest_part",
    "object_mask",
    "random_mask",
    "snap",
]

MaskKind = Literal["random", "object", "grabcut", "face", "salient", "beside"]
MASKS: tuple[MaskKind, ...] = get_args(MaskKind)
AREA = (0.01, 0.4)
SMALLEST_SIDE = 32  # px; below it a share of 1 % is no region any more

_ATTEMPTS = 12
_ANALYSED_SIDE = 256  # px; superpixels are found on a picture no larger than this,
_CUT_SIDE = 160  # cut-outs on one of this side,
_FACE_SIDE = 320  # and faces on one of this side,
_SMALLEST_FACE = 32  # px, where this is the smallest side of a face: about 1 % of the picture
_SLACK = 1.2  # a drawn shape may miss the wanted range by this factor

Box = tuple[int, int, int, int]  # [x0, y0, x1, y1) px, half-open

# What is manipulated of a face: centre (x, y) and half axes (x, y) of an ellipse, as shares of the detector's box.
_FACE_PARTS = (
    ((0.5, 0.54), (0.46, 0.6)),  # the whole of it
    ((0.5, 0.38), (0.44, 0.16)),  # both eyes
    ((0.5, 0.8), (0.28, 0.15)),  # the mouth
    ((0.5, 0.58), (0.17, 0.24)),  # the nose
    ((0.3, 0.38), (0.19, 0.14)),  # one eye
    ((0.7, 0.38), (0.19, 0.14)),  # the other
)


def random_mask(size: tuple[int, int], rng: np.random.Generator, area: tuple[float, float] = AREA) -> Mask:
    """Draw brush strokes, a polygon or ellipses."""
    _check(size, area)
    for _ in range(_ATTEMPTS):
        draw = (_strokes, _polygon, _ellipses)[rng.integers(3)]
        canvas = np.zeros(size, dtype=np.uint8)
        draw(canvas, _log_uniform(rng, area), rng)
        if _fits(canvas > 0, area):
            return canvas > 0
    # The way out when nothing drawn fits: an ellipse in the middle, of the middle area.
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in size)
    return np.asarray(x * x + (y * y)[:, None] <= np.sqrt(area[0] * area[1]) / np.pi, dtype=bool)


def object_mask(pixels: Pixels, rng: np.random.Generator, area: tuple[float, float] = AREA) -> Mask:
    """Draw a region that follows the edges of the picture: neighbouring superpixels of like colour, grown from a seed.

    It is one connected part without holes. Where the picture offers none of the wanted area, it is a `random_mask`.
    """
    size = pixels.shape[0], pixels.shape[1]
    _check(size, area)
    target = _log_uniform(rng, area)
    labels, colours = _superpixels(pixels, int(np.clip(rng.uniform(4, 12) / target, 40, 400)), rng)
    for _ in range(_ATTEMPTS // 2):
        mask = _smooth(_grow(labels, colours, target * labels.size, rng), size)
        if _fits(mask, area):
            return mask
    return random_mask(size, rng, area)


def grabcut_mask(pixels: Pixels, rng: np.random.Generator, area: tuple[float, float] = AREA) -> Mask:
    """Find what stands out inside a random box: foreground by GrabCut (Rother et al. 2004).

    It is one connected part without holes. Where no box holds one of the wanted area, it is an `object_mask`.
    """
    size = pixels.shape[0], pixels.shape[1]
    _check(size, area)
    small = _reduced(pixels, _CUT_SIDE)
    height, width = small.shape[:2]
    for _ in range(_ATTEMPTS // 4):
        # The foreground fills about half of its box.
        share = min(2 * _log_uniform(rng, area), 0.8)
        stretch = float(np.exp(rng.uniform(-0.4, 0.4)))
        sides = np.sqrt(share * width * height) * np.array((stretch, 1 / stretch))
        w, h = (int(side) for side in np.clip(np.round(sides), 4, 0.95 * np.array((width, height))))
        x, y = int(rng.integers(1, width - w)), int(rng.integers(1, height - h))
        cv2.setRNGSeed(int(rng.integers(2**31)))  # OpenCV's own generator starts the clusters of colours
        labels = np.zeros((height, width), dtype=np.uint8)
        background, foreground = np.zeros((2, 1, 65))  # OpenCV writes its models of the colours there
        cv2.grabCut(small, labels, (x, y, w, h), background, foreground, 2, cv2.GC_INIT_WITH_RECT)
        kept = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if kept.any() and _fits(mask := _smooth(kept, size), area):
            return mask
    return object_mask(pixels, rng, area)


def find_faces(pixels: Pixels) -> list[Box]:
    """Find frontal faces, by scikit-image's cascade of local binary patterns; boxes in px, from top to bottom.

    A face narrower than a tenth of the picture's longer side is not looked for. The detector is quick and old: it
    misses faces that are turned or covered, and now and then sees one that is none.
    """
    small = _reduced(pixels, _FACE_SIDE)
    height, width = small.shape[:2]
    largest = min(height, width)
    if largest < _SMALLEST_FACE:
        return []
    found = _face_detector().detect_multi_scale(
        small, scale_factor=1.2, step_ratio=1, min_size=(_SMALLEST_FACE,) * 2, max_size=(largest, largest)
    )
    scale = np.array((pixels.shape[1] / width, pixels.shape[0] / height) * 2)
    corners = ((f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]) for f in found)
    boxes = [(round(float(v)) for v in np.array(box) * scale) for box in corners]
    return sorted(((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes), key=lambda box: (box[1], box[0]))


def face_mask(
    faces: Sequence[Box], size: tuple[int, int], rng: np.random.Generator, area: tuple[float, float] = AREA
) -> Mask | None:
    """Draw an ellipse around a face (a box of `find_faces`), the eyes, one eye, the nose or the mouth.

    size: of the picture. None where no part of any face is of such an area.
    """
    _check(size, area)
    places = [(box, part) for box in faces for part in _FACE_PARTS]
    for index in rng.permutation(len(places)):
        (x0, y0, x1, y1), ((x, y), (a, b)) = places[index]
        centre = np.array((x0 + x * (x1 - x0), y0 + y * (y1 - y0))) + rng.normal(0, 0.02, 2) * (x1 - x0)
        axes = np.array((a * (x1 - x0), b * (y1 - y0))) * rng.uniform(0.9, 1.15, 2)
        canvas = np.zeros(size, dtype=np.uint8)
        cv2.ellipse(canvas, _point(centre), _point(np.maximum(2, axes)), float(rng.uniform(-8, 8)), 0, 360, 255, -1)
        if _fits(canvas > 0, area):
            return canvas > 0
    return None


def snap(mask: Mask, pixels: Pixels, rng: np.random.Generator) -> Mask:
    """Move the outline of a mask to nearby edges of the picture: the superpixels that lie mostly inside it.

    It stays as it is where its area would change by more than a half.
    """
    if min(mask.shape) < SMALLEST_SIDE:
        return mask
    labels, _ = _superpixels(pixels, int(np.clip(rng.uniform(8, 16) / max(mask.mean(), 0.05), 20, 200)), rng)
    inside = cv2.resize(mask.astype(np.float32), labels.shape[::-1], interpolation=cv2.INTER_AREA)
    share = ndimage.mean(inside, labels, np.arange(labels.max() + 1))
    snapped = _smooth(share[labels] > 0.5, (mask.shape[0], mask.shape[1]))
    return snapped if 0.5 * mask.sum() <= snapped.sum() <= 1.5 * mask.sum() else mask


def largest_part(mask: Mask) -> Mask:
    """Return the largest 8-connected part of a mask that is not empty."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    if count <= 1:
        return mask
    return np.asarray(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]), dtype=bool)


def _check(size: tuple[int, int], area: tuple[float, float]) -> None:
    if min(size) < SMALLEST_SIDE:
        raise DatasetError(f"the picture is {size[0]}×{size[1]} px; masks need at least {SMALLEST_SIDE} px a side")
    if not 0 < area[0] <= area[1] < 1:
        raise DatasetError(f"area is {area}; expected 0 < smallest <= largest < 1")


def _log_uniform(rng: np.random.Generator, area: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(area[0]), np.log(area[1]))))


def _fits(mask: Mask, area: tuple[float, float]) -> bool:
    return area[0] / _SLACK <= float(mask.mean()) <= min(area[1] * _SLACK, 0.95)


def _strokes(canvas: Pixels, share: float, rng: np.random.Generator) -> None:
    """Draw random walks of a round brush until the wanted area is covered."""
    height, width = canvas.shape
    thickness = max(3, int(float(np.sqrt(canvas.size)) * np.sqrt(share) * rng.uniform(0.15, 0.45)))
    while np.count_nonzero(canvas) < share * canvas.size:
        point = rng.uniform((0, 0), (width, height))
        angle = rng.uniform(0, 2 * np.pi)
        for _ in range(rng.integers(2, 9)):
            angle += rng.normal(0, 0.7)
            end = point + rng.uniform(0.5, 2.5) * thickness * np.array((np.cos(angle), np.sin(angle)))
            end = np.clip(end, 0, (width - 1, height - 1))
            cv2.line(canvas, _point(point), _point(end), 255, thickness)
            point = end
            if np.count_nonzero(canvas) >= share * canvas.size:
                break


def _polygon(canvas: Pixels, share: float, rng: np.random.Generator) -> None:
    """Draw a star-shaped outline of 4-12 corners, straight or rounded."""
    corners = int(rng.integers(4, 13))
    angles = np.sort((np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners)
    radii = rng.uniform(0.5, 1.0, corners)
    if rng.random() < 0.5:  # rounded: the radius as a smooth periodic function of the angle
        fine = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        radii = np.interp(fine, angles, radii, period=2 * np.pi)
        radii = ndimage.gaussian_filter1d(radii, 6, mode="wrap")
        angles = fine
    stretch = np.exp(rng.uniform(-0.4, 0.4))
    outline = np.stack((radii * np.cos(angles) * stretch, radii * np.sin(angles) / stretch), axis=1)
    angle = rng.uniform(0, np.pi)
    outline = outline @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y = outline.T
    enclosed = 0.5 * abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))))
    outline *= np.sqrt(share * canvas.size / enclosed)
    cv2.fillPoly(canvas, [np.round(outline + _centre(canvas, rng)).astype(np.int32)], 255)


def _ellipses(canvas: Pixels, share: float, rng: np.random.Generator) -> None:
    for part in rng.dirichlet(np.full(int(rng.integers(1, 4)), 3.0)):
        stretch = np.exp(rng.uniform(-0.5, 0.5))
        radius = np.sqrt(part * share * canvas.size / np.pi)
        axes = (max(2, round(radius * stretch)), max(2, round(radius / stretch)))
        cv2.ellipse(canvas, _point(_centre(canvas, rng)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)


def _point(xy: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(xy[0])), round(float(xy[1]))


def _centre(canvas: Pixels, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random (x, y) that keeps away from the borders a little."""
    return np.asarray(rng.uniform(0.15, 0.85, 2) * canvas.shape[::-1])


def _reduced(pixels: Pixels, side: int) -> Pixels:
    """Bring a picture down to at most `side` px."""
    scale = min(1.0, side / max(pixels.shape[:2]))
    height, width = (max(8, round(length * scale)) for length in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


@lru_cache(maxsize=1)
def _face_detector() -> Cascade:
    return Cascade(lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]


def _superpixels(pixels: Pixels, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels (h, w) from 0 of the picture at _ANALYSED_SIDE px, and each one's mean Lab colour (n, 3)."""
    small = _reduced(pixels, _ANALYSED_SIDE)
    compactness = float(rng.uniform(8, 25))
    found = slic(small, count, compactness, max_num_iter=5, sigma=1.0, start_label=0, channel_axis=-1)
    _, flat = np.unique(found, return_inverse=True)
    labels = flat.reshape(found.shape).astype(np.int64)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float64)
    index = np.arange(labels.max() + 1)
    return labels, np.stack([ndimage.mean(lab[..., c], labels, index) for c in range(3)], axis=1)


def _grow(labels: NDArray[np.int64], colours: NDArray[np.float64], target: float, rng: np.random.Generator) -> Mask:
    """Add the neighbour nearest in colour (with some chance) until `target` px are reached."""
    borders = []
    for one, other in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        borders += [np.stack((a[one != other], b[one != other])) for a, b in ((one, other), (other, one))]
    near = np.unique(np.concatenate(borders, axis=1), axis=1)  # (2, pairs of neighbours)
    sizes = np.bincount(labels.ravel())
    chosen = [int(labels[rng.integers(labels.shape[0]), rng.integers(labels.shape[1])])]
    while sizes[chosen].sum() < target:
        frontier = np.setdiff1d(near[1][np.isin(near[0], chosen)], chosen)
        if not frontier.size:
            break
        mean = np.average(colours[chosen], axis=0, weights=sizes[chosen])
        distance = np.linalg.norm(colours[frontier] - mean, axis=1) + 4.0
        best = frontier[np.argmin(distance * rng.uniform(0.6, 1.4, len(frontier)))]
        chosen = sorted([*chosen, int(best)])
    return np.isin(labels, chosen)


def _smooth(mask: Mask, size: tuple[int, int]) -> Mask:
    """Return a small mask at full size with a smooth outline: its largest part, without holes."""
    full = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    outline = np.asarray(cv2.GaussianBlur(full, (0, 0), max(1.0, max(size) / 150))) > 0.5
    return np.asarray(ndimage.binary_fill_holes(largest_part(outline)), dtype=bool)
