"""Calibration: the guarantee that thresholds give, the temperature that is recovered, the file that is written."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, special

import declip
from declip import calibration, image, metrics
from declip.engines import open_engine
from declip.errors import DatasetError, DeclipError, SpecError, WeightsError
from declip.localizer import Localizer
from declip.types import BackboneSpec, Calibration, DecoderSpec, Localization, ModelSpec, Precision, Sample, flagged
from declip.weights import sha256_of

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos" / "calibrate"
MINI = Path(declip.__file__).parent / "assets" / "mini.onnx"

# --- image thresholds -----------------------------------------------------------------------------------------------


def test_image_thresholds_take_the_conformal_rank() -> None:
    scores = np.arange(1, 100) / 100  # 99 photos: 1 % is the largest score, 5 % the fifth largest
    (one, at_one), (five, at_five) = calibration.image_thresholds(scores, (0.05, 0.01))
    assert (one, five) == (0.01, 0.05)
    assert at_one == np.nextafter(0.99, 1)
    assert at_five == np.nextafter(0.95, 1)


def test_a_rate_too_small_for_the_photos_is_refused() -> None:
    with pytest.raises(DatasetError, match="needs at least 99"):
        calibration.image_thresholds(np.linspace(0, 1, 98), (0.01,))
    assert calibration.image_thresholds(np.linspace(0, 1, 99), (0.01,)) == ((0.01, np.nextafter(1, 2)),)


@pytest.mark.parametrize("rates", [(0.0,), (1.0,), (5,), (-0.1,), (0.05, 0.05), (float("nan"),)])
def test_rates_that_are_none(rates: Sequence[float]) -> None:
    with pytest.raises(SpecError, match=r"expected distinct ones in \(0, 1\), as 0\.01 for 1 %"):
        calibration.image_thresholds(np.linspace(0, 1, 200), rates)


def test_a_score_that_is_undefined_is_refused() -> None:
    with pytest.raises(DatasetError, match="not finite"):
        calibration.image_thresholds([*np.linspace(0, 1, 200), float("nan")], (0.05,))


def splits(scores: NDArray[np.float64], rate: float, kept: int, seed: int = 0) -> NDArray[np.float64]:
    """Over 200 random splits: the share of the held-out scores that reach the threshold set on `kept` others."""
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(200):
        order = rng.permutation(len(scores))
        ((_, threshold),) = calibration.image_thresholds(scores[order[:kept]], (rate,))
        rates.append(np.mean(scores[order[kept:]] >= threshold))
    return np.array(rates)


def standard_error(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_false_alarm_rate_is_kept_over_200_splits(rate: float) -> None:
    scores = np.round(np.random.default_rng(0).beta(1, 8, 400), 2)  # with many ties
    assert len(np.unique(scores)) < 80
    found = splits(scores, rate, 170)
    # Guaranteed is the mean, and that within its own uncertainty.
    assert np.mean(found) <= rate + 3 * standard_error(found)
    assert np.mean(found) > rate / 5


@pytest.mark.parametrize(("rate", "rank"), [(0.01, 1), (0.05, 8), (0.2, 34)])
def test_without_ties_the_rate_is_what_the_rank_says(rate: float, rank: int) -> None:
    scores = np.random.default_rng(0).beta(1, 8, 400)
    found = splits(scores, rate, 170)
    assert np.mean(found) == pytest.approx(rank / 171, abs=3 * standard_error(found))


@pytest.mark.parametrize(("rate", "photos"), [(0.05, 25), (0.01, 170), (0.05, 170)])
def test_the_range_of_a_single_calibration_holds_nine_times_in_ten(rate: float, photos: int) -> None:
    rng = np.random.default_rng(0)
    low, high = calibration.false_alarm_range(rate, photos)
    true = []
    for _ in range(4000):
        ((_, threshold),) = calibration.image_thresholds(rng.random(photos), (rate,))
        true.append(1 - threshold)  # of uniform scores this share reaches it
    assert np.mean(np.less(true, low)) == pytest.approx(0.05, abs=0.012)
    assert np.mean(np.greater(true, high)) == pytest.approx(0.05, abs=0.012)


def test_the_range_gets_narrower_with_more_photos() -> None:
    widths = [high - low for low, high in (calibration.false_alarm_range(0.05, n) for n in (19, 99, 199, 1999))]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.02 < 0.1 < widths[0]
    with pytest.raises(DatasetError, match="needs at least 99"):
        calibration.false_alarm_range(0.01, 98)


# --- the rule of the mask --------------------------------------------------------------------------------------------


def test_the_rule_of_the_mask_is_that_of_the_best_mean_iou() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(3):
        mask = np.zeros((40, 50), bool)
        mask[8:20, 10:30] = True
        noise = ndimage.uniform_filter(rng.random(mask.shape), 3)
        pairs.append((np.clip(0.2 * mask + noise, 0, 1).astype(np.float32), mask))
    found = calibration.mask_rule(pairs, [])
    rules = [(t, p) for t in calibration.THRESHOLDS for p in calibration.STEPS if p >= t]
    rules += [(t, t) for t in calibration.STEPS]
    ious = {rule: np.mean([metrics.iou(flagged(s, *map(np.float32, rule)), m) for s, m in pairs]) for rule in rules}
    assert found[1] > found[0]
    assert ious[found] == max(ious.values()) > ious[found[0], found[0]]


def test_a_peak_drops_the_faint_parts_of_untouched_photos_and_keeps_the_outline() -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:12, 4:12] = True
    fake = np.where(mask, np.float32(0.5), np.float32(0.0))
    fake[6:8, 6:8] = 0.95
    real = np.zeros((20, 20), np.float32)
    real[2:9, 2:9] = 0.7
    assert calibration.mask_rule([(fake, mask)], [("as they are", real)]) == pytest.approx((0.1, 0.71))
    shown = flagged(fake, 0.1, 0.71)
    assert np.array_equal(shown, mask) and not flagged(real, 0.1, 0.71).any()


def test_the_mask_leaves_untouched_photos_alone() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    scores = np.where(mask, 0.4, 0.1).astype(np.float32)
    assert calibration.mask_rule([(scores, mask)], [])[1] <= 0.4
    reals = [("as they are", np.full((10, 10), 0.6, np.float32))]
    assert calibration.mask_rule([(scores, mask)], reals)[1] == pytest.approx(0.61)


def test_the_mask_holds_for_each_kind_of_untouched_photo() -> None:
    """One in thirty flagged is allowed in all, but not one in ten of those re-saved."""
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    fakes = [(np.where(mask, 0.4, 0.1).astype(np.float32), mask)]
    quiet, loud = np.zeros((10, 10), np.float32), np.full((10, 10), 0.6, np.float32)
    alike = [("as they are", s) for s in [quiet] * 29 + [loud]]
    assert calibration.mask_rule(fakes, alike)[1] <= 0.4
    apart = [("as they are", quiet)] * 20 + [("re-saved", s) for s in [quiet] * 9 + [loud]]
    assert calibration.mask_rule(fakes, apart)[1] == pytest.approx(0.61)


def test_the_mask_needs_fakes() -> None:
    with pytest.raises(DatasetError, match="needs manipulated pictures"):
        calibration.mask_rule([], [])


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


class FakeEngine:
    """Logits = 12 × normalised brightness, three times the log-odds that `fakes` draws its masks by."""

    spec = ModelSpec(
        backbones=(BackboneSpec(name="residual-statistics", layer=0),),
        decoder=DecoderSpec(kind="linear"),
        input_size=64,
        output_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        threshold=0.4,
    )
    model = "fake"
    sha256 = "00" * 32
    precision: Precision = "exact"

    def logits(self, inputs: Mapping[str, Any]) -> Any:
        return np.float32(12) * inputs["image"].mean(axis=1)


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
        image.write_mask(folder / f"mask-{i}.png", mask)
        samples.append(Sample(image=folder / f"fake-{i}.png", mask=folder / f"mask-{i}.png", label="fake"))
    return samples


def test_without_samples_only_the_image_thresholds_are_new(tmp_path: Path) -> None:
    photos = reals(tmp_path, 120)
    localizer = Localizer(FakeEngine())
    outcome = calibration.measure(localizer, photos)
    scores = [localizer(path).score for path in photos]
    assert outcome == calibration.Outcome(
        calibration=Calibration(
            temperature=1.0,
            mask_threshold=0.4,
            image_thresholds=calibration.image_thresholds(scores, (0.01, 0.05)),
            photos=120,
            mode="whole",
        ),
        scores=tuple(scores),
    )
    assert np.std(scores) > 0.05


def test_a_planted_miscalibration_is_found(tmp_path: Path) -> None:
    photos, samples = reals(tmp_path, 40), fakes(tmp_path)
    outcome = calibration.measure(Localizer(FakeEngine()), photos, rates=(0.05,), samples=samples)
    found = outcome.calibration
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert (outcome.fakes, outcome.lost, found.photos) == (10, 0, 40)
    # All else is measured on scores of the new temperature.
    engine = FakeEngine()
    engine.spec = dataclasses.replace(engine.spec, calibration=Calibration(temperature=found.temperature))
    localizer = Localizer(engine)
    results = [localizer(path) for path in photos]
    assert outcome.scores == tuple(result.score for result in results)
    assert found.image_thresholds == calibration.image_thresholds(outcome.scores, (0.05,))
    expected = calibration.mask_rule(
        [(localizer(sample.image).scores, image.read_mask(sample)) for sample in samples],
        [("as they are", result.scores) for result in results],
    )
    assert (found.mask_threshold, found.mask_peak) == expected != (0.4, 0.0)


def test_a_temperature_that_is_there_already_changes_nothing(tmp_path: Path) -> None:
    """What is refitted is the temperature of the logits, not a second one on top."""
    photos, samples = reals(tmp_path, 40), fakes(tmp_path)
    engine = FakeEngine()
    engine.spec = dataclasses.replace(engine.spec, calibration=Calibration(temperature=2.5, mask_threshold=0.1))
    fresh, again = (
        calibration.measure(Localizer(each), photos, rates=(0.05,), samples=samples) for each in (FakeEngine(), engine)
    )
    assert again.calibration.temperature == pytest.approx(fresh.calibration.temperature, rel=1e-3)
    assert again.calibration.mask_threshold == fresh.calibration.mask_threshold
    assert again.calibration.mask_peak == fresh.calibration.mask_peak
    kept = calibration.measure(Localizer(engine), photos, rates=(0.05,)).calibration
    assert (kept.temperature, kept.mask_threshold) == (2.5, 0.1)


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos, samples = reals(tmp_path, 30), fakes(tmp_path)
    sound = calibration.measure(Localizer(FakeEngine()), photos, rates=(0.05,), samples=samples)
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
    outcome = calibration.measure(Localizer(FakeEngine()), given, rates=(0.05,), samples=[*bad, real, *samples])
    assert outcome == dataclasses.replace(sound, unreadable=2, repeated=2, lost=3)
    left_out = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert len(left_out) == 5
    assert sum("torn.png" in line for line in left_out) == 2 and sum("gone.png" in line for line in left_out) == 2
    assert sum("a fake sample without a mask" in line for line in left_out) == 1


def test_the_guarantee_counts_only_what_was_read(tmp_path: Path) -> None:
    photos = reals(tmp_path, 19)
    assert calibration.measure(Localizer(FakeEngine()), photos, rates=(0.05,)).calibration.photos == 19
    photos[4].write_text("no picture")
    with pytest.raises(DatasetError, match="cannot be guaranteed by 18 photos; it needs at least 19"):
        calibration.measure(Localizer(FakeEngine()), photos, rates=(0.05,))


def test_too_few_photos_are_refused_before_any_is_localized(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.logits = None  # type: ignore[assignment,method-assign]
    photos = reals(tmp_path, 40)
    with pytest.raises(DatasetError, match="by 40 photos; it needs at least 99"):
        calibration.measure(Localizer(engine), photos * 3)
    for rates in ((), (0.05, 0.1, 0.2)):
        with pytest.raises(SpecError, match="expected one or two"):
            calibration.measure(Localizer(engine), photos, rates=rates)
    with pytest.raises(DatasetError, match="needs manipulated pictures"):
        calibration.measure(Localizer(engine), photos, rates=(0.05,), samples=[Sample(image=photos[0], label="real")])


def test_few_photos_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = reals(tmp_path, 100)
    calibration.measure(Localizer(FakeEngine()), photos, rates=(0.05,))
    assert not caplog.records
    calibration.measure(Localizer(FakeEngine()), photos[1:], rates=(0.05,))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["only 99 photos"]


def test_saturated_scores_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = reals(tmp_path / "photos", 98)
    photos += [save(tmp_path / f"white-{i}.png", np.full((64, 64 + i), 255, np.uint8)) for i in range(2)]
    engine = FakeEngine()
    engine.logits = lambda inputs: np.float32(100) * inputs["image"].mean(axis=1)  # type: ignore[method-assign]
    outcome = calibration.measure(Localizer(engine), photos)
    (_, strict), (_, loose) = outcome.calibration.image_thresholds
    assert sorted(outcome.scores)[-2:] == [1.0, 1.0] and strict > 1 > loose
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "no photo can reach the threshold at a false-alarm rate of 0.01"
    ]
    assert outcome.calibration.verdict(1.0)[0] == "inconclusive"


# --- files ----------------------------------------------------------------------------------------------------------


def words(results: Sequence[Localization]) -> list[str | None]:
    return [result.verdict for result in results]


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_the_file_gives_verdicts(tiny_model: tuple[Path, Path], tmp_path: Path, position: int) -> None:
    source = tiny_model[position]
    photos = reals(tmp_path / "photos", 60, size=100)
    assert words([declip.load(source)(photos[0])]) == [None]
    out = tmp_path / f"mine{source.suffix}"
    outcome = calibration.calibrate(source, photos, out, rates=(0.1, 0.05))
    localizer = declip.load(out)
    assert localizer.spec == dataclasses.replace(open_engine(source).spec, calibration=outcome.calibration)
    assert localizer.sha256 == sha256_of(out) != sha256_of(source)
    assert outcome.calibration.mode == "tiled" and outcome.calibration.precision == "exact"
    results = [result for result in localizer.map(photos) if isinstance(result, Localization)]
    assert [result.score for result in results] == list(outcome.scores)
    # Of 60 photos two are above the third largest score, five above the sixth; the scores differ.
    found = words(results)
    assert (found.count("manipulated"), found.count("inconclusive")) == (2, 3)
    assert len(set(outcome.scores)) == 60
    assert results[0].model == "mine"
    assert words([declip.load(out, mode="whole")(photos[0])]) == [None]


def test_the_mode_is_recorded(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    photos = reals(tmp_path / "photos", 20)
    out = tmp_path / "mine.onnx"
    assert calibration.calibrate(tiny_model[1], photos, out, rates=(0.05,), mode="whole").calibration.mode == "whole"
    assert words([declip.load(out)(photos[0])]) == [None]
    assert words([declip.load(out, mode="whole")(photos[0])]) != [None]


def test_a_target_that_cannot_be_is_refused_first(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    with pytest.raises(WeightsError, match="expected a name that ends in"):
        calibration.calibrate(tiny_model[0], [], out)
    out.write_text("mine")
    with pytest.raises(DeclipError, match="exists"):
        calibration.calibrate(tiny_model[1], [], out)
    with pytest.raises(DatasetError, match="by 0 photos; it needs at least 99"):
        calibration.calibrate(tiny_model[1], [], out, force=True)
    assert out.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.skipif(not (MINI.is_file() and PHOTOS.is_dir()), reason="needs the embedded model and ../shared")
def test_mini_keeps_the_rates_over_200_splits_of_real_photos(tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    outcome = calibration.calibrate("mini", sorted(PHOTOS.iterdir()), out)
    scores = np.array(outcome.scores)
    assert len(scores) == 170 and outcome.unreadable == outcome.repeated == 0
    # These are the photos that the embedded model was calibrated on.
    shipped = declip.load().spec.calibration
    assert shipped is not None
    assert outcome.calibration.temperature == shipped.temperature
    rules = [(found.mask_threshold, found.mask_peak) for found in (outcome.calibration, shipped)]
    assert rules[0] == rules[1]
    assert np.allclose(outcome.calibration.image_thresholds, shipped.image_thresholds, atol=1e-4)
    for rate, kept, rank in ((0.05, 85, 4), (0.05, 119, 6), (0.01, 119, 1)):
        found = splits(scores, rate, kept)
        assert np.mean(found) <= rate + 3 * standard_error(found)
        assert np.mean(found) == pytest.approx(rank / (kept + 1), abs=3 * standard_error(found))
