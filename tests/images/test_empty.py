"""Masks that mark nothing because their values mean something else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip import evaluation
from declip.images.mapfiles import empty_masks, warn_of_empty_masks
from declip.localize.localizer import load
from declip.results import Sample

MARKED = np.zeros((40, 60), np.uint8)
MARKED[5:20, 10:30] = 1


def palette() -> Image.Image:
    picture = Image.fromarray(MARKED).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


def red(channel: int) -> Image.Image:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., channel] = 255 * MARKED
    return Image.fromarray(pixels)


EMPTY = {
    "0 and 1": (Image.fromarray(MARKED), "1 (mode L), read as 1 of 255"),
    "palette": (palette(), "1 (mode P), read as 38 of 255"),
    "red": (red(0), "255 (mode RGB), read as 76 of 255"),
    "blue": (red(2), "255 (mode RGB), read as 29 of 255"),
    "int32": (Image.fromarray(MARKED.astype(np.int32)), "read as 0 of 255"),
    "16 bits": (Image.fromarray(255 * MARKED.astype(np.uint16)), "255 (mode I;16), read as 0 of 255"),
    "nothing": (Image.fromarray(0 * MARKED), "0 (mode L), read as 0 of 255"),
}


def sample(folder: Path, name: str, mask: Image.Image, **fields: Any) -> Sample:
    suffix = ".tif" if mask.mode == "I" else ".png"
    paths = folder / f"{name}.jpg", folder / f"{name}-mask{suffix}"
    Image.new("RGB", (60, 40), (90, 120, 90)).save(paths[0])
    mask.save(paths[1])
    return Sample(image=paths[0], mask=paths[1], label="fake", **fields)


def good(folder: Path, name: str = "good") -> Sample:
    return sample(folder, name, Image.fromarray(255 * MARKED))


@pytest.mark.parametrize("kind", EMPTY)
def test_masks_that_mark_nothing_are_told_with_their_values(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask, told = EMPTY[kind]
    bad = sample(tmp_path, "bad", mask)
    samples = [good(tmp_path), bad, Sample(image=bad.image, label="real"), Sample(image=bad.image, label="fake")]
    assert empty_masks(samples) == [bad]
    text = warn_of_empty_masks([bad], 2)
    assert text and text.startswith("1 of 2 fakes have a mask that marks nothing")
    assert f"{bad.mask}, whose highest value is" in text and told in text and "more than 127" in text
    assert "`declip index SAMPLES.jsonl --check`" in text and [record.message for record in caplog.records] == [text]


def test_masks_of_the_other_polarity_are_told_by_their_lowest_value(tmp_path: Path) -> None:
    bad = sample(tmp_path, "bad", Image.fromarray(255 - MARKED), fake_is="black")
    assert empty_masks([bad]) == [bad]
    text = warn_of_empty_masks([bad, bad], 2)
    assert text and text.startswith("all 2 fakes") and "lowest value is 254 (mode L)" in text and "at most 127" in text


def test_good_masks_are_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert empty_masks([good(tmp_path)]) == [] and warn_of_empty_masks([], 1) is None
    assert not caplog.records


def test_an_evaluation_tells_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = sample(tmp_path, "bad", EMPTY["0 and 1"][0])
    with caplog.at_level(logging.WARNING):
        found = evaluation.evaluate(load(), [bad, good(tmp_path)], cases=0)
        quiet = evaluation.evaluate(load(), [good(tmp_path)], cases=0)
    (record,) = caplog.records
    assert record.message == found.warnings[0] and "1 of 2 fakes" in found.warnings[0]
    assert not [text for text in quiet.warnings if "marks nothing" in text]
