"""Hugging Face data sets: their files come out as they went in."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.datasets import hugging_face
from declip.errors import DatasetError, MissingExtraError
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo

hf = pytest.importorskip("datasets")


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=60)
    return buffer.getvalue()


PHOTO = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
LEFT = np.zeros((16, 24), np.uint8)
LEFT[:, :5] = 255
JPEG, WEBP, MASK = encoded(PHOTO, "JPEG"), encoded(PHOTO, "WEBP"), encoded(LEFT, "PNG")


def rows(**columns: Any) -> Any:
    given: dict[str, Any] = {
        "image": [{"bytes": JPEG, "path": "wrong.png"}, {"bytes": WEBP, "path": None}],
        "mask": [{"bytes": MASK, "path": None}, None],
        "photo": ["p1", "p2"],
    }
    given |= columns
    features = {"image": hf.Image(), "mask": hf.Image(), "photo": hf.Value("string"), "number": hf.Value("int64")}
    return hf.Dataset.from_dict(given, features=hf.Features({key: features[key] for key in given}))


@pytest.mark.parametrize("streamed", [False, True])
def test_files_come_out_as_they_went_in(tmp_path: Path, streamed: bool) -> None:
    given = rows().to_iterable_dataset() if streamed else rows()
    fake, real = hugging_face(given, tmp_path / "out", group="photo", split="test", source="hub")
    assert (fake.image, fake.mask) == (tmp_path / "out/images/000000.jpg", tmp_path / "out/masks/000000.png")
    assert fake.image.read_bytes() == JPEG
    assert (real.image.name, real.mask) == ("000001.webp", None)
    assert real.image.read_bytes() == WEBP
    assert [(s.label, s.group, s.split, s.source) for s in (fake, real)] == [
        ("fake", "p1", "test", "hub"),
        ("real", "p2", "test", "hub"),
    ]
    assert np.array_equal(read_mask(fake), LEFT > 0)
    assert not read_mask(real).any() and read_mask(real).shape == (16, 24)


def test_black_masks_and_no_masks(tmp_path: Path) -> None:
    fake, _ = hugging_face(rows(), tmp_path / "black", fake_is="black")
    assert np.array_equal(read_mask(fake), LEFT == 0)
    assert [sample.label for sample in hugging_face(rows(), tmp_path / "real", mask=None)] == ["real", "real"]
    assert not (tmp_path / "real" / "masks").exists()


def test_pictures_by_path_and_as_pil(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    named = rows(image=[str(tmp_path / "photo.jpg"), Image.fromarray(PHOTO)])
    first, second = hugging_face(named, tmp_path / "out")
    assert first.image.read_bytes() == JPEG
    assert second.image.suffix == ".png" and np.array_equal(read_photo(second.image).pixels, PHOTO)


@pytest.mark.parametrize("streamed", [False, True])
def test_pictures_in_an_archive(tmp_path: Path, streamed: bool) -> None:
    with zipfile.ZipFile(tmp_path / "my d.zip", "w") as archive:
        archive.writestr("train/a b.jpg", JPEG)
    cells = [f"zip://train/a b.jpg::{tmp_path / 'my d.zip'}", (tmp_path / "c d.webp").as_uri()]
    (tmp_path / "c d.webp").write_bytes(WEBP)
    given = rows(image=cells).to_iterable_dataset() if streamed else rows(image=cells)
    first, second = hugging_face(given, tmp_path / "out")
    assert (first.image.read_bytes(), second.image.read_bytes()) == (JPEG, WEBP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "picture"}, r"no column 'picture' of pictures; the columns are image \(Image\), mask \(Image\)"),
        ({"mask": "photo"}, "no column 'photo' of pictures"),
        ({"group": "id"}, "row 0 has no column id; it has image, mask, photo"),
    ],
)
def test_wrong_columns(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        hugging_face(rows(), tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "row 1: image is empty"),
        ({"bytes": b"text", "path": None}, "images of row 1: cannot identify"),
        ({"bytes": None, "path": "gone.png"}, "images of row 1: .*gone.png"),
        ({"bytes": None, "path": "zip://a.jpg::/gone.zip"}, "images of row 1: .*gone.zip"),
        ({"bytes": None, "path": "nothing://a.jpg"}, "images of row 1: .*nothing"),
        ({"bytes": encoded(PHOTO, "PPM"), "path": None}, "images of row 1: PPM is not a format"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, cell: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        hugging_face(rows(image=[{"bytes": JPEG, "path": None}, cell]), tmp_path / "out")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    hugging_face(rows(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    with pytest.raises(DatasetError, match="is not an empty folder"):
        hugging_face(rows(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_other_things_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows()
    with pytest.raises(DatasetError, match=r"got a DatasetDict; expected one split"):
        hugging_face(hf.DatasetDict({"train": given}), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'declip\[data\]'"):
        hugging_face(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
