"""Calibration: the guarantee that thresholds give, the temperature that is recovered, the file that is written."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import special

import declip
from declip import calibration, testing
from declip.engines import open_engine
from declip.errors import DatasetError, DeclipError, SpecError, WeightsError
from declip.files import sha256_of
from declip.images.mapfiles import read_mask, write_mask
from declip.localize.localizer import Localizer
from declip.models.respec import with_spec
from declip.regions import find_parts
from declip.results import Localization, Photo, Sample
from declip.spec import Calibration
from declip.testing import FakeEngine, brightness

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos" / "calibrate"
MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"

# --- ranks ----------------------------------------------------------------------------------------------------------


def standard_error(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def splits(evidence: NDArray[np.float64], rate: float, kept: int, seed: int = 0) -> NDArray[np.float64]:
    """Over 200 random splits: the share of the held-out photos that `kept` others let reach the rate."""
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(200):
        order = rng.permutation(len(evidence))
        found = Calibration(untouched=(tuple(np.sort(evidence[order[:kept]])), (), ()), photos=(kept, 0, 0))
        rates.append(np.mean([found.rank(value, 0) >= 1 - rate - 1e-9 for value in evidence[order[kept:]]]))
    return np.array(rates)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_false_alarm_rate_is_kept_over_200_splits(rate: float) -> None:
    evidence = np.round(np.random.default_rng(0).beta(1, 8, 400), 2)  # with many ties
    assert len(np.unique(evidence)) < 80
    found = splits(evidence, rate, 170)
    # Guaranteed is the mean, and that within its own uncertainty.
    assert np.mean(found) <= rate + 3 * standard_error(found)
    assert np.mean(found) > rate / 5


@pytest.mark.parametrize(("rate", "rank"), [(0.01, 1), (0.05, 8), (0.2, 34)])
def test_without_ties_the_rate_is_what_the_rank_says(rate: float, rank: int) -> None:
    found = splits(np.random.default_rng(0).beta(1, 8, 400), rate, 170)
    assert np.mean(found) == pytest.approx(rank / 171, abs=3 * standard_error(found))


@pytest.mark.parametrize(("rate", "photos"), [(0.05, 25), (0.01, 170), (0.05, 170)])
def test_the_range_of_a_single_calibration_holds_nine_times_in_ten(rate: float, photos: int) -> None:
    rng = np.random.default_rng(0)
    low, high = calibration.false_alarm_range(rate, photos)
    true = []
    for _ in range(4000):
        # Of uniform values the share above the one with the rank that decides reaches it.
        true.append(1 - np.sort(rng.random(photos))[-math.floor(rate * (photos + 1) + 1e-9)])
    assert np.mean(np.less(true, low)) == pytest.approx(0.05, abs=0.012)
    assert np.mean(np.greater(true, high)) == pytest.approx(0.05, abs=0.012)


def test_the_range_gets_narrower_with_more_photos() -> None:
    widths = [high - low for low, high in (calibration.false_alarm_range(0.05, n) for n in (19, 99, 199, 1999))]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.02 < 0.1 < widths[0]
    with pytest.raises(DatasetError, match="needs at least 99"):
        calibration.false_alarm_range(0.01, 98)


# --- threshold ------------------------------------------------------------------------------------------------------


def test_the_threshold_is_that_of_the_best_masks() -> None:
    mask = np.zeros((40, 50), bool)
    mask[8:20, 10:30] = True
    fake = np.where(mask, np.float32(0.9), np.float32(0.25))  # at 0.2 all of it is one part
    flat = [np.full((40, 50), 0.01 * i, np.float32) for i in range(60)]
    clean = [calibration.Untouched.of(calibration.Place(i, i), each, (0.2, 0.5, 0.95)) for i, each in enumerate(flat)]
    made = calibration.candidates(clean, (0.2, 0.5, 0.95), Calibration(rates=(0.05,), mode="tiled"))
    assert [each.threshold for each in made] == [0.2, 0.5, 0.95]
    assert made[0].photos == (60, 0, 0) and made[0].mode == "tiled"
    # Evidence of the three untouched ones above 0.56: logits of 0.24 to 0.36; nothing reaches 0.95.
    assert made[1].untouched[0][-1] == pytest.approx(special.logit(0.59), rel=1e-4)
    assert set(made[2].untouched[0]) == {0.0}
    assert calibration.fit_threshold([(fake, mask)], made) is made[1]
    with pytest.raises(DatasetError, match="needs manipulated pictures"):
        calibration.fit_threshold([], made)


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_a_large_photo_is_cut_into_pieces_of_its_size_class_and_below() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3040, 4000, 3), np.uint8)
    photo = Photo(pixels=pixels, name="large.jpg")
    medium, large = (calibration.cut(photo, size_class, 12) for size_class in (1, 2))
    assert [Calibration.size_class(p.pixels.size // 3) for p in (*medium, *large)] == [1] * len(medium) + [2] * len(
        large
    )
    assert len(large) == 4 and len(medium) == 6
    covered = np.zeros((3040, 4000), int)
    for piece in medium:
        x, y = map(int, piece.name.rpartition(" ")[2].split(","))
        height, width = piece.size
        assert np.array_equal(piece.pixels, pixels[y : y + height, x : x + width])
        covered[y : y + height, x : x + width] += 1
    assert covered.max() == 1
    assert [len(calibration.cut(photo, 1, most)) for most in (1, 3)] == [1, 3]
    assert calibration.cut(Photo(pixels=pixels[:100, :100], name="small"), 1, 12) == []


# --- temperature ----------------------------------------------------------------------------------------------------

Pairs = list[tuple[NDArray[np.float32], NDArray[np.bool_]]]


def overconfident(factor: float, *, used: float = 1.0, sides: Sequence[int] = (80, 100, 120), seed: int = 0) -> Pairs:
    """Scores whose logits are the true log-odds of their masks times factor, made at the temperature `used`."""
    rng = np.random.default_rng(seed)
    pairs = []
    for side in sides:
        odds = rng.uniform(-4, 3, (side, side))
        mask = rng.random(odds.shape) < special.expit(odds)
        pairs.append((special.expit(factor * odds / used).astype(np.float32), mask))
    return pairs


@pytest.mark.parametrize(("factor", "used"), [(3.0, 1.0), (3.0, 2.0), (1.0, 1.0), (0.4, 0.5)])
def test_a_planted_temperature_is_recovered(factor: float, used: float) -> None:
    assert calibration.fit_temperature(overconfident(factor, used=used), used) == pytest.approx(factor, rel=0.05)


def test_every_picture_counts_the_same() -> None:
    """A large picture at 1 and a small one at 4: the optimum of the mean over pictures, by another search."""
    pairs = overconfident(1, sides=(200,)) + overconfident(4, sides=(40,), seed=1)

    def loss(temperature: float) -> float:
        found = []
        for scores, mask in pairs:
            at = special.expit(special.logit(scores.astype(np.float64)) / temperature)
            found.append(-np.mean(np.where(mask, np.log(at), np.log(1 - at))))
        return float(np.mean(found))

    best = min(np.geomspace(0.5, 6, 500), key=loss)
    assert calibration.fit_temperature(pairs, pixels=40_000) == pytest.approx(best, rel=0.01)
    assert best > 1.3  # of all pixels together, the large picture's, it would be near 1


def test_pixels_are_drawn_by_the_seed() -> None:
    pairs = overconfident(3, sides=(300, 300))
    drawn = [calibration.fit_temperature(pairs, pixels=5000, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn == pytest.approx([3] * 3, rel=0.1)


def test_scores_that_fit_no_temperature() -> None:
    pairs = overconfident(1)
    inverted = [(scores, ~mask) for scores, mask in pairs]
    perfect = [(np.where(mask, 0.7, 0.2).astype(np.float32), mask) for _, mask in pairs]
    for wrong in (inverted, perfect):
        with pytest.raises(DatasetError, match=r"no temperature in 0\.05–20 fits the scores of 3 manipulated"):
            calibration.fit_temperature(wrong)
    with pytest.raises(DatasetError, match="needs manipulated pictures"):
        calibration.fit_temperature([])


def test_saturated_scores_have_a_temperature() -> None:
    """Scores of exactly 0 and 1 would be infinite logits."""
    assert calibration.fit_temperature(overconfident(30)) == pytest.approx(8, rel=0.5)


# --- measuring ------------------------------------------------------------------------------------------------------


SPEC = dataclasses.replace(testing.SPEC, input_size=64, output_size=64, threshold=0.4)


def engine_of(**fields: Any) -> FakeEngine:
    """Logits = 12 × normalised brightness, three times the log-odds that `fakes` draws its masks by."""
    return FakeEngine(dataclasses.replace(SPEC, **fields), partial(brightness, side=64, gain=12))


def save(path: Path, grey: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).convert("RGB").save(path)
    return path


def reals(folder: Path, count: int, size: int = 64) -> list[Path]:
    """Pictures of noise about a brightness of their own, all different."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 150, count)
    return [
        save(folder / f"{i:03d}.png", rng.integers(level, level + 30, (size, size), np.uint8))
        for i, level in enumerate(levels)
    ]


