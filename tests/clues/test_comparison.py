"""What differs from an original is marked, however both were saved; what is saved, scaled, cropped or toned is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import declip
from declip.errors import DeclipError
from tests.clues.test_copies import overlap, saved, scene

PART = np.s_[150:230, 200:330]  # rows, columns


def forged(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    made, mask = pixels.copy(), np.zeros(pixels.shape[:2], np.bool_)
    made[PART] = scene(seed=9)[PART]
    mask[PART] = True
    return made, mask


def resized(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def darkened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.rint(255 * (pixels / 255) ** (1.3, 1.2, 1.4)).astype(np.uint8)


@pytest.mark.parametrize(("scale", "toned"), [(1.0, False), (0.75, True), (1.4, False)])
def test_a_changed_part_is_marked(scale: float, toned: bool) -> None:
    made, mask = forged(scene())
    photo = saved(resized(darkened(made) if toned else made, scale), 80)
    found = declip.compare(photo, saved(scene(), 92))
    size = photo.shape[1::-1]
    assert overlap(found.mask, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0) > 0.85
    assert found.mask.shape == found.compared.shape == photo.shape[:2]
    assert found.compared.all() and found.shown == pytest.approx(1, abs=0.01)
    x0, y0, x1, y1 = (value / scale for value in found.regions[0].bbox)
    assert (x0, y0, x1, y1) == pytest.approx((200, 150, 330, 230), abs=8)
    assert found.regions[0].area == pytest.approx(mask.mean(), rel=0.15)
    assert (found.toned > 5) == toned


@pytest.mark.parametrize(("quality", "scale"), [(95, 0.5), (75, 1.0), (50, 1.0), (95, 1.5)])
def test_saving_scaling_and_tone_are_no_difference(quality: int, scale: float) -> None:
    found = declip.compare(saved(resized(darkened(scene()), scale), quality), saved(scene(), 90))
    assert found.parts == 0 and not found.mask.any() and found.regions == ()
    assert found.headline.startswith("Nothing was found")
    assert 0.5 < found.level < found.most < 40


def test_a_mirrored_crop_is_found_and_what_the_original_lacks_is_not_compared() -> None:
    made, mask = forged(scene())
    photo = np.full((360, 420, 3), 30, np.uint8)
    photo[60:] = made[40:340, 60:480][:, ::-1]
    found = declip.compare(saved(photo, 85), saved(scene()[40:, :], 90))
    expected = np.zeros((360, 420), np.bool_)
    expected[60:] = mask[40:340, 60:480][:, ::-1]
    assert not found.compared[:59].any() and found.compared[61:].all()
    assert not found.mask[:59].any()
    assert overlap(found.mask, expected) > 0.85
    assert found.transform[:, 0] == pytest.approx([-1, 0, 0], abs=0.003)
    assert "mirrored" in found.sentences[2] and "83 % of the photo" not in found.sentences[2]
    assert any("17 % of the photo lies outside the original" in said for said in found.sentences)


@pytest.mark.parametrize("quarters", [1, 2])
def test_turned_originals_are_found(quarters: int) -> None:
    made, mask = forged(scene())
    found = declip.compare(saved(made, 85), saved(np.ascontiguousarray(np.rot90(scene(), quarters)), 90))
    assert overlap(found.mask, mask) > 0.85
    assert f"turned by {180 if quarters == 2 else 90}°" in found.sentences[2]


def test_a_grey_photo_is_compared_with_a_coloured_original() -> None:
    made, mask = forged(scene())
    grey = np.asarray(Image.fromarray(made).convert("L").convert("RGB"))
    found = declip.compare(saved(grey, 85), saved(scene(), 90))
    assert found.grey and overlap(found.mask, mask) > 0.85


def test_the_same_pixels_and_the_same_file_are_told() -> None:
    assert declip.compare(scene(), scene()).identical == "pixels"
    assert declip.compare(scene(), scene()).headline.startswith("The two pictures have the same pixels")
    path = "examples/photos/coffee-untouched.jpg"
    found = declip.compare(path, path)
    assert found.identical == "file" and not found.mask.any() and found.sentences == (found.headline,)


@pytest.mark.parametrize(
    "other", [scene(seed=5), np.full((300, 300, 3), 128, np.uint8), np.zeros((1, 1, 3), np.uint8), scene(20, 20)]
)
def test_different_pictures_are_refused(other: NDArray[np.uint8]) -> None:
    with pytest.raises(DeclipError, match=r"do not show the same picture: \d+ details? agree"):
        declip.compare(scene(), other)
