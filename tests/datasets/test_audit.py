"""The checks of a data set: each names the fault that was planted, and nothing in the same data set without it."""

from __future__ import annotations

import dataclasses
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

from declip.datasets.audit import Finding, Report, broken, check, render
from declip.datasets.audit.bias import find_bias
from declip.datasets.audit.duplicates import HASH_BITS, close_pairs
from declip.datasets.audit.facts import GREY_SHARE, Facts, Picture, saved_as
from declip.errors import MissingExtraError
from declip.results import Sample

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 96, 120
PAIRS = 12


def photo(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Draw a picture of its own: coloured clouds of several sizes, and grain."""
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(3):
        clouds = [ndimage.gaussian_filter(rng.standard_normal((height, width)), sigma) for sigma in (16, 8, 4)]
        plane = sum(cloud / cloud.std() * math.sqrt(16 >> i) for i, cloud in enumerate(clouds))
        planes.append(plane / plane.std() * 40 + 128 + rng.standard_normal((height, width)) * 6)
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def ellipse(seed: int) -> Mask:
    """Mark about a tenth of the picture, in the quarter that the seed names."""
    y, x = HEIGHT * (0.27 + 0.46 * (seed % 2)), WIDTH * (0.27 + 0.46 * (seed // 2 % 2))
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return ((rows - y) / (0.18 * HEIGHT)) ** 2 + ((columns - x) / (0.18 * WIDTH)) ** 2 < 1


def forge(pixels: Pixels, mask: Mask, seed: int) -> Pixels:
    return np.where(mask[:, :, None], 255 - photo(seed + 1000), pixels).astype(np.uint8)


def save(path: Path, pixels: Pixels | Mask, quality: int | None = None) -> Path:
    values = pixels.view(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    Image.fromarray(values).save(path, **({} if quality is None else {"quality": quality}))
    return path


def pairs(folder: Path, fake_suffix: str = "", real_suffix: str = "") -> list[Sample]:
    """Write twelve fakes and their untouched twins: sample 2k is fake k, 2k + 1 its twin. By default half are PNGs."""
    samples = []
    for seed in range(PAIRS):
        pixels, mask = photo(seed), ellipse(seed)
        suffix = ".png" if seed % 2 else ".jpg"
        common = {"split": "valid" if seed % 4 == 3 else "train", "group": f"photo{seed}"}
        fake = save(folder / f"{seed}-fake{fake_suffix or suffix}", forge(pixels, mask, seed))
        real = save(folder / f"{seed}-real{real_suffix or suffix}", pixels)
        white = save(folder / f"{seed}-mask.png", mask)
        samples.append(Sample(image=fake, mask=white, label="fake", source="splice", **common))
        samples.append(Sample(image=real, label="real", source="camera", **common))
    return samples


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return pairs(tmp_path_factory.mktemp("source"))


@pytest.fixture
def clean(source: list[Sample], tmp_path: Path) -> list[Sample]:
    """Copy the pairs, to be spoilt."""
    folder = tmp_path / "set"
    shutil.copytree(source[0].image.parent, folder)
    return [
        dataclasses.replace(s, image=folder / s.image.name, mask=folder / s.mask.name if s.mask else None)
        for s in source
    ]


def mask_of(sample: Sample) -> Mask:
    assert sample.mask is not None
    return np.asarray(Image.open(sample.mask)) > 127


def set_mask(sample: Sample, values: Pixels | Mask) -> None:
    assert sample.mask is not None
    save(sample.mask, values)


def kinds(report: Report) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted((finding.kind, finding.severity, finding.samples) for finding in report.findings)


def spoil(samples: list[Sample]) -> list[Sample]:
    """Plant one of each fault that does not depend on how the files were saved."""
    set_mask(samples[2], ~mask_of(samples[2]))
    set_mask(samples[20], mask_of(samples[20])[:-10])
    copy = samples[17].image.with_stem("copy")
    shutil.copy(samples[17].image, copy)
    return [
        *samples[:8],
        dataclasses.replace(samples[8], mask=samples[10].mask),
        *samples[9:],
        Sample(image=copy, label="real", split="valid", source="camera", group="elsewhere"),
    ]


FOUR = [
    ("duplicate", "error", (17, 24)),
    ("inverted-mask", "error", (2,)),
    ("size-mismatch", "error", (20,)),
    ("wrong-mask", "error", (8,)),
]


# --- all checks together --------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_the_clean_set(source: list[Sample]) -> None:
    report = check(source)
    assert report.findings == () and report.errors == 0
    assert (report.samples, report.fakes, report.compared) == (24, 12, 12)
    assert report.bias is not None and (report.bias.real, report.bias.fake) == (12, 12)
    assert [auc for _, auc in report.bias.by] == pytest.approx([0.5] * 4, abs=1e-9)


def test_all_planted_faults_are_found_and_shown(clean: list[Sample]) -> None:
    spoilt = spoil(clean)
    report = check(spoilt)
    assert kinds(report) == FOUR
    # What is broken by itself is left out; the wrong polarity and the second copy stay, for people to decide.
    assert set(broken(report)) == {8, 20} and "outside the mask" in broken(report)[8]
    record = json.loads(report.to_json())
    assert (record["samples"], record["fakes"], record["compared"], record["errors"]) == (25, 12, 11, 4)
    (wrong,) = (row for row in record["findings"] if row["kind"] == "wrong-mask")
    assert wrong["samples"] == [8] and wrong["images"] == [str(spoilt[8].image)]
    for width in (80, 120):
        console = Console(record=True, width=width)
        render(report, console)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width and len(lines) <= 30
        text = " ".join(" ".join(lines).split())
        assert text.startswith("25 samples, 12 fake (11 compared with an untouched twin): 4 errors")
        assert all(f"error {kind} 1 " in text for kind, _, _ in FOUR)
        assert "AUC 0.5" in text and "“all fake”: IoU" in text


@pytest.mark.slow
def test_workers_find_the_same(clean: list[Sample]) -> None:
    spoilt = spoil(clean)
    assert check(spoilt, workers=2) == check(spoilt)


def test_an_empty_data_set() -> None:
    report = check([])
    assert (report.findings, report.samples, report.bias) == ((), 0, None)
    assert json.loads(report.to_json())["baselines"][0]["iou"] is None
    render(report, Console(record=True, width=80))


def test_kinds_are_counted_not_listed() -> None:
    findings = tuple(
        Finding(kind="full-mask", severity="note", message="whole", samples=(i,), images=(f"{i}.png",))
        for i in range(1000)
    )
    console = Console(record=True, width=100)
    render(Report(findings=findings, samples=1000, fakes=1000, compared=0, bias=None, baselines=()), console)
    text = console.export_text()
    assert len(text.splitlines()) <= 5 and "1000" in text and "0.png: whole" in text and "not measured" in text


def test_progress_goes_to_stderr(source: list[Sample], capsys: pytest.CaptureFixture[str]) -> None:
    check(source[:4], progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "Reading" in captured.err and "Comparing" in captured.err


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'declip\[data\]'"):
        check([])


# --- files and masks ------------------------------------------------------------------------------------------------


def test_what_cannot_be_read(clean: list[Sample]) -> None:
    clean[1].image.write_bytes(clean[1].image.read_bytes()[:-40])
    clean[5].image.unlink()
    assert clean[6].mask is not None
    clean[6].mask.write_bytes(b"no picture")
    clean[8] = dataclasses.replace(clean[8], mask=None)
    report = check(clean)
    assert kinds(report) == [("missing-mask", "error", (8,)), *(("unreadable", "error", (i,)) for i in (1, 5, 6))]
    messages = broken(report)
    assert set(messages) == {1, 5, 6, 8}
    assert "there is no such file" in messages[5] and messages[6].startswith("the mask: ")


def test_masks_that_are_not_black_and_white(clean: list[Sample]) -> None:
    soft, softer = (ndimage.gaussian_filter(np.float32(mask_of(clean[i])), sigma) for i, sigma in ((0, 1.0), (2, 8.0)))
    set_mask(clean[0], np.rint(soft * 255).astype(np.uint8))
    set_mask(clean[2], np.rint(softer * 255).astype(np.uint8))
    found = {finding.samples: finding for finding in check(clean).findings}
    assert {samples: (f.kind, f.severity) for samples, f in found.items()} == {
        (0,): ("grey-mask", "note"),
        (2,): ("grey-mask", "warning"),
    }
    share = ((softer * 255 >= 32) & (softer * 255 <= 223)).mean()
    assert share > GREY_SHARE and found[2,].message.startswith(f"{share:.0%} of the mask")


def test_empty_full_turned_and_spare_masks(clean: list[Sample]) -> None:
    set_mask(clean[0], np.zeros((HEIGHT, WIDTH), np.uint8))
    set_mask(clean[2], np.full((HEIGHT, WIDTH), 255, np.uint8))
    set_mask(clean[4], mask_of(clean[4]).astype(np.uint8))
    set_mask(clean[6], np.rot90(mask_of(clean[6])).astype(np.uint8) * 255)
    clean[9] = dataclasses.replace(clean[9], mask=clean[8].mask)
    report = check(clean)
    assert kinds(report) == [
        ("empty-mask", "error", (0,)),
        ("empty-mask", "error", (4,)),
        ("full-mask", "note", (2,)),
        ("masked-real", "error", (9,)),
        ("size-mismatch", "error", (6,)),
    ]
    messages = {finding.samples[0]: finding.message for finding in report.findings}
    assert "highest value is 1," in messages[4] and "highest" not in messages[0]
    assert "96×120" in messages[6] and "120×96" in messages[6] and "turned" in messages[6]


# --- polarity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fakes", "reals"), [("", ""), (".png", ".jpg")], ids=["saved alike", "twin compressed"])
def test_a_wrong_fake_is_is_proved_by_twins(tmp_path: Path, fakes: str, reals: str) -> None:
    samples = pairs(tmp_path, fakes, reals)
    assert not [finding for finding in check(samples).findings if finding.kind != "format-bias"]
    report = check([dataclasses.replace(sample, fake_is="black") for sample in samples])
    found = [finding for finding in report.findings if finding.kind != "format-bias"]
    assert [(f.kind, f.severity, f.samples) for f in found] == [
        ("inverted-mask", "error", (i,)) for i in range(0, 24, 2)
    ]
    assert broken(report) == {}


def test_polarity_without_twins_is_a_suspicion(source: list[Sample]) -> None:
    fakes = [dataclasses.replace(sample, fake_is="black", group="") for sample in source[::2]]
    report = check(fakes)
    assert kinds(report) == [("inverted-mask", "warning", tuple(range(12)))]
    assert "12 of 12 masks (source 'splice')" in report.findings[0].message
    assert check([dataclasses.replace(sample, fake_is="white") for sample in fakes]).findings == ()


def test_a_large_mask_that_a_twin_confirms_is_fine(clean: list[Sample]) -> None:
    """A replaced background is most of the picture and its whole frame, and rightly so."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    background = ((rows / HEIGHT - 0.5) ** 2 + (columns / WIDTH - 0.5) ** 2) > 0.38**2
    set_mask(clean[2], background)
    save(clean[2].image, forge(photo(1), background, 1))
    assert check(clean).findings == ()
    # Without its twin, the shape is all there is.
    assert kinds(check([sample for sample in clean if sample is not clean[3]])) == [("inverted-mask", "warning", (2,))]


# --- duplicates and splits ------------------------------------------------------------------------------------------


def real(path: Path, split: str, group: str = "") -> Sample:
    return Sample(image=path, label="real", split=split, group=group)


def test_duplicates(tmp_path: Path) -> None:
    first = save(tmp_path / "a.png", photo(0))
    same = save(tmp_path / "b.bmp", photo(0))
    resaved = save(tmp_path / "c.jpg", photo(0), 60)
    rest = [real(save(tmp_path / f"{seed}.png", photo(seed)), "train") for seed in range(1, 7)]
    for second, split, group, expected in (
        (same, "test", "", [("duplicate", "error", (0, 1))]),
        (resaved, "test", "", [("near-duplicate", "error", (0, 1))]),
        (resaved, "train", "", [("near-duplicate", "warning", (0, 1))]),
        (resaved, "train", "g", []),
    ):
        report = check([real(first, "train", group), real(second, split, group), *rest])
        assert kinds(report) == expected and broken(report) == {}


def test_the_same_pixels_with_both_labels(clean: list[Sample]) -> None:
    shutil.copy(clean[1].image, clean[0].image)
    report = check(clean)
    assert kinds(report) == [("label-conflict", "error", (0, 1))] and set(broken(report)) == {0, 1}


def test_a_group_in_two_splits(source: list[Sample]) -> None:
    report = check([source[0], dataclasses.replace(source[1], split="other"), *source[2:]])
    assert kinds(report) == [("split-group", "error", (0, 1))]
    assert "'photo0' is in the splits other and train" in report.findings[0].message


def test_close_pairs_are_those_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("declip.datasets.audit.duplicates._CHUNK", 64)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (200, 32), dtype=np.uint8)
    for row in range(100):  # neighbours of every distance around the limit
        bits = np.unpackbits(codes[row])
        bits[rng.choice(256, row % 25 + 1, replace=False)] ^= 1
        codes[row + 100] = np.packbits(bits)
    found = set(close_pairs([row.tobytes() for row in codes]))
    expected = {(codes[i].tobytes(), codes[i + 100].tobytes()) for i in range(100) if i % 25 + 1 <= HASH_BITS}
    assert found == expected and len(found) == 60


