"""What happens after a manipulation: which steps, how often, and what they do to picture and mask."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from declip.errors import DatasetError
from declip.synthesis.saving import Encoding, Resizing, Saving, apply, decode, encode, record, resize_mask


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
