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
from declip.types import (
    BackboneSpec,
    Calibration,
    DecoderSpec,
    Localization,
    ModelSpec,
    Photo,
    Sample,
    check_several,
    flagged,
)

VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224.openai", layer=20)
RN50 = BackboneSpec(name="resnet50_clip_gap", layer=3, weights="openai", sha256="ab" * 32)
CALIBRATION = Calibration(
    temperature=1.5,
    mask_threshold=0.4,
    image_thresholds=((0.01, 0.8), (0.05, 0.6)),
    photos=170,
    mode="tiled",
    precision="fast",
)


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**({"backbones": (VIT,), "decoder": DecoderSpec(kind="conv-20")} | changes))


def localization(scores: Any, threshold: float = 0.5, peak: float = 0.0) -> Localization:
    return Localization(
        name="a.jpg",
        scores=np.asarray(scores, np.float32),
        threshold=threshold,
        peak=peak,
        score=0.25,
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
    ("fields", "message"),
    [
        ({"name": "", "layer": 0}, "needs a name"),
        ({"name": "vit", "layer": -1}, "layer is -1"),
        ({"name": "vit", "layer": 1.5}, "layer is 1.5"),
        ({"name": "vit.openai", "layer": 0, "weights": "laion"}, "two sets of weights"),
        ({"name": "residual-statistics", "layer": 1}, "layer 0 and no weights"),
        ({"name": "residual-statistics", "layer": 0, "weights": "openai"}, "layer 0 and no weights"),
    ],
)
def test_backbones_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BackboneSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "conv-8"}, "'conv-8'; expected one of 'linear'"),
        ({"kind": "linear", "widths": (8,)}, "takes no widths"),
        ({"kind": "conv-4", "widths": (8, 8)}, "4 levels"),
        ({"kind": "conv-4", "widths": (8, 8, 8, 0)}, "expected > 0"),
        ({"kind": "dilated"}, "dilated needs"),
        ({"kind": "dilated", "widths": (8,)}, "dilated needs"),
        ({"kind": "dilated", "widths": (8, 8), "stem": (4, 4)}, "three widths > 0, of a dilated decoder"),
        ({"kind": "linear", "stem": (4, 4, 4)}, "three widths > 0, of a dilated decoder"),
        ({"kind": "dilated", "widths": (8, 16, 8)}, "equal coarse ones"),
        ({"kind": "conv-4", "causal": True}, "attention decoder"),
    ],
)
def test_decoders_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DecoderSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"mask_threshold": 1.1}, "mask_threshold is 1.1"),
        ({"mask_peak": -0.1}, "mask_peak is -0.1"),
        ({"image_thresholds": ((0, 0.5),)}, "false-alarm rates"),
        ({"image_thresholds": ((0.05, 0.6), (0.01, 0.8))}, "rising order"),
        ({"mode": "half"}, "calibration mode is 'half'"),
        ({"precision": "int8"}, "calibration precision is 'int8'"),
    ],
)
def test_calibrations_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Calibration(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version is 2; this release reads 1"),
        ({"architecture": "unet"}, "architecture is 'unet'"),
        ({"backbones": ()}, "at least one backbone"),
        ({"input_size": 0}, "> 0"),
        ({"mean": (0.5, 0.5)}, "3 values"),
        ({"std": (1, 0, 1)}, "std > 0"),
        ({"threshold": -0.1}, r"threshold is -0\.1"),
        ({"mode": "cropped"}, "mode is 'cropped'"),
        ({"image_score": "max"}, "image_score is 'max'"),
        ({"mode": "tiled", "input_size": 256, "output_size": 64, "overlap": 256}, "overlap is 256"),
        ({"mode": "tiled", "input_size": 224, "output_size": 256}, "256 must divide input_size 224"),
    ],
)
def test_models_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**fields)


def test_a_calibration_replaces_threshold_and_temperature() -> None:
    assert (spec(threshold=0.7).mask_threshold, spec().temperature) == (0.7, 1.0)
    calibrated = spec(threshold=0.7, calibration=CALIBRATION)
    assert (calibrated.mask_threshold, calibrated.temperature) == (0.4, 1.5)


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


