"""The overlay: what is tinted, what is outlined, and that a clean photo stays as it is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip.errors import ImageError
from declip.images import arrays
from declip.images.overlay import RED, overlay, overlay_png
from declip.images.read import read_photo
from tests.images.pictures import encode, result_of, textured


def drawn(pixels: np.ndarray, scores: np.ndarray, threshold: float = 0.5, **options: float) -> np.ndarray:
    return np.asarray(overlay(pixels, result_of(scores, threshold), **options)).astype(int)


def test_a_clean_photo_does_not_light_up() -> None:
    grey = np.repeat(textured()[:, :, :1], 3, axis=2)
    noise = np.random.default_rng(0).random((120, 160), dtype=np.float32)
    for threshold in (0.5, 0.1):
        # Everything below 60 % of the threshold leaves a grey photo as it is, however the scores vary among themselves.
        assert np.array_equal(drawn(grey, noise * np.float32(0.59 * threshold), threshold), grey)
    colours = drawn(textured(), np.zeros((120, 160), np.float32))
    assert np.array_equal(colours, drawn(textured(), noise * np.float32(0.29)))


def test_the_tint_follows_the_scores() -> None:
    grey = np.full((100, 100, 3), 120, np.uint8)
    redness = []
    for score in (0.0, 0.4, 0.6, 0.8, 1.0):
        # All of one score: no border, so no outline.
        pixel = drawn(grey, np.full((100, 100), score, np.float32))[50, 50]
        redness.append(pixel[0] - pixel[2])
    assert redness[0] == 0 and redness == sorted(set(redness))
    full = drawn(grey, np.ones((100, 100), np.float32), opacity=1.0)[50, 50]
    assert full.tolist() == list(RED)
    assert np.array_equal(drawn(grey, np.ones((100, 100), np.float32), opacity=0.0), grey)


@pytest.mark.parametrize("size", [(200, 300), (2800, 2800)])
def test_the_mask_has_a_thin_white_outline(size: tuple[int, int]) -> None:
    grey = np.full((*size, 3), 120, np.uint8)
    scores = np.zeros(size, np.float32)
    half = size[0] // 2
    scores[:half] = 0.9
    column = drawn(grey, scores)[:, size[1] // 2]
    # White on both sides of the border, heavier on a larger photo, and cased in black.
    assert column[half - 1 : half + 1].min() > 200
    assert np.count_nonzero(column.min(axis=1) > 200) == (2 if size == (200, 300) else 4)
    assert column[half : half + 6, 1].min() < 80
    far = 2 * int((size[0] * size[1]) ** 0.5 / 600) + 4
    assert np.array_equal(column[half + far :], np.full((size[0] - half - far, 3), 120))
    assert np.ptp(column[: half - far], axis=0).max() == 0


def test_strips_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:240, :160]
    scores = np.exp(-(((y - 110) / 60.0) ** 2) - ((x - 80) / 40.0) ** 2).astype(np.float32)
    whole = drawn(textured(240, 160), scores)
    monkeypatch.setattr(arrays, "STRIP", 160 * 7)
    assert np.array_equal(drawn(textured(240, 160), scores), whole)


def test_overlay_takes_what_read_takes(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(encode(textured(), "PNG"))
    scores = np.zeros((120, 160), np.float32)
    scores[30:60, 30:90] = 1
    expected = drawn(textured(), scores)
    for source in (path, path.read_bytes(), Image.fromarray(textured()), read_photo(path)):
        assert np.array_equal(np.asarray(overlay(source, result_of(scores))), expected)
    with pytest.raises(ImageError, match=r"\(120, 160\) pixels \(height, width\), the result \(160, 120\)"):
        overlay(path, result_of(scores.T))
    with pytest.raises(ValueError, match=r"opacity is 1.5; expected in \[0, 1\]"):
        overlay(path, result_of(scores), opacity=1.5)


def test_thresholds_at_both_ends() -> None:
    scores = np.linspace(0, 1, 120 * 160, dtype=np.float32).reshape(120, 160)
    for threshold in (0.0, 1.0):
        assert drawn(textured(), scores, threshold).shape == (120, 160, 3)


def test_an_overlay_s_file_is_the_overlay() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    scores = np.tile(np.linspace(0, 1, 53, dtype=np.float32), (37, 1))
    result = result_of(scores)
    found = Image.open(io.BytesIO(overlay_png(photo, result)))
    found.load()
    assert (found.format, found.mode, found.size) == ("PNG", "RGB", (53, 37))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(overlay(photo, result)))
