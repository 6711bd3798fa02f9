"""Steps before a file is written: what they do to picture and mask."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from declip.errors import DatasetError
from declip.synthesis.steps import PNG, Cropping, Encoding, Noise, Pixels, Resizing, apply, decode, encode, record
from declip.synthesis.steps import resize_mask as resized


def test_formats(cat: Pixels) -> None:
    for encoding, worst in (
        (PNG, 0),
        (Encoding(format="jpeg", quality=90, chroma="4:4:4"), 3),
        (Encoding(format="jpeg", quality=90, chroma="4:2:0"), 4),
        (Encoding(format="webp", quality=90), 4),
    ):
        opened = Image.open(io.BytesIO(encode(cat, encoding)))
        assert opened.format == encoding.format.upper()
        if encoding.chroma is not None:
            assert JpegImagePlugin.get_sampling(opened) == {"4:4:4": 0, "4:2:0": 2}[encoding.chroma]
        difference = np.abs(decode(encode(cat, encoding)).astype(int) - cat)
        assert (difference.mean() > 0) == (worst > 0) and difference.mean() <= worst
    with pytest.raises(DatasetError, match="a jpeg needs quality and chroma"):
        Encoding(format="jpeg")


def test_apply_is_the_steps_in_their_order(cat: Pixels) -> None:
    jpeg, half = Encoding(format="jpeg", quality=70, chroma="4:2:0"), Resizing(size=(80, 95))
    one = apply(cat, (jpeg, half))
    assert one.shape == (80, 95, 3) and one.dtype == np.uint8
    assert np.array_equal(one, apply(decode(encode(cat, jpeg)), (half,)))
    assert not np.array_equal(one, apply(cat, (half, jpeg)))
    assert apply(cat, ()) is cat
    # Averaging: a half-size pixel is the mean of four.
    mean = cat.reshape(80, 2, 95, 2, 3).mean(axis=(1, 3))
    assert np.abs(apply(cat, (half,)) - mean).max() <= 0.5


def test_larger_is_cubic_and_a_screen_does_not_average(cat: Pixels) -> None:
    larger = apply(cat, (Resizing(size=(256, 320)),))
    assert np.array_equal(larger, cv2.resize(cat, (320, 256), interpolation=cv2.INTER_CUBIC))
    # A chequered picture at 3/4: averaged it is grey, on a screen it is not.
    chequered = np.repeat((np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    averaged, shown = (apply(chequered, (Resizing(size=(96, 96), screen=screen),)) for screen in (False, True))
    assert shown.std() > 1.3 * averaged.std()


def test_noise_is_of_its_deviation_and_seed() -> None:
    flat = np.full((128, 128, 3), 100, np.uint8)
    one = apply(flat, (Noise(sigma=2.0, seed=7),))
    assert np.array_equal(one, apply(flat, (Noise(sigma=2.0, seed=7),)))
    assert not np.array_equal(one, apply(flat, (Noise(sigma=2.0, seed=8),)))
    assert (one.astype(float) - 100).std() == pytest.approx((2**2 + 1 / 12) ** 0.5, abs=0.03)  # and rounding's


def test_the_mask_goes_along() -> None:
    mask = np.zeros((128, 160), dtype=bool)
    mask[20:60, 40:100] = True
    half = np.zeros((64, 80), dtype=bool)
    half[10:30, 20:50] = True
    assert np.array_equal(resized(mask, (PNG, Resizing(size=(64, 80)))), half)
    assert np.array_equal(resized(mask, (Cropping(corner=(20, 40), size=(9, 10)),)), np.ones((9, 10), bool))
    assert resized(mask, (Resizing(size=(256, 320)),)).mean() == pytest.approx(mask.mean(), abs=0.005)
    assert resized(mask, ()) is mask
    dot = np.zeros((128, 160), dtype=bool)
    dot[5, 5] = True
    with pytest.raises(DatasetError, match="nothing is left of the mask"):
        resized(dot, (Resizing(size=(32, 40)),))
    with pytest.raises(DatasetError, match="has no part of"):
        resized(mask, (Cropping(corner=(20, 40), size=(128, 10)),))


def test_records() -> None:
    steps = (
        Encoding(format="webp", quality=80),
        Resizing(size=(9, 8), screen=True),
        Resizing(size=(7, 6)),
        Noise(sigma=2.0, seed=1),
        Cropping(corner=(1, 2), size=(3, 4)),
    )
    assert record(steps) == [
        {"format": "webp", "quality": 80},
        {"resized": [9, 8], "screen": True},
        {"resized": [7, 6]},
        {"noise": 2.0},
        {"cropped": [1, 2, 3, 4]},
    ]
