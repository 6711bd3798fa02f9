"""The doctor: it names every planted fault, and nothing in the same data set without them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy import ndimage

pytest.importorskip("imagehash")
pytest.importorskip("sklearn")

from declip.datasets.audit import Finding, Report, check, fix, render, repeats, twins
from declip.datasets.audit.bias import find_bias
from declip.datasets.audit.facts import GREY_SHARE, Facts, Picture, saved_as
from declip.errors import MissingExtraError
from declip.evaluation import metrics
from declip.results import Sample

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 144, 176


def _photo(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """A picture of its own: coloured clouds of several sizes, and grain."""
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(3):
        plane = np.zeros((height, width))
        for sigma in (24, 10, 4):
            cloud = ndimage.gaussian_filter(rng.standard_normal((height, width)), sigma)
            plane += cloud / cloud.std() * math.sqrt(sigma)
        planes.append(plane / plane.std() * 40 + 128 + rng.standard_normal((height, width)) * 6)
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def _mask(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Mask:
    """An ellipse of about a tenth of the picture, in the quarter that the seed names."""
    rng = np.random.default_rng(seed)
    y = height * (0.27 + 0.46 * (seed % 2)) + rng.uniform(-4, 4)
    x = width * (0.27 + 0.46 * (seed // 2 % 2)) + rng.uniform(-4, 4)
    rows, columns = np.ogrid[:height, :width]
    return ((rows - y) / (0.18 * height)) ** 2 + ((columns - x) / (0.18 * width)) ** 2 < 1


def _forge(pixels: Pixels, mask: Mask, seed: int) -> Pixels:
    return np.where(mask[:, :, None], 255 - _photo(seed + 1000, *mask.shape), pixels).astype(np.uint8)


def _save(path: Path, pixels: Pixels | Mask, quality: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pixels.view(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    if quality is None:
        Image.fromarray(values).save(path, "PNG", compress_level=1)
    else:
        Image.fromarray(values).save(path, "JPEG", quality=quality)
    return path


def _pair(folder: Path, seed: int, fake_quality: int | None, real_quality: int | None) -> list[Sample]:
    """A fake and its untouched twin."""
    pixels, mask = _photo(seed), _mask(seed)
    suffixes = [".png" if quality is None else ".jpg" for quality in (fake_quality, real_quality)]
    common = {"split": "valid" if seed % 4 == 3 else "train", "group": f"photo{seed}"}
    fake = _save(folder / f"{seed}-fake{suffixes[0]}", _forge(pixels, mask, seed), fake_quality)
    real = _save(folder / f"{seed}-real{suffixes[1]}", pixels, real_quality)
    white = _save(folder / f"{seed}-mask.png", mask)
    return [
        Sample(image=fake, mask=white, label="fake", source="splice", **common),
        Sample(image=real, label="real", source="camera", **common),
    ]


PAIRS = 24


def _clean(folder: Path) -> list[Sample]:
    """24 pairs: half PNG, half JPEG of several qualities, a fake always as its twin."""
    qualities = [None if seed % 2 else 70 + seed for seed in range(PAIRS)]
    return [sample for seed in range(PAIRS) for sample in _pair(folder, seed, qualities[seed], qualities[seed])]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    _clean(folder)
    return folder


@pytest.fixture
def clean(source: Path, tmp_path: Path) -> list[Sample]:
    """A copy, to be spoilt; sample 2k is fake k, 2k + 1 its twin."""
    folder = tmp_path / "set"
    shutil.copytree(source, folder)
    samples = []
    for seed in range(PAIRS):
        suffix = ".png" if seed % 2 else ".jpg"
        common = {"split": "valid" if seed % 4 == 3 else "train", "group": f"photo{seed}"}
        samples += [
            Sample(
                image=folder / f"{seed}-fake{suffix}",
                mask=folder / f"{seed}-mask.png",
                label="fake",
                source="splice",
                **common,
            ),
            Sample(image=folder / f"{seed}-real{suffix}", label="real", source="camera", **common),
        ]
    return samples


def _invert(sample: Sample) -> None:
    assert sample.mask is not None
    _save(sample.mask, ~_mask_of(sample))


def _mask_of(sample: Sample) -> Mask:
    assert sample.mask is not None
    return np.asarray(Image.open(sample.mask)) > 127


def _spoil(samples: list[Sample]) -> list[Sample]:
    """The four faults that do not depend on how the files were saved."""
    folder = samples[0].image.parent
    spoilt = list(samples)
    _invert(spoilt[2])
    spoilt[8], spoilt[10] = (
        dataclasses.replace(samples[8], mask=samples[10].mask),
        dataclasses.replace(samples[10], mask=samples[8].mask),
    )
    mask = samples[20].mask
    assert mask is not None
    _save(mask, _mask_of(samples[20])[:-10])
    copy = folder / f"copy{samples[25].image.suffix}"
    shutil.copy(samples[25].image, copy)
    return [*spoilt, Sample(image=copy, label="real", split="valid", source="camera", group="elsewhere")]


def _kinds(report: Report) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted((finding.kind, finding.severity, finding.samples) for finding in report.findings)


FOUR = [
    ("duplicate", "error", (25, 48)),
    ("inverted-mask", "error", (2,)),
    ("size-mismatch", "error", (20,)),
    ("swapped-masks", "error", (8, 10)),
]


# The planted set ----------------------------------------------------------------------------------------------------


def test_nothing_in_the_clean_set(clean: list[Sample]) -> None:
    report = check(clean)
    assert report.findings == () and report.errors == 0
    assert (report.samples, report.fakes, report.compared) == (48, 24, 24)
    assert report.bias is not None and report.bias.auc == pytest.approx(0.5, abs=1e-9)
    assert (report.bias.real, report.bias.fake) == (24, 24)
    assert [auc for _, auc in report.bias.by] == pytest.approx([0.5] * 4, abs=1e-9)


def test_all_planted_faults_and_nothing_else(tmp_path: Path) -> None:
    samples = [sample for seed in range(PAIRS) for sample in _pair(tmp_path, seed, None, 85)]
    report = check(_spoil(samples))
    assert _kinds(report) == sorted([*FOUR, ("format-bias", "error", ())])
    assert report.errors == 5
    assert report.bias is not None and report.bias.auc >= 0.95
    by = dict(report.bias.by)
    assert by["file type"] >= 0.95 and by["size"] == pytest.approx(0.5, abs=0.01)
    (bias,) = (finding for finding in report.findings if finding.kind == "format-bias")
    assert "real mostly JPEG (100%), fake mostly PNG (100%)" in bias.message


def test_the_same_faults_in_exact_pairs_and_with_workers(clean: list[Sample]) -> None:
    spoilt = _spoil(clean)
    report = check(spoilt)
    assert _kinds(report) == FOUR
    assert check(spoilt, workers=2) == report


def test_fix_mends_what_is_proved(clean: list[Sample]) -> None:
    spoilt = _spoil(clean)
    before = {path: path.read_bytes() for path in clean[0].image.parent.iterdir()}
    mended, changes = fix(spoilt, check(spoilt))
    assert {path: path.read_bytes() for path in clean[0].image.parent.iterdir()} == before
    assert len(mended) == len(spoilt)
    assert mended[2] == dataclasses.replace(spoilt[2], fake_is="black")
    assert (mended[8], mended[10]) == (clean[8], clean[10])
    # The photo of the duplicate is left out of the training split, its fakes with it.
    assert [i for i, sample in enumerate(mended) if sample is None] == [20, 24, 25]
    unchanged = set(range(49)) - {2, 8, 10, 20, 24, 25}
    assert all(mended[i] == spoilt[i] for i in unchanged)
    assert len(changes) == 4 and all(change.endswith(".") for change in changes)
    (kept,) = (change for change in changes if "stays in the split valid" in change)
    assert "what is measured on stays whole" in kept and str(spoilt[25].image) in kept
    again = [sample for sample in mended if sample is not None]
    report = check(again)
    assert report.findings == ()
    assert fix(again, report) == (again, [])


def test_a_bias_is_beyond_a_manifest(tmp_path: Path) -> None:
    samples = [sample for seed in range(12) for sample in _pair(tmp_path, seed, None, 85)]
    report = check(samples)
    assert _kinds(report) == [("format-bias", "error", ())]
    assert fix(samples, report) == (samples, [])


# Files --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read(clean: list[Sample]) -> None:
    clean[1].image.write_bytes(clean[1].image.read_bytes()[:-40])
    clean[5].image.unlink()
    mask = clean[6].mask
    assert mask is not None
    mask.write_bytes(b"no picture")
    clean[8] = dataclasses.replace(clean[8], mask=None)
    report = check(clean)
    assert _kinds(report) == [
        ("missing-mask", "error", (8,)),
        ("unreadable", "error", (1,)),
        ("unreadable", "error", (5,)),
        ("unreadable", "error", (6,)),
    ]
    messages = {finding.samples[0]: finding.message for finding in report.findings}
    assert "there is no such file" in messages[5] and messages[6].startswith("the mask: ")
    mended, changes = fix(clean, report)
    assert [i for i, sample in enumerate(mended) if sample is None] == [1, 5, 6, 8] and len(changes) == 4


# Masks --------------------------------------------------------------------------------------------------------------


def _save_grey(sample: Sample, values: Pixels) -> None:
    assert sample.mask is not None
    Image.fromarray(values).save(sample.mask)


def test_grey_masks(clean: list[Sample]) -> None:
    soft = ndimage.gaussian_filter(_mask_of(clean[0]).astype(np.float32), 1.0)
    _save_grey(clean[0], np.rint(soft * 255).astype(np.uint8))
    softer = ndimage.gaussian_filter(_mask_of(clean[2]).astype(np.float32), 8.0)
    _save_grey(clean[2], np.rint(softer * 255).astype(np.uint8))
    assert clean[4].mask is not None
    jpeg = _save(clean[4].mask.with_suffix(".jpg"), _mask_of(clean[4]), 90)
    clean[4] = dataclasses.replace(clean[4], mask=jpeg)
    found = {finding.samples: finding for finding in check(clean).findings}
    assert {samples: (f.kind, f.severity) for samples, f in found.items()} == {
        (0,): ("grey-mask", "note"),
        (2,): ("grey-mask", "warning"),
    }
    share = ((softer * 255 >= 32) & (softer * 255 <= 223)).mean()
    assert share > GREY_SHARE and found[2,].message.startswith(f"{share:.0%} of the mask")


def test_empty_and_full_masks(clean: list[Sample]) -> None:
    _save_grey(clean[0], np.zeros((HEIGHT, WIDTH), np.uint8))
    _save_grey(clean[2], np.full((HEIGHT, WIDTH), 255, np.uint8))
    _save_grey(clean[4], _mask_of(clean[4]).astype(np.uint8))
    report = check(clean)
    assert _kinds(report) == [
        ("empty-mask", "error", (0,)),
        ("empty-mask", "error", (4,)),
        ("full-mask", "note", (2,)),
    ]
    messages = {finding.samples[0]: finding.message for finding in report.findings}
    assert "highest value is 1," in messages[4] and "highest" not in messages[0]


def test_a_turned_mask(clean: list[Sample]) -> None:
    _save_grey(clean[0], np.rot90(_mask_of(clean[0])).astype(np.uint8) * 255)
    (finding,) = check(clean).findings
    assert (finding.kind, finding.samples) == ("size-mismatch", (0,))
    assert "144×176" in finding.message and "176×144" in finding.message and "turned" in finding.message


def test_image_and_mask_mixed_up(clean: list[Sample]) -> None:
    fine = clean[6]
    assert fine.mask is not None
    clean[6] = dataclasses.replace(fine, image=fine.mask, mask=fine.image)
    report = check(clean)
    assert _kinds(report) == [("mixed-up", "error", (6,))]
    mended, changes = fix(clean, report)
    assert mended[6] == fine and len(changes) == 1


# Polarity and swaps -------------------------------------------------------------------------------------------------


def test_fake_is_can_be_what_is_wrong(clean: list[Sample]) -> None:
    """As when a data set of black masks is read as one of white masks: every mask is inverted, and proved to be."""
    wrong = [dataclasses.replace(sample, fake_is="black") for sample in clean]
    report = check(wrong)
    assert _kinds(report) == sorted(("inverted-mask", "error", (i,)) for i in range(0, 48, 2))
    mended, changes = fix(wrong, report)
    assert mended[::2] == clean[::2] and len(changes) == 24


def test_polarity_without_twins_is_a_suspicion(clean: list[Sample]) -> None:
    fakes = [dataclasses.replace(sample, fake_is="black", group="") for sample in clean[::2]]
    report = check(fakes)
    assert _kinds(report) == [("inverted-mask", "warning", tuple(range(24)))]
    assert "24 of 24 masks (source 'splice')" in report.findings[0].message
    assert fix(fakes, report) == (fakes, [])
    assert check([dataclasses.replace(sample, fake_is="white") for sample in fakes]).findings == ()


def test_a_large_mask_that_a_twin_confirms_is_fine(clean: list[Sample]) -> None:
    """A replaced background: most of the picture, its whole frame, and rightly so."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    background = ((rows / HEIGHT - 0.5) ** 2 + (columns / WIDTH - 0.5) ** 2) > 0.38**2
    assert 0.5 < background.mean() < 0.6
    clean[2] = dataclasses.replace(clean[2], mask=_save(clean[2].image.with_name("background.png"), background))
    _save(clean[2].image, _forge(_photo(1), background, 1))
    assert check(clean).findings == ()
    # Without its twin the shape is all there is.
    alone = [sample for sample in clean if sample is not clean[3]]
    assert _kinds(check(alone)) == [("inverted-mask", "warning", (2,))]


