"""The measuring of tools/model_card.py, on outcomes whose figures are known."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from declip.regions import MaskRule
from declip.results import Localization
from declip.spec import BackboneSpec
from tests.tiny import tiled_spec

pytest.importorskip("cv2", reason="measuring needs declip[synthesis]")
pytest.importorskip("torch", reason="measuring needs declip[torch]")

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def card() -> Iterator[Any]:
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("model_card")
    finally:
        sys.path.remove(str(TOOLS))


class Constant:
    """The same scores for every picture."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self.scores = scores

    def map(self, images: Iterable[Any], batch_size: int = 8) -> Iterator[Localization]:
        for _ in images:
            yield Localization(
                name="", scores=self.scores, rule=MaskRule(threshold=0.5), image_score=0.5, model="constant", sha256=""
            )


def outcome(card: Any, scores: list[float], mask: list[bool], **fields: Any) -> Any:
    fields = {"kind": "telea", "group": "a", "half": "choose"} | fields
    case = card.Case(pixels=np.zeros((1, len(mask), 3), np.uint8), mask=np.array([mask]), **fields)
    (measured,) = card.measure(Constant(np.array([scores], np.float32)), [case])
    return measured


def test_counts_are_those_of_the_mask_at_every_threshold(card: Any) -> None:
    rng = np.random.default_rng(0)
    # Scores on the grid itself among them: a score equal to the threshold is in the mask.
    scores = np.append(rng.random(500, dtype=np.float32), card.THRESHOLDS)
    mask = rng.random(scores.size) < 0.3
    measured = outcome(card, scores.tolist(), mask.tolist())
    for index, threshold in enumerate([*card.THRESHOLDS, np.float32(0.5)]):
        flagged = scores >= threshold
        assert measured.hits[index] == np.count_nonzero(flagged & mask)
        assert measured.alarms[index] == np.count_nonzero(flagged & ~mask)
        union = np.count_nonzero(flagged | mask)
        assert measured.iou()[index] == pytest.approx(np.count_nonzero(flagged & mask) / union)
        assert measured.flagged()[index] == pytest.approx(flagged.mean())


def test_the_threshold_averages_kinds_not_pictures(card: Any) -> None:
    # Three pictures of one kind are best at 0.3 and lower, one of another kind by far at more than 0.6.
    low = [outcome(card, [0.3, 0.2], [True, False], group=group) for group in "abc"]
    high = outcome(card, [0.9, 0.6, 0.6, 0.6], [True, False, False, False], kind="blur")
    below, above = (float(card.THRESHOLDS[card.best_threshold(cases)]) for cases in (low, [high]))
    assert 0.2 < below <= 0.3 and 0.6 < above <= 0.9
    # 0.25: (1 + 1/4) / 2; 0.65: (0 + 1) / 2.
    assert 0.2 < card.THRESHOLDS[card.best_threshold([*low, high])] <= 0.3


def test_untouched_photos_push_the_threshold_up(card: Any) -> None:
    forged = [outcome(card, [0.8, 0.4, 0.1], [True, True, False])]
    clean = outcome(card, [0.5, 0.0, 0.0], [False, False, False], kind="as they are")
    assert 0.1 < card.THRESHOLDS[card.best_threshold(forged)] <= 0.4
    assert 0.5 < card.THRESHOLDS[card.best_threshold(forged, [clean])] <= 0.8
    always = outcome(card, [1.0, 0.0, 0.0], [False, False, False])
    assert card.best_threshold(forged, [always]) == len(card.THRESHOLDS) - 1


