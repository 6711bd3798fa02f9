"""Maps that need no training and that analysts know: an honest floor in every table, and a second opinion.

    declip.evaluate(baselines.ErrorLevel(), samples)
    for result in baselines.DoubleJpeg().map(["photo.jpg"]): ...

Each looks at one trace: `ErrorLevel` and `JpegGhost` at what saving the photo as JPEG again does to it, `NoiseLevel` at
the strength of its noise, `DoubleJpeg` at the histograms of its DCT coefficients. All are `Predictor`s: photos go in
in any form `read_photo` takes, maps come out in order, and what cannot be read comes out as its ImageError. They
work on blocks of 8×8 px with windows of some blocks around them, and show nothing finer than that.

Scores are (H, W) float32 in [0, 1] on a scale that is written with each map and is the same for every photo: no map is
stretched to its own range. 1 = more suspicious; only `DoubleJpeg` gives a probability. Texture, light and flat areas
leave the same traces: a bright spot is a reason to look closer and nothing more. So there is no verdict, the image
score is the mean of the map, and the threshold of the mask is 0.5 unless another is given; it is not calibrated.
"""

from __future__ import annotations

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from scipy import fft, ndimage, special

from declip.errors import ImageError, MissingExtraError, SpecError
from declip.images import jpeg
from declip.images.encode import encode_jpeg
from declip.images.read import name_of, read_photo
from declip.images.tensors import resize_scores
from declip.process import cores
from declip.results import Localization, MaskRule, Photo, PictureLike, check_several

__all__ = ["BASELINES", "Baseline", "DoubleJpeg", "ErrorLevel", "JpegGhost", "NoiseLevel"]

Floats = NDArray[np.float32]