def test_another_samples_mask(clean: list[Sample]) -> None:
    clean[8] = dataclasses.replace(clean[8], mask=clean[10].mask)
    report = check(clean)
    assert _kinds(report) == [("wrong-mask", "error", (8,))]
    assert fix(clean, report)[0][8] is None


def test_swapped_masks_of_different_sizes(tmp_path: Path) -> None:
    folder = tmp_path
    samples = []
    for seed, (height, width) in enumerate([(144, 176), (128, 208), (160, 160), (112, 144)]):
        pixels, mask = _photo(seed, height, width), _mask(seed, height, width)
        fake = _save(folder / f"{seed}-fake.png", _forge(pixels, mask, seed))
        real = _save(folder / f"{seed}-real.png", pixels)
        samples += [
            Sample(image=fake, mask=_save(folder / f"{seed}-mask.png", mask), label="fake", group=str(seed)),
            Sample(image=real, label="real", group=str(seed)),
        ]
    assert check(samples).findings == ()
    swapped = list(samples)
    swapped[0] = dataclasses.replace(samples[0], mask=samples[2].mask)
    swapped[2] = dataclasses.replace(samples[2], mask=samples[0].mask)
    report = check(swapped)
    assert _kinds(report) == [("swapped-masks", "error", (0, 2))]
    assert fix(swapped, report)[0] == samples