def test_the_interval_resamples_groups(card: Any) -> None:
    # One value per group: the interval of a mean of 100 has about ± 1.96 / √100 of the spread.
    values = np.random.default_rng(0).normal(5, 1, (100, 1))
    alone = card.interval(values, [str(number) for number in range(100)])
    assert alone["mean"] == pytest.approx(values.mean())
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.15)
    # The same values four times each in their group say no more.
    repeated = card.interval(np.repeat(values, 4, axis=0), [str(number // 4) for number in range(400)])
    assert repeated == pytest.approx(alone)


def test_the_mean_of_kinds_weighs_them_alike(card: Any) -> None:
    values = np.array([[1.0, np.nan], [1.0, np.nan], [np.nan, 0.0]])
    assert card.interval(values, ["a", "b", "c"])["mean"] == 0.5


def test_the_halves_are_fixed_and_even(card: Any) -> None:
    names = [f"photo-{number}.jpg" for number in range(400)]
    chosen = sum(card.half_of(name) == "choose" for name in names)
    assert 160 < chosen < 240
    assert [card.half_of(name) for name in ("kodak24-kodim04.png", "popos-ng-32703.jpg")] == ["report", "report"]


def test_a_calibrated_model_is_measured_at_its_own_threshold(card: Any) -> None:
    forged = [
        outcome(card, [0.6, 0.55, 0.3, 0.1], [True, False, False, False], half=half) for half in ("choose", "report")
    ]
    clean = [
        outcome(card, [0.1, 0.1, 0.1, 0.1], [False] * 4, kind="as they are", half=half) for half in ("choose", "report")
    ]
    own = card.summarise(forged, clean, [], [], calibrated=True)
    assert own["threshold"]["used"] == 0.5 and own["kinds"]["telea"]["iou"]["mean"] == 0.5
    chosen = card.summarise(forged, clean, [], [], calibrated=False)
    assert 0.55 < chosen["threshold"]["used"] <= 0.6 and chosen["kinds"]["telea"]["iou"]["mean"] == 1
    assert own["kinds"]["telea"]["prevalence"] == 0.25 and own["untouched"]["report"]["as they are"]["flagged"] == 0


def test_f1_and_iou_are_of_the_same_mask(card: Any) -> None:
    measured = outcome(card, [0.9, 0.8, 0.3, 0.1], [True, False, True, False])
    at = int(np.searchsorted(card.THRESHOLDS, 0.5))
    assert measured.iou()[at] == pytest.approx(1 / 3) and measured.f1()[at] == pytest.approx(0.5)
    assert measured.auc == pytest.approx(0.75)


def test_forged_and_original_pictures_are_told_apart_by_rank(card: Any) -> None:
    assert card.told_apart([0.9, 0.8], [0.1, 0.2])["mean"] == 1
    ties = card.told_apart([0.5] * 20, [0.5] * 20)
    assert (ties["mean"], ties["low"], ties["high"]) == (0.5, 0.5, 0.5)
    rng = np.random.default_rng(0)
    apart = card.told_apart((rng.normal(size=200) + 1).tolist(), rng.normal(size=200).tolist())
    assert apart["mean"] == pytest.approx(0.76, abs=0.03)  # Phi(1 / sqrt 2)
    assert 0.05 < apart["high"] - apart["low"] < 0.15


def _card(ap: float, free: float) -> dict[str, Any]:
    figures = {"ap": {"mean": ap}, "prevalence": 0.1}
    sets = ("casia1_subset", "psbattles_mantranet")
    return {
        "kinds": {"telea": {"iou": {"mean": 0.7}}, "copy-move": {"iou": {"mean": 0.2}}},
        "mean": {"iou": {"mean": 0.45}},
        "forged": {name: {"as they are": figures} for name in sets},
        "training_free": {"a": dict.fromkeys(sets, free), "b": dict.fromkeys(sets, 0.05)},
        "told apart": {"casia1_subset": {"mean": 0.6}},
        "sizes": {
            "as they are": [
                {"size": "under 0.5 MP", "pictures": 80, "manipulated": 2},
                {"size": "over 3 MP", "pictures": 49, "manipulated": 2},
            ]
        },
        "JPEG 75": {"pictures": 2, "iou": {"mean": 0.36}},
    }


def test_goals_are_measured_against_the_best_of_all_that_is_free(card: Any) -> None:
    rows = {row["goal"]: row for row in card.goals(_card(ap=0.5, free=0.3))}
    assert rows["mean IoU, all kinds"]["measured"] == 0.45 and not rows["mean IoU, all kinds"]["met"]
    assert rows["mean IoU, in-painting"]["measured"] == 0.7 and rows["mean IoU, in-painting"]["met"]
    gain = rows["AP over the best that needs no training, splices"]
    assert gain["measured"] == 0.2 and gain["met"]
    alarms = rows["untouched photos under 0.5 MP called manipulated, as they are"]
    assert alarms["measured"] == 0.025 and not alarms["met"]
    assert not any("over 3 MP" in goal for goal in rows)  # fewer than 50 photos show no rate
    assert rows["share of the IoU lost after JPEG 75"]["measured"] == 0.2
    # Where no map beats flagging everything, that is the floor.
    floor = {row["goal"]: row for row in card.goals(_card(ap=0.2, free=0.04))}
    assert floor["AP over the best that needs no training, splices"]["measured"] == 0.1


def test_multiplications_are_counted_per_256_px(card: Any) -> None:
    spec = tiled_spec(input_size=64, output_size=16, backbones=(BackboneSpec(name="residual-statistics", layer=0),))
    twice = dataclasses.replace(spec, input_size=128, output_size=32)
    found = card.macs(spec)
    assert found == pytest.approx(card.macs(twice), rel=1e-3)
    filters = (
        10 * 3 * 5 * 5 * 256 * 256 / 1e9
    )  # the greater part; a decoder of 8 channels on 64 × 64 positions is small
    assert filters < found < 1.2 * filters
