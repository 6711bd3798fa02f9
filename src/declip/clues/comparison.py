"""Compare a photo with its original, where that was found: say what differs, and how well the rest agrees.

    found = declip.compare("photo.jpg", "original.jpg")
    found.mask, found.regions, found.sentences

It says what differs, not which of the two was changed: what is taken for the original can itself be the fake.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declip.errors import DeclipError
from declip.images.read import read_photo
from declip.regions import MOST, Region
from declip.results import Photo, PictureLike

__all__ = ["Comparison", "compare"]

LARGEST = 4_000_000  # px; larger photos are compared at this size

# Of what has texture must be alike: other photos of the same place have details in common, too.
_ALIKE = 0.4
_TONED = 2.0  # grey levels of a change of tone that is worth a sentence
_EVERYTHING = 0.995


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What differs between a photo and its original.

    mask: (H, W) bool on the photo's pixel grid, True = differs. compared: (H, W) bool, False = not in the original.
    regions: the largest 50 parts of the mask, largest first; the score of each is the mean difference of its pixels
    after tones were matched, divided by 255. parts: how many there are.
    aligned: the original on the photo's grid, (H, W, 3) uint8; black where it shows nothing of the photo.
    transform: (3, 3) float64, maps (x, y) px of the photo to px of the original. inliers: key points that agree on it.
    identical: the files, or only their pixels, are the same.
    level: mean difference of what is compared and not in the mask, in grey levels of 255; most: of 95 % of its pixels.
    toned: mean change of grey levels by which the original's tones were matched. grey: only brightness was compared.
    shown: share of the original that the photo shows, in [0, 1].
    """

    photo: Photo
    original: Photo
    mask: NDArray[np.bool_] = field(repr=False)
    compared: NDArray[np.bool_] = field(repr=False)
    regions: tuple[Region, ...] = ()
    parts: int = 0
    aligned: NDArray[np.uint8] = field(repr=False)
    transform: NDArray[np.float64] = field(repr=False)
    inliers: int = 0
    identical: Literal["file", "pixels"] | None = None
    level: float = 0.0
    most: float = 0.0
    toned: float = 0.0
    grey: bool = False
    shown: float = 1.0

    @property
    def area(self) -> float:
        """Share of what was compared that differs, in [0, 1]."""
        return float(self.mask.sum() / self.compared.sum())

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        if self.identical == "file":
            return "The two files are the same, byte for byte."
        if self.identical == "pixels":
            return "The two pictures have the same pixels. Only the files differ."
        if self.parts == 0:
            return "Nothing was found that differs by more than saving, scaling and tone change everywhere."
        parts = "one part" if self.parts == 1 else f"{self.parts} parts"
        share = f"{100 * self.area:.1f} %" if self.area >= 0.001 else "less than 0.1 %"
        return f"The two pictures differ in {parts}: {share} of what was compared."

    @property
    def sentences(self) -> tuple[str, ...]:
        """The result in words, the headline first."""
        if self.identical is not None:
            return (self.headline,)
        said = [self.headline]
        rest = "The rest" if self.parts else "They"
        agrees = f"agree{'s' if self.parts else ''} to {self.level:.1f} grey levels of 255 on average"
        said.append(f"{rest} {agrees}, and in 95 % of the pixels to {self.most:.0f}.")
        said.append(self._place())
        outside = 1 - float(self.compared.mean())
        if outside > 1 - _EVERYTHING:
            said.append(f"{100 * outside:.0f} % of the photo lies outside the original. That was not compared.")
        if self.toned >= _TONED:
            said.append(
                f"Brightness or colours differ everywhere, by {self.toned:.0f} grey levels on average. "
                "This was evened out before comparing."
            )
        if self.grey:
            said.append("One of the two pictures has no colours, so only brightness was compared.")
        said.append("This says what differs. It does not say which of the two pictures was changed.")
        return tuple(said)

    def _place(self) -> str:
        height, width = self.photo.size
        middle = np.array([width / 2, height / 2, 1.0])
        x, y, depth = self.transform @ middle
        # The derivative in the middle of the photo, from the original to the photo.
        slope = np.linalg.inv(
            (self.transform[:2, :2] - np.outer((x / depth, y / depth), self.transform[2, :2])) / depth
        )
        words = []
        if np.linalg.det(slope) < 0:
            words.append("mirrored")
            slope = slope @ np.diag([-1.0, 1.0])
        degrees = abs(math.degrees(math.atan2(slope[1, 0] - slope[0, 1], slope[0, 0] + slope[1, 1])))
        if degrees >= 0.5:
            words.append(f"turned by {degrees:.0f}°")
        scale = math.sqrt(abs(float(np.linalg.det(slope))))
        if abs(scale - 1) >= 0.005:
            words.append(f"scaled to {100 * scale:.0f} %")
        part = "all" if self.shown >= _EVERYTHING else f"{100 * self.shown:.0f} %"
        changed = f", {' and '.join(words)}" if words else ""
        return f"The photo shows {part} of the original{changed} ({self.inliers} matching details)."

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, ready for JSON."""
        height, width = self.photo.size
        return {
            "photo": self.photo.name,
            "original": self.original.name,
            "width": width,
            "height": height,
            "original_width": self.original.size[1],
            "original_height": self.original.size[0],
            "identical": self.identical,
            "area": self.area,
            "compared": float(self.compared.mean()),
            "shown": self.shown,
            "parts": self.parts,
            "regions": [{"bbox": list(r.bbox), "area": r.area, "difference": 255 * r.score} for r in self.regions],
            "level": self.level,
            "level_95": self.most,
            "toned": self.toned,
            "grey": self.grey,
            "inliers": self.inliers,
            "transform": self.transform.tolist(),
            "sentences": list(self.sentences),
            "notes": [*self.photo.notes, *self.original.notes],
        }


def compare(photo: PictureLike, original: PictureLike) -> Comparison:
    """Compare a photo with its original, which may be larger, cropped, mirrored, turned, or in other tones.

    photo, original: as for `read_photo`. Registration sees at most 1 MP of each, and the pixels are compared at up to
    4 MP; mask and regions are on the photo's own grid. Differences of the file – JPEG quality, scaling, tone curves,
    sharpening – are evened out or expected, and are not marked.

    Raises ImageError for a picture that cannot be read; DeclipError where the two do not show the same, with the
    number of details that agree.
    """
    one, other = read_photo(photo), read_photo(original)
    if one.size == other.size and np.array_equal(one.pixels, other.pixels):
        return Comparison(
            photo=one,
            original=other,
            mask=np.zeros(one.size, np.bool_),
            compared=np.ones(one.size, np.bool_),
            aligned=other.pixels,
            transform=np.eye(3),
            identical="file" if one.data and one.data == other.data else "pixels",
        )
    return _compared(one, other)


def _compared(photo: Photo, original: Photo) -> Comparison:
    import cv2

    from declip.clues import registration
    from declip.clues.difference import difference
    from declip.clues.tone import is_grey

    height, width = photo.size
    found = registration.register(photo.pixels, original.pixels)
    if found.transform is None:
        raise _refused(photo, original, found.inliers, registration.FEWEST)
    aligned, compared = registration.aligned(original.pixels, found.transform, height, width)
    factor = min(1.0, math.sqrt(LARGEST / compared.size))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    one, other = (registration.scaled(pixels, *size)[0] for pixels in (photo.pixels, aligned))
    inside = _resized(compared, *size)
    differs = difference(one, other, inside)
    if differs.alike < _ALIKE:
        raise _refused(photo, original, found.inliers, alike=differs.alike)
    rest = np.abs(one.astype(np.int16) - differs.matched).max(axis=2).astype(np.float32)
    quiet = rest[inside & ~cv2.dilate(differs.mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_)]
    labels, parts = ndimage.label(differs.mask, structure=np.ones((3, 3)))
    return Comparison(
        photo=photo,
        original=original,
        mask=_resized(differs.mask, height, width) & compared,
        compared=compared,
        regions=tuple(_regions(labels, rest, width / size[1], height / size[0])),
        parts=parts,
        aligned=np.where(compared[..., None], aligned, np.uint8(0)),
        transform=found.transform,
        inliers=found.inliers,
        level=float(quiet.mean()) if quiet.size else math.nan,
        most=float(np.quantile(quiet, 0.95)) if quiet.size else math.nan,
        toned=differs.toned,
        grey=is_grey(photo.pixels) or is_grey(original.pixels),
        shown=_shown(photo, original, found.transform),
    )


def _resized(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    import cv2

    return np.asarray(cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0)


def _regions(labels: NDArray[Any], rest: NDArray[np.float32], x: float, y: float) -> Iterator[Region]:
    """Yield the largest parts; x, y: px of the photo in one of the labels."""
    sizes = np.bincount(labels.ravel())
    scores = np.bincount(labels.ravel(), weights=rest.ravel()) / np.maximum(sizes, 1) / 255
    boxes = ndimage.find_objects(labels)
    for i in np.argsort(-sizes[1:], kind="stable")[:MOST]:
        rows, columns = boxes[i]
        bbox = (round(columns.start * x), round(rows.start * y), round(columns.stop * x), round(rows.stop * y))
        yield Region(bbox=bbox, area=float(sizes[i + 1] / labels.size), score=float(scores[i + 1]))


def _shown(photo: Photo, original: Photo, transform: NDArray[np.float64]) -> float:
    """Return the share of the original that the photo shows."""
    import cv2

    from declip.clues.registration import applied, corners

    frame, there = corners(*original.size), applied(corners(*photo.size), transform)
    area, _ = cv2.intersectConvexConvex(frame.astype(np.float32), there.astype(np.float32))
    return min(1.0, area / (original.size[0] * original.size[1]))


def _refused(photo: Photo, original: Photo, inliers: int, fewest: int = 0, alike: float = 1.0) -> DeclipError:
    said = f"{photo.name} and {original.name} do not show the same picture: {inliers} details agree"
    if inliers < fewest:
        said += f" on how one lies in the other, and at least {fewest} are needed"
    else:
        said += f", but only {100 * alike:.0f} % of what has texture; they may be two photos of one place"
    return DeclipError(
        f"{said}. Give a photo and its original. Pictures without texture or below some 100 px cannot be compared"
    )
