"""Parts that repeat to the grain are found with their sources: moved copies, and fills made of pieces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from declip.clues.exemplar_fill import find_fills
from declip.clues.nearest import nearest
from declip.clues.pieces import find_pieces, luma_of
from declip.clues.rigid import find_rigid_copies
from tests.clues.test_copies import FROM, SIDE, TO, copied, overlap, saved, scene

PIECE = 24  # px
HOLE = np.s_[120:216, 200:296]


def filled(pixels: NDArray[np.uint8], seed: int = 1) -> NDArray[np.uint8]:
    """Return the picture with a hole of 96 px filled with 16 pieces of other places."""
    rng = np.random.default_rng(seed)
    made = pixels.copy()
    rows, columns = HOLE
    for y in range(rows.start, rows.stop, PIECE):
        for x in range(columns.start, columns.stop, PIECE):
            from_y, from_x = rng.integers(240, 390), rng.integers(0, 490)
            made[y : y + PIECE, x : x + PIECE] = pixels[from_y : from_y + PIECE, from_x : from_x + PIECE]
    return made


@pytest.mark.parametrize("quality", [None, 90])
def test_a_moved_copy_is_found_by_its_grain(quality: int | None) -> None:
    pixels, source, target = copied(scene())
    copy = find_rigid_copies(pixels if quality is None else saved(pixels, quality))[0]
    assert copy.evidence > 100
    assert overlap(copy.mask, source | target) > 0.75
    assert sorted(np.abs(copy.transform[:, 2])) == sorted([TO[0] - FROM[0], TO[1] - FROM[1]])


@pytest.mark.parametrize("quality", [None, 90])
def test_a_fill_is_found_with_the_sources_of_its_pieces(quality: int | None) -> None:
    pixels = filled(scene(seed=2))
    fill = find_fills(pixels if quality is None else saved(pixels, quality))[0]
    truth = np.zeros(pixels.shape[:2], bool)
    truth[HOLE] = True
    assert fill.evidence > 100 and fill.pieces >= 8
    assert overlap(fill.mask, truth) > 0.6
    assert fill.sources[240:].sum() == fill.sources.sum() > 0.5 * truth.sum()


def test_a_copy_alone_is_no_fill() -> None:
    assert find_fills(copied(scene())[0]) == []


@pytest.mark.parametrize("quality", [None, 75])
def test_nothing_is_found_where_nothing_repeats(quality: int | None) -> None:
    pixels = scene(seed=3) if quality is None else saved(scene(seed=3), quality)
    assert find_rigid_copies(pixels) == [] and find_fills(pixels) == []


def test_edges_are_no_copies() -> None:
    """Stripes are alike along themselves."""
    stripes = np.tile(np.arange(320) // 9 % 2 * 120 + 60, (320, 1)) + np.random.default_rng(0).normal(0, 6, (320, 320))
    pixels = np.clip(stripes, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert find_pieces(luma_of(pixels)).evidence.sum() < 5


@pytest.mark.parametrize("shape", [(1, 1), (8, 300), (64, 64)])
def test_flat_and_tiny_pictures_have_no_pieces(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 128, np.uint8)
    assert find_rigid_copies(pixels) == [] and find_fills(pixels) == []


def test_patches_are_found_where_they_were_copied_to() -> None:
    pixels, _, _ = copied(scene())
    found = nearest(luma_of(pixels))
    inside = np.s_[FROM[0] // 2 + 3 : (FROM[0] + SIDE) // 2 - 6, FROM[1] // 2 + 3 : (FROM[1] + SIDE) // 2 - 6]
    right = (found.shift[inside] == [TO[0] - FROM[0], TO[1] - FROM[1]]).all(axis=2)
    assert right.mean() > 0.95


def test_what_is_found_is_the_same_every_time() -> None:
    pixels, _, _ = copied(scene())
    first, second = find_pieces(luma_of(pixels)), find_pieces(luma_of(pixels))
    np.testing.assert_array_equal(first.evidence, second.evidence)
