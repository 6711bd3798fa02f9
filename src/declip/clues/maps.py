"""Maps of what saving again changes, and of noise: error level, noise level, JPEG ghosts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from scipy import ndimage, special

from declip.clues import blocks
from declip.clues.blocks import BLOCK, Floats, blocks_of, check_sides, spread, window
from declip.errors import ImageError, SpecError
from declip.images.encode import encode_jpeg
from declip.images.read import name_of, read_photo
from declip.regions import MaskRule
from declip.results import Localization, Photo, PictureLike, check_several

__all__ = ["Baseline", "ErrorLevel", "JpegGhost", "NoiseLevel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline(ABC):
    """What the four maps have in common. threshold: scores at or above it form the mask, in [0, 1]."""

    name: ClassVar[str]

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SpecError(f"threshold is {self.threshold!r}; expected a number from 0 to 1")

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        """Yield the map of each picture, in order, or its ImageError if it cannot be read. batch_size is not used."""
        check_several(images, "map([…])")
        for source in images:
            start = time.perf_counter()
            try:
                photo = read_photo(source)
                scores = self.scores(photo)
            except (ImageError, MemoryError) as error:
                yield error if isinstance(error, ImageError) else ImageError.out_of_memory(name_of(source))
                continue
            yield Localization(
                name=photo.name,
                scores=scores,
                rule=MaskRule(threshold=self.threshold),
                image_score=float(scores.mean(dtype=np.float64)),
                model=self.name,
                sha256="",
                seconds=time.perf_counter() - start,
            )

    @abstractmethod
    def scores(self, photo: Photo) -> Floats:
        """Return (H, W) float32 in [0, 1] on the photo's own pixel grid, 1 = more suspicious."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorLevel(Baseline):
    """Error level analysis: how much each part changes when the photo is saved as JPEG again.

    The mean absolute difference of RGB to the photo saved at `quality` (1-100, 4:2:0), in 8×8 blocks and a window of
    3×3 of them; score 1 = 8 levels of 255 or more. What was saved as JPEG before changes less, what was pasted in or
    painted changes more; so do edges and fine texture, anywhere.
    """

    name: ClassVar[str] = "error-level"

    quality: int = 90

    def __post_init__(self) -> None:
        Baseline.__post_init__(self)
        if not 1 <= self.quality <= 100:
            raise SpecError(f"quality is {self.quality!r}; expected a whole number from 1 to 100")

    def scores(self, photo: Photo) -> Floats:
        """Return (H, W) float32 in [0, 1]; raises ImageError for a side of more than 65500 px, the limit of JPEG."""
        return spread(window(_change(photo, self.quality, 1), 3) / np.float32(8), photo.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevel(Baseline):
    """Noise level: how far the strength of the noise is from what is usual in this photo, in either direction.

    The noise of a block is the median absolute value of what a 3×3 filter leaves of its luma (Immerkær's, the
    difference of two Laplacians: it removes all that is smooth), as a standard deviation in levels of 255, averaged
    over a window of 3×3 blocks. The score is its distance from the photo's median, up or down, in octaves: 0 = as the
    photo, 1 = 16 times as much or as little. What comes from another camera, was scaled, smoothed or generated may
    differ; flat and textured areas always do.
    """

    name: ClassVar[str] = "noise-level"

    def scores(self, photo: Photo) -> Floats:
        """Return (H, W) float32 in [0, 1]."""
        luma = np.asarray(Image.fromarray(photo.pixels).convert("L"))
        kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32) / 6  # unit noise stays unit noise
        residual = ndimage.convolve(luma, kernel, output=np.float32, mode="mirror")
        sigma = np.median(blocks_of(np.abs(residual)), axis=2) / np.float32(special.ndtri(0.75))
        # What is added keeps areas without any noise at a finite distance: rounding hides what is weaker.
        octaves = np.log2(window(sigma, 3) + np.float32(0.25))
        return spread(np.abs(octaves - np.median(octaves)) / np.float32(4), photo.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegGhost(Baseline):
    """JPEG ghosts: parts that answer to saving at some quality in another way than the photo does (Farid 2009).

    The photo is saved as JPEG (4:2:0) at quality 40, 45 … 95, and each time the squared difference is averaged in 8×8
    blocks and a window of 3×3 of them. Over the qualities, each block's differences are brought to [0, 1] of their own,
    as Farid does: at the quality that a part was once saved at, its curve dips. The score is the mean distance of the
    block's curve from the photo's, the median of all: 0 = the same, 1 = half as far as can be, or farther.
    Where saving changes next to nothing (flat areas), there is nothing to compare, and the score goes to 0.
    """

    name: ClassVar[str] = "jpeg-ghost"

    def scores(self, photo: Photo) -> Floats:
        """Return (H, W) float32 in [0, 1]; raises ImageError for a side of more than 65500 px, the limit of JPEG."""
        # Some at a time: each holds a copy of the photo.
        with ThreadPoolExecutor(4) as pool:
            changes = np.stack(list(pool.map(lambda quality: window(_change(photo, quality, 2), 3), range(40, 100, 5))))
        low = changes.min(axis=0)
        span = changes.max(axis=0) - low
        curves = (changes - low) / np.maximum(span, np.float32(1e-6))
        usual = np.median(curves, axis=(1, 2), keepdims=True)
        weight = span / (span + np.float32(0.5))  # in squared levels
        return spread(2 * np.abs(curves - usual).mean(axis=0) * weight, photo.size)


def _change(photo: Photo, quality: int, power: Literal[1, 2]) -> Floats:
    """Return (H8, W8) float32: the mean of |change|^power over each block if the photo is saved as JPEG, in levels."""
    check_sides(photo)
    saved = read_photo(encode_jpeg(photo.pixels, quality), max_pixels=photo.pixels.size).pixels
    grids = []
    for top in range(0, photo.size[0], blocks.STRIP):
        strip = slice(top, top + blocks.STRIP)
        now, then = photo.pixels[strip], saved[strip]
        change = (np.maximum(now, then) - np.minimum(now, then)).astype(np.float32)
        missing = (-side % BLOCK for side in change.shape[:2])
        change = np.pad(change, (*((0, count) for count in missing), (0, 0)), mode="edge")
        rows, columns = (side // BLOCK for side in change.shape[:2])
        cut = change.reshape(rows, BLOCK, columns, 3 * BLOCK)
        # The sums are whole numbers that float32 holds exactly.
        total = np.einsum("abcd->ac", cut) if power == 1 else np.einsum("abcd,abcd->ac", cut, cut)
        grids.append(total / np.float32(3 * BLOCK * BLOCK))
    return np.concatenate(grids)