def test_swapped_labels(clean: list[Sample]) -> None:
    wrong = list(clean)
    wrong[0] = dataclasses.replace(clean[0], label="real")
    wrong[1] = dataclasses.replace(clean[1], label="fake")
    report = check(wrong)
    assert _kinds(report) == [("swapped-labels", "error", (0, 1))]
    assert fix(wrong, report)[0] == clean
    wrong[1] = clean[1]
    assert _kinds(check(wrong)) == [("masked-real", "error", (0,))]


def test_swapped_pictures_where_several_fakes_share_the_real_one(tmp_path: Path) -> None:
    pixels = _photo(0)
    samples = [Sample(image=_save(tmp_path / "real.png", pixels), label="real", group="one")]
    for seed in range(4):
        mask = _mask(seed)
        fake = _save(tmp_path / f"{seed}.png", _forge(pixels, mask, seed))
        samples.append(Sample(image=fake, mask=_save(tmp_path / f"m{seed}.png", mask), label="fake", group="one"))
    assert check(samples).findings == ()
    wrong = list(samples)
    wrong[0] = dataclasses.replace(samples[0], image=samples[2].image)
    wrong[2] = dataclasses.replace(samples[2], image=samples[0].image)
    report = check(wrong)
    assert _kinds(report) == [("swapped-images", "error", (2, 0))]
    assert fix(wrong, report)[0] == samples


