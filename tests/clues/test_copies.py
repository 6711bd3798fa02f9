"""Copy–moves are found with both places, after saving, turning, scaling and mirroring; what is untouched is not."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from declip.clues.copies import Copy, find_copies

STRONG = 10.0
SIDE = 96  # px, of the part that is copied
FROM, TO = (60, 50), (250, 330)  # (y, x) of its corners


def scene(height: int = 420, width: int = 520, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of several scales: it has corners everywhere, and no part is like another."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (s, s, 0)) * s for s in (1, 3, 12)]
    return np.clip(128 + 45 * sum(layers), 0, 255).astype(np.uint8)


def saved(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))


def copied(
    pixels: NDArray[np.uint8], degrees: float = 0.0, scale: float = 1.0, mirror: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the picture with a part copied, the source and the target."""
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D((0.0, 0.0), degrees, scale)[:, :2] @ np.diag([-1.0 if mirror else 1.0, 1.0])
    centres = [np.array([x, y]) + SIDE / 2 for y, x in (FROM, TO)]
    transform = np.column_stack([turn, centres[1] - turn @ centres[0]])
    source = np.zeros((height, width), np.uint8)
    source[FROM[0] : FROM[0] + SIDE, FROM[1] : FROM[1] + SIDE] = 1
    target = cv2.warpAffine(source, transform, (width, height), flags=cv2.INTER_NEAREST) > 0
    moved = cv2.warpAffine(pixels, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.where(target[..., None], moved, pixels), source > 0, target


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


@pytest.mark.parametrize(
    ("degrees", "scale", "mirror", "quality"),
    [(0, 1.0, False, None), (0, 1.0, False, 75), (30, 1.0, False, 90), (0, 0.7, False, 90), (0, 1.0, True, 90)],
)
def test_a_copy_is_found_with_its_source(degrees: float, scale: float, mirror: bool, quality: int | None) -> None:
    pixels, source, target = copied(scene(), degrees, scale, mirror)
    found = find_copies(pixels if quality is None else saved(pixels, quality), STRONG)
    assert len(found) == 1
    parts = sorted((found[0].one, found[0].other), key=lambda part: int(np.nonzero(part)[0].min()))
    assert overlap(parts[0], source) > 0.75
    assert overlap(parts[1], target) > 0.75
    assert overlap(found[0].mask, source | target) > 0.75


def test_the_map_leads_from_one_part_to_the_other() -> None:
    pixels, source, _ = copied(scene())
    (copy,) = find_copies(pixels, STRONG)
    shift = np.array([TO[1] - FROM[1], TO[0] - FROM[0]]) * (1 if overlap(copy.one, source) > 0.5 else -1)
    np.testing.assert_allclose(copy.transform, [[1, 0, shift[0]], [0, 1, shift[1]]], atol=0.6)


def test_a_part_that_was_copied_twice_is_found_twice() -> None:
    pixels, _, target = copied(scene())
    part = pixels[FROM[0] : FROM[0] + SIDE, FROM[1] : FROM[1] + SIDE]
    pixels[300 : 300 + SIDE, 40 : 40 + SIDE] = part
    marked = np.any([copy.mask for copy in find_copies(pixels, STRONG)], axis=0)
    assert marked[300 : 300 + SIDE, 40 : 40 + SIDE].mean() > 0.8
    assert marked[target].mean() > 0.8


@pytest.mark.parametrize("quality", [None, 75])
def test_nothing_is_found_where_nothing_repeats(quality: int | None) -> None:
    pixels = scene(seed=3)
    assert find_copies(pixels if quality is None else saved(pixels, quality), STRONG) == []


def test_bricks_are_no_copies() -> None:
    """A pattern repeats its corners, but not its grain."""
    rng = np.random.default_rng(0)
    brick = np.kron(rng.integers(60, 200, (8, 12)), np.ones((5, 5)))
    wall = np.tile(brick, (8, 7))[..., None] + rng.normal(0, 12, (320, 420, 3))
    assert find_copies(np.clip(wall, 0, 255).astype(np.uint8), STRONG) == []


@pytest.mark.parametrize("shape", [(1, 1), (8, 300), (64, 64)])
def test_flat_and_tiny_pictures_have_no_copies(shape: tuple[int, int]) -> None:
    assert find_copies(np.full((*shape, 3), 128, np.uint8)) == []


def test_large_photos_are_searched_at_two_megapixels() -> None:
    pixels, source, target = copied(scene())
    large = cv2.resize(pixels, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)  # 3.5 MP
    found = find_copies(large, STRONG)
    assert [copy.mask.shape for copy in found] == [large.shape[:2]]
    truth = cv2.resize((source | target).astype(np.uint8), large.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    assert overlap(found[0].mask, truth) > 0.7


def test_what_is_found_is_the_same_every_time() -> None:
    pixels, _, _ = copied(scene())
    first, second = find_copies(pixels), find_copies(pixels)
    assert [copy.evidence for copy in first] == [copy.evidence for copy in second]
    assert isinstance(first[0], Copy)
