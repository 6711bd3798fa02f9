"""Evaluation: figures worked by hand, empty cases, bad files, intervals by group, maps made elsewhere, the report."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import declip
from declip.errors import DatasetError, DeclipError, ImageError
from declip.evaluation import FILES, Evaluation, Figures, Maps, Row, check_free, evaluate, metrics
from declip.evaluation.summary import summarise
from declip.images.mapfiles import read_mask, write_mask, write_scores
from declip.localize.localizer import Localizer
from declip.regions import MaskRule
from declip.results import Localization, Sample
from declip.testing import SPEC, FakeEngine
from tests.evaluation.test_metrics import EMPTY, GOLDEN, golden_pair
from tests.fakes import calibration

DOCS = Path(__file__).resolve().parents[2] / "docs" / "evaluate.md"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judged(Localization):
    """A result with a verdict of its own."""

    word: Any = None

    @property
    def verdict(self) -> Any:
        return self.word


class Fixed:
    """The scores that are given for each file name; what is missing is an ImageError."""

    def __init__(self, scores: Mapping[str, NDArray[np.float32]], verdicts: Mapping[str, Any] | None = None) -> None:
        self.scores = scores
        self.verdicts = verdicts or {}

    def map(self, images: Iterable[Path], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        for path in images:
            if path.name not in self.scores:
                yield ImageError(str(path), "missing", "there is no such file")
                continue
            scores = self.scores[path.name]
            yield Judged(
                name=str(path),
                scores=scores,
                rule=MaskRule(threshold=0.5),
                image_score=float(scores.mean()),
                word=self.verdicts.get(path.name),
                model="fixed",
                sha256="00",
            )


@dataclasses.dataclass
class Data:
    """A folder of samples, and scores for them."""

    folder: Path
    samples: list[Sample] = dataclasses.field(default_factory=list)
    scores: dict[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, mask: NDArray[np.bool_] | None, scores: NDArray[np.float32], **fields: Any) -> None:
        size = scores.shape if mask is None else mask.shape
        path = self.folder / name
        pixels = np.random.default_rng(len(self.samples)).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        mask_path = None
        if mask is not None:
            mask_path = self.folder / "masks" / f"{path.stem}.png"
            mask_path.parent.mkdir(exist_ok=True)
            write_mask(mask_path, mask)
        given: dict[str, Any] = {"label": "real" if mask is None else "fake"} | fields
        self.samples.append(Sample(image=path, mask=mask_path, **given))
        self.scores[name] = scores

    def evaluate(self, **options: Any) -> Evaluation:
        return evaluate(Fixed(self.scores), self.samples, **{"resamples": 50, "cases": 2, "title": "t"} | options)


def box(top: int = 10, left: int = 10, bottom: int = 45, right: int = 50) -> NDArray[np.bool_]:
    mask = np.zeros((60, 80), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def noisy(mask: NDArray[np.bool_], seed: int, lift: float = 0.4) -> NDArray[np.float32]:
    noise = 0.15 * np.random.default_rng(seed).standard_normal(mask.shape)
    return np.clip(0.3 + lift * mask + noise, 0, 1).astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Five fakes of two sources and two reals."""
    made = Data(tmp_path)
    for number in range(5):
        mask = box(left=10 + number, right=40 + 4 * number)
        made.add(f"{number}.png", mask, noisy(mask, number), source="ab"[number % 2], group=str(number // 2))
    for number in range(5, 7):
        scores = noisy(np.zeros((60, 80), dtype=bool), number, 0)
        scores[: 10 * (number - 5)] = 1
        made.add(f"{number}.png", None, scores, source="untouched")
    return made


def printed(result: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(result.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- figures --------------------------------------------------------------------------------------------------------


def test_localization_is_the_mean_over_fakes_alone(data: Data) -> None:
    result = data.evaluate()
    masks = [read_mask(sample) for sample in data.samples[:5]]
    scores = [data.scores[sample.image.name] for sample in data.samples[:5]]
    pairs = list(zip(scores, masks, strict=True))
    for name, values in {
        "iou": [metrics.iou(s > 0.5, m) for s, m in pairs],
        "f1": [metrics.f1(s, m) for s, m in pairs],
        "f1_best_oracle": [metrics.best_f1(s, m) for s, m in pairs],
        "ap": [metrics.average_precision(s, m) for s, m in pairs],
        "auc": [metrics.auc(s, m) for s, m in pairs],
        "f1_pixels": [metrics.pixel_f1(s > 0.5, m) for s, m in pairs],
        "manipulated": [m.mean() for m in masks],
    }.items():
        assert getattr(result.mean, name) == pytest.approx(np.mean(values), abs=1e-12), name
    # IMDL-BenCo's counts the two reals as 0.
    assert result.mean.f1_imdl == pytest.approx(result.mean.f1_pixels * 5 / 7, abs=1e-12)
    flagged = np.concatenate([s.ravel() > 0.5 for s in scores])
    known = np.concatenate([m.ravel() for m in masks])
    assert result.mean.iou_pooled == pytest.approx(metrics.iou(flagged, known), abs=1e-12)
    assert result.mean.f1_pooled == pytest.approx(metrics.pixel_f1(flagged, known), abs=1e-12)
    assert (result.overall.fakes, result.overall.reals, result.errors, result.warnings) == (5, 2, (), ())


def test_reals_have_flagged_area_and_false_alarms(data: Data) -> None:
    result = data.evaluate(threshold=0.9)
    # Of 60 rows the second real has 10 above 0.9; noise of 0.15 around 0.3 has none.
    assert [row.area for row in result.rows[5:]] == [0.0, pytest.approx(1 / 6)]
    assert result.mean.area == pytest.approx(1 / 12)
    assert result.mean.false_alarm == 0.5
    assert all(np.isnan([row.iou, row.ap, row.auc]).all() for row in result.rows[5:])


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared golden values are not here")
def test_means_are_the_official_ones(tmp_path: Path) -> None:
    made = Data(tmp_path)
    seeds = [seed for seed in range(12) if seed not in EMPTY]
    for seed in seeds:
        scores, mask = golden_pair(seed)
        made.add(f"{seed}.png", mask, scores)
    official = [json.loads(GOLDEN.read_text())[seed] for seed in seeds]
    mean = made.evaluate(resamples=2).mean
    for ours, theirs in {"f1": "f1_fixed", "f1_best_oracle": "f1_best", "ap": "ap"}.items():
        assert getattr(mean, ours) == pytest.approx(np.mean([pair[theirs] for pair in official]), abs=1e-6)
    assert mean.iou == pytest.approx(np.mean([pair["iou_percent"] for pair in official]) / 100, abs=1e-6)


def test_detection_is_over_all_pictures(data: Data) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    data.scores["6.png"] = data.scores["6.png"] + np.float32(0.15)
    result = data.evaluate()
    scores, labels = [row.score for row in result.rows], [row.label == "fake" for row in result.rows]
    assert result.mean.detection_ap == pytest.approx(sklearn.average_precision_score(labels, scores), abs=1e-12)
    assert result.mean.detection_auc == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)
    assert result.mean.detection_auc < 1  # the second real scores higher than some fakes
    assert result.mean.detection_eer == metrics.equal_error_rate(np.array(scores), np.array(labels))
    half = [(score > 0.5) == label for score, label in zip(scores, labels, strict=True)]
    assert result.mean.accuracy_half == pytest.approx(np.mean(half))
    # Nobody calibrated anything: there is no threshold to be right at.
    assert np.isnan([result.mean.accuracy, result.mean.hits, result.mean.verdict_false_alarm]).all()
    assert result.overall.undefined["accuracy"] == 7


def test_accuracy_at_the_calibrated_threshold(data: Data) -> None:
    verdicts = dict.fromkeys(data.scores, "nothing found") | dict.fromkeys(("0.png", "1.png", "6.png"), "manipulated")
    verdicts["2.png"] = "inconclusive"  # above the second threshold only
    result = evaluate(Fixed(data.scores, verdicts), data.samples, resamples=2)
    assert result.mean.hits == pytest.approx(2 / 5)
    assert result.mean.verdict_false_alarm == 0.5
    assert result.mean.accuracy == pytest.approx(3 / 7)
    assert "verdict 'manipulated'" in result.protocol["calibrated threshold"]
    # A threshold that is given takes precedence.
    given = evaluate(Fixed(data.scores, verdicts), data.samples, resamples=2, score_threshold=0.0)
    assert (given.mean.hits, given.mean.verdict_false_alarm) == (1.0, 1.0)
    assert given.protocol["calibrated threshold"] == "image score ≥ 0 (given)"


# --- what is not defined, what fails ----------------------------------------------------------------------------------


def test_undefined_is_nan_and_counted(data: Data) -> None:
    before = data.evaluate().mean
    nothing, thin, all_of_it = box(0, 0, 0, 0), box(20, 20, 30, 30), ~box(0, 0, 0, 0)
    for number, mask in enumerate((nothing, thin, all_of_it), start=7):
        data.add(f"{number}.png", mask, noisy(mask, number))
    result = data.evaluate()
    empty, small, full = result.rows[7:]
    assert np.isnan([empty.iou, empty.f1, empty.f1_best_oracle, empty.ap, empty.auc, empty.f1_pixels]).all()
    assert np.isnan([small.f1, small.f1_best_oracle]).all() and small.iou > 0.1 and small.auc > 0.9
    assert np.isnan(full.auc) and full.ap == 1.0
    counts = {name: result.overall.undefined[name] for name in ("iou", "f1", "ap", "auc", "area")}
    assert counts == {"iou": 1, "f1": 2, "ap": 1, "auc": 2, "area": 0}
    assert result.mean.auc == pytest.approx((5 * before.auc + small.auc) / 6)
    figures = result.to_dict()["overall"]["figures"]
    assert (figures["auc"]["defined"], figures["auc"]["undefined"]) == (6, 2)


def test_what_fails_is_a_row_and_the_others_are_evaluated(data: Data) -> None:
    before = data.evaluate().mean
    no_mask = data.folder / "no mask.png"
    data.samples += [
        Sample(image=data.folder / "gone.png", mask=data.samples[0].mask, label="fake"),
        Sample(image=no_mask, label="fake"),
        Sample(image=data.folder / "0.png", mask=data.folder / "gone mask.png", label="fake"),
        Sample(image=data.folder / "nan.png", label="real"),
    ]
    data.scores |= {no_mask.name: data.scores["0.png"], "nan.png": np.full((4, 4), np.nan, np.float32)}
    result = data.evaluate()
    assert [(Path(row.image).name, row.kind) for row in result.errors] == [
        ("gone.png", "missing"),
        ("no mask.png", "input"),
        ("0.png", "missing"),
        ("nan.png", "input"),
    ]
    assert len(result.rows) == 11
    np.testing.assert_array_equal(dataclasses.astuple(result.mean), dataclasses.astuple(before))
    assert result.warnings[0].startswith("4 of 11 samples failed")
    assert result.protocol["samples"].startswith("5 fakes, 2 reals, 4 failed")


@pytest.mark.parametrize("where", ["read_mask", "_measure"])
def test_memory_that_ends_is_a_row(where: str, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["declip.evaluation.measure"]
    whole = getattr(module, where)

    def limited(sample: Sample, *more: Any, **options: Any) -> Any:
        if sample.image.name == "1.png":
            raise MemoryError
        return whole(sample, *more, **options)

    monkeypatch.setattr(module, where, limited)
    assert [row.kind for row in data.evaluate().rows] == ["", "too-large", "", "", "", "", ""]


def test_no_results_no_samples_and_too_few_results(data: Data) -> None:
    result = evaluate(Fixed({}), data.samples)
    assert len(result.errors) == 7
    assert np.isnan(dataclasses.astuple(result.mean)).all()
    assert "nan" in printed(result)
    with pytest.raises(DatasetError, match="data has no samples"):
        evaluate(Fixed({}), [], title="data")

    class Short(Fixed):
        def map(self, images: Iterable[Path], batch_size: int = 8) -> Iterator[Localization | ImageError]:
            yield from list(super().map(images))[1:]

    with pytest.raises(ValueError, match="shorter"):
        evaluate(Short(data.scores), data.samples)


# --- intervals ------------------------------------------------------------------------------------------------------


def rows(values: Iterable[float], groups: Iterable[str]) -> list[Row]:
    fields = {"image": "", "label": "fake", "source": "", "split": "", "score": 0.5}
    return [Row(group=group, iou=value, **fields) for value, group in zip(values, groups, strict=True)]


def test_intervals_resample_groups_of_which_one_has_none() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 100)
    alone = summarise(rows(values, map(str, range(100))), 1000, 0)
    assert alone.mean.iou == pytest.approx(values.mean())
    # The interval of a mean of 100 has about ± 1.96 / √100 of the spread.
    assert alone.high.iou - alone.low.iou == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.15)
    # The same values four times each in their group say no more; four times as pictures of their own would.
    again = np.repeat(values, 4)
    grouped = summarise(rows(again, (f"{number // 4:02}" for number in range(400))), 1000, 0)
    apart = summarise(rows(again, map(str, range(400))), 1000, 0)
    assert grouped.high.iou - grouped.low.iou == pytest.approx(alone.high.iou - alone.low.iou, rel=0.1)
    assert apart.high.iou - apart.low.iou == pytest.approx((alone.high.iou - alone.low.iou) / 2, rel=0.15)
    assert (grouped.groups, apart.groups) == (100, 400)
    one = summarise(rows([0.2, 0.4], "aa"), 100, 0)
    assert one.mean.iou == pytest.approx(0.3) and np.isnan([one.low.iou, one.high.iou]).all()


def test_intervals_are_reproducible_and_hold_the_mean(data: Data) -> None:
    first, second = data.evaluate(), data.evaluate()
    np.testing.assert_array_equal(dataclasses.astuple(first.low), dataclasses.astuple(second.low))
    np.testing.assert_array_equal(dataclasses.astuple(first.high), dataclasses.astuple(second.high))
    assert data.evaluate(seed=1).low.f1_imdl != first.low.f1_imdl
    for name in ("iou", "ap", "auc", "iou_pooled", "f1_imdl", "area"):
        low, mean, high = (getattr(figures, name) for figures in (first.low, first.mean, first.high))
        assert low < mean < high, name


# --- warnings -------------------------------------------------------------------------------------------------------


def inverted(sample: Sample) -> Sample:
    return dataclasses.replace(sample, fake_is="black")


def test_inverted_masks_are_called_out_everywhere(data: Data, tmp_path: Path) -> None:
    right = data.evaluate()
    data.samples = [inverted(sample) if sample.mask else sample for sample in data.samples]
    wrong = data.evaluate()
    assert right.mean.auc > 0.9 and wrong.mean.auc == pytest.approx(1 - right.mean.auc)
    direction, area = wrong.warnings
    assert "The scores point the wrong way" in direction and "fake_is" in direction
    assert f"inverted map would have {right.mean.auc:.3f}" in direction
    assert "fake_is" in area and f"{100 - 100 * right.mean.manipulated:.0f} %" in area
    wrong.save(tmp_path / "out")
    assert "WARNING" in printed(wrong) and "point the wrong way" in printed(wrong)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"] == list(wrong.warnings)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index('class="warning"') < page.index("<table>")
    assert "wrong way" not in printed(right)


def test_one_inverted_source_among_others_is_named(data: Data) -> None:
    for number in range(7, 16):
        data.add(f"{number}.png", box(), noisy(box(), number), source="b" if number < 11 else "a")
    data.samples = [inverted(sample) if sample.source == "b" else sample for sample in data.samples]
    result = data.evaluate()
    assert result.high.auc > 0.5 and result.sources["b"].groups == 6
    warnings = [text for text in result.warnings if "wrong way" in text]
    assert len(warnings) == 1 and "source 'b'" in warnings[0]
    # Of four groups it would not be clear.
    data.samples = [sample for sample in data.samples if sample.image.stem not in ("9", "10")]
    assert not [text for text in data.evaluate().warnings if "wrong way" in text]


def test_formats_and_labels_that_contradict_are_warnings_and_maps_that_say_nothing_are_not(data: Data) -> None:
    nothing = {name: np.full(scores.shape, 0.2, np.float32) for name, scores in data.scores.items()}
    found = evaluate(Fixed(nothing), data.samples, resamples=50)
    assert found.mean.auc == 0.5 and found.warnings == ()
    data.add("7.jpg", None, data.scores["5.png"])
    assert data.evaluate().warnings == ()
    data.samples = [sample for sample in data.samples if sample.label == "fake" or sample.image.suffix == ".jpg"]
    data.add("8.jpg", box(), data.scores["0.png"], label="real")
    formats = data.evaluate().warnings
    assert [text.split(":")[0] for text in formats] == [
        "1 samples are labelled real and have a mask with manipulated pixels.",
        "The file format alone tells fakes (png) from reals (jpg)",
    ]


def test_scores_of_another_shape_are_stretched_and_said_so(data: Data) -> None:
    data.scores["0.png"] = np.repeat(np.repeat(data.scores["0.png"], 2, 0), 2, 1)
    resized = data.evaluate()
    assert resized.rows[0].resized and not resized.rows[1].resized and resized.warnings == ()
    assert resized.protocol["resize"].endswith("needed for 1 of 7 pictures")
    data.scores["0.png"] = np.ascontiguousarray(data.scores["0.png"][:, ::2])
    assert "The scores of 1 pictures had another shape" in data.evaluate().warnings[0]


# --- maps made elsewhere --------------------------------------------------------------------------------------------


def save_map(path: Path, value: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, np.full((4, 6), value, np.float32))
    return path


def maps_of(folder: Path, *images: str, root: str = "") -> list[float | str]:
    paths = [Path(root, name) for name in images]
    found = Maps(folder, paths, root=root).map(paths)
    return [item.kind if isinstance(item, ImageError) else round(item.score, 3) for item in found]


def test_maps_are_found_by_name(tmp_path: Path) -> None:
    save_map(tmp_path / "a.jpg.scores.png", 0.1)
    save_map(tmp_path / "a.png", 0.2)
    save_map(tmp_path / "b.png", 0.3)
    save_map(tmp_path / "sub" / "c.jpg.scores.png", 0.4)
    save_map(tmp_path / "c.png", 0.5)
    assert maps_of(tmp_path, "a.jpg", "x/b.jpg", "sub/c.jpg", "d.jpg") == [0.1, 0.3, 0.4, "missing"]
    assert maps_of(tmp_path, "sub/c.jpg", "c.jpg", root="data") == [0.4, 0.5]
    assert maps_of(tmp_path, "/else/where/c.tif", root="data") == [0.5]


def test_a_map_of_two_images_is_nobodys_and_a_photo_is_not_its_own(tmp_path: Path) -> None:
    photo = save_map(tmp_path / "a.png", 0.2)  # grey, as a map
    assert maps_of(tmp_path, "x/a.jpg", "y/a.jpg", "x/a.jpg") == ["input", "input", "input"]
    assert maps_of(tmp_path, "x/a.jpg", "x/a.jpg") == [0.2, 0.2]
    (found,) = Maps(tmp_path, [photo], root=tmp_path).map([photo])
    assert isinstance(found, ImageError) and found.kind == "missing"
    with pytest.raises(DatasetError, match="no such folder of maps"):
        Maps(tmp_path / "gone", [])


def test_kinds_of_maps(tmp_path: Path) -> None:
    """A letter's map: what is read, or the kind of the error."""
    quarter = np.full((4, 6), 0.25)
    arrays = {
        "a": (quarter[None, ..., None], 0.25),
        "b": (np.full((4, 6), 51, np.uint8), 0.2),
        "c": (np.ones((4, 6), bool), 1.0),
        "d": (np.full((4, 6), 3.5), "input"),  # logits
        "e": (np.full((4, 6), np.nan), "input"),
        "f": (np.zeros((2, 4, 6)), "input"),
        "g": (np.zeros((4, 6), np.int64), "input"),
        "h": (np.array([{}], dtype=object), "corrupt"),
    }
    for letter, (array, _) in arrays.items():
        np.save(tmp_path / f"{letter}.npy", array, allow_pickle=True)
    np.savez(tmp_path / "i.npz", map=quarter.astype(np.float32), conf=np.ones((4, 6)))
    np.savez(tmp_path / "j.npz", heat=np.ones((4, 6)))
    pictures = {
        "k.tif": (np.full((4, 6), 0.5, np.float32), 0.5),
        "l.tiff": (np.full((4, 6), 51, np.uint8), 0.2),
        "m.png": (np.full((4, 4), 51, np.uint8), 0.2),
        "n.png": (np.zeros((4, 4, 3), np.uint8), "format"),
    }
    for name, (array, _) in pictures.items():
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "o.png").write_bytes(b"no picture")
    (tmp_path / "p.npy").write_bytes(b"no array")
    expected = [found for _, found in arrays.values()] + [0.25, "input"] + [found for _, found in pictures.values()]
    names = [f"{letter}.jpg" for letter in "abcdefghijklmnopq"]
    assert maps_of(tmp_path, *names) == [*expected, "format", "corrupt", "missing"]
    (found,) = Maps(tmp_path, [Path("q.jpg")]).map(["q.jpg"])
    assert "or q with one of .png, .npy, .npz, .tif, .tiff" in str(found)
    save_map(tmp_path / "a.png", 0.1)  # comes first
    turned = Maps(tmp_path, map(Path, names[:2]), fake_is="black")
    assert [round(item.score, 3) for item in turned.map(names[:2]) if not isinstance(item, ImageError)] == [0.9, 0.8]


def test_maps_give_what_the_model_gave(data: Data) -> None:
    folder = data.folder / "maps"
    folder.mkdir()
    for name, scores in data.scores.items():
        write_scores(folder / f"{name}.scores.png", np.clip(scores, 0, 1))
    (folder / "3.png.scores.png").unlink()
    result = evaluate(Maps(folder, [s.image for s in data.samples], root=data.folder), data.samples, resamples=2)
    assert [Path(row.image).name for row in result.errors] == ["3.png"]
    assert "no map in" in result.errors[0].error
    del data.samples[3]
    expected = data.evaluate().mean
    for name in ("iou", "f1", "ap", "auc", "area", "detection_auc"):
        assert getattr(result.mean, name) == pytest.approx(getattr(expected, name), abs=1e-3), name
    assert result.protocol["image score"] == "mean of the map"
    assert result.protocol["input size"].startswith("unknown")
    assert result.protocol["polarity"].endswith("; white = manipulated in the maps")


# --- the protocol card ----------------------------------------------------------------------------------------------


def bright() -> FakeEngine:
    return FakeEngine(
        dataclasses.replace(SPEC, calibration=calibration(threshold=0.75)), model="mini", sha256="ab" * 32
    )


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[:, :32] = True
    Image.fromarray(np.repeat(mask[:, :, None] * np.uint8(255), 3, 2)).save(tmp_path / "a.png")
    write_mask(tmp_path / "mask.png", ~mask)
    sample = Sample(image=tmp_path / "a.png", mask=tmp_path / "mask.png", fake_is="black", label="fake", split="test")
    result = evaluate(Localizer(bright()), [sample])
    assert result.mean.auc > 0.99 and result.mean.iou > 0.9
    assert set(result.protocol) >= {"input size", "resize", "threshold", "polarity", "borders", "averaging"}
    assert set(result.protocol) >= {"reals included", "empty rule", "training set", "file formats"}
    card = result.protocol
    assert card["model"] == f"mini, SHA-256 {'ab' * 32}"
    assert card["training set"] == declip.MODELS[0].trained_on
    assert card["input size"] == "32×32 px, the whole picture squashed (bilinear, antialiased)"
    assert card["threshold"] == "scores >= 0.75 in the parts that the predictor's calibration flags"
    assert "under 0.5 MP at most 1 % of untouched photos, by 199 of them" in card["calibrated threshold"]
    assert card["polarity"] == "black = manipulated in 1 mask files"
    assert card["samples"] == "1 fakes, 0 reals, 0 failed; splits: test 1"
    assert card["file formats"] == "fakes: png 1"
    tiled = evaluate(Localizer(bright(), mode="tiled"), [sample], threshold=0.5).protocol
    assert tiled["input size"] == "tiles of 32×32 px at native resolution, overlap 8 px"
    assert tiled["threshold"] == "scores >= 0.5 (given)"
    assert tiled["calibrated threshold"].startswith("none")


# --- files ----------------------------------------------------------------------------------------------------------


def test_save_writes_three_files_and_never_over_others(data: Data) -> None:
    out = data.folder / "out"
    result = data.evaluate()
    result.save(out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    (out / "report.html").write_text("mine")
    with pytest.raises(DeclipError, match=r"images\.csv exists; --force"):
        result.save(out)
    (out / "images.csv").unlink()
    (out / "summary.json").unlink()
    with pytest.raises(DeclipError, match=r"report\.html exists"):
        check_free(out)
    assert (out / "report.html").read_text() == "mine"
    result.save(out, force=True)
    assert (out / "report.html").read_text() != "mine"


def test_csv_and_json_hold_the_numbers(data: Data) -> None:
    data.samples.append(Sample(image=data.folder / "gone.png", label="real"))
    result = data.evaluate()
    result.save(data.folder / "out")
    with (data.folder / "out" / "images.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert np.mean([float(line["iou"]) for line in lines if line["label"] == "fake"]) == result.mean.iou
    assert lines[5]["iou"] == "" and float(lines[6]["area"]) == result.rows[6].area
    assert (lines[7]["kind"], lines[7]["area"]) == ("missing", "")
    summary = json.loads((data.folder / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["overall"]["figures"]["iou"]["mean"] == result.mean.iou
    assert summary["overall"]["figures"]["iou"]["low"] == result.low.iou
    assert summary["overall"]["figures"]["accuracy"]["mean"] is None
    assert summary["sources"]["a"]["fakes"] == 3 and summary["sources"]["untouched"]["reals"] == 2
    assert summary["protocol"] == result.protocol
    assert [error["kind"] for error in summary["errors"]] == ["missing"]


def test_oracles_are_called_so_wherever_they_are_printed(data: Data) -> None:
    result = data.evaluate()
    figures = result.to_dict()["overall"]["figures"]
    assert [name for name, about in figures.items() if about["oracle"]] == ["f1_best_oracle", "accuracy_best_oracle"]
    assert all(("oracle" in about["title"]) == about["oracle"] for about in figures.values())
    result.save(data.folder / "out")
    for text in printed(result), (data.folder / "out" / "report.html").read_text(encoding="utf-8"):
        assert all(about["title"] in text for about in figures.values() if about["oracle"])
        assert "over fakes only" in text and "95 % interval" in text


def test_the_page_is_self_contained_and_escaped(data: Data) -> None:
    data.add("<img src=x>&.png", box(), noisy(box(), 9), source="<b>")
    result = data.evaluate(cases=9, title="<script>alert(1)</script>")
    result.save(data.folder / "out")
    page = (data.folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "&lt;img src=x&gt;&amp;.png" in page and "<img src=x>" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "http" not in page.replace("http-equiv", "")


def test_cases_are_the_extremes_and_show_the_known_mask(data: Data) -> None:
    order = np.argsort([row.iou for row in data.evaluate().rows[:5]])
    cases = data.evaluate(cases=2).cases
    assert [(case.kind, Path(case.image).stem) for case in cases] == [
        ("worst", str(order[0])),
        ("worst", str(order[1])),
        ("best", str(order[4])),
        ("best", str(order[3])),
        ("false alarm", "6"),
        ("false alarm", "5"),
    ]
    pictures = dict(cases[0].pictures)
    assert list(pictures) == ["photo", "known mask", "scores", "overlay"]
    known = Image.open(io.BytesIO(base64.b64decode(pictures["known mask"].partition(",")[2])))
    assert np.array_equal(np.asarray(known) > 127, read_mask(data.samples[order[0]]))
    assert data.evaluate(cases=0).cases == ()


def test_names_cannot_command_the_terminal(data: Data) -> None:
    data.samples[0] = dataclasses.replace(data.samples[0], source="\x1b[2J[bold]x")
    assert "\x1b[2J" not in printed(data.evaluate(title="\x1b]0;t\x07"))
    assert r"\x1b[2J[bold]x" in printed(data.evaluate()).replace("\n", "")


def test_every_figure_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [figure.name for figure in dataclasses.fields(Figures) if f"| `{figure.name}` |" not in text] == []