def test_a_fake_that_was_not_changed(clean: list[Sample]) -> None:
    shutil.copy(clean[1].image, clean[0].image)
    report = check(clean)
    assert _kinds(report) == [("label-conflict", "error", (0, 1))]
    assert fix(clean, report)[0][:2] == [None, None]


# Duplicates and splits ----------------------------------------------------------------------------------------------


def _real(path: Path, split: str, group: str = "") -> Sample:
    return Sample(image=path, label="real", split=split, group=group)


def test_duplicates(tmp_path: Path) -> None:
    first = _save(tmp_path / "a.png", _photo(0))
    same_pixels = tmp_path / "b.bmp"
    Image.open(first).save(same_pixels)
    resaved = _save(tmp_path / "c.jpg", _photo(0), 60)
    others = [_save(tmp_path / f"{seed}.png", _photo(seed)) for seed in range(1, 7)]
    rest = [_real(path, "train") for path in others]
    exact = [_real(first, "train"), _real(same_pixels, "test"), *rest]
    assert _kinds(check(exact)) == [("duplicate", "error", (0, 1))]
    near = [_real(first, "train"), _real(resaved, "test"), *rest]
    assert _kinds(check(near)) == [("near-duplicate", "error", (0, 1))]
    within = [_real(first, "train"), _real(resaved, "train"), *rest]
    assert _kinds(check(within)) == [("near-duplicate", "warning", (0, 1))]
    grouped = [_real(first, "train", "g"), _real(resaved, "train", "g"), *rest]
    assert _kinds(check(grouped)) == []
    mended, (change,) = fix(near, check(near))
    assert mended == [None, *near[1:]]
    assert f"stays in the split test, as what is measured on stays whole; left out elsewhere: {first}." in change


