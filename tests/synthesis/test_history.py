"""What pictures go through before and after a manipulation, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np

from declip.synthesis import steps
from declip.synthesis.history import History, Saving
from declip.synthesis.steps import PNG, Cropping, Encoding, Noise, Resizing

NONE = dict.fromkeys(("resized", "messenger", "screenshot", "web", "lossless"), 0.0)


def test_shares_of_saving_are_kept() -> None:
    saving = Saving(jpeg=0.3, webp=0.2, resize=0.4, social=0.25, social_side=100)
    rng = np.random.default_rng(0)
    formats: Counter[str] = Counter()
    resized = social = 0
    for _ in range(1000):
        after = saving.draw_after((96, 128), rng)
        if any(isinstance(step, Encoding) for step in after.steps):
            social += 1
            assert after.last.format == "jpeg" and after.last.chroma == "4:2:0"
            assert after.last.quality is not None and 70 <= after.last.quality <= 85
            assert max([step.size for step in after.steps if isinstance(step, Resizing)][-1]) <= 100
        else:
            formats[after.last.format] += 1
            resized += len(after.steps)
    assert 200 <= social <= 300
    assert 0.25 <= formats["jpeg"] / formats.total() <= 0.35
    assert 0.15 <= formats["webp"] / formats.total() <= 0.25
    assert 0.35 <= resized / formats.total() <= 0.45


def test_noise_and_screens_have_their_shares() -> None:
    saving = Saving(noise=0.3, screenshot=0.2, resize=0.5, resize_range=(1.1, 1.5), social=0.5)
    rng = np.random.default_rng(0)
    noisy = screens = 0
    for _ in range(1000):
        found, last, _ = saving.draw_after((100, 200), rng)
        if any(isinstance(step, Resizing) and step.screen for step in found):
            screens += 1
            assert len(found) == 1 and last == PNG
            continue
        noises = [step for step in found if isinstance(step, Noise)]
        noisy += len(noises)
        assert all(0.5 <= step.sigma <= 3 for step in noises)
        sizes = [step.size for step in found if isinstance(step, Resizing)]
        assert not sizes or 110 <= sizes[0][0] <= 150
    assert 0.16 <= screens / 1000 <= 0.24
    assert 0.25 <= noisy / (1000 - screens) <= 0.35


def test_a_small_picture_is_not_resized_by_the_network() -> None:
    found, last, _ = Saving(social=1.0, social_side=400).draw_after((96, 128), np.random.default_rng(0))
    assert [type(step) for step in found] == [Encoding] and last.format == "jpeg"
    found, _, _ = Saving(social=1.0, social_side=64).draw_after((96, 128), np.random.default_rng(0))
    assert found[-1] == Resizing(size=(48, 64))


def test_every_history_has_a_crop_off_the_grid_and_most_end_as_jpeg() -> None:
    rng = np.random.default_rng(0)
    names: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for _ in range(1000):
        after = History().draw_after((300, 400), rng)
        first = after.steps[0]
        assert isinstance(first, Cropping)
        assert first.corner[0] % 8 or first.corner[1] % 8
        names[after.name] += 1
        formats[after.last.format] += 1
        assert after.last.quality is None or 60 <= after.last.quality <= 98
    assert set(names) == {"editor", "resized", "messenger", "screenshot", "web", "lossless"}
    assert 180 < names["resized"] < 260 and 120 < names["messenger"] < 200
    assert formats["jpeg"] >= 750 and formats["webp"] > 50


def test_messenger_makes_smaller_and_saves_at_70_to_80() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        (crop, editor, smaller), last, name = History(**NONE | {"messenger": 1.0}).draw_after((300, 400), rng)
        assert name == "messenger"
        assert isinstance(crop, Cropping) and isinstance(editor, Encoding) and isinstance(smaller, Resizing)
        assert smaller.size[0] < crop.size[0]
        assert last.chroma == "4:2:0" and last.quality is not None and 70 <= last.quality <= 80


def test_steps_fit_each_other() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (120, 90, 3), dtype=np.uint8)
    mask = np.zeros((120, 90), bool)
    mask[30:100, 30:70] = True
    for _ in range(30):
        after = History().draw_after((120, 90), rng)
        made = steps.decode(steps.encode(steps.apply(pixels, after.steps), after.last))
        assert made.shape[:2] == steps.resize_mask(mask, after.steps).shape


def test_before_is_a_camera_or_nothing() -> None:
    rng = np.random.default_rng(2)
    drawn = [History(camera=0.5).draw_before((100, 100), rng) for _ in range(400)]
    qualities = [step.quality or 0 for found in drawn for step in found if isinstance(step, Encoding)]
    assert 160 < len(qualities) < 240
    assert min(qualities) >= 80 and max(qualities) <= 98
