"""What untouched photos show: the evidence of each, at several thresholds, and of pieces where large ones are few."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip.errors import ImageError
from declip.localize.localizer import Localizer
from declip.regions import find_parts
from declip.results import Photo
from declip.spec import SIZE_CLASSES, Calibration

__all__ = ["Untouched", "candidates", "cut", "with_pieces"]


class Untouched(NamedTuple):
    """An untouched photo, or a piece of one: the number of the photo, its own pixels, and the evidence of its strongest
    part (0 without any) at each threshold that is tried."""

    owner: int
    pixels: int
    evidence: tuple[float, ...]

    @classmethod
    def of(cls, owner: int, scores: NDArray[np.float32], thresholds: Iterable[float]) -> Untouched:
        """Measure a map. scores: (H, W) in [0, 1]."""
        parts = (find_parts(scores, threshold).found for threshold in thresholds)
        return cls(owner, scores.size, tuple(found[0].evidence if found else 0.0 for found in parts))


def candidates(photos: Sequence[Untouched], thresholds: Sequence[float], base: Calibration) -> list[Calibration]:
    """Return base with each of the thresholds, and what untouched photos show at it."""
    made = []
    for number, threshold in enumerate(thresholds):
        values: list[list[float]] = [[] for _ in SIZE_CLASSES]
        owners: list[set[int]] = [set() for _ in SIZE_CLASSES]
        for photo in photos:
            size_class = Calibration.size_class(photo.pixels)
            values[size_class].append(photo.evidence[number])
            owners[size_class].add(photo.owner)
        untouched = tuple(tuple(sorted(each)) for each in values)
        counts = tuple(map(len, owners))
        made.append(dataclasses.replace(base, threshold=threshold, untouched=untouched, photos=counts))
    return made


def with_pieces(localizer: Localizer, paths: Sequence[Path], pieces: int, owners: list[int]) -> Iterator[Path | Photo]:
    """Yield the photos, and pieces of the large ones; owners gets the number of the photo for each picture.

    localizer: whose limits count."""
    for number, path in enumerate(paths):
        pictures: list[Path | Photo] = [path]
        if pieces:
            with contextlib.suppress(ImageError):  # the localizer says it again, of the path
                photo = localizer.read(path)
                own = Calibration.size_class(photo.pixels.size // 3)
                pictures = [photo, *(piece for i in range(1, own + 1) for piece in cut(photo, i, pieces))]
        for picture in pictures:
            owners.append(number)
            yield picture


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
