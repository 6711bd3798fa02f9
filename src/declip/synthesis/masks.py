"""Where to manipulate: random shapes, and shapes that follow what is in the picture: objects and faces.

A mask is (H, W) bool, True = to be manipulated. Its area is drawn log-uniformly between two shares of the picture,
so that small regions are as frequent as large ones; it is never empty and never the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declip.errors import DatasetError, MissingExtraError
from declip.synthesis.steps import Mask, Pixels

try:
    import cv2
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade
    from skimage.segmentation import slic
except ImportError as error:
    raise MissingExtraError("opencv-python-headless and scikit-image", "synthesis") from error

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
    """Brush strokes, a polygon or ellipses.

    Args:
        size: (height, width) px.
        area: smallest and largest share of the picture, in (0, 1).

    Returns:
        (height, width) bool, not empty and not full.

    Raises:
        DatasetError: the picture is smaller than SMALLEST_SIDE, or area is no range.
    """
    _check(size, area)
    shapes: tuple[Callable[..., Pixels], ...] = (_strokes, _polygon, _ellipses)
    for _ in range(_ATTEMPTS):
        draw = shapes[rng.integers(len(shapes))]
        mask = draw(size, _log_uniform(rng, area), rng) > 0
        if _fits(mask, area):
            return mask
    return _disc(size, area)


def object_mask(pixels: Pixels, rng: np.random.Generator, area: tuple[float, float] = AREA) -> Mask:
    """Draw a region that follows the edges of the picture: neighbouring superpixels of like colour, grown from a seed.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        area: smallest and largest share of the picture, in (0, 1).

    Returns:
        (H, W) bool, one connected part without holes, not empty and not full. Where the picture offers no such
        region of the wanted area, a `random_mask`.

    Raises:
        DatasetError: the picture is smaller than SMALLEST_SIDE, or area is no range.
    """
    size = pixels.shape[0], pixels.shape[1]
    _check(size, area)
    target = _log_uniform(rng, area)
    labels, colours = _superpixels(pixels, int(np.clip(rng.uniform(4, 12) / target, 40, 400)), rng)
    for _ in range(_ATTEMPTS // 2):
        grown = _grow(labels, colours, target * labels.size, rng)
        mask = _smooth(grown, size)
        if _fits(mask, area):
            return mask
    return random_mask(size, rng, area)


def grabcut_mask(pixels: Pixels, rng: np.random.Generator, area: tuple[float, float] = AREA) -> Mask:
    """Find what stands out inside a random box: foreground by GrabCut (Rother et al. 2004).

    Args:
        pixels: (H, W, 3) uint8 RGB.
        area: smallest and largest share of the picture, in (0, 1).

    Returns:
        (H, W) bool, one connected part without holes, not empty and not full. Where no box holds a foreground of the
        wanted area, an `object_mask`.

    Raises:
        DatasetError: the picture is smaller than SMALLEST_SIDE, or area is no range.
    """
    size = pixels.shape[0], pixels.shape[1]
    _check(size, area)
    height, width = _analysed(size, _CUT_SIDE)
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    for _ in range(_ATTEMPTS // 4):
        # The foreground fills about half of its box.
        share = min(2 * _log_uniform(rng, area), 0.8)
        stretch = float(np.exp(rng.uniform(-0.4, 0.4)))
        sides = np.sqrt(share * width * height) * np.array((stretch, 1 / stretch))
        w, h = (
            int(np.clip(round(float(side)), 4, 0.95 * whole))
            for side, whole in zip(sides, (width, height), strict=True)
        )
        x, y = int(rng.integers(1, width - w)), int(rng.integers(1, height - h))
        cv2.setRNGSeed(int(rng.integers(2**31)))  # OpenCV's own generator starts the clusters of colours
        labels = np.zeros((height, width), dtype=np.uint8)
        background, foreground = np.zeros((2, 1, 65))  # OpenCV writes its models of the colours there
        cv2.grabCut(small, labels, (x, y, w, h), background, foreground, 2, cv2.GC_INIT_WITH_RECT)
        kept = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if not kept.any():
            continue
        mask = _smooth(kept, size)
        if mask.any() and _fits(mask, area):
            return mask
    return object_mask(pixels, rng, area)


def find_faces(pixels: Pixels) -> list[Box]:
    """Frontal faces, by scikit-image's cascade of local binary patterns.

    pixels: (H, W, 3) uint8 RGB. Returns boxes in px of the picture, from top to bottom; a face narrower than a tenth of
    the picture's longer side is not looked for. The detector is quick and old: it misses faces that are turned or
    covered, and now and then sees one that is none.
    """
    size = pixels.shape[0], pixels.shape[1]
    height, width = _analysed(size, _FACE_SIDE)
    if min(height, width) < _SMALLEST_FACE:
        return []
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    largest = min(height, width)
    found = _face_detector().detect_multi_scale(
        small, scale_factor=1.2, step_ratio=1, min_size=(_SMALLEST_FACE,) * 2, max_size=(largest, largest)
    )
    scale = np.array((size[1] / width, size[0] / height) * 2)
    corners = ((f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]) for f in found)
    boxes = [(round(float(v)) for v in np.array(box) * scale) for box in corners]
    return sorted(((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes), key=lambda box: (box[1], box[0]))


def face_mask(
    faces: Sequence[Box], size: tuple[int, int], rng: np.random.Generator, area: tuple[float, float] = AREA
) -> Mask | None:
    """Find a face or a part of one: an ellipse around all of it, the eyes, one eye, the nose or the mouth.

    Args:
        faces: boxes as `find_faces` returns them.
        size: (height, width) px of the picture.
        area: smallest and largest share of the picture, in (0, 1).

    Returns:
        (height, width) bool, not empty and not full; None where no part of any face is of such an area.

    Raises:
        DatasetError: the picture is smaller than SMALLEST_SIDE, or area is no range.
    """
    _check(size, area)
    places = [(box, part) for box in faces for part in _FACE_PARTS]
    for index in rng.permutation(len(places)):
        (x0, y0, x1, y1), ((x, y), (a, b)) = places[index]
        centre = np.array((x0 + x * (x1 - x0), y0 + y * (y1 - y0))) + rng.normal(0, 0.02, 2) * (x1 - x0)
        axes = np.array((a * (x1 - x0), b * (y1 - y0))) * rng.uniform(0.9, 1.15, 2)
        canvas = np.zeros(size, dtype=np.uint8)
        angle = float(rng.uniform(-8, 8))
        cv2.ellipse(canvas, _point(centre), (max(2, round(axes[0])), max(2, round(axes[1]))), angle, 0, 360, 255, -1)
        mask = canvas > 0
        if _fits(mask, area):
            return mask
    return None


def snap(mask: Mask, pixels: Pixels, rng: np.random.Generator) -> Mask:
    """Move the outline of a mask to nearby edges of the picture: the superpixels that lie mostly inside it.

    mask: (H, W) bool; pixels: (H, W, 3) uint8. Returns (H, W) bool; the mask itself where its area would change by
    more than a half.
    """
    if min(mask.shape) < SMALLEST_SIDE:
        return mask
    labels, _ = _superpixels(pixels, int(np.clip(rng.uniform(8, 16) / max(mask.mean(), 0.05), 20, 200)), rng)
    height, width = labels.shape
    inside = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    share = ndimage.mean(inside, labels, np.arange(labels.max() + 1))
    snapped = _smooth(share[labels] > 0.5, (mask.shape[0], mask.shape[1]))
    return snapped if 0.5 * mask.sum() <= snapped.sum() <= 1.5 * mask.sum() else mask


def largest_part(mask: Mask) -> Mask:
    """Return the largest 8-connected part of a mask that is not empty; (H, W) bool."""
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
    share = float(mask.mean())
    return area[0] / _SLACK <= share <= min(area[1] * _SLACK, 0.95)


def _disc(size: tuple[int, int], area: tuple[float, float]) -> Mask:
    """Draw an ellipse in the middle, of the middle area: the way out when nothing drawn fits."""
    share = np.sqrt(area[0] * area[1])
    rows, columns = np.ogrid[: size[0], : size[1]]
    y = (rows + 0.5) / size[0] - 0.5
    x = (columns + 0.5) / size[1] - 0.5
    return np.asarray(x * x + y * y <= share / np.pi, dtype=bool)


def _strokes(size: tuple[int, int], share: float, rng: np.random.Generator) -> Pixels:
    """Random walks of a round brush until the wanted area is covered."""
    canvas = np.zeros(size, dtype=np.uint8)
    side = float(np.sqrt(size[0] * size[1]))
    thickness = max(3, int(side * np.sqrt(share) * rng.uniform(0.15, 0.45)))
    while np.count_nonzero(canvas) < share * canvas.size:
        point = rng.uniform((0, 0), (size[1], size[0]))
        angle = rng.uniform(0, 2 * np.pi)
        for _ in range(rng.integers(2, 9)):
            angle += rng.normal(0, 0.7)
            end = point + rng.uniform(0.5, 2.5) * thickness * np.array((np.cos(angle), np.sin(angle)))
            end = np.clip(end, 0, (size[1] - 1, size[0] - 1))
            cv2.line(canvas, _point(point), _point(end), 255, thickness)
            point = end
            if np.count_nonzero(canvas) >= share * canvas.size:
                break
    return canvas


def _polygon(size: tuple[int, int], share: float, rng: np.random.Generator) -> Pixels:
    """Draw a star-shaped outline of 4-12 corners, straight or rounded."""
    canvas = np.zeros(size, dtype=np.uint8)
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
    outline = outline @ _rotation(rng.uniform(0, np.pi))
    x, y = outline.T
    enclosed = 0.5 * abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))))
    outline *= np.sqrt(share * canvas.size / enclosed)
    cv2.fillPoly(canvas, [np.round(outline + _centre(size, rng)).astype(np.int32)], 255)
    return canvas


def _ellipses(size: tuple[int, int], share: float, rng: np.random.Generator) -> Pixels:
    canvas = np.zeros(size, dtype=np.uint8)
    count = int(rng.integers(1, 4))
    for part in rng.dirichlet(np.full(count, 3.0)):
        stretch = np.exp(rng.uniform(-0.5, 0.5))
        radius = np.sqrt(part * share * canvas.size / np.pi)
        axes = (max(2, round(radius * stretch)), max(2, round(radius / stretch)))
        cv2.ellipse(canvas, _point(_centre(size, rng)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return canvas


def _point(xy: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(xy[0])), round(float(xy[1]))


def _centre(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random (x, y) that keeps away from the borders a little."""
    return np.asarray(rng.uniform(0.15, 0.85, 2) * (size[1], size[0]))


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _analysed(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of a picture of `size` brought down to at most `side` px."""
    scale = min(1.0, side / max(size))
    return max(8, round(size[0] * scale)), max(8, round(size[1] * scale))


@lru_cache(maxsize=1)
def _face_detector() -> Cascade:
    return Cascade(lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]


def _superpixels(pixels: Pixels, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (h, w) from 0 on a picture of at most _ANALYSED_SIDE px a side, and each one's mean Lab colour (n, 3)."""
    height, width = _analysed((pixels.shape[0], pixels.shape[1]), _ANALYSED_SIDE)
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    found = slic(
        small,
        n_segments=count,
        compactness=float(rng.uniform(8, 25)),
        sigma=1.0,
        max_num_iter=5,
        start_label=0,
        channel_axis=-1,
    )
    _, flat = np.unique(found, return_inverse=True)
    labels = flat.reshape(found.shape).astype(np.int64)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float64)
    index = np.arange(labels.max() + 1)
    return labels, np.stack([ndimage.mean(lab[..., c], labels, index) for c in range(3)], axis=1)


