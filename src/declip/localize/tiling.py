"""A photo as a network sees it: squashed into one input, or in overlapping tiles whose scores are blended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.images.jpeg import JpegCoefficients
from declip.images.orientation import to_stored, to_upright
from declip.images.tensors import normalise, resize_scores, to_input, to_scores
from declip.localize.looking import Looked
from declip.results import Photo
from declip.spec import ModelSpec

__all__ = ["Corner", "Inputs", "TiledPhoto", "WholePhoto", "spread", "stacked"]

Corner: TypeAlias = tuple[int, int]  # (y, x) px of a tile's first pixel
Inputs: TypeAlias = dict[str, NDArray[Any]]  # what a network takes, by name


# At most so many tiles of a photo are looked at beforehand.
VIEWS = 9


class WholePhoto:
    """A photo squashed into one input. finite: whether all of its logits are finite numbers. looking: for clues."""

    looking: Future[Looked]
    corners: tuple[Corner, ...] = ((0, 0),)
    state: Inputs = {}  # noqa: RUF012 (never changed: one input has no photo around it)
    finite = True

    def __init__(self, photo: Photo, spec: ModelSpec) -> None:
        self.photo = photo
        self._spec = spec
        self._input = to_input(photo.pixels, spec)

    def views(self) -> Inputs:
        """Return nothing: the network sees all of the photo at once."""
        return {}

    def tile(self, corner: Corner) -> Inputs:
        """Return the input."""
        return {"image": self._input}

    def add(self, corner: Corner, logits: NDArray[np.float32]) -> None:
        """Keep the network's answer."""
        self._logits = logits

    def grids(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return (scores, logits) as the network gave them, (T, T) both."""
        return to_scores(self._logits, self._spec.temperature), self._logits

    def full(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resize scores (T, T) to the photo's own pixels, (H, W)."""
        return resize_scores(scores, self.photo.size, bicubic=self._spec.traits.resizes_bicubic)


class TiledPhoto:
    """A photo in overlapping tiles, and the map into which their scores are blended. finite: as of `WholePhoto`.

    state: what `Engine.state` made of `views`, part of every tile's inputs; empty until it is there.
    looking: as of `WholePhoto`. coefficients: of the file, for networks that read them; the tiles then lie on the grid
    in which the file stores its pixels.
    """

    looking: Future[Looked]
    finite = True

    def __init__(self, photo: Photo, spec: ModelSpec, overlap: int, coefficients: JpegCoefficients | None) -> None:
        self.photo = photo
        self._spec = spec
        self._stored = coefficients
        size, ratio = spec.input_size, spec.input_size // spec.output_size
        pixels = photo.pixels if coefficients is None else to_stored(photo.pixels, coefficients.orientation)
        self._size = pixels.shape[:2]
        self._padded = _pad(pixels, size, _unit(size, overlap, ratio))
        height, width = self._padded.shape[:2]
        self._plane = None if coefficients is None else coefficients.plane(height, width)
        self._ratio = ratio
        self.corners: tuple[Corner, ...] = tuple(
            (y, x) for y in _offsets(height, size, overlap, ratio) for x in _offsets(width, size, overlap, ratio)
        )
        self.state: Inputs = {}
        self._blend = _window(spec.output_size, overlap // ratio)
        self._total = np.zeros((height // ratio, width // ratio), np.float32)
        self._logit_total = np.zeros_like(self._total) if spec.image_score == "mean-logit" else None
        self._weight = np.zeros_like(self._total)

    def views(self) -> Inputs:
        """Return the tiles that stand for the photo, up to 9: {"image": (K, 3, S, S), …}; none of a single tile.

        They depend on the photo's size only, are spread evenly over it, and reach its edges.
        """
        if len(self.corners) == 1:
            return {}
        return stacked([self.tile(corner) for corner in spread(self.corners)])

    def tile(self, corner: Corner) -> Inputs:
        """Return the input whose first pixel is this corner (y, x)."""
        window = self._window(corner, 1)
        inputs: Inputs = {"image": normalise(self._padded[window], self._spec)}
        if self._stored is not None and self._plane is not None:
            inputs |= {"coefficients": self._plane[window], "table": self._stored.table.astype(np.float32)}
        return inputs | {name: rows[0] for name, rows in self.state.items()}

    def add(self, corner: Corner, logits: NDArray[np.float32]) -> None:
        """Blend the network's answer in."""
        window = self._window(corner, self._ratio)
        self._total[window] += self._blend * to_scores(logits, self._spec.temperature)
        self._weight[window] += self._blend
        if self._logit_total is not None:
            self._logit_total[window] += self._blend * logits

    def grids(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return (scores, and logits where the image score needs them) without the padding. To be called once."""
        height, width = (-(-side // self._ratio) for side in self._size)
        self._total /= self._weight
        scores, logits = self._total[:height, :width], None
        if self._logit_total is not None:
            self._logit_total /= self._weight
            logits = self._logit_total[:height, :width]
        del self._padded, self._plane, self._total, self._weight  # what is resized next is large as well
        return scores, logits

    def full(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resize scores of the network's grid to the photo's own pixels, (H, W)."""
        height, width = (side * self._ratio for side in scores.shape)
        full = resize_scores(scores, (height, width))[: self._size[0], : self._size[1]]
        return full if self._stored is None else to_upright(full, self._stored.orientation)

    def _window(self, corner: Corner, ratio: int) -> tuple[slice, slice]:
        """Return the tile's place in a map of 1 / ratio of the photo's size."""
        y, x = (start // ratio for start in corner)
        side = self._spec.input_size // ratio
        return slice(y, y + side), slice(x, x + side)


def stacked(tiles: Sequence[Inputs]) -> Inputs:
    """Return the inputs of several tiles as rows of one: (N, …) each."""
    return {name: np.stack([tile[name] for tile in tiles]) for name in tiles[0]}


def spread(corners: Sequence[Corner]) -> list[Corner]:
    """Return up to VIEWS corners of a grid, spread evenly along both axes, the first and the last rows among them."""
    rows, columns = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    high = min(len(rows), max(math.isqrt(VIEWS), VIEWS // len(columns)))
    wide = min(len(columns), VIEWS // high)
    return [(y, x) for y in _even(rows, high) for x in _even(columns, wide)]


def _even(values: Sequence[int], count: int) -> list[int]:
    """Return so many values, evenly spread, the first and the last among them; one: the first."""
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, count)]


def _unit(size: int, overlap: int, ratio: int) -> int:
    """Return what the corners of tiles are multiples of: `ratio`, and also 8 where a step can be that long.

    Then each tile has the same phase of JPEG's grid, which a model may have learnt.
    """
    unit = math.lcm(8, ratio)
    return unit if size - overlap >= unit and size % unit == 0 else ratio


def _pad(pixels: NDArray[np.uint8], size: int, unit: int) -> NDArray[np.uint8]:
    """Pad below and to the right to at least `size` and to a multiple of `unit`.

    Reflection keeps the photo's own noise; where the photo is one pixel wide, its edge is repeated.
    """
    for axis in (0, 1):
        length = pixels.shape[axis]
        missing = max(size, -(-length // unit) * unit) - length
        if missing:
            widths = [(0, 0)] * 3
            widths[axis] = (0, missing)
            pixels = np.pad(pixels, widths, mode="reflect" if length > 1 else "edge")
    return pixels


def _offsets(length: int, size: int, overlap: int, ratio: int) -> list[int]:
    """Return where tiles start that cover `length`; neighbours overlap by at least `overlap`.

    All are multiples of `_unit`, of which `length` is one; the last tile ends where the photo ends.
    """
    if length <= size:
        return [0]
    unit = _unit(size, overlap, ratio)
    step = max(unit, (size - overlap) // unit * unit)
    return [*range(0, length - size, step), length - size]


def _window(size: int, overlap: int) -> NDArray[np.float32]:
    """Return the blending weights of a tile, (size, size) > 0: a raised cosine across the overlap, 1 inside."""
    ramp = np.ones(size, np.float32)
    if overlap:
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap)
        ramp[:overlap] = rise
        ramp[-overlap:] = np.minimum(ramp[-overlap:], rise[::-1])
    return np.outer(ramp, ramp).astype(np.float32)
