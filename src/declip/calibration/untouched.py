"""What untouched photos show: the strongest evidence in each, as it is and saved again, and in pieces of large ones."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip.errors import ImageError
from declip.images.encode import encode_jpeg
from declip.images.read import read_photo
from declip.localize.localizer import Localizer
from declip.regions import Finding, find_parts
from declip.results import Photo
from declip.spec import MODEL, SIZE_CLASSES, Calibration, Scale

__all__ = ["Place", "Untouched", "candidates", "cut", "model_scale", "saved_again", "with_pieces"]


class Place(NamedTuple):
    """Where a picture comes from: the number of its photo, and that of the photo or piece whose copy it may be."""

    owner: int
    picture: int


class Untouched(NamedTuple):
    """An untouched photo, a piece of one, or a copy that was saved again, and what stands out in it.

    owner: the number of the photo. picture: the number of the photo or piece, which its copies share. pixels: its own.
    evidence: of its strongest part (0 without any) at each threshold that is tried. clues: the strongest evidence of
    each kind of clue.
    """

    owner: int
    picture: int
    pixels: int
    evidence: tuple[float, ...]
    clues: Mapping[str, float]

    @classmethod
    def of(
        cls, place: Place, scores: NDArray[np.float32], thresholds: Iterable[float], findings: Iterable[Finding] = ()
    ) -> Untouched:
        """Measure a map, (H, W) in [0, 1], and what clues found."""
        parts = (find_parts(scores, threshold).found for threshold in thresholds)
        strongest: dict[str, float] = {}
        for finding in findings:
            strongest[finding.kind] = max(finding.evidence, strongest.get(finding.kind, 0.0))
        evidence = tuple(found[0].evidence if found else 0.0 for found in parts)
        return cls(place.owner, place.picture, scores.size, evidence, strongest)


def candidates(
    photos: Sequence[Untouched], thresholds: Sequence[float], base: Calibration, scales: Sequence[Scale] = ()
) -> list[Calibration]:
    """Return base with each of the thresholds, and the strength of what untouched photos show at it.

    scales: of clues that take part. That of the model is base's own if it has one; else it is that of these photos.
    """
    made = []
    for number, threshold in enumerate(thresholds):
        own = next((scale for scale in base.scales if scale.clue == MODEL), None)
        if scales and own is None:
            own = model_scale([photo.evidence[number] for photo in photos])
        empty = ((),) * len(SIZE_CLASSES)
        scaled = dataclasses.replace(base, scales=(own, *scales) if own and scales else (), untouched=empty)
        # A photo counts with the strongest of its copies.
        strongest: dict[tuple[int, int], float] = {}
        owners: list[set[int]] = [set() for _ in SIZE_CLASSES]
        sizes: dict[int, int] = {}
        for photo in photos:
            size_class = sizes.setdefault(photo.picture, Calibration.size_class(photo.pixels))
            found = [(MODEL, photo.evidence[number]), *photo.clues.items()]
            strength = max(scaled.strength(clue, evidence) for clue, evidence in found)
            key = size_class, photo.picture
            strongest[key] = max(strength, strongest.get(key, 0.0))
            owners[size_class].add(photo.owner)
        untouched = tuple(
            tuple(sorted(value for (its, _), value in strongest.items() if its == size_class))
            for size_class in range(len(SIZE_CLASSES))
        )
        counts = tuple(map(len, owners))
        made.append(dataclasses.replace(scaled, threshold=threshold, untouched=untouched, photos=counts))
    return made


# Of evidence where hardly a photo shows any: logits, on average over the photo's area.
_LEAST = 1e-3


def model_scale(evidence: Sequence[float]) -> Scale:
    """Return the scale of a model from the evidence in untouched photos: what 20 % and 5 % of them reach.

    From these the evidence of 5 % and 1 % is extrapolated. So it does not hang on the very photos that a rate of 1 % is
    decided by: those would then all be about as strong, and the rate would not be kept.
    """
    values = sorted(evidence)
    often, common = (values[-max(1, math.ceil(share * len(values)))] for share in (0.2, 0.05))
    common = max(common, _LEAST)
    # Rates of 20 %, 5 % and 1 % are about as many steps of a logarithm apart.
    factor = max(1.05, common / max(often, _LEAST / 2)) ** (math.log(5) / math.log(4))
    return Scale(MODEL, common, common * factor)


def with_pieces(
    localizer: Localizer, paths: Sequence[Path], places: list[Place], *, pieces: int = 0, saves: int = 0
) -> Iterator[Path | Photo]:
    """Yield the photos, pieces of the large ones, and copies of both; places gets one Place for each picture.

    localizer: whose limits count. pieces: of a photo, at most, for each size class. saves: copies, see `saved_again`.
    """
    picture = 0
    for number, path in enumerate(paths):
        pictures: list[Path | Photo] = [path]
        if pieces or saves:
            with contextlib.suppress(ImageError):  # the localizer says it again, of the path
                photo = localizer.read(path)
                own = Calibration.size_class(photo.pixels.size // 3)
                sizes = range(1, own + 1) if pieces else range(0)
                pictures = [photo, *(piece for i in sizes for piece in cut(photo, i, pieces))]
        for one in pictures:
            for times in range(saves + 1 if isinstance(one, Photo) else 1):
                places.append(Place(number, picture))
                yield saved_again(one, times) if times and isinstance(one, Photo) else one
            picture += 1


# A picture keeps sides of so many px at least.
_SMALLEST_SIDE = 64


def saved_again(photo: Photo, times: int) -> Photo:
    """Return a copy as messengers and websites make them: saved as JPEG so many times.

    Each time one to seven pixels are cut off above and to the left, so that the grids of the savings differ, and the
    quality is 75 to 95. Both are drawn by the photo's name.
    """
    rng = np.random.default_rng(zlib.crc32(Path(photo.name).name.encode()))
    for _ in range(times):
        y, x = (int(start) for start in rng.integers(1, 8, 2))
        quality = int(rng.integers(75, 96))
        pixels = photo.pixels if min(photo.size) < _SMALLEST_SIDE + 8 else photo.pixels[y:, x:]
        again = read_photo(encode_jpeg(np.ascontiguousarray(pixels), quality), max_pixels=pixels.size)
        photo = dataclasses.replace(again, name=photo.name)
    return photo


def cut(photo: Photo, size_class: int, most: int) -> list[Photo]:
    """Cut a photo into a grid of pieces of a smaller size class, or of its own.

    For calibrations with few large photos: pieces are as untouched as the photo and show other parts of it, but they
    are no independent photos. size_class: an index into SIZE_CLASSES. most: of a finer grid, so many pieces spread
    evenly. Returns [] where there is no such grid of two pieces or more with sides of at most 2:1.
    """
    height, width = photo.size
    grids = [
        (rows, columns)
        for rows in range(1, 13)
        for columns in range(1, 13)
        if rows * columns > 1
        and Calibration.size_class((height // rows) * (width // columns)) == size_class
        and 0.5 <= (height // rows) / max(1, width // columns) <= 2
    ]
    if not grids:
        return []
    # Few and large rather than many and small, but for the largest class, whose pieces have no upper bound.
    rows, columns = (max if size_class == len(SIZE_CLASSES) - 1 else min)(grids, key=lambda grid: grid[0] * grid[1])
    high, wide = height // rows, width // columns
    corners = [(row * high, column * wide) for row in range(rows) for column in range(columns)]
    chosen = sorted({round(i) for i in np.linspace(0, len(corners) - 1, min(most, len(corners)))})
    return [
        Photo(pixels=np.ascontiguousarray(photo.pixels[y : y + high, x : x + wide]), name=f"{photo.name} from {x},{y}")
        for y, x in (corners[i] for i in chosen)
    ]