def fakes(folder: Path, count: int = 10) -> list[Sample]:
    rng = np.random.default_rng(1)
    samples = []
    for i in range(count):
        grey = rng.integers(0, 230, (64, 64), np.uint8)
        mask = rng.random(grey.shape) < special.expit(4 * (grey / 127.5 - 1))
        save(folder / f"fake-{i}.png", grey)
        write_mask(folder / f"mask-{i}.png", mask)
        samples.append(Sample(image=folder / f"fake-{i}.png", mask=folder / f"mask-{i}.png", label="fake"))
    return samples


def alone(engine: Any) -> Localizer:
    """A localizer that leaves clues out, as these tests are of the model's evidence."""
    return Localizer(engine).look_for("none")


def evidence(localizer: Localizer, photos: Sequence[Path], threshold: float) -> tuple[float, ...]:
    """Of the strongest part of each, rising."""
    found = (find_parts(localizer(path).scores, threshold).found for path in photos)
    return tuple(sorted(parts[0].evidence if parts else 0.0 for parts in found))


def test_without_samples_only_the_untouched_are_new(tmp_path: Path) -> None:
    photos = reals(tmp_path, 120)
    localizer = alone(engine_of())
    outcome = calibration.measure(localizer, photos)
    assert outcome == calibration.Outcome(
        calibration=Calibration(
            temperature=1.0,
            threshold=0.4,
            untouched=(evidence(localizer, photos, 0.4), (), ()),
            photos=(120, 0, 0),
            mode="whole",
        )
    )
    assert np.std(outcome.calibration.untouched[0]) > 0.05


