"""The way of a photo: tiles without seams, scores by hand, batches that change nothing, bad files in their place."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from declip import load
from declip.engines import OnnxEngine
from declip.errors import ImageError, SpecError
from declip.localizer import Localizer
from declip.types import BackboneSpec, Calibration, DecoderSpec, Localization, ModelSpec


def spec(**fields: Any) -> ModelSpec:
    given: dict[str, Any] = {
        "backbones": (BackboneSpec(name="fake", layer=0),),
        "decoder": DecoderSpec(kind="linear"),
        "input_size": 64,
        "output_size": 16,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "mode": "tiled",
        "overlap": 16,
    }
    return ModelSpec(**{**given, **fields})


class FakeEngine:
    """Logits from brightness alone: constant, or the logit of the mean brightness under each output pixel."""

    model = "fake"
    sha256 = "0" * 64

    def __init__(self, spec: ModelSpec, constant: float | None = None) -> None:
        self.spec = spec
        self.constant = constant
        self.calls: list[int] = []

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        images = inputs["image"]
        assert images.dtype == np.float32
        self.calls.append(len(images))
        out = self.spec.output_size
        if self.constant is not None:
            return np.full((len(images), out, out), self.constant, np.float32)
        ratio = images.shape[-1] // out
        grey = images.mean(axis=1).reshape(len(images), out, ratio, out, ratio).mean(axis=(2, 4))
        grey = np.clip(grey, 1e-4, 1 - 1e-4)
        return np.log(grey / (1 - grey)).astype(np.float32)


SIZES = [(1, 1), (1, 5000), (5000, 1), (63, 64), (64, 64), (65, 64), (255, 257), (700, 300)]


@pytest.mark.parametrize("mode", ["whole", "tiled"])
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_response_leaves_no_grid(size: tuple[int, int], mode: Any) -> None:
    engine = FakeEngine(spec(), constant=0.7)
    result = Localizer(engine, mode=mode)(np.zeros((*size, 3), np.uint8))
    assert result.scores.shape == size
    assert result.scores.dtype == np.float32
    expected = 1 / (1 + np.exp(-0.7))
    assert np.abs(result.scores - expected).max() < 1e-6
    assert result.score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("overlap", [0, 16, 48])
def test_tiles_reproduce_a_picture_that_passes_through(overlap: int) -> None:
    y, x = np.mgrid[:203, :331]
    grey = np.rint(255 * (0.5 + 0.3 * np.sin(x / 41) + 0.15 * np.cos(y / 29))).astype(np.uint8)
    result = Localizer(FakeEngine(spec(overlap=overlap)))(np.repeat(grey[..., None], 3, axis=2))
    # Only the 4-px grid of the map is between the two; a seam would show as a step along a tile's edge.
    assert np.abs(result.scores - grey / 255).max() < 0.02


def test_a_photo_smaller_than_a_tile_is_one_tile() -> None:
    engine = FakeEngine(spec())
    Localizer(engine)(np.zeros((20, 30, 3), np.uint8))
    assert engine.calls == [1]


def test_image_scores_by_hand() -> None:
    pixels = np.full((64, 64, 3), 51, np.uint8)  # brightness 0.2
    pixels[:16] = 204  # 0.8 over a quarter
    mean = 0.25 * 0.8 + 0.75 * 0.2
    values = {
        name: Localizer(FakeEngine(spec(image_score=name)))(pixels).score for name in ("mean", "mean-logit", "top")
    }
    logit = np.log(0.8 / 0.2)
    assert values["mean"] == pytest.approx(mean, abs=1e-5)
    assert values["mean-logit"] == pytest.approx(1 / (1 + np.exp(-(0.25 * logit - 0.75 * logit))), abs=1e-5)
    # 1 % of 256 values is fewer than 64: the 64 highest are exactly the bright quarter.
    assert values["top"] == pytest.approx(0.8, abs=1e-5)


def test_padding_counts_in_no_score() -> None:
    pixels = np.full((20, 64, 3), 51, np.uint8)
    assert Localizer(FakeEngine(spec()))(pixels).score == pytest.approx(0.2, abs=1e-5)


def test_temperature_divides_the_logits() -> None:
    calibrated = spec(calibration=Calibration(temperature=2.0, mode="tiled"))
    result = Localizer(FakeEngine(calibrated, constant=3.0))(np.zeros((64, 64, 3), np.uint8))
    assert result.scores[0, 0] == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-6)


def test_verdicts_and_the_rates_they_stand_for() -> None:
    calibration = Calibration(mask_threshold=0.4, image_thresholds=((0.01, 0.7), (0.05, 0.5)), photos=170, mode="tiled")
    read = {}
    for grey in (204, 153, 51):
        localizer = Localizer(FakeEngine(spec(calibration=calibration)))
        result = localizer(np.full((64, 64, 3), grey, np.uint8))
        read[grey] = (result.verdict, result.false_alarm_rate, result.score_threshold, result.threshold)
    assert read[204] == ("manipulated", 0.01, 0.7, 0.4)
    assert read[153] == ("inconclusive", 0.05, 0.5, 0.4)
    assert read[51] == ("nothing found", 0.05, 0.5, 0.4)


def test_no_verdict_outside_the_calibration() -> None:
    calibration = Calibration(image_thresholds=((0.01, 0.7),), photos=170, mode="tiled")
    picture = np.full((64, 64, 3), 204, np.uint8)
    assert Localizer(FakeEngine(spec()))(picture).verdict is None
    assert Localizer(FakeEngine(spec(calibration=calibration)), mode="whole")(picture).verdict is None
    assert Localizer(FakeEngine(spec(calibration=calibration)), precision="fast")(picture).verdict is None
    assert Localizer(FakeEngine(spec(calibration=calibration)))(picture).verdict == "manipulated"


def test_path_bytes_pil_and_array_give_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    localizer = Localizer(FakeEngine(spec()))
    results = [localizer(source) for source in (path, str(path), path.read_bytes(), Image.open(path), pixels)]
    for result in results[1:]:
        assert np.array_equal(result.scores, results[0].scores)
        assert result.score == results[0].score
    assert results[0].name == str(path)


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_a_bad_file_keeps_its_place(mode: Any, tmp_path: Path) -> None:
    good = np.zeros((40, 40, 3), np.uint8)
    results = list(Localizer(FakeEngine(spec()), mode=mode).map([good, tmp_path / "none.jpg", good, b"text"], 3))
    assert [isinstance(result, Localization) for result in results] == [True, False, True, False]
    assert isinstance(results[1], ImageError)
    assert results[1].kind == "missing"
    with pytest.raises(ImageError, match=r"none\.jpg"):
        Localizer(FakeEngine(spec()), mode=mode)(tmp_path / "none.jpg")


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_map_reads_no_further_than_a_batch(mode: Any) -> None:
    taken = 0

    def pictures() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.zeros((64, 64, 3), np.uint8)

    results = Localizer(FakeEngine(spec()), mode=mode).map(pictures(), batch_size=4)
    for _ in range(5):
        next(results)
    assert taken <= 8


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_batch_size_and_order_change_no_score(mode: Any, tiny_model: tuple[Path, Path]) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((50, 80), (130, 64), (64, 64), (200, 90))]
    localizer = Localizer(OnnxEngine(tiny_model[1]), mode=mode)
    alone = [localizer(picture) for picture in pictures]
    for batch_size in (1, 3, 8):
        together = list(localizer.map(pictures, batch_size=batch_size))
        backwards = list(localizer.map(pictures[::-1], batch_size=batch_size))[::-1]
        for one, two, three in zip(alone, together, backwards, strict=True):
            assert isinstance(two, Localization)
            assert isinstance(three, Localization)
            assert np.abs(one.scores - two.scores).max() <= 1e-6
            assert np.abs(one.scores - three.scores).max() <= 1e-6
            assert abs(one.score - two.score) <= 1e-6


def test_two_threads_get_what_one_gets(tiny_model: tuple[Path, Path]) -> None:
    localizer = Localizer(OnnxEngine(tiny_model[1], threads=1))
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (100, 100, 3), dtype=np.uint8) for _ in range(4)]
    expected = [localizer(picture).scores for picture in pictures]
    found: dict[int, list[NDArray[np.float32]]] = {}

    def work(number: int) -> None:
        found[number] = [localizer(picture).scores for picture in pictures]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in found.values():
        for one, other in zip(scores, expected, strict=True):
            assert np.abs(one - other).max() <= 1e-6


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SpecError, match=r"threshold is 1\.5"):
        Localizer(FakeEngine(spec()), threshold=1.5)
    with pytest.raises(SpecError, match="batch_size is 0"):
        list(Localizer(FakeEngine(spec())).map([], batch_size=0))
    whole = spec(mode="whole", overlap=0, output_size=48)
    with pytest.raises(SpecError, match="cannot run tiled"):
        Localizer(FakeEngine(whole), mode="tiled")
    with pytest.raises(SpecError, match="'exact'"):
        load("whatever.onnx", precision="fast")


def test_an_upright_photo_is_what_is_localized(tmp_path: Path) -> None:
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, :48] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    result = Localizer(FakeEngine(spec()))(stream.getvalue())
    assert result.scores.shape == (96, 32)
    assert result.scores[:40].mean() > 0.7
    assert result.scores[56:].mean() < 0.1
