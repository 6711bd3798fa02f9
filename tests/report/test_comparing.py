"""The files of a comparison, the page among them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import declip
from declip.errors import ImageError
from declip.images.read import read_photo
from declip.report import comparing
from tests.clues.test_comparison import forged, scene

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> declip.Comparison:
    folder = tmp_path_factory.mktemp("pair")
    made, _ = forged(scene())
    Image.fromarray(made[30:]).save(folder / "<b>.jpg", quality=85)
    Image.fromarray(scene()[:400]).save(folder / "original.png")
    return declip.compare(folder / "<b>.jpg", folder / "original.png")


def test_overlay_mask_facts_and_page_are_written(found: declip.Comparison, tmp_path: Path) -> None:
    paths = comparing.save(found, tmp_path / "out", date=NOW)
    assert [path.name for path in paths] == [f"<b>.jpg{suffix}" for suffix in comparing.SUFFIXES]
    assert np.array_equal(read_photo(paths[1]).pixels[..., 0] == 255, found.mask)
    facts = json.loads(paths[2].read_text())
    assert facts["date"] == "2026-01-02 03:04:05 UTC" and facts["parts"] == 1
    assert facts["regions"][0]["area"] == pytest.approx(float(found.mask.mean()), abs=1e-4)
    assert facts["sentences"] == list(found.sentences)
    with pytest.raises(ImageError, match="there is a comparison of this name already"):
        comparing.save(found, tmp_path / "out", date=NOW)
    assert comparing.save(found, tmp_path / "out", date=NOW, force=True) == paths


def test_the_overlay_tints_what_differs_and_hatches_what_was_not_compared(found: declip.Comparison) -> None:
    drawn = np.asarray(comparing.overlay_of(found)).astype(int)
    assert drawn.shape[:2] == found.mask.shape
    redness = drawn[..., 0] - drawn[..., 1]
    plain = found.compared & ~found.mask
    assert redness[found.mask].mean() > 60 > 20 > redness[plain].mean()
    assert not found.compared[-8:].any() and len(np.unique(drawn[-5], axis=0)) > 1


def test_the_page_escapes_names_and_shows_the_parts(found: declip.Comparison) -> None:
    page = comparing.to_html(found, NOW)
    assert "<b>.jpg" not in page and "&lt;b&gt;.jpg" in page
    assert page.count("data:image/jpeg;base64,") == 3 + 2 * found.parts
    assert found.headline in page and "left the photo, right the original" in page
    assert "What is hatched is not in the original" in page
    assert 'src="http' not in page and "<script" not in page