def test_a_planted_miscalibration_is_found(tmp_path: Path) -> None:
    photos, samples = reals(tmp_path, 40), fakes(tmp_path)
    outcome = calibration.measure(alone(engine_of()), photos, rates=(0.05,), samples=samples)
    found = outcome.calibration
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert (outcome.fakes, outcome.lost, found.photos) == (10, 0, (40, 0, 0))
    # All else is measured on scores of the new temperature.
    engine = engine_of(calibration=Calibration(temperature=found.temperature))
    localizer = alone(engine)
    made = [
        Calibration(
            temperature=found.temperature,
            threshold=threshold,
            untouched=(evidence(localizer, photos, threshold), (), ()),
            photos=(40, 0, 0),
            rates=(0.05,),
        )
        for threshold in calibration.THRESHOLDS
    ]
    pairs = [(localizer(sample.image).scores, read_mask(sample)) for sample in samples]
    assert found == calibration.fit_threshold(pairs, made)


def test_a_temperature_that_is_there_already_changes_nothing(tmp_path: Path) -> None:
    """What is refitted is the temperature of the logits, not a second one on top."""
    photos, samples = reals(tmp_path, 40), fakes(tmp_path)
    engine = engine_of(calibration=Calibration(temperature=2.5, threshold=0.1))
    fresh, again = (
        calibration.measure(alone(each), photos, rates=(0.05,), samples=samples) for each in (engine_of(), engine)
    )
    assert again.calibration.temperature == pytest.approx(fresh.calibration.temperature, rel=1e-3)
    assert again.calibration.threshold == fresh.calibration.threshold
    kept = calibration.measure(alone(engine), photos, rates=(0.05,)).calibration
    assert (kept.temperature, kept.threshold) == (2.5, 0.1)


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos, samples = reals(tmp_path, 30), fakes(tmp_path)
    sound = calibration.measure(alone(engine_of()), photos, rates=(0.05,), samples=samples)
    (tmp_path / "torn.png").write_bytes(photos[0].read_bytes()[:-60])
    again = tmp_path / "again.png"
    again.write_bytes(photos[3].read_bytes())
    given = [tmp_path / "torn.png", *photos, again, photos[5], tmp_path / "gone.png"]
    bad = [
        Sample(image=tmp_path / "gone.png", mask=samples[0].mask, label="fake"),
        Sample(image=samples[0].image, mask=tmp_path / "torn.png", label="fake"),
        Sample(image=samples[0].image, label="fake"),
    ]
    caplog.set_level(logging.WARNING)
    caplog.clear()
    real = Sample(image=photos[0], label="real")
    outcome = calibration.measure(alone(engine_of()), given, rates=(0.05,), samples=[*bad, real, *samples])
    assert outcome == dataclasses.replace(sound, unreadable=2, repeated=2, lost=3)
    left_out = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert len(left_out) == 5
    assert sum("torn.png" in line for line in left_out) == 2 and sum("gone.png" in line for line in left_out) == 2
    assert sum("a fake sample without a mask" in line for line in left_out) == 1