def _neighbours(labels: NDArray[np.int64]) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(int(labels.max()) + 1)]
    for one, other in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        border = one != other
        for a, b in np.unique(np.stack((one[border], other[border]), axis=1), axis=0):
            near[a].add(int(b))
            near[b].add(int(a))
    return near


def _grow(labels: NDArray[np.int64], colours: NDArray[np.float64], target: float, rng: np.random.Generator) -> Mask:
    """Add the neighbour nearest in colour (with some chance) until `target` px are reached."""
    near = _neighbours(labels)
    sizes = np.bincount(labels.ravel())
    seed = int(labels[rng.integers(labels.shape[0]), rng.integers(labels.shape[1])])
    chosen, reached = {seed}, int(sizes[seed])
    while reached < target:
        frontier = sorted({n for c in chosen for n in near[c]} - chosen)
        if not frontier:
            break
        mean = np.average(colours[sorted(chosen)], axis=0, weights=sizes[sorted(chosen)])
        distance = np.linalg.norm(colours[frontier] - mean, axis=1) + 4.0
        best = frontier[int(np.argmin(distance * rng.uniform(0.6, 1.4, len(frontier))))]
        chosen.add(best)
        reached += int(sizes[best])
    return np.isin(labels, sorted(chosen))


def _smooth(mask: Mask, size: tuple[int, int]) -> Mask:
    """Return a small mask at full size with a smooth outline: its largest part, without holes."""
    full = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    outline = np.asarray(cv2.GaussianBlur(full, (0, 0), max(1.0, max(size) / 150))) > 0.5
    return np.asarray(ndimage.binary_fill_holes(largest_part(outline)), dtype=bool)
