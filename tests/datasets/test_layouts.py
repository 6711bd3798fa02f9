"""The layouts: tiny trees exactly as published; polarity is asserted on pixels, by read_mask."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.datasets import autosplice, coco_sd, dolos, folder, imdl
from declip.errors import DatasetError
from declip.images.mapfiles import read_mask
from declip.results import Sample

SPLITS = ("train", "valid", "test")


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "teal").save(path)
    return path


def mask(path: Path, fake_is: str = "white") -> Path:
    """The two left columns are manipulated."""
    pixels = np.full((4, 6), 0 if fake_is == "white" else 255, np.uint8)
    pixels[:, :2] = 255 - pixels[:, :2]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def assert_left_is_manipulated(samples: list[Sample]) -> None:
    for sample in samples:
        found = read_mask(sample)
        expected = np.zeros((4, 6), bool)
        expected[:, :2] = sample.label == "fake"
        assert np.array_equal(found, expected), sample


def labels(samples: list[Sample]) -> dict[str, int]:
    return dict(Counter(sample.label for sample in samples))


# --- Dolos ----------------------------------------------------------------------------------------------------------


def dolos_tree(root: Path) -> Path:
    """Two variants of one photo and one of another per split; the photos themselves."""
    for faces, generators in (("celebahq", ("lama", "repaint-p2-9k")), ("ffhq", ("repaint-p2",))):
        for number, split in enumerate(SPLITS):
            for name in (f"{number}7-0", f"{number}7-1", f"{number}8-0"):
                for generator in generators:
                    base = root / faces / "fake" / generator
                    photo(base / "images" / split / f"{name}.png")
                    mask(base / "masks" / split / f"{name}.png", "black")
                photo(root / faces / "fake" / "p2" / split / f"{name}.png")
            for name in (f"{number}7", f"{number}8"):
                photo(root / faces / "real" / split / f"{name}.png")
    return root


def test_dolos(tmp_path: Path) -> None:
    samples = dolos(dolos_tree(tmp_path), "lama", reals=True)
    assert labels(samples) == {"fake": 9, "real": 6}
    assert Counter(sample.split for sample in samples) == {"train": 5, "valid": 5, "test": 5}
    fakes, common = tmp_path / "celebahq/fake/lama", {"split": "train", "group": "07"}
    image, white = fakes / "images/train/07-0.png", fakes / "masks/train/07-0.png"
    assert samples[0] == Sample(image=image, mask=white, fake_is="black", label="fake", source="lama", **common)
    image = tmp_path / "celebahq/real/train/07.png"
    assert samples[9] == Sample(image=image, label="real", source="celebahq", **common)
    assert [sample.group for sample in samples[3:6] + samples[11:13]] == ["17", "17", "18", "17", "18"]
    assert_left_is_manipulated(samples)
    assert [sample.label for sample in dolos(tmp_path, "repaint-p2-9k", split="valid")] == ["fake"] * 3
    both = dolos(tmp_path, ("lama", "repaint-p2-9k"), split="valid", reals=True)
    assert labels(both) == {"fake": 6, "real": 2}  # each photo once


def test_dolos_ffhq_has_groups_of_its_own(tmp_path: Path) -> None:
    samples = dolos(dolos_tree(tmp_path), "repaint-p2", split="train", faces="ffhq", reals=True)
    assert [sample.group for sample in samples] == ["ffhq-07", "ffhq-07", "ffhq-08", "ffhq-07", "ffhq-08"]
    assert [sample.source for sample in samples] == ["repaint-p2"] * 3 + ["ffhq"] * 2
    assert_left_is_manipulated(samples)


def test_dolos_generated_as_a_whole_has_no_mask(tmp_path: Path) -> None:
    samples = dolos(dolos_tree(tmp_path), "p2", split="test", reals=True)
    assert [(sample.label, sample.mask, sample.group) for sample in samples] == [
        *[("fake", None, "")] * 3,
        ("real", None, "27"),
        ("real", None, "28"),
    ]
    assert samples[0].image == tmp_path / "celebahq" / "fake" / "p2" / "test" / "27-0.png"
    with pytest.raises(DatasetError, match="a fake sample without a mask"):
        read_mask(samples[0])


def test_dolos_takes_the_splits_that_are_there(tmp_path: Path) -> None:
    base = tmp_path / "celebahq" / "fake" / "ldm"
    photo(base / "images" / "test" / "1-0.png")
    mask(base / "masks" / "test" / "1-0.png", "black")
    assert [sample.split for sample in dolos(tmp_path, "ldm")] == ["test"]
    with pytest.raises(DatasetError, match=r"images/train: there is no such folder"):
        dolos(tmp_path, "ldm", split="train")
    with pytest.raises(DatasetError, match=r"real/test: there is no such folder"):
        dolos(tmp_path, "ldm", reals=True)
    mask(base / "masks" / "valid" / "2-0.png", "black")
    with pytest.raises(DatasetError, match=r"images/valid: there is no such folder"):
        dolos(tmp_path, "ldm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": "lame"}, "'lame' is no generator of Dolos' celebahq; expected one of lama, ldm, pluralistic"),
        ({"generator": "lama", "faces": "ffhq"}, "'lama' is no generator of Dolos' ffhq; expected .* repaint-p2, p2"),
        ({"generator": "p2", "faces": "coco"}, "faces are 'coco'; expected one of celebahq, ffhq"),
        ({"generator": "lama", "split": "val"}, "split is 'val'; expected one of train, valid, test"),
        ({"generator": "pluralistic"}, "no folder train, valid, test there"),
    ],
)
def test_dolos_refuses_what_it_has_not(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        dolos(dolos_tree(tmp_path), **arguments)  # type: ignore[arg-type]


def test_a_picture_without_its_mask_is_named_and_counted(tmp_path: Path) -> None:
    masks = dolos_tree(tmp_path) / "celebahq" / "fake" / "lama" / "masks"
    for name in ("train/07-0.png", "train/07-1.png", "valid/17-0.png", "test/28-0.png"):
        (masks / name).unlink()
    images = masks.parent / "images"
    names = ", ".join(str(images / name) for name in ("train/07-0.png", "train/07-1.png", "valid/17-0.png"))
    what, advice = "4 of 9 manipulated pictures have no mask", f"the first one's would be {masks / 'train/07-0.png'}"
    with pytest.raises(DatasetError, match=re.escape(f"{what}: {names} and 1 more; {advice}")):
        dolos(tmp_path, "lama")


def test_a_mask_without_its_picture_is_named_and_counted(tmp_path: Path) -> None:
    base = dolos_tree(tmp_path) / "celebahq" / "fake" / "lama"
    (base / "images" / "train" / "08-0.png").unlink()
    orphan = base / "masks" / "train" / "08-0.png"
    with pytest.raises(DatasetError, match=f"1 of 9 masks have no picture: {orphan}; is the data set complete"):
        dolos(tmp_path, "lama")
    assert len(dolos(tmp_path, "lama", split="valid")) == 3  # the other splits are whole


# --- AutoSplice -----------------------------------------------------------------------------------------------------


def autosplice_tree(root: Path) -> Path:
    for quality in (75, 90, 100):
        for name in ("40574_0", "40574_1", "a_b_0"):
            photo(root / f"Forged_JPEG{quality}" / f"{name}.jpg")
    for name in ("40574", "a_b"):
        mask(root / "Mask" / f"{name}_mask.png")
        photo(root / "Authentic" / f"{name}.jpg")
    return root


def test_autosplice(tmp_path: Path) -> None:
    samples = autosplice(autosplice_tree(tmp_path))
    assert labels(samples) == {"fake": 9, "real": 2}
    sources = Counter(sample.source for sample in samples)
    assert sources == {**{f"autosplice-jpeg{quality}": 3 for quality in (75, 90, 100)}, "autosplice": 2}
    assert Counter(sample.group for sample in samples) == {"40574": 7, "a_b": 4}
    assert_left_is_manipulated(samples)


def test_autosplice_of_one_quality(tmp_path: Path) -> None:
    samples = autosplice(autosplice_tree(tmp_path), quality=90, reals=False, split="test")
    assert [sample.image.name for sample in samples] == ["40574_0.jpg", "40574_1.jpg", "a_b_0.jpg"]
    image, white = tmp_path / "Forged_JPEG90" / "40574_1.jpg", tmp_path / "Mask" / "40574_mask.png"
    about: Any = {"label": "fake", "split": "test", "source": "autosplice-jpeg90", "group": "40574"}
    assert samples[1] == Sample(image=image, mask=white, **about)
    assert [s.label for s in autosplice(tmp_path, quality=75)] == ["fake"] * 3 + ["real"] * 2


def test_autosplice_misfits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    autosplice_tree(tmp_path)
    with pytest.raises(DatasetError, match="quality is 80; expected 75, 90, 100"):
        autosplice(tmp_path, quality=80)  # type: ignore[arg-type]
    photo(tmp_path / "Authentic" / "5.jpg")
    mask(tmp_path / "Mask" / "5_mask.png")
    with caplog.at_level(logging.WARNING, logger="declip"):
        assert labels(autosplice(tmp_path)) == {"fake": 9, "real": 3}
    assert "1 masks in" in caplog.text and "without a manipulated picture" in caplog.text
    (tmp_path / "Authentic" / "5.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 masks have no picture: .*5_mask\.png"):
        autosplice(tmp_path)
    (tmp_path / "Mask" / "5_mask.png").unlink()
    (tmp_path / "Mask" / "40574_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"2 of 3 manipulated pictures have no mask: .*40574_0\.jpg"):
        autosplice(tmp_path, quality=100)


def test_autosplice_without_its_authentic_photos(tmp_path: Path) -> None:
    for path in sorted((autosplice_tree(tmp_path) / "Authentic").iterdir()):
        path.unlink()
    (tmp_path / "Authentic").rmdir()
    assert labels(autosplice(tmp_path, reals=False)) == {"fake": 9}
    with pytest.raises(DatasetError, match="Authentic: there is no such folder"):
        autosplice(tmp_path)


# --- COCO-SD --------------------------------------------------------------------------------------------------------


def test_coco_sd(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("000000000139-0", "000000000139-1", "000000000285"):
            photo(tmp_path / "images" / split / f"{name}.jpg")
            mask(tmp_path / "masks" / split / f"{name}.png")
    samples = coco_sd(tmp_path)
    assert Counter(sample.split for sample in samples) == {"train": 3, "test": 3}
    assert [sample.group for sample in samples[:3]] == ["000000000139", "000000000139", "000000000285"]
    assert {sample.source for sample in samples} == {"coco-sd"}
    assert_left_is_manipulated(samples)
    photo(tmp_path / "real" / "test" / "000000000139.jpg")
    (real,) = coco_sd(tmp_path, split="test")[3:]
    assert (real.label, real.source, real.group, real.split) == ("real", "coco", "000000000139", "test")
    (tmp_path / "masks" / "test" / "000000000285.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 manipulated pictures have no mask"):
        coco_sd(tmp_path, split="test")


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake_is", ["white", "black"])
def test_folder_of_either_polarity(tmp_path: Path, fake_is: str) -> None:
    for name in ("a", "sub/b"):
        photo(tmp_path / "images" / f"{name}.jpg")
        mask(tmp_path / "masks" / f"{name}.png", fake_is)
    about: Any = {"fake_is": fake_is, "split": "valid", "source": "mine"}
    samples = folder(tmp_path / "images", tmp_path / "masks", **about)
    assert [sample.mask for sample in samples] == [tmp_path / "masks" / "a.png", tmp_path / "masks" / "sub" / "b.png"]
    assert {(s.label, s.split, s.source, s.group) for s in samples} == {("fake", "valid", "mine", "")}
    assert_left_is_manipulated(samples)


def test_folder_without_masks_is_real(tmp_path: Path) -> None:
    photo(tmp_path / "b.png")
    photo(tmp_path / "a" / "c.WEBP")
    (tmp_path / "notes.txt").write_text("x")
    samples = folder(tmp_path)
    assert [(sample.image.name, sample.label, sample.mask) for sample in samples] == [
        ("c.WEBP", "real", None),
        ("b.png", "real", None),
    ]
    assert_left_is_manipulated(samples)


@pytest.mark.parametrize(
    ("images", "masks", "rule"),
    [
        ("images", "masks", "{stem}_gt.png"),
        ("images", "masks", "{name}.mask.png"),
        (".", ".", "{stem}_mask.png"),
        (".", "masks", "{stem}.png"),
        ("images", ".", "{stem}.bmp"),
    ],
)
def test_folder_of_any_names(tmp_path: Path, images: str, masks: str, rule: str) -> None:
    for stem in ("a", "b {name}"):
        photo(tmp_path / images / f"{stem}.jpg")
        mask(tmp_path / masks / rule.replace("{name}", f"{stem}.jpg").replace("{stem}", stem))
    samples = folder(tmp_path / images, tmp_path / masks, mask_name=rule)
    assert [sample.image for sample in samples] == [tmp_path / images / f"{stem}.jpg" for stem in ("a", "b {name}")]
    assert_left_is_manipulated(samples)


def test_folder_groups(tmp_path: Path) -> None:
    for name in ("a_0", "a_1", "b_c_0"):
        photo(tmp_path / f"{name}.png")
    assert [sample.group for sample in folder(tmp_path, group=r"^(.+)_\d+$")] == ["a", "a", "b_c"]
    with pytest.raises(DatasetError, match=r"2 of 3 names have no group '\^\(a\)\.\*0': .*a_1\.png, .*b_c_0\.png"):
        folder(tmp_path, group="^(a).*0")
    with pytest.raises(DatasetError, match=r"expected a regular expression with a group"):
        folder(tmp_path, group="a")
    with pytest.raises(DatasetError, match="no regular expression"):
        folder(tmp_path, group="(")


def test_folder_misfits(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    with pytest.raises(DatasetError, match="images: there is no such folder"):
        folder(images, masks)
    images.mkdir()
    with pytest.raises(DatasetError, match="images: there are no pictures"):
        folder(images)
    photo(images / "a.png")
    mask(masks / "b.png")
    with pytest.raises(DatasetError, match=r"1 of 1 manipulated pictures have no mask: .*a\.png; .*masks.a\.png"):
        folder(images, masks)
    mask(masks / "a.png")
    with pytest.raises(DatasetError, match=r"1 of 2 masks have no picture: .*b\.png"):
        folder(images, masks)
    with pytest.raises(DatasetError, match=r"mask_name is 'mask\.png'; expected \{stem\} or \{name\}"):
        folder(images, masks, mask_name="mask.png")
    with pytest.raises(DatasetError, match="1 of 1 manipulated pictures have no mask"):
        folder(images, images)  # no picture is its own mask


# --- IMDL-BenCo -----------------------------------------------------------------------------------------------------


def test_imdl_folder(tmp_path: Path) -> None:
    root = tmp_path / "CASIA1.0"
    for name, of in (("a.jpg", "a.png"), ("b.tif", "b_gt.png"), ("sub/a.jpg", "sub/a.png")):
        photo(root / "Tp" / name)
        mask(root / "Gt" / of)
    samples = imdl(root, split="test")
    assert [sample.mask for sample in samples] == [root / "Gt" / of for of in ("a.png", "b_gt.png", "sub/a.png")]
    assert {(s.label, s.split, s.source, s.group) for s in samples} == {("fake", "test", "CASIA1.0", "")}
    assert_left_is_manipulated(samples)
    # A second mask of one picture, in another format, belongs to no picture.
    mask(root / "Gt" / "b.png")
    with pytest.raises(DatasetError, match=r"1 of 4 masks have no picture: .*b_gt\.png"):
        imdl(root)
    (root / "Gt" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 manipulated pictures have no mask: .*a\.jpg; .*Gt.a\.png"):
        imdl(root)


def imdl_json(path: Path, records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def test_imdl_json(tmp_path: Path) -> None:
    photo(tmp_path / "Tp" / "6.jpg")
    mask(tmp_path / "Gt" / "6.jpg")
    elsewhere = photo(tmp_path / "elsewhere" / "Au_1.jpg")
    records = [[str(elsewhere), "Negative"], ["./Tp/6.jpg", "./Gt/6.jpg"]]
    samples = imdl(imdl_json(tmp_path / "columbia.json", records), split="test")
    image, white = tmp_path / "Tp" / "6.jpg", tmp_path / "Gt" / "6.jpg"
    assert samples == [
        Sample(image=elsewhere, label="real", split="test", source="columbia"),
        Sample(image=image, mask=white, label="fake", split="test", source="columbia"),
    ]
    assert_left_is_manipulated(samples[:1])
    moved = imdl_json(tmp_path / "lists" / "columbia.json", records)
    assert imdl(moved, root=tmp_path, split="test") == samples
    lost = rf"1 of 2 pictures in .* are not there: .*6\.jpg; .*start at {moved.parent}"
    with pytest.raises(DatasetError, match=lost):
        imdl(moved)
    (tmp_path / "Gt" / "6.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 1 masks in .* are not there: .*6\.jpg"):
        imdl(moved, root=tmp_path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"Columbia": "Columbia.json"}, "got a dict; expected "),
        ([["a.jpg", "a.png"], ["a.jpg"]], r'entry 2: got \["a\.jpg"\]; expected '),
        ([["a.jpg", None]], r"entry 1: got .* null\]"),
        ([["", "a.png"]], "entry 1"),
        ([["ManiDataset", "/data/CASIA2.0"], ["JsonDataset", "x.json"]], "is a list of data sets"),
    ],
)
def test_imdl_json_of_another_form(tmp_path: Path, records: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        imdl(imdl_json(tmp_path / "a.json", records))


def test_imdl_of_neither_format(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected a JSON file, or a folder with Tp/ and Gt/"):
        imdl(tmp_path / "gone")
    with pytest.raises(DatasetError, match="Gt: there is no such folder"):
        imdl(tmp_path)
    with pytest.raises(DatasetError, match="root is for the relative paths of a JSON file"):
        imdl(tmp_path, root=tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        imdl(tmp_path / "a.json")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    photo(tmp_path / "a.png")
    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DatasetError, match="the folder cannot be read: Permission denied"):
        folder(tmp_path)


def test_hidden_names_are_no_samples_and_linked_folders_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("store/b.jpg", "set/a.jpg", "set/._a.jpg", "set/__MACOSX/a.jpg"):
        photo(tmp_path / name)
    (tmp_path / "set" / "more").symlink_to("../store")
    (tmp_path / "store" / "up").symlink_to("../set")
    with caplog.at_level(logging.INFO, "declip"):
        samples = folder(tmp_path / "set")
    assert [sample.image for sample in samples] == [tmp_path / "set/a.jpg", tmp_path / "set/more/b.jpg"]
    assert "passed over 0 other files, 2 hidden names, 1 link to a folder read already" in caplog.text


def test_a_folder_without_pictures_says_what_is_there(tmp_path: Path) -> None:
    photo(tmp_path / "._a.jpg")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match="no pictures in this folder: 1 other file, 1 hidden name"):
        folder(tmp_path)


def test_a_json_list_that_windows_tools_saved(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    (tmp_path / "list.json").write_bytes(json.dumps([["a.jpg", "Negative"]]).encode("utf-8-sig"))
    assert labels(imdl(tmp_path / "list.json")) == {"real": 1}