def test_the_guarantee_counts_only_what_was_read(tmp_path: Path) -> None:
    photos = reals(tmp_path, 19)
    assert calibration.measure(alone(engine_of()), photos, rates=(0.05,)).calibration.photos == (19, 0, 0)
    photos[4].write_text("no picture")
    with pytest.raises(
        DatasetError, match="cannot be guaranteed by 18 untouched photos of one size; it needs at least 19"
    ):
        calibration.measure(alone(engine_of()), photos, rates=(0.05,))


def test_too_few_photos_are_refused_before_any_is_localized(tmp_path: Path) -> None:
    engine = engine_of()
    photos = reals(tmp_path, 18)
    with pytest.raises(DatasetError, match="by 18 untouched photos of one size; it needs at least 19"):
        calibration.measure(alone(engine), photos * 3)
    for rates in ((), (0.05, 0.1, 0.2)):
        with pytest.raises(SpecError, match="expected one or two"):
            calibration.measure(alone(engine), photos, rates=rates)
    with pytest.raises(DatasetError, match="needs manipulated pictures"):
        calibration.measure(alone(engine), photos, rates=(0.1,), samples=[Sample(image=photos[0], label="real")])
    assert engine.batches == []


def test_few_photos_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = reals(tmp_path, 100)

    def said(count: int, rates: tuple[float, ...]) -> list[str]:
        caplog.clear()
        calibration.measure(alone(engine_of()), photos[:count], rates=rates)
        lines = [record.getMessage() for record in caplog.records]
        assert lines[-2:] == [
            f"photos {size} get no verdict: there are only 0 untouched photos" for size in ("0.5 to 3 MP", "over 3 MP")
        ]
        return lines[:-2]

    assert said(100, (0.05,)) == []
    assert said(99, (0.05,)) == ["only 99 untouched photos under 0.5 MP: a single calibration can be off"]
    assert said(40, (0.01, 0.05)) == [
        "photos under 0.5 MP are never called manipulated: 40 untouched photos support no rate below 2.4 %"
    ]


def test_pieces_of_large_photos_are_compared_with_as_well(tmp_path: Path) -> None:
    photos = reals(tmp_path, 20)
    large = save(tmp_path / "large.png", np.random.default_rng(3).integers(0, 200, (900, 1800), np.uint8))
    found = calibration.measure(alone(engine_of()), [*photos, large], rates=(0.05,), pieces=4).calibration
    assert found.photos == (20, 1, 0)
    assert [len(values) for values in found.untouched] == [20, 3, 0]  # the photo, and its halves