_BLOCK = 8  # px; JPEG's
_JPEG_SIDE = 65500  # px; libjpeg's limit
_STRIP = 128 * _BLOCK  # rows that are worked on at a time, so that no large photo is held as floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline(ABC):
    """What the four have in common. threshold: scores at or above it form the mask, in [0, 1]."""

    name: ClassVar[str]

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SpecError(f"threshold is {self.threshold!r}; expected a number from 0 to 1")

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        """A map of each picture, in order; of one that cannot be read its ImageError. batch_size is not needed."""
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
        """(H, W) float32 in [0, 1] on the photo's own pixel grid, 1 = more suspicious."""


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
        """(H, W) float32 in [0, 1]; raises ImageError for a side of more than 65500 px, the limit of JPEG."""
        return _spread(_window(_change(photo, self.quality, 1), 3) / np.float32(8), photo.size)


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
        """(H, W) float32 in [0, 1]."""
        luma = np.asarray(Image.fromarray(photo.pixels).convert("L"))
        kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32) / 6  # unit noise stays unit noise
        residual = ndimage.convolve(luma, kernel, output=np.float32, mode="mirror")
        sigma = np.median(_blocks(np.abs(residual)), axis=2) / np.float32(special.ndtri(0.75))
        # What is added keeps areas without any noise at a finite distance: rounding hides what is weaker.
        octaves = np.log2(_window(sigma, 3) + np.float32(0.25))
        return _spread(np.abs(octaves - np.median(octaves)) / np.float32(4), photo.size)


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
        """(H, W) float32 in [0, 1]; raises ImageError for a side of more than 65500 px, the limit of JPEG."""
        # Some at a time: each holds a copy of the photo.
        with ThreadPoolExecutor(min(4, cores())) as pool:
            changes = np.stack(
                list(pool.map(lambda quality: _window(_change(photo, quality, 2), 3), range(40, 100, 5)))
            )
        low = changes.min(axis=0)
        span = changes.max(axis=0) - low
        curves = (changes - low) / np.maximum(span, np.float32(1e-6))
        usual = np.median(curves, axis=(1, 2), keepdims=True)
        weight = span / (span + np.float32(0.5))  # in squared levels
        return _spread(2 * np.abs(curves - usual).mean(axis=0) * weight, photo.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoubleJpeg(Baseline):
    """The probability that a part was saved as JPEG once where the rest of the photo was saved twice.

    When a JPEG is opened, changed and saved again, its untouched parts are quantised twice on the same 8×8 grid, and
    the histograms of their DCT coefficients have gaps and peaks. What was pasted in, painted or moved off the grid has
    none. From the file's own coefficients (14 lowest frequencies of luma), the steps of the first saving and the share
    that was saved twice are estimated, by maximum likelihood against a histogram of the same photo off its grid (after
    Lin et al. 2009 and Bianchi and Piva 2012). The score is the probability of "saved once" given the coefficients of a
    block, averaged over a window of 5×5 blocks: the one map here that is a probability, by a rough model.

    Blocks in which a quarter of the pixels is clipped (a channel at its end) say nothing: clipping undoes the traces.
    At least half of the photo is taken to be untouched. Where that explains the coefficients no better than a single
    saving does, as in a photo that was saved once, and in one of fewer than 64 blocks, the map is 0: nothing found. A
    first saving that was finer than the second (quality 95, then 75) leaves hardly anything to be found.

    A picture that is no JPEG is saved as one at quality 100 in memory, and then read in the same way: its pixels show
    an earlier JPEG, if there was one on the same grid. So a PNG has a map, too; without such a past it is 0.

    Needs `pip install 'declip[data]'`: raises MissingExtraError when it is made without.
    """

    name: ClassVar[str] = "double-jpeg"

    def __post_init__(self) -> None:
        Baseline.__post_init__(self)
        if importlib.util.find_spec("jpeglib") is None:
            raise MissingExtraError("jpeglib", "data")

    def scores(self, photo: Photo) -> Floats:
        """(H, W) float32 in [0, 1]; raises ImageError as `ErrorLevel`, and for coefficients that cannot be read."""
        _check_sides(photo)
        stored = jpeg.read_coefficients(photo)
        rows, columns = (side // _BLOCK for side in stored.coefficients.shape)
        quantised = stored.coefficients.reshape(rows, _BLOCK, columns, _BLOCK)
        clipped = _clipped(photo.pixels, stored.orientation)
        probability = _saved_once(quantised.transpose(0, 2, 1, 3), stored.table, ~clipped)
        height, width = photo.size if stored.orientation < 5 else photo.size[::-1]
        scores = _spread(probability, (height, width))
        return _upright(scores, stored.orientation)


BASELINES: dict[str, type[Baseline]] = {kind.name: kind for kind in (ErrorLevel, NoiseLevel, JpegGhost, DoubleJpeg)}


# --- blocks ---------------------------------------------------------------------------------------------------------


def _blocks(plane: NDArray[Any]) -> NDArray[Any]:
    """(H, W) → (H8, W8, 64), the pixels of each 8×8 block; at the far sides the last ones are repeated."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, -height % _BLOCK), (0, -width % _BLOCK)), mode="edge")
    rows, columns = (side // _BLOCK for side in plane.shape)
    return plane.reshape(rows, _BLOCK, columns, _BLOCK).transpose(0, 2, 1, 3).reshape(rows, columns, -1)


def _window(grid: Floats, side: int) -> Floats:
    """The mean over a window of side × side blocks."""
    return np.asarray(ndimage.uniform_filter(grid, side, output=np.float32, mode="nearest"))


def _spread(grid: Floats, size: tuple[int, int]) -> Floats:
    """(H8, W8) → (H, W) float32, clipped to [0, 1]; bilinear between the centres of blocks."""
    rows, columns = grid.shape
    scores = resize_scores(grid, (rows * _BLOCK, columns * _BLOCK))
    return np.ascontiguousarray(scores[: size[0], : size[1]])


def _upright(scores: Floats, orientation: int) -> Floats:
    """A map of the stored picture as one of the upright photo."""
    if orientation == 1:
        return scores
    stored = Image.fromarray(scores)
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(ImageOps.exif_transpose(stored))


def _check_sides(photo: Photo) -> None:
    """Refuse what cannot be saved as JPEG."""
    if max(photo.size) > _JPEG_SIDE:
        raise ImageError(
            photo.name, "too-large", f"a side of a JPEG has at most {_JPEG_SIDE} px; make the picture smaller first"
        )


def _change(photo: Photo, quality: int, power: Literal[1, 2]) -> Floats:
    """(H8, W8) float32: the mean over each block of |change|^power when the photo is saved as JPEG, in levels."""
    _check_sides(photo)
    saved = read_photo(encode_jpeg(photo.pixels, quality), max_pixels=photo.pixels.size).pixels
    grids = []
    for top in range(0, photo.size[0], _STRIP):
        strip = slice(top, top + _STRIP)
        now, then = photo.pixels[strip], saved[strip]
        change = (np.maximum(now, then) - np.minimum(now, then)).astype(np.float32)
        missing = (-side % _BLOCK for side in change.shape[:2])
        change = np.pad(change, (*((0, count) for count in missing), (0, 0)), mode="edge")
        rows, columns = (side // _BLOCK for side in change.shape[:2])
        blocks = change.reshape(rows, _BLOCK, columns, 3 * _BLOCK)
        # The sums are whole numbers that float32 holds exactly.
        total = np.einsum("abcd->ac", blocks) if power == 1 else np.einsum("abcd,abcd->ac", blocks, blocks)
        grids.append(total / np.float32(3 * _BLOCK * _BLOCK))
    return np.concatenate(grids)


# --- double compression ---------------------------------------------------------------------------------------------

# (vertical, horizontal): the first of the zigzag after the mean of the block, whose values are too many.
_FREQUENCIES = (
    *((0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2)),
    *((2, 1), (3, 0), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4)),
)
_FIRST_STEPS = np.arange(2, 61)  # of the first saving
_SHARES = np.linspace(0.5, 0.98, 9)  # of the photo that was saved twice
_REACH = 255  # coefficients beyond it are few, and are left out
_NOISE = 0.6  # standard deviation of what rounding to pixels does to a coefficient between the two savings
_OFF_GRID = ((4, 4), (3, 5), (5, 3), (4, 3))  # px
_MOST = 4.0  # the most that one coefficient may say, in nats: the model is a rough one
_FEWEST_BLOCKS = 64
_CLIPPED = (2, 253)  # levels; from there on, since the second saving blurs the ends
_CLIPPED_SHARE = 0.25  # of the pixels of a block
_LEAST_GAIN = 0.1  # nats per block; photos that were saved once stay below


def _clipped(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.bool_]:
    """(H, W, 3) upright → (H8, W8) bool on the stored picture's grid: blocks with clipped pixels."""
    at_an_end = ((pixels <= _CLIPPED[0]) | (pixels >= _CLIPPED[1])).any(axis=2).astype(np.float32)
    back = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
    return np.asarray(_blocks(_upright(np.asarray(at_an_end), back)).mean(axis=2) > _CLIPPED_SHARE)


def _saved_once(quantised: NDArray[np.int16], table: NDArray[np.int32], usable: NDArray[np.bool_]) -> Floats:
    """Coefficients and their steps → (H8, W8) float32, P(saved once), in [0, 1].

    quantised: (H8, W8, 8, 8). table: (8, 8). usable: (H8, W8), the blocks that say something.
    """
    blocks = usable.size
    if blocks < _FEWEST_BLOCKS:
        return np.zeros(usable.shape, dtype=np.float32)
    densities = _off_grid_densities(quantised, table)
    gains = []  # of each frequency, (first step, share): log likelihood over that of "all was saved once"
    evidence = []  # (first step, value): log P(value | saved once) / P(value | saved twice)
    for frequency, density in zip(_FREQUENCIES, densities, strict=True):
        step = int(table[frequency])
        reach = _REACH // step
        values = quantised[:, :, *frequency]
        counts = np.bincount(values[np.abs(values) <= reach] + reach, minlength=2 * reach + 1)
        once, twice = _value_probabilities(density, step)
        share = _SHARES[:, None]
        gains.append(np.stack([np.log(share * (row / once) + 1 - share) @ counts for row in twice]))
        evidence.append(np.log(once / twice))
    # A frequency that speaks against every first step has none that can be seen: it says nothing.
    total = np.sum([np.maximum(gain.max(axis=0), 0) for gain in gains], axis=0)
    best = int(total.argmax())
    if total[best] < _LEAST_GAIN * blocks:
        return np.zeros(usable.shape, dtype=np.float32)
    log_ratio = np.zeros(usable.shape, dtype=np.float32)
    for frequency, gain, ratios in zip(_FREQUENCIES, gains, evidence, strict=True):
        first = int(gain[:, best].argmax())
        if gain[first, best] <= 0:
            continue
        says = np.clip(ratios[first], -_MOST, _MOST)
        reach = len(says) // 2
        says[reach] = 0  # zeros tell flat from textured rather than once from twice
        values = quantised[:, :, *frequency]
        log_ratio += np.where(usable & (np.abs(values) <= reach), says[np.clip(values, -reach, reach) + reach], 0)
    return np.asarray(special.expit(_window(log_ratio, 5) - np.float32(special.logit(_SHARES[best]))))


def _off_grid_densities(quantised: NDArray[np.int16], table: NDArray[np.int32]) -> list[NDArray[np.float64]]:
    """Of each of _FREQUENCIES: the density of unquantised coefficients, in bins of 0.5 within ± _REACH.

    Off its grid, a photo shows next to nothing of its quantisation.
    """
    edges = np.arange(-_REACH - 0.5, _REACH + 0.51, 0.5)
    counts = np.zeros((len(_FREQUENCIES), len(edges) - 1))
    strip = _STRIP // _BLOCK
    for top in range(0, quantised.shape[0], strip):
        spectrum = (quantised[top : top + strip] * table).astype(np.float32)
        pixels = fft.idctn(spectrum, axes=(2, 3), norm="ortho").transpose(0, 2, 1, 3)
        plane = pixels.reshape(_BLOCK * pixels.shape[0], -1)
        for down, right in _OFF_GRID:
            shifted = plane[down : down - _BLOCK, right : right - _BLOCK]
            rows, columns = (side // _BLOCK for side in shifted.shape)
            moved = shifted.reshape(rows, _BLOCK, columns, _BLOCK).transpose(0, 2, 1, 3)
            spectrum = fft.dctn(moved, axes=(2, 3), norm="ortho")
            counts += [np.histogram(spectrum[:, :, *frequency], edges)[0] for frequency in _FREQUENCIES]
    counts += counts[:, ::-1]  # as likely as with the other sign
    smooth = ndimage.gaussian_filter1d(counts, 1.0, axis=1)
    smooth += 1e-6 * smooth.sum(axis=1, keepdims=True)
    return list(smooth / smooth.sum(axis=1, keepdims=True))


def _value_probabilities(density: NDArray[np.float64], step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(quantised value) after one saving with `step`, (V,), and after an earlier one, (len(_FIRST_STEPS), V).

    V values, -_REACH // step … _REACH // step; each row sums to 1.
    """
    reach = _REACH // step
    values = np.arange(-reach, reach + 1)
    before = np.arange(-_REACH - 0.25, _REACH + 0.26, 0.5)  # centres of the density's bins: never halfway of a step
    margin = _REACH + int(_FIRST_STEPS.max())
    between = np.arange(-margin, margin + 1)  # after the first saving
    masses = [
        np.bincount(step_1 * np.rint(before / step_1).astype(int) + margin, weights=density, minlength=len(between))
        for step_1 in _FIRST_STEPS
    ]
    once = _quantised_to(values, step, before) @ density
    twice = np.stack(masses) @ _quantised_to(values, step, between).T
    # What the model thinks impossible happens, too: clipped pixels, another decoder.
    once, twice = once + 1e-6, twice + 1e-6
    return once / once.sum(), twice / twice.sum(axis=1, keepdims=True)


def _quantised_to(values: NDArray[np.int64], step: int, before: NDArray[Any]) -> NDArray[np.float64]:
    """P(quantised value | coefficient before), (V, B), of (V,) values in order: rounding to pixels adds noise.

    All that is subtracted here are multiples of 1/4, so that few values of the normal distribution are needed.
    """
    far = 20  # quarters, 8 standard deviations
    normal = special.ndtr(np.arange(-far, far + 1) / (4 * _NOISE))
    borders = step * np.append(values - 0.5, values[-1] + 0.5)
    quarters = np.rint(4 * (borders[:, None] - before)).astype(np.int64)
    return np.diff(normal[np.clip(quarters, -far, far) + far], axis=0)
