"""Parts on another grid and parts that were saved less often are found; photos that were just saved twice are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from declip.clues import ForeignGrid, SavedOnce
from declip.clues.grid import phase_of
from declip.clues.jpeg_history import foreign_areas, saved_once_areas
from declip.clues.votes import stand_out
from declip.images.encode import encode_jpeg
from declip.images.read import read_photo
from declip.results import Photo
from tests.clues.test_copies import overlap, saved, scene

WEAK = 8.0  # digits
PART = np.s_[96:226, 151:281]  # 130 px, off the grid


def mask() -> NDArray[np.bool_]:
    truth = np.zeros((384, 512), bool)
    truth[PART] = True
    return truth


def picture(seed: int) -> NDArray[np.uint8]:
    """A scene with less noise than that of the copies, so that saving it leaves zeros."""
    return (128 + (scene(384, 512, seed).astype(float) - 128) * 0.35).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> Photo:
    return Photo(pixels=np.ascontiguousarray(pixels), name="photo.png")


def jpeg(pixels: NDArray[np.uint8], quality: int) -> Photo:
    return read_photo(encode_jpeg(np.ascontiguousarray(pixels), quality))


def pasted(host: NDArray[np.uint8], guest: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paste a part of the guest whose grid begins 3 px lower and 2 px further to the left than the host's."""
    made = host.copy()
    made[PART] = guest[93:223, 153:283]
    return made


def test_a_part_on_another_grid_is_found_with_its_shift() -> None:
    photo = png(pasted(saved(picture(1), 85), saved(picture(2), 75)))
    found, area, shift = foreign_areas(photo)[0]
    assert shift == (3, 6)
    assert overlap(found, mask()) > 0.6
    assert area.evidence > 30 and area.votes > 100
    (finding,) = [f for f in ForeignGrid().examine(photo) if f.evidence > 30]
    assert "shifted by 6 px to the right and 3 px down" in finding.reason
    assert finding.kind == "foreign-grid" and finding.rate <= 0.05


@pytest.mark.parametrize("crop", [0, 3])
def test_a_photo_that_was_saved_twice_has_no_foreign_part(crop: int) -> None:
    once = saved(picture(1), 75)[crop:, crop:]
    for photo in (png(once), jpeg(once, 92)):
        assert max((area.evidence for _, area, _ in foreign_areas(photo)), default=0.0) < WEAK


def test_the_own_grid_is_told_from_pixels() -> None:
    assert phase_of(saved(picture(1), 80)) == 0
    assert phase_of(saved(picture(1), 80)[3:, 2:]) == 8 * 5 + 6


@pytest.mark.parametrize(("first", "last"), [(70, 90), (80, None)])
def test_a_part_that_was_saved_once_is_found(first: int, last: int | None) -> None:
    pixels = pasted(saved(picture(1), first), picture(2))
    photo = png(pixels) if last is None else jpeg(pixels, last)
    found, area = saved_once_areas(photo)[0]
    assert overlap(found, mask()) > 0.6
    assert area.evidence > 30 and area.votes / area.trials > 2 * area.usual
    finding = SavedOnce().examine(photo)[0]
    assert "saved as JPEG less often" in finding.reason and finding.rate <= 0.05


def test_a_crop_of_a_png_is_read_on_its_own_grid() -> None:
    photo = png(pasted(saved(picture(1), 80), picture(2))[5:, 3:])
    assert overlap(saved_once_areas(photo)[0][0], mask()[5:, 3:]) > 0.6


@pytest.mark.parametrize(("first", "last"), [(70, 90), (90, 70), (None, 80)])
def test_a_photo_without_a_change_has_no_part_that_was_saved_once(first: int | None, last: int) -> None:
    pixels = picture(1) if first is None else saved(picture(1), first)
    assert max((area.evidence for _, area in saved_once_areas(jpeg(pixels, last))), default=0.0) < WEAK


def test_blocks_that_are_filled_up_say_nothing() -> None:
    """Each saving fills the last blocks with what the one before made of the last pixels."""
    twice = jpeg(saved(picture(1)[:379, :507], 70), 90)
    assert max((area.evidence for _, area in saved_once_areas(twice)), default=0.0) < WEAK


@pytest.mark.parametrize("shape", [(1, 1), (8, 300), (64, 64)])
def test_flat_and_tiny_pictures_have_no_history(shape: tuple[int, int]) -> None:
    photo = png(np.full((*shape, 3), 128, np.uint8))
    assert foreign_areas(photo) == [] and saved_once_areas(photo) == []


def test_large_photos_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("declip.clues.grid.LARGEST", 100_000)  # every second block of 0.2 MP
    found, _, shift = foreign_areas(png(pasted(saved(picture(1), 85), saved(picture(2), 75))))[0]
    assert shift == (3, 6) and overlap(found, mask()) > 0.4


def test_votes_are_compared_with_those_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    trials = np.full((60, 60), 4, np.float32)
    votes = rng.binomial(4, 0.1, (60, 60)).astype(np.float32)
    assert max((a.evidence for a in stand_out(votes, trials, 5, 0.02, 0.95)), default=0.0) < WEAK
    votes[20:30, 20:30] = rng.binomial(4, 0.6, (10, 10))
    area = stand_out(votes, trials, 5, 0.02, 0.95)[0]
    assert area.blocks[20:30, 20:30].mean() > 0.9 and area.blocks.sum() < 150
    assert area.evidence > 30 and 0.1 < area.usual < 0.3
    votes[:, 40:] = rng.binomial(4, 0.6, (60, 20))  # as much is shown elsewhere
    assert max((a.evidence for a in stand_out(votes, trials, 5, 0.02, 0.95)), default=0.0) < WEAK