def test_limits_hold_for_what_is_cut_into_pieces(tmp_path: Path) -> None:
    photos = reals(tmp_path, 20)
    large = save(tmp_path / "large.png", np.random.default_rng(3).integers(0, 200, (900, 1800), np.uint8))
    limited = Localizer(engine_of(), max_pixels=900 * 1800 - 1).look_for("none")
    found = calibration.measure(limited, [*photos, large], rates=(0.05,), pieces=4)
    assert (found.calibration.photos, found.unreadable) == ((20, 0, 0), 1)


# --- files ----------------------------------------------------------------------------------------------------------


def words(results: Sequence[Localization]) -> list[str | None]:
    return [result.verdict for result in results]


def in_order(results: Sequence[Localization]) -> list[float]:
    found = (find_parts(result.scores, result.threshold).found for result in results)
    return [parts[0].evidence if parts else 0.0 for parts in found]


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_the_file_gives_verdicts(tiny_model: tuple[Path, Path], tmp_path: Path, position: int) -> None:
    source = tmp_path / tiny_model[position].name
    # Random weights: a low threshold, so that each map has a part of its own strength.
    with_spec(tiny_model[position], dataclasses.replace(open_engine(tiny_model[position]).spec, threshold=0.01), source)
    photos = reals(tmp_path / "photos", 60, size=100)
    assert words([declip.load(source)(photos[0])]) == [None]
    out = tmp_path / f"mine{source.suffix}"
    outcome = calibration.calibrate(source, photos, out, rates=(0.1, 0.05), clues=False)
    localizer = declip.load(out)
    assert localizer.spec == dataclasses.replace(open_engine(source).spec, calibration=outcome.calibration)
    assert localizer.sha256 == sha256_of(out) != sha256_of(source)
    assert outcome.calibration.mode == "tiled" and outcome.calibration.precision == "exact"
    results = [result for result in localizer.map(photos) if isinstance(result, Localization)]
    untouched = outcome.calibration.untouched[0]
    assert [result.score for result in results] == [outcome.calibration.rank(e, 0) for e in in_order(results)]
    # Of 60 photos the strongest two have at least 58 of 61 places below them, the next three 55; they differ.
    found = words(results)
    assert len(set(untouched)) == len(untouched) == 60
    assert (found.count("manipulated"), found.count("inconclusive")) == (2, 3)
    assert results[0].model == "mine"
    assert words([declip.load(out, mode="whole")(photos[0])]) == [None]
    calibration.calibrate(source, photos[:20], out, rates=(0.05,), mode="whole", clues=False, force=True)
    assert words([declip.load(out)(photos[0])]) == [None] != words([declip.load(out, mode="whole")(photos[0])])


def test_a_target_that_cannot_be_is_refused_first(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    with pytest.raises(WeightsError, match="expected a name that ends in"):
        calibration.calibrate(tiny_model[0], [], out)
    out.write_text("mine")
    with pytest.raises(DeclipError, match="exists"):
        calibration.calibrate(tiny_model[1], [], out)
    with pytest.raises(DatasetError, match="by 0 untouched photos of one size; it needs at least 19"):
        calibration.calibrate(tiny_model[1], [], out, force=True)
    assert out.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.skipif(not (MINI.is_file() and PHOTOS.is_dir()), reason="needs the embedded model and ../shared")
def test_mini_keeps_the_rates_over_200_splits_of_real_photos(tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    found = calibration.calibrate("mini", sorted(PHOTOS.iterdir()), out, clues=False).calibration
    # These are the photos that the embedded model was calibrated on.
    shipped = declip.load().spec.calibration
    assert shipped is not None
    assert (found.temperature, found.threshold) == (shipped.temperature, shipped.threshold)
    # It was also shown pieces of the large ones, which takes minutes: those count their photos among the middle ones.
    small_ones, middle, large = found.photos
    assert shipped.photos == (small_ones, middle + large, large)
    small = np.array(found.untouched[0])
    assert np.allclose(small, shipped.untouched[0], atol=1e-3)
    for rate in (0.05, 0.01):
        kept = 119
        rates = splits(small, rate, kept)
        assert np.mean(rates) <= rate + 3 * standard_error(rates)