def test_a_group_in_two_splits(clean: list[Sample]) -> None:
    clean[1] = dataclasses.replace(clean[1], split="other")
    report = check(clean)
    assert _kinds(report) == [("split-group", "error", (0, 1))]
    assert "'photo0' is in the splits other and train" in report.findings[0].message
    mended, (change,) = fix(clean, report)
    assert [i for i, sample in enumerate(mended) if sample is None] in ([0], [1])
    assert "most of its samples are there" in change


def test_close_finds_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    for row in range(100):  # neighbours of every distance around the limit
        bits = np.unpackbits(codes[row])
        bits[rng.choice(256, row % 25 + 1, replace=False)] ^= 1
        codes[row + 100] = np.packbits(bits)
    distances = np.unpackbits(codes[:, None] ^ codes[None], axis=2).sum(axis=2)
    expected = {(int(a), int(b)) for a, b in np.argwhere(distances <= repeats.HASH_BITS) if a < b}
    assert len(expected) == 60  # of every 25 distances 15 are within the limit
    assert set(repeats._close(codes)) == expected


def test_flat_pictures_are_no_near_duplicates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = [rng.integers(100, 104, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    samples = [_real(_save(tmp_path / f"{i}.png", pixels), "train") for i, pixels in enumerate(flat)]
    assert check(samples).findings == ()


# Bias ---------------------------------------------------------------------------------------------------------------


def test_quality_is_read_from_the_tables(tmp_path: Path) -> None:
    for quality in (35, 75, 92, 100):
        data = _save(tmp_path / "a.jpg", _photo(0), quality).read_bytes()
        assert saved_as(data) == ("JPEG", quality, 2)
    Image.fromarray(_photo(0)).save(tmp_path / "b.jpg", quality=80, subsampling="4:4:4")
    assert saved_as((tmp_path / "b.jpg").read_bytes()) == ("JPEG", 80, 0)
    assert saved_as(_save(tmp_path / "c.png", _photo(0)).read_bytes()) == ("PNG", None, None)


def _table(fakes: Sequence[int | None], reals: Sequence[int | None]) -> Report:
    """A report on samples whose files differ in nothing but the JPEG quality; None = PNG."""
    samples, facts = [], []
    for group, qualities in enumerate(zip(fakes, reals, strict=True)):
        for label, quality in zip(("fake", "real"), qualities, strict=True):
            samples.append(Sample(image=Path("a"), label=label, group=str(group)))  # type: ignore[arg-type]
            kind = "PNG" if quality is None else "JPEG"
            picture = Picture(
                size=(64, 64),
                format=kind,
                quality=quality,
                chroma=None if quality is None else 2,
                digest=b"",
                hash=None,
                thumb=b"",
                two_valued=False,
            )
            facts.append(Facts(picture=picture))
    bias, findings = find_bias(samples, facts)
    return Report(findings=tuple(findings), samples=0, fakes=0, compared=0, bias=bias, baselines=())


@pytest.mark.slow
def test_thresholds_of_the_bias() -> None:
    rng = np.random.default_rng(0)
    even = [int(quality) for quality in rng.integers(60, 96, 400)]
    report = _table(even, [int(quality) for quality in rng.integers(60, 96, 400)])
    assert report.bias is not None and abs(report.bias.auc - 0.5) < 0.06 and report.findings == ()
    # A share s of the fakes is PNG, no real is: the best AUC is 0.5 + s / 2.
    some = [None if i % 10 < 3 else quality for i, quality in enumerate(even)]
    report = _table(some, even)
    assert report.bias is not None and report.bias.auc == pytest.approx(0.65, abs=0.04)
    assert [finding.severity for finding in report.findings] == ["warning"]
    most = [None if i % 10 < 8 else quality for i, quality in enumerate(even)]
    report = _table(most, even)
    assert report.bias is not None and report.bias.auc == pytest.approx(0.9, abs=0.04)
    assert [finding.severity for finding in report.findings] == ["error"]


def test_too_few_samples_have_no_bias(clean: list[Sample]) -> None:
    assert check(clean[:18]).bias is None
    one_group = [dataclasses.replace(sample, group="g", split="train") for sample in clean]
    assert check(one_group).bias is None


# Baselines, report --------------------------------------------------------------------------------------------------


def test_baselines_by_hand(tmp_path: Path) -> None:
    """A square of 40 × 40 px and a stroke too thin for F1, each in 100 × 100 px, and a real picture."""
    square = np.zeros((100, 100), dtype=np.bool_)
    square[30:70, 30:70] = True
    stroke = np.zeros((100, 100), dtype=np.bool_)
    stroke[50:60, :] = True
    samples = [_real(_save(tmp_path / "real.png", _photo(9, 100, 100)), "", "real")]
    for seed, mask in enumerate((square, stroke)):
        fake = _save(tmp_path / f"{seed}.png", _photo(seed, 100, 100))
        samples.append(Sample(image=fake, mask=_save(tmp_path / f"m{seed}.png", mask), label="fake"))
    report = check(samples)
    fake, real = report.baselines
    assert (fake.answer, real.answer) == ("all fake", "all real")
    assert fake.iou == pytest.approx((0.16 + 0.10) / 2) and fake.iou_all == pytest.approx((0.16 + 0.10 + 0) / 3)
    # Eroded by 15 px the square has 26², dilated by 11 px it leaves 100² − 50².
    expected = 2 * 676 / (2 * 676 + 7500)
    assert fake.f1 == fake.f1_all == pytest.approx(expected)
    assert metrics.f1(np.ones((100, 100), dtype=np.float32), square) == pytest.approx(expected)
    assert (real.iou, real.f1, real.f1_all) == (0, 0, 0) and real.iou_all == pytest.approx(1 / 3)
    assert fake.f1_undefined == real.f1_undefined == 1


def test_an_empty_data_set() -> None:
    report = check([])
    assert (report.findings, report.samples, report.bias) == ((), 0, None)
    record = json.loads(report.to_json())
    assert record["baselines"][0]["iou"] is None and record["errors"] == 0
    render(report, Console(record=True, width=80))


def test_json(clean: list[Sample]) -> None:
    spoilt = _spoil(clean)
    report = check(spoilt)
    text = report.to_json()
    record = json.loads(text)
    assert "\n" not in text and "NaN" not in text
    assert (record["samples"], record["fakes"], record["compared"], record["errors"]) == (49, 24, 24, 4)
    (swapped,) = (row for row in record["findings"] if row["kind"] == "swapped-masks")
    assert swapped["samples"] == [8, 10] and swapped["images"] == [str(spoilt[8].image), str(spoilt[10].image)]
    assert record["bias"]["by"][0][0] == "file type"


def test_render(clean: list[Sample]) -> None:
    report = check(_spoil(clean))
    for width in (80, 120):
        console = Console(record=True, width=width)
        render(report, console)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width and len(lines) <= 30
        text = " ".join(" ".join(lines).split())
        assert text.startswith("49 samples, 24 fake (24 compared with an untouched twin): 4 errors")
        for kind in ("inverted-mask", "swapped-masks", "duplicate", "size-mismatch"):
            assert f"error {kind} 1 " in text
        assert "AUC 0.5" in text and "“all fake”: IoU" in text


def test_render_counts_kinds() -> None:
    findings = tuple(
        Finding(kind="full-mask", severity="note", message="whole", samples=(i,), images=(f"{i}.png",))
        for i in range(1000)
    )
    report = Report(findings=findings, samples=1000, fakes=1000, compared=0, bias=None, baselines=())
    console = Console(record=True, width=100)
    render(report, console)
    text = console.export_text()
    assert len(text.splitlines()) <= 5 and "1000" in text and "0.png: whole" in text and "not measured" in text


def test_progress_goes_to_stderr(clean: list[Sample], capsys: pytest.CaptureFixture[str]) -> None:
    check(clean[:4], progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "Reading" in captured.err and "Comparing" in captured.err


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'declip\[data\]'"):
        check([])


def test_a_cartoon_is_not_taken_for_an_exact_twin() -> None:
    """Compression leaves flat tiles alone, edges and all, and shows in the grain above, far from what was changed."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 2, (12, 12, 1), dtype=np.uint8) * np.uint8(255)
    pixels = np.repeat(np.repeat(np.repeat(tiles, 16, axis=0), 16, axis=1), 3, axis=2)
    grain = rng.integers(0, 90, (32, 192, 1), dtype=np.uint8)
    pixels[:32] = np.where(pixels[:32] > 0, 255 - grain, grain)
    mask = np.zeros((192, 192), dtype=np.bool_)
    mask[150:170, 150:170] = True
    fake = np.where(mask[:, :, None], np.uint8(110), pixels).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    real = np.asarray(Image.open(buffer))
    difference = np.abs(fake.astype(np.int16) - real).max(axis=2).astype(np.float32)
    changed = ndimage.uniform_filter(difference, 5) > twins.EXACT_LEVELS
    assert twins._weigh(difference, changed, mask, mask, mask, exact=True).verdict == "misfit"
    evidence = twins._judge(fake, real, mask, mask, 8)
    assert evidence.verdict == "fits" and evidence.held == pytest.approx(1.0, abs=0.01)
    elsewhere = np.roll(mask, -100, axis=(0, 1))
    assert twins._judge(fake, pixels, elsewhere, elsewhere, 8).verdict == "misfit"
    assert twins._judge(fake, pixels, ~mask, ~mask, 8).verdict == "inverted"
    assert twins._judge(pixels, pixels, mask, mask, 8).verdict == "undecided"
