"""What pictures live through before and after a manipulation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from declip.errors import DatasetError
from declip.synthesis import saving
from declip.synthesis.history import History, draw_crop


def test_every_picture_is_cropped_off_the_grid_and_most_end_as_jpeg() -> None:
    rng = np.random.default_rng(0)
    fates: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for _ in range(1000):
        fate, steps, last = History().draw_after((300, 400), rng)
        first = steps[0]
        assert isinstance(first, saving.Cropping)
        assert first.corner[0] % 8 or first.corner[1] % 8
        fates[fate] += 1
        formats[last.format] += 1
        if last.format == "jpeg":
            assert last.quality is not None
            assert 70 <= last.quality <= 98
    assert set(fates) == {"editor", "resized", "messenger", "screenshot", "web", "lossless"}
    assert formats["jpeg"] >= 750
    assert formats["webp"] > 50


def test_messenger_makes_smaller_and_saves_at_70_to_80() -> None:
    rng = np.random.default_rng(0)
    only = History(resized=0, messenger=1, screenshot=0, web=0, lossless=0)
    for _ in range(20):
        fate, steps, last = only.draw_after((300, 400), rng)
        crop, editor, smaller = steps
        assert fate == "messenger"
        assert isinstance(crop, saving.Cropping)
        assert isinstance(editor, saving.Encoding)
        assert isinstance(smaller, saving.Resizing)
        assert smaller.size[0] < crop.size[0]
        assert last.quality is not None
        assert (last.chroma, 70 <= last.quality <= 80) == ("4:2:0", True)


def test_steps_fit_each_other() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (120, 90, 3), dtype=np.uint8)
    mask = np.zeros((120, 90), bool)
    mask[30:100, 30:70] = True
    for _ in range(30):
        _, steps, last = History().draw_after((120, 90), rng)
        made = saving.decode(saving.encode(saving.apply(pixels, steps), last))
        assert made.shape[:2] == saving.resize_mask(mask, steps).shape


def test_before_is_a_camera_or_nothing() -> None:
    rng = np.random.default_rng(2)
    drawn = [History(camera=0.5).draw_before((100, 100), rng) for _ in range(400)]
    qualities = [step.quality for steps in drawn for step in steps if isinstance(step, saving.Encoding)]
    assert 160 < len(qualities) < 240
    assert min(qualities) >= 80 and max(qualities) <= 98  # type: ignore[type-var, operator]


def test_a_small_photo_is_not_made_smaller() -> None:
    rng = np.random.default_rng(3)
    assert {History(downscaled=1).draw_scale(0.95, rng) for _ in range(20)} == {1.0}
    assert all(0.5 <= History(downscaled=1).draw_scale(0.5, rng) <= 0.9 for _ in range(20))


def test_crop_keeps_what_it_says() -> None:
    crop = draw_crop((64, 80), np.random.default_rng(4))
    array = np.arange(64 * 80).reshape(64, 80)
    (top, left), (height, width) = crop.corner, crop.size
    assert np.array_equal(crop.of(array), array[top : top + height, left : left + width])
    with pytest.raises(DatasetError, match="has no part of"):
        crop.of(array[:40])


def test_shares_are_checked() -> None:
    with pytest.raises(DatasetError, match="camera is 2"):
        History(camera=2)
    with pytest.raises(DatasetError, match=r"shares of 1\.30"):
        History(messenger=0.9, resized=0.2, screenshot=0, web=0.1, lossless=0.1)
