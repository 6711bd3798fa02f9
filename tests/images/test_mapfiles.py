"""Files of masks and scores: written, read back, those of other methods, and what is refused."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip import evaluation
from declip.errors import DatasetError, ImageError
from declip.images import mapfiles
from declip.images.mapfiles import (
    empty_masks,
    read_mask,
    read_scores,
    warn_of_empty_masks,
    write_mask,
    write_scores,
)
from declip.localize.localizer import load
from declip.results import Sample
from tests.images.pictures import encode, refused, scene


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((70, 50), dtype=np.float32)
    scores[0, :3] = 0, 1, 0.5
    before = scores.copy()
    write_scores(tmp_path / "a.scores.png", scores)
    back = read_scores(tmp_path / "a.scores.png")
    assert back.dtype == np.float32 and back.shape == (70, 50)
    assert np.abs(back - scores).max() <= 1 / 131070 + 1e-7
    assert back[0, :2].tolist() == [0, 1] and np.array_equal(scores, before)
    with Image.open(tmp_path / "a.scores.png") as opened:
        assert opened.mode == "I;16" and opened.size == (50, 70) and opened.getpixel((1, 0)) == 65535
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(tmp_path / "eight.png")
    assert read_scores(tmp_path / "eight.png")[0].tolist() == pytest.approx([0, 0.2, 1])


def test_scores_that_are_not_scores_are_refused(tmp_path: Path) -> None:
    for wrong in (np.full((3, 3), 1.01), np.full((3, 3), np.nan), np.full((3, 3), -0.01)):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            write_scores(tmp_path / "s.png", wrong.astype(np.float32))
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        write_scores(tmp_path / "s.png", np.zeros((1, 3, 3), np.float32))
    with pytest.raises(ValueError, match="expected bool"):
        write_mask(tmp_path / "m.png", np.zeros((3, 3), np.uint8))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.jpg").write_bytes(encode(scene(), "JPEG"))
    with pytest.raises(ImageError, match="not a PNG"):
        read_scores(tmp_path / "s.jpg")
    (tmp_path / "rgb.png").write_bytes(encode(scene(), "PNG"))
    with pytest.raises(ImageError, match="expected grey"):
        read_scores(tmp_path / "rgb.png")


def test_write_mask(tmp_path: Path) -> None:
    mask = scene()[:, :, 0] > 100
    write_mask(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as opened:
        assert opened.mode == "L" and np.array_equal(np.asarray(opened), np.where(mask, 255, 0))


def test_masks_with_transparent_parts_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((6, 8, 4), np.uint8)
    pixels[..., :3], pixels[:3, :, 3] = 255, 255
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    with refused("input", "the mask has transparent parts; save it without"):
        read_mask(Sample(image=path, mask=path, label="fake"))
    pixels[..., 3], pixels[3:, :, :3] = 255, 0
    Image.fromarray(pixels).save(path)  # an alpha channel that hides nothing is none
    assert np.array_equal(read_mask(Sample(image=path, mask=path, label="fake"))[:, 0], np.arange(6) < 3)


def test_read_mask_resolves_polarity(tmp_path: Path) -> None:
    picture, path = tmp_path / "i.png", tmp_path / "m.png"
    values = np.array([[0, 127, 128, 255]], np.uint8)
    white = np.array([[False, False, True, True]])
    sources: list[np.ndarray | Image.Image] = [values, values.astype(np.uint16) * 257]
    sources += [Image.fromarray(values).convert(mode) for mode in ("RGB", "P", "RGBA")]
    for source in sources:
        path.write_bytes(encode(source, "PNG"))
        assert np.array_equal(read_mask(Sample(image=picture, mask=path, label="fake")), white)
        black = read_mask(Sample(image=picture, mask=path, label="fake", fake_is="black"))
        assert np.array_equal(black, ~white) and black.dtype == np.bool_
    path.write_bytes(encode(Image.fromarray(values > 0), "PNG"))
    assert read_mask(Sample(image=picture, mask=path, label="fake")).tolist() == [[False, True, True, True]]


def test_read_mask_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "real.jpg"
    path.write_bytes(encode(scene(), "JPEG"))
    mask = read_mask(Sample(image=path, label="real"))
    assert mask.shape == (120, 160) and mask.dtype == np.bool_ and not mask.any()
    with pytest.raises(DatasetError, match="a fake sample without a mask"):
        read_mask(Sample(image=path, label="fake"))
    with pytest.raises(ImageError, match="there is no such file"):
        read_mask(Sample(image=path, mask=tmp_path / "absent.png", label="fake"))


def test_scores_of_other_methods(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    np.savez(tmp_path / "trufor.npz", map=scores, conf=scores * 0, score=0.9, imgsize=(20, 30))
    np.savez_compressed(tmp_path / "packed.npz", map=scores[None].astype(np.float64))
    Image.fromarray(scores).save(tmp_path / "float.tif")
    Image.fromarray(scores).save(tmp_path / "float.tiff", compression="tiff_lzw")
    for name in ("trufor.npz", "packed.npz", "float.tif", "float.tiff"):
        read = read_scores(tmp_path / name)
        assert read.dtype == np.float32 and np.array_equal(read, scores), name
        assert read.flags.writeable
    deep = np.rint(scores * 65535).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / "eight.tif")
    assert np.abs(read_scores(tmp_path / "deep.tif") - scores).max() < 1e-5
    assert np.abs(read_scores(tmp_path / "eight.tif") - scores).max() < 1 / 200


def test_scores_of_other_methods_that_are_none(tmp_path: Path) -> None:
    scores = np.full((4, 6), 0.5, np.float32)
    np.savez(tmp_path / "keys.npz", conf=scores, heat=scores)
    np.savez(tmp_path / "logits.npz", map=scores * 9)
    np.savez(tmp_path / "objects.npz", map=np.array([{}], dtype=object))
    Image.fromarray(scores * 9).save(tmp_path / "logits.tif")
    Image.fromarray(scene()).save(tmp_path / "colour.tif")
    (tmp_path / "no.npz").write_bytes(b"PK no archive")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("map.npy", bytes(1 << 22))
    for name, kind, words in (
        ("keys.npz", "input", r"holds the arrays \['conf', 'heat'\]; expected scores under the name \"map\""),
        ("logits.npz", "input", "values from 4.5 to 4.5; expected scores in"),
        ("objects.npz", "corrupt", "cannot be read as one array"),
        ("logits.tif", "input", "values from 4.5 to 4.5; expected scores in"),
        ("colour.tif", "format", "a TIFF of mode RGB; expected grey of 8 or 16 bits or of floats"),
        ("no.npz", "corrupt", "this .npz cannot be read"),
        ("bomb.npz", "corrupt", "cannot be read as one array"),
    ):
        with refused(kind, words):
            read_scores(tmp_path / name)


def test_the_size_of_an_archived_map_is_checked_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", map=np.zeros((300, 300), np.float32))
    monkeypatch.setattr(mapfiles, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with refused("too-large", "larger than 10000 values"):
        read_scores(tmp_path / "a.npz")


# --- masks that mark nothing, because their values mean something else ----------------------------------------------

MARKED = np.zeros((40, 60), np.uint8)
MARKED[5:20, 10:30] = 1


PALETTE = Image.fromarray(MARKED).convert("P")
PALETTE.putpalette([0, 0, 0, 128, 0, 0])
EMPTY = {
    "0 and 1": (Image.fromarray(MARKED), "1 (mode L), read as 1 of 255"),
    "palette": (PALETTE, "1 (mode P), read as 38 of 255"),
    "red": (Image.fromarray(255 * MARKED[..., None] * np.uint8([1, 0, 0])), "255 (mode RGB), read as 76 of 255"),
    "blue": (Image.fromarray(255 * MARKED[..., None] * np.uint8([0, 0, 1])), "255 (mode RGB), read as 29 of 255"),
    "int32": (Image.fromarray(MARKED.astype(np.int32)), "read as 0 of 255"),
    "16 bits": (Image.fromarray(255 * MARKED.astype(np.uint16)), "255 (mode I;16), read as 0 of 255"),
    "nothing": (Image.fromarray(0 * MARKED), "0 (mode L), read as 0 of 255"),
}


def sample(folder: Path, name: str, mask: Image.Image, **fields: Any) -> Sample:
    paths = folder / f"{name}.jpg", folder / f"{name}-mask{'.tif' if mask.mode == 'I' else '.png'}"
    Image.new("RGB", (60, 40), (90, 120, 90)).save(paths[0])
    mask.save(paths[1])
    return Sample(image=paths[0], mask=paths[1], label="fake", **fields)


def good(folder: Path) -> Sample:
    return sample(folder, "good", Image.fromarray(255 * MARKED))


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


def test_an_evaluation_tells_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = sample(tmp_path, "bad", EMPTY["0 and 1"][0])
    with caplog.at_level(logging.WARNING):
        assert empty_masks([good(tmp_path)]) == [] and warn_of_empty_masks([], 1) is None
        found = evaluation.evaluate(load(), [bad, good(tmp_path)], cases=0)
        quiet = evaluation.evaluate(load(), [good(tmp_path)], cases=0)
    (record,) = caplog.records
    assert record.message == found.warnings[0] and "1 of 2 fakes" in found.warnings[0]
    assert not [text for text in quiet.warnings if "marks nothing" in text]