def test_descriptions_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().threshold = 0.1  # type: ignore[misc]


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


def test_samples_check_their_words() -> None:
    sample = Sample(image=Path("a.png"), label="fake")
    assert (sample.fake_is, sample.mask, sample.split) == ("white", None, "")
    with pytest.raises(SpecError, match="label is 'forged'"):
        Sample(image=Path("a.png"), label="forged")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="fake_is is 'grey'"):
        Sample(image=Path("a.png"), label="fake", fake_is="grey")  # type: ignore[arg-type]


# --- results --------------------------------------------------------------------------------------------------------


def test_mask_and_area_include_the_threshold_itself() -> None:
    result = localization([[0.5, 0.49], [0.51, 0.0]])
    assert result.mask.tolist() == [[True, False], [True, False]]
    assert result.mask.dtype == np.bool_
    assert result.area == 0.5


def test_with_a_peak_the_mask_holds_the_parts_that_reach_it() -> None:
    scores = np.zeros((6, 8), np.float32)
    scores[0:3, 0:3] = 0.5
    scores[1, 1] = 0.9
    scores[3, 3] = 0.5  # touches at a corner
    scores[0:3, 5:8] = 0.89
    result = localization(scores, threshold=0.5, peak=0.9)
    expected = np.zeros((6, 8), bool)
    expected[0:3, 0:3] = expected[3, 3] = True
    assert np.array_equal(result.mask, expected)
    assert (result.area, result.to_dict()["peak"]) == (10 / 48, 0.9)
    assert [region.bbox for region in result.regions] == [(0, 0, 4, 4)]
    # A peak that every part reaches, and one that none does.
    assert np.array_equal(flagged(scores, 0.5, 0.5), scores >= 0.5) and not flagged(scores, 0.5, 0.91).any()


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
    assert list(row) == [
        "image",
        "width",
        "height",
        "score",
        "verdict",
        "false_alarm_rate",
        "score_threshold",
        "threshold",
        "peak",
        "area",
        "regions",
        "model",
        "sha256",
        "seconds",
    ]
    again = json.loads(json.dumps(row))
    assert (again["width"], again["height"], again["area"], again["seconds"]) == (4, 2, 0.25, 1.5)
    assert again["regions"] == [{"bbox": [0, 0, 2, 1], "area": 0.25, "score": 0.75}]


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.81, ("manipulated", 0.01, 0.8)),
        (0.8, ("manipulated", 0.01, 0.8)),
        (0.79, ("inconclusive", 0.05, 0.6)),
        (0.6, ("inconclusive", 0.05, 0.6)),
        (0.59, ("nothing found", 0.05, 0.6)),
    ],
)
def test_verdicts_by_false_alarm_rate(score: float, expected: tuple[str, float, float]) -> None:
    assert CALIBRATION.verdict(score) == expected


def test_a_verdict_with_a_single_threshold_knows_no_doubt() -> None:
    single = Calibration(image_thresholds=((0.01, 0.8),))
    assert single.verdict(0.9)[0] == "manipulated"
    assert single.verdict(0.7) == ("nothing found", 0.01, 0.8)
    with pytest.raises(SpecError, match="no image thresholds"):
        Calibration().verdict(0.9)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_each_of_the_first_two_rates_has_its_word(count: int) -> None:
    rates = ((0.01, 0.9), (0.05, 0.8), (0.1, 0.7))[:count]
    words = ("manipulated", "inconclusive")[:count]
    steps = Calibration(image_thresholds=rates, photos=100, mode="tiled").steps()
    assert steps == tuple((word, *pair) for word, pair in zip(words, rates[:2], strict=True))


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
    one, other = (
        Localization(name="x", scores=np.zeros((9, 9), np.float32), threshold=0.5, score=0, model="m", sha256="")
        for _ in range(2)
    )
    assert one in [other, one] and one != other and len({one, other}) == 2
    assert "scores" not in repr(one) and "name='x'" in repr(one)


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
