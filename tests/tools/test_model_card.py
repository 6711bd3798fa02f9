"""The measuring and drawing of tools/model_card.py, on scores whose figures are known."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
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


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("model_card")


class Redness:
    """Scores that are the red channel."""

    def map(self, images: Iterable[Any], batch_size: int = 8) -> Iterator[Localization]:
        return map(self, images)

    def __call__(self, pixels: NDArray[Any]) -> Localization:
        scores = pixels[..., 0].astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)
        return Localization(
            name="", scores=scores, rule=MaskRule(threshold=0.5), image_score=0.5, model="redness", sha256=""
        )


def outcome(card: Any, scores: Any, mask: list[bool], **fields: Any) -> Any:
    fields = {"kind": "telea", "group": "a", "half": "choose"} | fields
    pixels = np.repeat(np.array([scores], np.float32)[..., None], 3, axis=2)
    (measured,) = card.measure(Redness(), [card.Case(pixels=pixels, mask=np.array([mask]), **fields)])
    return measured


def test_counts_are_those_of_the_mask_at_every_threshold(card: Any) -> None:
    rng = np.random.default_rng(0)
    # Scores on the grid itself among them: a score equal to the threshold is in the mask.
    scores = np.append(rng.random(500, dtype=np.float32), card.THRESHOLDS)
    mask = rng.random(scores.size) < 0.3
    measured = outcome(card, scores, mask.tolist())
    for index, threshold in enumerate([*card.THRESHOLDS, np.float32(0.5)]):
        flagged = scores >= threshold
        assert measured.hits[index] == np.count_nonzero(flagged & mask)
        assert measured.alarms[index] == np.count_nonzero(flagged & ~mask)
        union = np.count_nonzero(flagged | mask)
        assert measured.iou()[index] == pytest.approx(np.count_nonzero(flagged & mask) / union)
        assert measured.flagged()[index] == pytest.approx(flagged.mean())
    small = outcome(card, [0.9, 0.8, 0.3, 0.1], [True, False, True, False])
    assert (small.iou()[-1], small.f1()[-1], small.auc) == (pytest.approx(1 / 3), 0.5, 0.75)


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


def test_the_interval_resamples_groups_and_weighs_kinds_alike(card: Any) -> None:
    one = outcome(card, [0.5], [True])

    def interval(values: Iterable[float], groups: Iterable[Any], kinds: str = "") -> dict[str, float]:
        rows = itertools.zip_longest(values, groups, kinds, fillvalue="a")
        found = [dataclasses.replace(one, ap=value, group=str(group), kind=kind) for value, group, kind in rows]
        return card.interval(found, lambda outcome: outcome.ap)

    # One value per group: the interval of a mean of 100 has about ± 1.96 / √100 of the spread.
    values = np.random.default_rng(0).normal(5, 1, 100)
    alone = interval(values, range(100))
    assert alone["mean"] == pytest.approx(values.mean())
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.15)
    # The same values four times each in their group say no more.
    assert interval(np.repeat(values, 4), (number // 4 for number in range(400))) == pytest.approx(alone)
    assert interval([1.0, 1.0, 0.0], "abc", "aab")["mean"] == 0.5


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
    outcomes = {"manipulated": forged, "untouched": clean, "forged/dev": [], "originals": [], "JPEG 75": []}
    own = card.summarise(outcomes, calibrated=True)
    assert own["threshold"]["used"] == 0.5 and own["kinds"]["telea"]["iou"]["mean"] == 0.5
    chosen = card.summarise(outcomes, calibrated=False)
    assert 0.55 < chosen["threshold"]["used"] <= 0.6 and chosen["kinds"]["telea"]["iou"]["mean"] == 1
    assert own["kinds"]["telea"]["prevalence"] == 0.25 and own["untouched"]["report"]["as they are"]["flagged"] == 0


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


# --- the pictures of the page ----------------------------------------------------------------------------------------


def case(card: Any, kind: str, group: str, red: int, **fields: Any) -> Any:
    """The left half is manipulated, and of this red; the rest is black."""
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[mask] = (red, 0, 0)
    return card.Case(kind=kind, group=group, half="report", pixels=pixels, mask=mask, **fields)


def test_robustness_is_the_mean_over_kinds_of_lossless_pictures(card: Any) -> None:
    cases = [
        case(card, "blur", "a", 255),
        case(card, "blur", "b", 255),
        case(card, "noise", "a", 100),
        case(card, "noise", "b", 255, jpeg=True),
    ]
    found = card.card_figures.robustness(Redness(), cases)
    assert found["pictures"] == 3
    assert list(found["kinds"]) == list(card.card_figures.DOSES)
    for kind, rows in found["kinds"].items():
        assert [row["level"] for row in rows] == [None, *card.card_figures.DOSES[kind][0]]
        # Of the two kinds one is seen wholly, the other orders its pixels rightly below the threshold.
        assert (rows[0]["ap"], rows[0]["iou"]) == (1.0, 0.5)
        assert all(0.4 < row["iou"] <= 0.5 for row in rows)
    # Noise reaches what is black: some of it outscores nothing of the mask, so that the order stays.
    assert found["kinds"]["noise"][-1]["ap"] == pytest.approx(1.0)
    figure = card.card_figures.robustness_figure(found)
    assert len(figure.axes) == len(card.card_figures.DOSES)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [100.0, 50.0]


def test_the_hardest_kinds_are_those_of_the_lowest_ap(card: Any) -> None:
    kinds = {name: {"ap": {"mean": ap}} for name, ap in zip("abcdef", (0.9, 0.2, 0.5, 0.1, 0.6, 0.3), strict=True)}
    assert card.card_figures.hardest(kinds) == ["d", "b", "f", "c"]


def test_misses_show_the_middling_picture_of_a_photo_that_may_be_shown(card: Any) -> None:
    cases = [
        case(card, "blur", "kodak24-1", 0),  # AP = the mask's share
        case(card, "blur", "kodak24-2", 255),
        case(card, "blur", "popos-3", 255),
        case(card, "blur", "flickr-4", 0),
        case(card, "blur", "kodak24-5", 0, jpeg=True),
    ]
    figure = card.card_figures.misses(Redness(), cases, ["blur", "noise"])
    assert len(figure.axes) == 4
    assert figure.axes[3].get_xlabel() == "AP 1.00"
