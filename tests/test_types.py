"""Types: validation, JSON round trip, regions, verdict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.errors import ImageError, SpecError
from declip.regions import MaskRule, find_parts
from declip.results import Localization, Photo, check_several
from declip.spec import BackboneSpec, Calibration, DecoderSpec, ModelSpec, Step

VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224.openai", layer=20)
RN50 = BackboneSpec(name="resnet50_clip_gap", layer=3, weights="openai", sha256="ab" * 32)
CALIBRATION = Calibration(
    temperature=1.5,
    threshold=0.4,
    untouched=(tuple(i / 100 for i in range(199)), tuple(i / 100 for i in range(40)), (0.1, 0.2)),
    photos=(199, 19, 2),  # of the middle size in pieces
    mode="tiled",
    precision="fast",
)


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**({"backbones": (VIT,), "decoder": DecoderSpec(kind="conv-20")} | changes))


def localization(scores: Any, threshold: float = 0.5, calibration: Calibration | None = None) -> Localization:
    return Localization(
        name="a.jpg",
        scores=np.asarray(scores, np.float32),
        rule=MaskRule(threshold=threshold, calibration=calibration),
        image_score=0.25,
        model="fake",
        sha256="00" * 32,
        seconds=1.5,
    )


# --- descriptions of models -----------------------------------------------------------------------------------------


def test_a_tag_in_the_name_becomes_the_weights() -> None:
    assert VIT.name == "vit_large_patch14_clip_quickgelu_224"
    assert VIT.weights == "openai"
    assert BackboneSpec(name="resnet50_clip_gap.openai", layer=3) == dataclasses.replace(RN50, sha256=None)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (BackboneSpec, {"name": "", "layer": 0}, "needs a name"),
        (BackboneSpec, {"name": "vit", "layer": -1}, "layer is -1"),
        (BackboneSpec, {"name": "vit", "layer": 1.5}, "layer is 1.5"),
        (BackboneSpec, {"name": "vit.openai", "layer": 0, "weights": "laion"}, "two sets of weights"),
        (BackboneSpec, {"name": "residual-statistics", "layer": 1}, "layer 0 and no weights"),
        (BackboneSpec, {"name": "residual-statistics", "layer": 0, "weights": "openai"}, "layer 0 and no weights"),
        (DecoderSpec, {"kind": "conv-8"}, "'conv-8'; expected one of 'linear'"),
        (DecoderSpec, {"kind": "linear", "widths": (8,)}, "takes no widths"),
        (DecoderSpec, {"kind": "conv-4", "widths": (8, 8)}, "4 levels"),
        (DecoderSpec, {"kind": "conv-4", "widths": (8, 8, 8, 0)}, "expected > 0"),
        (DecoderSpec, {"kind": "dilated"}, "dilated needs"),
        (DecoderSpec, {"kind": "dilated", "widths": (8,)}, "dilated needs"),
        (DecoderSpec, {"kind": "dilated", "widths": (8, 8), "stem": (4, 4)}, "three widths > 0, of a dilated decoder"),
        (DecoderSpec, {"kind": "linear", "stem": (4, 4, 4)}, "three widths > 0, of a dilated decoder"),
        (DecoderSpec, {"kind": "dilated", "widths": (8, 16, 8)}, "equal coarse ones"),
        (DecoderSpec, {"kind": "conv-4", "causal": True}, "attention decoder"),
        (Calibration, {"temperature": 0}, "temperature is 0"),
        (Calibration, {"threshold": 1.1}, "threshold is 1.1"),
        (Calibration, {"untouched": ((0.2, 0.1), (), ()), "photos": (2, 0, 0)}, "not in rising order"),
        (Calibration, {"untouched": ((0.1,), ())}, "have 2 and 3 classes; expected 3"),
        (Calibration, {"untouched": ((0.1,), (), ()), "photos": (2, 0, 0)}, "at most as many as there are values"),
        (Calibration, {"rates": (0, 0.05)}, r"expected one or two in \(0, 1\)"),
        (Calibration, {"rates": ()}, "expected one or two"),
        (Calibration, {"rates": (0.05, 0.01)}, "expected rising ones"),
        (Calibration, {"mode": "half"}, "calibration mode is 'half'"),
        (Calibration, {"precision": "int8"}, "calibration precision is 'int8'"),
        (spec, {"format_version": 2}, "format_version is 2; this release reads 1"),
        (spec, {"architecture": "unet"}, "architecture is 'unet'"),
        (spec, {"backbones": ()}, "at least one backbone"),
        (spec, {"input_size": 0}, "> 0"),
        (spec, {"mean": (0.5, 0.5)}, "3 values"),
        (spec, {"std": (1, 0, 1)}, "std > 0"),
        (spec, {"threshold": -0.1}, r"threshold is -0\.1"),
        (spec, {"mode": "cropped"}, "mode is 'cropped'"),
        (spec, {"image_score": "max"}, "image_score is 'max'"),
        (spec, {"mode": "tiled", "input_size": 256, "output_size": 64, "overlap": 256}, "overlap is 256"),
        (spec, {"mode": "tiled", "input_size": 224, "output_size": 256}, "256 must divide input_size 224"),
    ],
)
def test_descriptions_that_contradict_themselves(make: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make(**fields)


def test_a_calibration_replaces_threshold_and_temperature() -> None:
    assert (MaskRule.of(spec(threshold=0.7)), spec().temperature) == (MaskRule(threshold=0.7), 1.0)
    calibrated = spec(threshold=0.7, calibration=CALIBRATION)
    assert MaskRule.of(calibrated) == MaskRule(threshold=0.4, calibration=CALIBRATION) and calibrated.temperature == 1.5


@pytest.mark.parametrize(
    "model",
    [
        spec(),
        spec(backbones=(VIT, RN50), threshold=0.25),
        spec(
            backbones=(BackboneSpec(name="residual-statistics", layer=0),),
            decoder=DecoderSpec(kind="dilated", widths=(32, 16, 16)),
            input_size=256,
            output_size=64,
            mode="tiled",
            overlap=64,
            image_score="top",
            mean=(0, 0.1, 0.2),
            calibration=CALIBRATION,
        ),
        spec(decoder=DecoderSpec(kind="attention", causal=True)),
    ],
)
def test_json_round_trip(model: ModelSpec) -> None:
    text = model.to_json()
    assert "\n" not in text
    again = ModelSpec.from_json(text)
    assert again == model
    assert hash(again) == hash(model)  # lists became tuples again
    assert again.to_json() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not JSON"),
        ("[1]", "is a list"),
        ("{}", "needs at least one backbone"),
        ('{"decoder": {"colour": 1}}', "does not fit this release.*colour"),
        (json.dumps(json.loads(spec().to_json()) | {"colour": "red"}), "does not fit this release.*colour"),
        (json.dumps(json.loads(spec().to_json()) | {"format_version": 9}), "upgrade declip"),
    ],
)
def test_json_that_is_no_model(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(text)


# --- photos and samples ---------------------------------------------------------------------------------------------


def test_a_photo_says_its_size_as_height_and_width() -> None:
    assert Photo(pixels=np.zeros((2, 5, 3), np.uint8), name="a").size == (2, 5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 5), np.uint8),
        np.zeros((2, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((2, 5, 3), np.float32),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(pixels: Any) -> None:
    with pytest.raises(ImageError, match="expected uint8") as caught:
        Photo(pixels=pixels, name="bad.png")
    assert (caught.value.image, caught.value.kind) == ("bad.png", "input")


# --- results --------------------------------------------------------------------------------------------------------


def test_mask_and_area_include_the_threshold_itself() -> None:
    result = localization([[0.5, 0.49], [0.51, 0.0]])
    assert result.mask.tolist() == [[True, False], [True, False]]
    assert result.mask.dtype == np.bool_
    assert result.area == 0.5


def test_regions_are_8_connected_largest_first() -> None:
    scores = np.zeros((10, 20))
    scores[1:4, 2:6] = 0.75  # 12 px
    scores[4, 6] = 0.99  # touches it by a corner
    scores[8:10, 18:20] = [[0.5, 0.6], [0.7, 0.8]]  # 4 px in the corner of the photo
    first, second = localization(scores).regions
    assert first.bbox == (2, 1, 7, 5)
    assert first.area == 13 / 200
    assert first.score == pytest.approx((12 * 0.75 + 0.99) / 13)
    assert second.bbox == (18, 8, 20, 10)
    assert second.area == 0.02
    assert second.score == pytest.approx(0.65)


def test_the_score_of_a_region_leaves_out_what_only_shares_its_box() -> None:
    scores = np.zeros((7, 7))
    scores[0, :] = scores[:, 0] = 0.6  # an L around
    scores[4:, 4:] = 1.0  # another region, inside the L's box
    inside, around = sorted(localization(scores).regions, key=lambda region: region.area)
    assert (around.area, around.score) == (13 / 49, pytest.approx(0.6))
    assert (inside.bbox, inside.score) == ((4, 4, 7, 7), 1.0)


def test_small_regions_are_left_out_and_at_most_50_kept() -> None:
    specks = np.zeros((200, 100))
    specks[0, 0] = 1  # 1 of 20,000 px: below 0.01 %
    specks[10, 10:12] = 1  # exactly 0.01 %
    assert [region.bbox for region in localization(specks).regions] == [(10, 10, 12, 11)]
    dots = np.zeros((16, 16))
    dots[::2, ::2] = 1  # 64 single pixels
    assert len(localization(dots).regions) == 50
    assert localization(np.zeros((5, 5))).regions == ()


def test_to_dict_has_the_documented_keys_in_order_and_is_json() -> None:
    scores = np.zeros((2, 4))
    scores[0, :2] = 0.75
    row = localization(scores).to_dict()
    keys = (
        "image width height verdict score false_alarm_rate untouched not_examined area regions clues threshold "
        "image_score provenance notes pages page model sha256 mode precision seconds"
    )
    assert list(row) == keys.split()
    again = json.loads(json.dumps(row))
    assert (again["width"], again["height"], again["area"], again["seconds"]) == (4, 2, 0.25, 1.5)
    found = {"bbox": [0, 0, 2, 1], "area": 0.25, "score": 0.75, "rank": None, "verdict": None}
    own = {"clue": "model", "reason": None, "parts": [], "transform": None, "directed": False}
    assert again["regions"] == [found | own] and again["clues"] == []


# --- verdicts -------------------------------------------------------------------------------------------------------

LOUD, FAINT = 0.999, 0.9  # logits 6.9 and 2.2


def parts(*shares_and_scores: tuple[float, float]) -> Any:
    """A map of 100 × 100 px with parts of these shares and scores, in columns of their own."""
    scores = np.zeros((100, 100), np.float32)
    for number, (share, score) in enumerate(shares_and_scores):
        scores[: round(share * 1000), 20 * number : 20 * number + 10] = score
    return scores


def test_evidence_is_the_mean_height_above_the_threshold_times_root_of_the_share() -> None:
    (part,) = find_parts(parts((0.04, FAINT)), 0.5).found
    assert part.evidence == pytest.approx(np.log(9) * np.sqrt(0.04), rel=1e-5)
    assert (part.bbox, part.share, part.score) == ((0, 0, 10, 40), 0.04, pytest.approx(FAINT))
    lower = find_parts(parts((0.04, FAINT)), 0.2).found[0].evidence
    assert lower == pytest.approx((np.log(9) + np.log(4)) * np.sqrt(0.04), rel=1e-5)
    assert find_parts(np.ones((9, 9), np.float32), 1.0).found[0].evidence == 0


def test_mask_and_verdict_are_one_decision() -> None:
    """Of 199 untouched photos, 0.00 to 1.98, a part at 1.97 and more is in the last 1 %, at 1.9 in the last 5 %."""
    strong, middle, weak = (0.09, LOUD), (0.074, LOUD), (0.02, FAINT)  # evidence 2.07, 1.88, 0.31
    both = localization(parts(strong, middle, weak), 0.5, CALIBRATION)
    assert (both.verdict, both.score, both.false_alarm_rate, both.untouched) == ("manipulated", 199 / 200, 0.01, 199)
    assert [(region.verdict, region.bbox[0]) for region in both.regions] == [("manipulated", 0)]
    middle = (0.0765, LOUD)  # 1.91
    two = localization(parts(strong, middle, weak), 0.5, CALIBRATION)
    assert [(region.verdict, region.bbox[0]) for region in two.regions] == [("manipulated", 0), ("inconclusive", 20)]
    assert two.mask.sum() == 900 + 760 and not two.mask[:, 40:].any()
    doubt = localization(parts(middle, weak), 0.5, CALIBRATION)
    assert (doubt.verdict, doubt.false_alarm_rate, len(doubt.regions)) == ("inconclusive", 0.05, 1)
    assert 0.95 <= doubt.score < 0.99
    nothing = localization(parts(weak), 0.5, CALIBRATION)
    assert (nothing.verdict, nothing.area, nothing.regions, nothing.false_alarm_rate) == ("nothing found", 0, (), 0.05)
    assert nothing.score == 32 / 200 and not nothing.mask.any()
    empty = localization(np.zeros((100, 100)), 0.5, CALIBRATION)
    assert (empty.verdict, empty.score, empty.area) == ("nothing found", 0, 0)


def test_a_photo_is_compared_with_those_of_its_size() -> None:
    assert [Calibration.size_class(n) for n in (1, 499_999, 500_000, 3_000_000, 3_000_001)] == [0, 0, 1, 1, 2]
    scores = np.zeros((800, 1000), np.float32)
    scores[:250, :100] = FAINT  # evidence 0.39: in the last 5 % of 40, nothing among 199
    assert localization(scores, 0.5, CALIBRATION).verdict == "inconclusive"
    assert localization(scores[::2, ::2], 0.5, CALIBRATION).verdict == "nothing found"


def test_a_size_with_few_photos_gives_no_better_rate_than_these_allow() -> None:
    assert CALIBRATION.steps(0) == (Step("manipulated", 0.01), Step("inconclusive", 0.05))
    assert CALIBRATION.steps(1) == (Step("inconclusive", 0.05),)  # 1 / 20 by its photos, whatever the pieces
    assert CALIBRATION.steps(2) == ()
    ten = dataclasses.replace(CALIBRATION, untouched=((), (), tuple(map(float, range(10)))), photos=(0, 0, 10))
    assert ten.steps(2) == (Step("inconclusive", 1 / 11),)
    # Without a verdict for its size, a photo has its threshold's mask, as with a model that was never calibrated.
    large = np.zeros((2000, 2000), np.float32)
    large[:1000] = LOUD
    result = localization(large, 0.5, CALIBRATION)
    assert (result.verdict, result.score, result.area, result.untouched) == (None, 0.25, 0.5, None)


def test_what_is_out_of_scope_has_neither_verdict_nor_mask() -> None:
    scores = parts((0.09, LOUD))
    shown = dataclasses.replace(localization(scores, 0.5, CALIBRATION), out_of_scope="This is no photograph.")
    assert (shown.verdict, shown.score, shown.area, shown.regions) == ("not examined", None, 0, ())
    assert shown.not_examined == shown.to_dict()["not_examined"] == "This is no photograph."
    plain = dataclasses.replace(localization(scores, 0.4), out_of_scope="This is no photograph.")
    assert (plain.verdict, plain.not_examined, plain.area) == (None, None, 0.09)
    assert plain.to_dict()["notes"] == ["This is no photograph."] and shown.to_dict()["notes"] == []


def test_a_photo_prints_briefly_and_is_compared_by_identity() -> None:
    pixels = np.zeros((150, 200, 3), np.uint8)
    photo = Photo(pixels=pixels, name="x.jpg", data=bytes(1000))
    assert repr(photo) == "Photo(name='x.jpg', 150×200 px, 1000 bytes)"
    third = Photo(pixels=pixels, name="x.tif", pages=12, page=3)
    assert repr(third) == "Photo(name='x.tif', 150×200 px, 0 bytes, picture 3 of 12)"
    assert photo in [third, photo] and photo != third and {photo: 1}[photo] == 1
    with pytest.raises(ImageError, match="got picture 4 of 3; expected 1 to 3") as caught:
        Photo(pixels=pixels, name="x.tif", pages=3, page=4)
    assert caught.value.kind == "input"


def test_localizations_are_compared_by_identity() -> None:
    one, other = (localization(np.zeros((9, 9))) for _ in range(2))
    assert one in [other, one] and one != other and len({one, other}) == 2
    assert "scores" not in repr(one) and "name='a.jpg'" in repr(one)


ONE: tuple[Any, ...] = (
    "photo.jpg",
    b"\xff\xd8",
    bytearray(3),
    memoryview(b"abc"),
    Path("photo.jpg"),
    np.zeros((9, 9, 3), np.uint8),
    np.zeros((9, 9), np.uint8),
    np.array("photo.jpg"),
    Photo(pixels=np.zeros((9, 9, 3), np.uint8), name="x"),
    Image.new("RGB", (9, 9)),
    None,
    3,
)
SEVERAL: tuple[Any, ...] = (
    [],
    ["a"],
    ("a", b"b"),
    {"a"},
    iter("ab"),
    np.array(["a.jpg", "b.jpg"]),
    np.array([Path("a")], object),
    np.zeros((2, 9, 9, 3), np.uint8),
)


@pytest.mark.parametrize("one", ONE)
def test_one_thing_is_no_list_of_things(one: Any) -> None:
    with pytest.raises(ImageError, match=r"one thing, where several are expected; give a list: map\(\[…\]\)") as caught:
        check_several(one, "map([…])")
    assert caught.value.kind == "input" and len(str(caught.value)) < 200


@pytest.mark.parametrize("several", SEVERAL)
def test_lists_and_stacks_pass(several: Any) -> None:
    check_several(several, "map([…])")
