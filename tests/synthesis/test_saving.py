"""What happens after a manipulation: which steps, how often, and what they do to picture and mask."""

from __future__ import annotations

import io
from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from declip.errors import DatasetError
from declip.synthesis.saving import Encoding, Noise, Resizing, Saving, apply, decode, encode, record, resize_mask


def _cat() -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.chelsea()[60:188, 100:260])


def test_shares_are_kept() -> None:
    saving = Saving(jpeg_share=0.3, webp_share=0.2, resize_share=0.4, social_share=0.25, social_side=100)
    rng = np.random.default_rng(0)
    formats: Counter[str] = Counter()
    resized = social = 0
    for _ in range(1000):
        steps, last = saving.draw((96, 128), rng)
        first_jpeg = [step for step in steps if isinstance(step, Encoding)]
        if first_jpeg:
            social += 1
            assert first_jpeg[0].format == last.format == "jpeg" and last.chroma == "4:2:0"
            assert last.quality is not None and 70 <= last.quality <= 85
            sizes = [step.size for step in steps if isinstance(step, Resizing)]
            assert max(sizes[-1]) <= 100
        else:
            formats[last.format] += 1
            resized += len(steps)
    assert 200 <= social <= 300
    assert 0.25 <= formats["jpeg"] / formats.total() <= 0.35
    assert 0.15 <= formats["webp"] / formats.total() <= 0.25
    assert 0.35 <= resized / formats.total() <= 0.45


def test_what_never_happens_draws_nothing() -> None:
    """Data sets made before WebP and the rest stay as they are: one number for the format, two for a JPEG."""
    for seed in range(8):
        rng, plain = np.random.default_rng(seed), np.random.default_rng(seed)
        steps, last = Saving().draw((64, 64), rng)
        assert steps == ()
        if plain.random() < 0.5:
            quality = int(plain.integers(60, 96))
            chroma = "4:2:0" if plain.random() < 0.5 else "4:4:4"
            assert record(last) == {"format": "jpeg", "quality": quality, "chroma": chroma}
        else:
            assert record(last) == {"format": "png"}
        assert rng.random() == plain.random()


def test_a_small_picture_is_not_resized_by_the_network() -> None:
    steps, last = Saving(social_share=1.0, social_side=400).draw((96, 128), np.random.default_rng(0))
    assert [type(step) for step in steps] == [Encoding] and last.format == "jpeg"
    steps, _ = Saving(social_share=1.0, social_side=64).draw((96, 128), np.random.default_rng(0))
    assert steps[-1] == Resizing(size=(48, 64)) and record(steps[-1]) == {"resized": [48, 64]}


def test_formats() -> None:
    pixels = _cat()
    for encoding, kind, worst in (
        (Encoding(format="png"), "PNG", 0),
        (Encoding(format="jpeg", quality=90, chroma="4:4:4"), "JPEG", 3),
        (Encoding(format="webp", quality=90), "WEBP", 4),
    ):
        written = encode(pixels, encoding)
        assert Image.open(io.BytesIO(written)).format == kind
        difference = np.abs(decode(written).astype(int) - pixels)
        assert (difference.mean() > 0) == (worst > 0) and difference.mean() <= worst
    with pytest.raises(DatasetError, match="a jpeg needs quality and chroma"):
        encode(pixels, Encoding(format="jpeg"))


def test_apply_is_the_steps_in_their_order() -> None:
    pixels = _cat()
    jpeg = Encoding(format="jpeg", quality=70, chroma="4:2:0")
    half = Resizing(size=(64, 80))
    one = apply(pixels, (jpeg, half))
    assert one.shape == (64, 80, 3) and one.dtype == np.uint8
    assert np.array_equal(one, apply(decode(encode(pixels, jpeg)), (half,)))
    assert not np.array_equal(one, apply(pixels, (half, jpeg)))
    assert apply(pixels, ()) is pixels
    # Averaging: a half-size pixel is the mean of four.
    mean = pixels.reshape(64, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(apply(pixels, (half,)) - mean).max() <= 0.5


def test_the_mask_is_resized_along() -> None:
    mask = np.zeros((128, 160), dtype=bool)
    mask[20:60, 40:100] = True
    small = resize_mask(mask, (Encoding(format="png"), Resizing(size=(64, 80))))
    expected = np.zeros((64, 80), dtype=bool)
    expected[10:30, 20:50] = True
    assert np.array_equal(small, expected)
    assert resize_mask(mask, ()) is mask
    dot = np.zeros((128, 160), dtype=bool)
    dot[5, 5] = True
    with pytest.raises(DatasetError, match="nothing is left of the mask"):
        resize_mask(dot, (Resizing(size=(32, 40)),))


def test_noise_and_screens_have_their_shares() -> None:
    saving = Saving(noise_share=0.3, screenshot_share=0.2, resize_share=0.5, resize_range=(1.1, 1.5), social_share=0.5)
    rng = np.random.default_rng(0)
    noisy = screens = 0
    for _ in range(1000):
        steps, last = saving.draw((100, 200), rng)
        if any(isinstance(step, Resizing) and step.screen for step in steps):
            screens += 1
            assert len(steps) == 1 and last == Encoding(format="png")
            continue
        noises = [step for step in steps if isinstance(step, Noise)]
        noisy += len(noises)
        assert all(0.5 <= step.sigma <= 3 for step in noises)
        sizes = [step.size for step in steps if isinstance(step, Resizing)]
        assert not sizes or 110 <= sizes[0][0] <= 150
    assert 0.16 <= screens / 1000 <= 0.24
    assert 0.25 <= noisy / (1000 - screens) <= 0.35


def test_noise_is_of_its_deviation_and_seed() -> None:
    flat = np.full((128, 128, 3), 100, np.uint8)
    step = Noise(sigma=2.0, seed=7)
    one = apply(flat, (step,))
    assert np.array_equal(one, apply(flat, (step,)))
    assert not np.array_equal(one, apply(flat, (Noise(sigma=2.0, seed=8),)))
    assert (one.astype(float) - 100).std() == pytest.approx((2**2 + 1 / 12) ** 0.5, abs=0.03)  # and rounding's
    assert record(step) == {"noise": 2.0}


def test_larger_is_cubic_and_a_screen_does_not_average() -> None:
    pixels = _cat()
    larger = apply(pixels, (Resizing(size=(256, 320)),))
    assert np.array_equal(larger, cv2.resize(pixels, (320, 256), interpolation=cv2.INTER_CUBIC))
    # A chequered picture at 3/4: averaged it is grey, on a screen it is not.
    chequered = np.repeat((np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    size = (96, 96)
    averaged, shown = (apply(chequered, (Resizing(size=size, screen=screen),)) for screen in (False, True))
    assert shown.std() > 1.3 * averaged.std()
    assert record(Resizing(size=size, screen=True)) == {"resized": [96, 96], "screen": True}


def test_the_mask_grows_along() -> None:
    mask = np.zeros((64, 80), dtype=bool)
    mask[10:30, 20:50] = True
    larger = resize_mask(mask, (Resizing(size=(128, 160)),))
    assert larger.shape == (128, 160) and larger.mean() == pytest.approx(mask.mean(), abs=0.005)