def test_flat_pictures_are_no_near_duplicates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = [rng.integers(100, 104, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    assert check([real(save(tmp_path / f"{i}.png", pixels), "train") for i, pixels in enumerate(flat)]).findings == ()


# --- bias and baselines ---------------------------------------------------------------------------------------------


def test_a_bias_of_the_files(tmp_path: Path) -> None:
    report = check(pairs(tmp_path, ".png", ".jpg"))
    assert kinds(report) == [("format-bias", "error", ())] and broken(report) == {}
    assert report.bias is not None and report.bias.auc >= 0.95
    by = dict(report.bias.by)
    assert by["file type"] >= 0.95 and by["size"] == pytest.approx(0.5, abs=0.01)
    assert "real mostly JPEG (100%), fake mostly PNG (100%)" in report.findings[0].message


def test_quality_is_read_from_the_tables(tmp_path: Path) -> None:
    for quality in (35, 75, 92, 100):
        assert saved_as(save(tmp_path / "a.jpg", photo(0), quality).read_bytes()) == ("JPEG", quality, 2)
    Image.fromarray(photo(0)).save(tmp_path / "b.jpg", quality=80, subsampling="4:4:4")
    assert saved_as((tmp_path / "b.jpg").read_bytes()) == ("JPEG", 80, 0)
    assert saved_as(save(tmp_path / "c.png", photo(0)).read_bytes()) == ("PNG", None, None)


def bias_of(fakes: Sequence[int | None], reals: Sequence[int | None]) -> tuple[float, list[str]]:
    """Measure files that differ in nothing but the JPEG quality; None = PNG. Return the AUC and the severities."""
    samples, facts = [], []
    for group, qualities in enumerate(zip(fakes, reals, strict=True)):
        for label, quality in zip(("fake", "real"), qualities, strict=True):
            samples.append(Sample(image=Path("a"), label=label, group=str(group)))  # type: ignore[arg-type]
            kind, chroma = ("PNG", None) if quality is None else ("JPEG", 2)
            saved = {"format": kind, "quality": quality, "chroma": chroma}
            facts.append(Facts(picture=Picture(size=(64, 64), digest=b"", hash=None, thumb=b"", **saved)))  # type: ignore[arg-type]
    bias, findings = find_bias(samples, facts)
    assert bias is not None
    return bias.auc, [finding.severity for finding in findings]


def test_files_without_a_jpeg_have_no_bias_of_quality() -> None:
    auc, found = bias_of([None] * 12, [None] * 12)
    assert auc == pytest.approx(0.5) and found == []


@pytest.mark.slow
def test_thresholds_of_the_bias() -> None:
    rng = np.random.default_rng(0)
    even = [int(quality) for quality in rng.integers(60, 96, 400)]
    auc, found = bias_of(even, [int(quality) for quality in rng.integers(60, 96, 400)])
    assert abs(auc - 0.5) < 0.06 and found == []
    # If a share s of the fakes is PNG and no real is, the best AUC is 0.5 + s / 2.
    for tenths, expected in ((3, "warning"), (8, "error")):
        auc, found = bias_of([None if i % 10 < tenths else quality for i, quality in enumerate(even)], even)
        assert auc == pytest.approx(0.5 + tenths / 20, abs=0.04) and found == [expected]


def test_too_few_samples_have_no_bias(source: list[Sample]) -> None:
    assert check(source[:18]).bias is None
    assert check([dataclasses.replace(sample, group="g", split="train") for sample in source]).bias is None


def test_baselines_by_hand(tmp_path: Path) -> None:
    """A square of 40 × 40 px and a stroke too thin for F1, each in 100 × 100 px, and a real picture."""
    square, stroke = np.zeros((2, 100, 100), dtype=np.bool_)
    square[30:70, 30:70] = stroke[50:60] = True
    samples = [real(save(tmp_path / "real.png", photo(9, 100, 100)), "", "real")]
    for seed, mask in enumerate((square, stroke)):
        fake = save(tmp_path / f"{seed}.png", photo(seed, 100, 100))
        samples.append(Sample(image=fake, mask=save(tmp_path / f"m{seed}.png", mask), label="fake"))
    all_fake, all_real = check(samples).baselines
    assert (all_fake.answer, all_real.answer) == ("all fake", "all real")
    assert all_fake.iou == pytest.approx((0.16 + 0.10) / 2) and all_fake.iou_all == pytest.approx((0.16 + 0.10) / 3)
    # Eroded by 15 px the square has 26², dilated by 11 px it leaves 100² − 50².
    assert all_fake.f1 == all_fake.f1_all == pytest.approx(2 * 676 / (2 * 676 + 7500))
    assert (all_real.iou, all_real.f1, all_real.f1_all) == (0, 0, 0) and all_real.iou_all == pytest.approx(1 / 3)
    assert all_fake.f1_undefined == all_real.f1_undefined == 1
