"""Masks: never empty, never full, of the wanted area, and equal for equal seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data

from declip.errors import DatasetError
from declip.synthesis.masks import (
    AREA,
    face_mask,
    find_faces,
    grabcut_mask,
    largest_part,
    object_mask,
    random_mask,
    snap,
)
from declip.synthesis.steps import Mask


def _two_halves() -> NDArray[np.uint8]:
    """Left red, right blue, with a little noise."""
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[:, :64, 0] = 200
    pixels[:, 64:, 2] = 200
    return pixels + np.random.default_rng(0).integers(0, 9, pixels.shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (64, 300), (200, 151)])
def test_random_masks_keep_their_area(size: tuple[int, int]) -> None:
    shares = []
    for seed in range(60):
        mask = random_mask(size, np.random.default_rng(seed))
        assert mask.shape == size and mask.dtype == np.bool_
        shares.append(mask.mean())
    assert min(shares) >= AREA[0] / 1.2 and max(shares) <= AREA[1] * 1.2
    # Log-uniform: the middle one is near the geometric mean of the range, 6 %.
    assert 0.035 < float(np.median(shares)) < 0.12


def test_random_masks_obey_the_range_asked_for() -> None:
    for seed in range(20):
        assert 0.002 / 1.2 <= random_mask((256, 256), np.random.default_rng(seed), (0.002, 0.01)).mean() <= 0.012


@pytest.mark.parametrize("make", [object_mask, grabcut_mask])
def test_masks_of_things_are_one_part_without_holes(make: Callable[..., Mask]) -> None:
    pixels = data.chelsea()
    shares = []
    for seed in range(6):
        mask = make(pixels, np.random.default_rng(seed))
        assert mask.shape == pixels.shape[:2] and mask.dtype == np.bool_
        assert ndimage.label(mask)[1] == 1
        assert ndimage.label(~np.pad(mask, 1), structure=np.ones((3, 3)))[1] == 1
        shares.append(mask.mean())
    assert min(shares) >= AREA[0] / 1.2 and max(shares) <= AREA[1] * 1.2 and len(set(shares)) == 6


def test_object_masks_follow_edges() -> None:
    """In a picture of two colours a region stays on one side."""
    pure = []
    for seed in range(10):
        mask = object_mask(_two_halves(), np.random.default_rng(seed), (0.05, 0.3))
        left = mask[:, :64].sum() / mask.sum()
        pure.append(max(left, 1 - left))
    assert np.mean(pure) > 0.97


@pytest.mark.parametrize("make", [object_mask, grabcut_mask])
def test_flat_pictures_have_masks_too(make: Callable[..., Mask]) -> None:
    mask = make(np.full((64, 64, 3), 128, dtype=np.uint8), np.random.default_rng(0))
    assert 0 < mask.mean() < 1


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: random_mask((90, 80), rng),
        lambda rng: object_mask(data.chelsea()[:128, :128], rng),
        lambda rng: grabcut_mask(data.chelsea()[:128, :128], rng),
        lambda rng: face_mask([(100, 60, 200, 160)], (256, 300), rng),
    ],
)
def test_equal_seeds_give_equal_masks(make: Callable[..., Mask]) -> None:
    one, same, other = (make(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_snap_moves_the_outline_to_the_edge() -> None:
    mask = np.zeros((96, 128), dtype=bool)
    mask[20:70, 20:70] = True  # 6 px beyond the border between the colours at 64
    snapped = snap(mask, _two_halves(), np.random.default_rng(0))
    assert snapped[:, 66:].sum() < 0.2 * mask[:, 66:].sum()
    assert 0.5 * mask.sum() <= snapped.sum() <= 1.5 * mask.sum()


def test_largest_part() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[0, 0] = mask[4, 4] = mask[5, 5] = mask[8, 0] = True
    assert np.argwhere(largest_part(mask)).tolist() == [[4, 4], [5, 5]]


def test_too_small_pictures_and_wrong_ranges() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DatasetError, match="31×400 px; masks need at least 32"):
        random_mask((31, 400), rng)
    with pytest.raises(DatasetError, match="8×8 px"):
        object_mask(np.zeros((8, 8, 3), dtype=np.uint8), rng)
    for area in ((0.0, 0.4), (0.5, 0.4), (0.1, 1.0)):
        with pytest.raises(DatasetError, match="area is"):
            random_mask((64, 64), rng, area)


def test_grabcut_cuts_out_what_stands_out() -> None:
    """A bright disc on dark noise: what is cut out is the disc, whatever the box."""
    rows, columns = np.ogrid[:128, :128]
    disc = (rows - 64) ** 2 + (columns - 64) ** 2 < 30**2  # 17 % of the picture
    pixels = np.repeat(np.where(disc[..., None], 210, 40).astype(np.uint8), 3, axis=2)
    pixels = pixels + np.random.default_rng(0).integers(0, 20, pixels.shape, dtype=np.uint8)
    overlaps = []
    for seed in range(12):
        mask = grabcut_mask(pixels, np.random.default_rng(seed), (0.12, 0.25))
        overlaps.append((mask & disc).sum() / (mask | disc).sum())
    assert np.median(overlaps) > 0.8


def test_faces_are_found_where_they_are() -> None:
    pixels = data.astronaut()
    ((x0, y0, x1, y1),) = find_faces(pixels)
    assert x0 < 222 < x1 and y0 < 115 < y1  # her nose
    assert 70 <= x1 - x0 <= 140
    half = find_faces(np.ascontiguousarray(pixels[::2, ::2]))
    assert np.abs(np.array(half[0]) * 2 - (x0, y0, x1, y1)).max() <= 24
    assert find_faces(data.coffee()) == []
    assert find_faces(np.zeros((20, 600, 3), dtype=np.uint8)) == []


def test_face_masks_lie_on_the_face() -> None:
    box = (100, 60, 200, 160)
    shares = []
    for seed in range(40):
        mask = face_mask([box], (256, 300), np.random.default_rng(seed))
        assert mask is not None and mask.shape == (256, 300) and mask.dtype == np.bool_
        assert mask[35:190, 80:220].sum() == mask.sum()
        shares.append(mask.mean())
    assert min(shares) < 0.02 and max(shares) > 0.09  # an eye; the whole face


def test_face_masks_of_no_fitting_area() -> None:
    rng = np.random.default_rng(0)
    assert face_mask([], (256, 256), rng) is None
    assert face_mask([(10, 10, 20, 20)], (256, 256), rng) is None  # 0.15 % of the picture
    small = face_mask([(20, 20, 230, 230)], (256, 256), rng, (0.01, 0.08))
    assert small is not None and small.mean() <= 0.096  # a part of it; all of it would be 58 %
    with pytest.raises(DatasetError, match="16×16 px"):
        face_mask([(0, 0, 9, 9)], (16, 16), rng)
