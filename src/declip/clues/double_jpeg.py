"""Map the parts that were saved as JPEG once where the rest of the photo was saved twice."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special

from declip.clues import blocks
from declip.clues.blocks import BLOCK, Floats, blocks_of, check_sides, spread, window
from declip.clues.maps import Baseline
from declip.errors import MissingExtraError
from declip.images import jpeg
from declip.images.orientation import to_stored, to_upright
from declip.results import Photo

__all__ = ["DoubleJpeg", "votes_for_once"]


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
        """Return (H, W) float32 in [0, 1]. Raises ImageError as `ErrorLevel`, and for unreadable coefficients."""
        check_sides(photo)
        stored = jpeg.read_coefficients(photo)
        clipped = _clipped(photo.pixels, stored.orientation, _CLIPPED_SHARE)
        probability = _saved_once(_quantised(stored), stored.table, ~clipped)
        height, width = photo.size if stored.orientation < 5 else photo.size[::-1]
        scores = spread(probability, (height, width))
        return np.ascontiguousarray(to_upright(scores, stored.orientation))


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
_FEW_CLIPPED = 0.04  # of a block that has a vote: few clipped pixels move many coefficients a little
_TELLING = np.float32(np.log(2))  # of a value's log ratio, to count as a vote
_LEAST_GAIN = 0.1  # nats per block; photos that were saved once stay below


def _clipped(pixels: NDArray[np.uint8], orientation: int, share: float) -> NDArray[np.bool_]:
    """Return the blocks with a share of clipped pixels, (H8, W8) bool as stored. pixels: (H, W, 3), upright."""
    at_an_end = ((pixels <= _CLIPPED[0]) | (pixels >= _CLIPPED[1])).any(axis=2).astype(np.float32)
    return np.asarray(blocks_of(to_stored(np.asarray(at_an_end), orientation)).mean(axis=2) > share)


def votes_for_once(
    stored: jpeg.JpegCoefficients, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how many coefficients of each block speak for "saved once", and how many speak at all, (H8, W8) each.

    Both are 0 everywhere where the photo shows no two savings. pixels: (H, W, 3), upright. A coefficient speaks if its
    value is twice as likely after one saving as after two, or the other way round; zeros do not.
    """
    quantised, usable = _quantised(stored), ~_clipped(pixels, stored.orientation, _FEW_CLIPPED)
    height, width = pixels.shape[:2] if stored.orientation < 5 else pixels.shape[1::-1]
    # What fills the last blocks up is made anew with each saving.
    usable[height // BLOCK :] = False
    usable[:, width // BLOCK :] = False
    votes, trials = np.zeros((2, *usable.shape), np.float32)
    _, told = _first_saving(quantised, stored.table)
    for frequency, ratios in told:
        reach = len(ratios) // 2
        values = quantised[:, :, *frequency]
        says = np.where(
            usable & (np.abs(values) <= reach) & (values != 0), ratios[values.clip(-reach, reach) + reach], 0
        )
        votes += says > _TELLING
        trials += np.abs(says) > _TELLING
    return votes, trials


def _quantised(stored: jpeg.JpegCoefficients) -> NDArray[np.int16]:
    """Return the coefficients of each block, (H8, W8, 8, 8)."""
    rows, columns = (side // BLOCK for side in stored.coefficients.shape)
    return stored.coefficients.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3)


def _saved_once(quantised: NDArray[np.int16], table: NDArray[np.int32], usable: NDArray[np.bool_]) -> Floats:
    """Return P(saved once) of each block, (H8, W8) float32 in [0, 1].

    quantised: (H8, W8, 8, 8). table: (8, 8). usable: (H8, W8), the blocks that say something.
    """
    share, told = _first_saving(quantised, table)
    if not told:
        return np.zeros(usable.shape, dtype=np.float32)
    log_ratio = np.zeros(usable.shape, dtype=np.float32)
    for frequency, ratios in told:
        says = np.clip(ratios, -_MOST, _MOST)
        reach = len(says) // 2
        says[reach] = 0  # zeros tell flat from textured rather than once from twice
        values = quantised[:, :, *frequency]
        log_ratio += np.where(usable & (np.abs(values) <= reach), says[np.clip(values, -reach, reach) + reach], 0)
    return np.asarray(special.expit(window(log_ratio, 5) - np.float32(special.logit(share))))


def _first_saving(
    quantised: NDArray[np.int16], table: NDArray[np.int32]
) -> tuple[float, list[tuple[tuple[int, int], NDArray[np.float64]]]]:
    """Estimate the share that was saved twice; and for each frequency that shows it, what its values say.

    quantised: (H8, W8, 8, 8). table: (8, 8). Returns the share, and pairs of a frequency and log P(value | saved once)
    / P(value | saved twice) of the values -reach … reach. No pairs: the photo shows no two savings.
    """
    count = quantised.shape[0] * quantised.shape[1]
    if count < _FEWEST_BLOCKS:
        return 1.0, []
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
    if total[best] < _LEAST_GAIN * count:
        return 1.0, []
    told = []
    for frequency, gain, ratios in zip(_FREQUENCIES, gains, evidence, strict=True):
        first = int(gain[:, best].argmax())
        if gain[first, best] > 0:
            told.append((frequency, ratios[first]))
    return float(_SHARES[best]), told


def _off_grid_densities(quantised: NDArray[np.int16], table: NDArray[np.int32]) -> list[NDArray[np.float64]]:
    """Return for each of _FREQUENCIES the density of unquantised coefficients, in bins of 0.5 within ± _REACH.

    Off its grid, a photo shows next to nothing of its quantisation.
    """
    edges = np.arange(-_REACH - 0.5, _REACH + 0.51, 0.5)
    counts = np.zeros((len(_FREQUENCIES), len(edges) - 1))
    strip = blocks.STRIP // BLOCK
    for top in range(0, quantised.shape[0], strip):
        spectrum = (quantised[top : top + strip] * table).astype(np.float32)
        pixels = fft.idctn(spectrum, axes=(2, 3), norm="ortho").transpose(0, 2, 1, 3)
        plane = pixels.reshape(BLOCK * pixels.shape[0], -1)
        for down, right in _OFF_GRID:
            shifted = plane[down : down - BLOCK, right : right - BLOCK]
            rows, columns = (side // BLOCK for side in shifted.shape)
            moved = shifted.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3)
            spectrum = fft.dctn(moved, axes=(2, 3), norm="ortho")
            counts += [np.histogram(spectrum[:, :, *frequency], edges)[0] for frequency in _FREQUENCIES]
    counts += counts[:, ::-1]  # as likely as with the other sign
    smooth = ndimage.gaussian_filter1d(counts, 1.0, axis=1)
    smooth += 1e-6 * smooth.sum(axis=1, keepdims=True)
    return list(smooth / smooth.sum(axis=1, keepdims=True))


def _value_probabilities(density: NDArray[np.float64], step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return P(quantised value) after one saving with `step`, (V,), and after an earlier one, (len(_FIRST_STEPS), V).

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
    """Return P(quantised value | coefficient before), (V, B), of (V,) values in order: rounding to pixels adds noise.

    All that is subtracted here are multiples of 1/4, so that few values of the normal distribution are needed.
    """
    far = 20  # quarters, 8 standard deviations
    normal = special.ndtr(np.arange(-far, far + 1) / (4 * _NOISE))
    borders = step * np.append(values - 0.5, values[-1] + 0.5)
    quarters = np.rint(4 * (borders[:, None] - before)).astype(np.int64)
    return np.diff(normal[np.clip(quarters, -far, far) + far], axis=0)
