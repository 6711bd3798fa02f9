"""The way of a photo: whole or tiled, one or many; no seams, no grid, no picture in the way of another."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import declip
from declip import testing
from declip.errors import ImageError, SpecError, WeightsError
from declip.images.read import read_photo
from declip.images.tensors import resize_scores, to_input
from declip.localize import pipeline
from declip.localize.localizer import Localizer, load
from declip.models import resolve, respec
from declip.models.catalog import MODELS
from declip.nn import devices
from declip.regions import MaskRule
from declip.results import Localization, Photo
from declip.spec import Calibration
from declip.testing import Compute, FakeEngine

# Tiled, 256 px in, a map of 64; pictures reach the engine in [0, 1].
UNSCALED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SPEC = dataclasses.replace(testing.SPEC, input_size=256, output_size=64, mode="tiled", overlap=64, **UNSCALED)


def engine_of(compute: Compute, **fields: Any) -> FakeEngine:
    return FakeEngine(dataclasses.replace(SPEC, **fields), compute)


def noted(compute: Compute, seen: list[NDArray[np.float32]]) -> Compute:
    """The same, and every batch is kept in seen."""

    def note(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(batch)
        return compute(batch)

    return note


def to_logits(scores: NDArray[Any]) -> NDArray[np.float32]:
    scores = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(scores / (1 - scores)).astype(np.float32)


def constant(score: float, out: int = 64) -> Compute:
    return lambda batch: np.full((len(batch), out, out), to_logits(np.array(score)), np.float32)


def brightness(out: int) -> Compute:
    """Scores that are the mean brightness of the pixels they stand for."""

    def compute(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        ratio = batch.shape[-1] // out
        return to_logits(batch.mean(1).reshape(len(batch), out, ratio, out, ratio).mean((2, 4)))

    return compute


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def waves(height: int, width: int) -> NDArray[np.uint8]:
    """A smooth picture, different everywhere."""
    y, x = np.mgrid[:height, :width]
    level = 127 + 80 * np.sin(x / 37 + 0.3) * np.cos(y / 53) + 40 * np.sin((x + 2 * y) / 101)
    return np.repeat(level.astype(np.uint8)[:, :, None], 3, axis=2)


SIZES = [(1, 1), (1, 5000), (5000, 1), (2, 3), (255, 255), (256, 256), (257, 257), (256, 257), (449, 450), (700, 300)]

# ── tiled ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_constant_model_yields_no_grid(size: tuple[int, int]) -> None:
    result = Localizer(engine_of(constant(0.3)))(noise(*size))
    assert result.scores.shape == size
    assert result.scores.dtype == np.float32
    assert float(np.abs(result.scores - 0.3).max()) < 1e-6
    assert result.score == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "tiles"),
    # Steps of 192 px, the last window flush with the end.
    [((1, 1), 1), ((256, 256), 1), ((257, 256), 2), ((448, 448), 4), ((449, 448), 6), ((700, 300), 8), ((1, 5000), 26)],
)
def test_windows_cover_the_photo_with_the_overlap_they_should(size: tuple[int, int], tiles: int) -> None:
    engine = engine_of(constant(0.3))
    Localizer(engine)(noise(*size))
    assert sum(engine.batches) == tiles


@pytest.mark.parametrize(
    ("size", "out", "overlap"), [(256, 64, 64), (256, 256, 0), (96, 32, 20), (64, 4, 30), (96, 4, 0)]
)
def test_every_pixel_lands_where_it_was(size: int, out: int, overlap: int) -> None:
    """The model that answers with the brightness draws the photo, as if it had been seen in one piece."""
    ratio = size // out
    pixels = waves(8 * ratio + 500, 12 * ratio + 333)
    engine = engine_of(brightness(out), input_size=size, output_size=out, overlap=overlap)
    result = Localizer(engine)(pixels)
    height, width = pixels.shape[:2]
    cells = (-(-height // ratio), -(-width // ratio))
    padded = np.pad(pixels, ((0, cells[0] * ratio - height), (0, cells[1] * ratio - width), (0, 0)), mode="reflect")
    means = padded.mean(2).reshape(cells[0], ratio, cells[1], ratio).mean((1, 3)).astype(np.float32) / 255
    expected = resize_scores(means, (cells[0] * ratio, cells[1] * ratio))[:height, :width]
    assert float(np.abs(result.scores - expected).max()) < 1e-5
    if ratio <= 4:
        assert float(np.abs(result.scores - pixels[:, :, 0] / 255).max()) < 0.03
    assert sum(engine.batches) >= 4


def test_windows_that_disagree_are_blended_smoothly() -> None:
    """Every second tile says 0.2, the others 0.8: the scores cross over within the overlap, without a step."""
    turn: Iterator[int] = iter(range(1000))

    def compute(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        levels = np.array([0.2 if next(turn) % 2 else 0.8 for _ in batch])
        return np.broadcast_to(to_logits(levels)[:, None, None], (len(batch), 64, 64))

    scores = Localizer(engine_of(compute))(noise(900, 1100)).scores
    assert float(scores.min()) == pytest.approx(0.2, abs=1e-4)
    assert float(scores.max()) == pytest.approx(0.8, abs=1e-4)
    # The steepest slope of half a cosine of height 0.6 over 64 px.
    steepest = 0.6 * np.pi / 2 / 64
    for axis in (0, 1):
        assert float(np.abs(np.diff(scores, axis=axis)).max()) <= 1.2 * steepest


def test_a_small_photo_is_padded_by_reflection_and_the_padding_does_not_count() -> None:
    def compute(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = np.full((len(batch), 64, 64), 4.0, np.float32)
        logits[:, :25, :30] = -2.0  # 100 × 120 px of 4 × 4
        return logits

    batches: list[NDArray[np.float32]] = []
    pixels = noise(100, 120)
    result = Localizer(engine_of(noted(compute, batches)))(pixels)
    seen = batches[0][0] * 255
    np.testing.assert_allclose(seen[:, :100, :120], pixels.transpose(2, 0, 1), atol=1e-4)
    np.testing.assert_allclose(seen[:, 100:199, :120], pixels.transpose(2, 0, 1)[:, 98::-1], atol=1e-4)
    np.testing.assert_allclose(seen[:, :100, 120:239], pixels.transpose(2, 0, 1)[:, :, 118::-1], atol=1e-4)
    assert result.score == pytest.approx(1 / (1 + np.exp(2.0)), abs=1e-6)
    assert float(result.scores.max()) == pytest.approx(1 / (1 + np.exp(2.0)), abs=1e-6)


def test_a_line_of_pixels_is_padded_by_its_edge() -> None:
    batches: list[NDArray[np.float32]] = []
    pixels = noise(1, 300)
    Localizer(engine_of(noted(constant(0.5), batches)))(pixels)
    seen = batches[0][0] * 255
    np.testing.assert_allclose(seen, np.repeat(pixels[:, :256].transpose(2, 0, 1), 256, axis=1), atol=1e-4)


def test_the_overlap_of_a_whole_model_run_tiled_is_a_quarter() -> None:
    engine = engine_of(constant(0.3), mode="whole", overlap=0)
    Localizer(engine, mode="tiled")(noise(256, 449))
    assert sum(engine.batches) == 3  # 0, 192, 193


# ── whole ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_whole_squashes_the_photo_and_scores_it_at_its_own_size(size: tuple[int, int]) -> None:
    batches: list[NDArray[np.float32]] = []
    engine = engine_of(noted(constant(0.7), batches), mode="whole")
    pixels = noise(*size)
    result = Localizer(engine)(pixels)
    assert sum(engine.batches) == 1
    np.testing.assert_array_equal(batches[0][0], to_input(pixels, engine.spec))
    assert result.scores.shape == size
    assert float(np.abs(result.scores - 0.7).max()) < 1e-6


def test_whole_maps_follow_the_photo() -> None:
    pixels = waves(600, 400)
    result = Localizer(engine_of(brightness(64), mode="whole"))(pixels)
    assert float(np.abs(result.scores - pixels[:, :, 0] / 255).max()) < 0.05


def test_the_temperature_divides_the_logits() -> None:
    calibration = Calibration(temperature=2.0)
    compute: Compute = lambda batch: np.full((len(batch), 64, 64), 3.0, np.float32)  # noqa: E731
    for mode in ("whole", "tiled"):
        result = Localizer(engine_of(compute, mode=mode, calibration=calibration))(noise(80, 90))
        assert float(result.scores[5, 5]) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-6)


# ── the image's score, the threshold, the verdict ───────────────────────────────────────────────────────────────────


def fixed(scores: NDArray[Any]) -> Compute:
    return lambda batch: np.broadcast_to(to_logits(scores), (len(batch), *scores.shape))


def with_high(count: int, side: int) -> NDArray[np.float64]:
    """`count` scores of 0.9 among 0.1."""
    flat = np.full(side * side, 0.1)
    flat[:count] = 0.9
    return flat.reshape(side, side)


@pytest.mark.parametrize("mode", ["whole", "tiled"])
@pytest.mark.parametrize(
    ("kind", "side", "high", "expected"),
    [
        ("mean", 16, 64, 0.3),  # (64 · 0.9 + 192 · 0.1) / 256
        ("top", 16, 64, 0.9),  # at least 64 values, all of them high
        ("top", 16, 32, 0.5),  # half of the 64
        ("top", 16, 0, 0.1),
        ("top", 128, 82, 0.5),  # 1 % of 16,384 are 164
        ("top", 128, 164, 0.9),
        ("mean-logit", 16, 128, 0.5),  # ± the same logit
        ("mean-logit", 16, 64, 0.25),  # half of logit(0.1): 1 / (1 + 9 ** 0.5)
    ],
)
def test_image_scores_by_hand(mode: str, kind: str, side: int, high: int, expected: float) -> None:
    fields = {"input_size": 128, "output_size": side, "overlap": 32, "mode": mode, "image_score": kind}
    result = Localizer(engine_of(fixed(with_high(high, side)), **fields))(noise(128, 128))
    assert result.score == pytest.approx(expected, abs=1e-5)


def test_the_score_of_a_photo_of_fewer_than_64_values_is_their_mean() -> None:
    result = Localizer(engine_of(constant(0.3), image_score="top"))(noise(9, 10))
    assert result.score == pytest.approx(0.3, abs=1e-6)


def test_the_mean_logit_is_divided_by_the_temperature_like_every_logit() -> None:
    logits = np.zeros((1, 16, 16), np.float32)
    logits[:, :8] = 4.0
    for mode in ("whole", "tiled"):
        fields = {"input_size": 64, "output_size": 16, "overlap": 16, "mode": mode, "image_score": "mean-logit"}
        engine = engine_of(lambda _: logits, calibration=Calibration(temperature=4.0), **fields)
        assert Localizer(engine)(noise(64, 64)).score == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)


# Of a constant map the evidence is how far its logit lies above the threshold's: 0.85 of 0.5, 2.2 of 0.8, 3.1 of 0.9.
CALIBRATION = Calibration(
    threshold=0.3,
    untouched=(tuple(sorted((0.0,) * 190 + (2.0,) * 9)), (), ()),
    photos=(199, 0, 0),
    mode="tiled",
    precision="exact",
)


@pytest.mark.parametrize(
    ("score", "verdict", "rank", "rate", "area"),
    [
        (0.9, "manipulated", 0.995, 0.01, 1.0),
        (0.7, "inconclusive", 0.95, 0.05, 1.0),
        (0.2, "nothing found", 0.0, 0.05, 0.0),
    ],
)
def test_a_verdict_needs_a_calibration_of_this_very_mode_and_precision(
    score: float, verdict: str, rank: float, rate: float, area: float
) -> None:
    engine = engine_of(constant(score), calibration=CALIBRATION)
    result = Localizer(engine)(noise(80, 80))
    assert (result.verdict, result.score, result.false_alarm_rate, result.area) == (verdict, rank, rate, area)
    assert (result.threshold, result.model, result.sha256, result.untouched) == (0.3, "fake", "0" * 64, 199)
    fast = engine_of(constant(score), calibration=CALIBRATION)
    fast.precision = "fast"
    bare = Calibration(threshold=0.3, mode="tiled")
    for other in (
        Localizer(engine, mode="whole"),
        Localizer(engine, threshold=0.3),
        Localizer(fast),
        Localizer(engine_of(constant(score))),
        Localizer(engine_of(constant(score), calibration=bare)),
    ):
        result = other(noise(80, 80))
        assert (result.verdict, result.false_alarm_rate, result.untouched) == (None, None, None)
        assert result.score == result.image_score == pytest.approx(score, abs=1e-6)
        assert result.area == float(score >= result.threshold)


def test_a_threshold_of_one_s_own_makes_the_mask() -> None:
    engine = engine_of(brightness(64), calibration=CALIBRATION)
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:128] = 140  # 0.549
    assert Localizer(engine)(pixels).area == pytest.approx(0.5, abs=0.01)
    assert Localizer(engine, threshold=0.6)(pixels).area == 0
    assert Localizer(engine, threshold=0.0)(pixels).area == 1
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(SpecError, match="threshold is"):
            Localizer(engine, threshold=threshold)


def test_a_map_that_does_not_divide_its_input_cannot_run_tiled() -> None:
    engine = engine_of(constant(0.5), input_size=224, output_size=256, mode="whole", overlap=0)
    with pytest.raises(
        SpecError, match=r"fake cannot run tiled: its map of 256 px does not divide its input of 224 px"
    ):
        Localizer(engine, mode="tiled")


# ── pictures in, results out ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["tiled", "whole"])
def test_path_bytes_pil_and_array_are_one_picture(tiny_model: tuple[Path, Path], mode: Any, tmp_path: Path) -> None:
    localizer = load(tiny_model[1], mode=mode)
    pixels = waves(90, 151)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as opened:
        forms = [path, str(path), path.read_bytes(), opened, Image.fromarray(pixels), pixels, read_photo(path)]
        results = [localizer(form) for form in forms]
    assert results[0].scores.shape == (90, 151)
    assert float(results[0].scores.std()) > 1e-4
    for result in results[1:]:
        np.testing.assert_array_equal(result.scores, results[0].scores)
        assert result.score == results[0].score
    assert [r.name for r in results[:2]] == [str(path)] * 2


@pytest.mark.parametrize("mode", ["tiled", "whole"])
def test_batch_size_and_order_change_no_score(tiny_model: tuple[Path, Path], mode: Any) -> None:
    localizer = load(tiny_model[1], mode=mode, threads=1)
    pictures = [noise(60 + 17 * i, 150 - 11 * i, seed=i) for i in range(7)]
    alone = [localizer(picture) for picture in pictures]
    runs = [list(localizer.map(pictures, batch_size=n)) for n in (1, 2, 3, 8)]
    runs.append(list(localizer.map(pictures[::-1], batch_size=3))[::-1])
    for run in runs:
        for result, expected in zip(run, alone, strict=True):
            assert isinstance(result, Localization)
            assert float(np.abs(result.scores - expected.scores).max()) <= 1e-6
            assert abs(result.score - expected.score) <= 1e-6


@pytest.mark.parametrize("mode", ["tiled", "whole"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_bad_file_is_yielded_in_its_place(mode: Any, batch_size: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(waves(64, 64)).save(buffer, "JPEG")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(buffer.getvalue()[:-200])
    (tmp_path / "note.png").write_text("no picture")
    pictures = [waves(20, 30), tmp_path / "absent.jpg", torn, tmp_path / "note.png", waves(40, 50), 7]
    localizer = Localizer(engine_of(constant(0.3), mode=mode))
    results = list(localizer.map(pictures, batch_size=batch_size))
    kinds = [r.kind if isinstance(r, ImageError) else r.scores.shape for r in results]
    assert kinds == [(20, 30), "missing", "corrupt", "format", (40, 50), "input"]
    with pytest.raises(ImageError, match=r"torn\.jpg"):
        localizer(torn)


@pytest.mark.parametrize("mode", ["whole", "tiled"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("CUDA out of memory.")])
def test_what_the_memory_does_not_hold_costs_one_photo(mode: Any, error: Exception) -> None:
    def limited(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(inputs) > 2 or (inputs == 1).all():
            raise error
        return inputs[:, 0, ::4, ::4]

    photos = [np.full((256, 256, 3), value, np.uint8) for value in (30, 255, 90, 60)]
    localizer = Localizer(engine_of(limited), mode=mode)
    found = list(localizer.map(photos, batch_size=4))
    assert [getattr(result, "kind", None) for result in found] == [None, "too-large", None, None]
    alone = [localizer(photos[i]) for i in (0, 2, 3)]
    assert [result.score for result in found if isinstance(result, Localization)] == [r.score for r in alone]
    with pytest.raises(ImageError, match="not enough memory for this picture") as caught:
        localizer(photos[1])
    assert isinstance(caught.value.__cause__, MemoryError)


def test_a_photo_that_cannot_be_read_for_want_of_memory_is_yielded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_photo

    def limited(source: Any, **options: Any) -> Photo:
        if isinstance(source, str):
            raise MemoryError
        return read(source, **options)

    monkeypatch.setattr("declip.localize.localizer.read_photo", limited)
    first, second = Localizer(engine_of(constant(0.5))).map(["large.png", waves(300, 300)])
    assert isinstance(first, ImageError) and (first.image, first.kind) == ("large.png", "too-large")
    assert isinstance(second, Localization)


@pytest.mark.parametrize("mode", ["whole", "tiled"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_of_that_photo_alone(mode: Any, value: float) -> None:
    """-inf would be scores of 0: a map on which nothing is found."""

    def broken(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = inputs[:, 0, ::4, ::4].copy()
        logits[(inputs == 1).all(axis=(1, 2, 3)), 0, 0] = value
        return logits

    photos = [np.full((300, 256, 3), value, np.uint8) for value in (30, 255, 90)]
    localizer = Localizer(engine_of(broken), mode=mode)
    first, second, third = localizer.map(photos, batch_size=4)
    assert isinstance(first, Localization) and isinstance(third, Localization)
    assert isinstance(second, ImageError) and second.kind == "internal"
    assert second.message.startswith("the network's logits are not finite (nan or inf), so there is no map")
    with pytest.raises(ImageError, match="not finite"):
        localizer(photos[1])


def test_an_engine_that_fails_otherwise_is_not_called_short_of_memory() -> None:
    def broken(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Localizer(engine_of(broken))(waves(300, 300))


def test_nothing_but_bad_files_reaches_no_engine(tmp_path: Path) -> None:
    engine = engine_of(constant(0.3), mode="whole")
    results = list(Localizer(engine).map([tmp_path / "a.jpg", tmp_path / "b.jpg"]))
    assert [isinstance(r, ImageError) for r in results] == [True, True]
    assert engine.batches == []
    assert list(Localizer(engine).map([])) == []


@pytest.mark.parametrize("mode", ["tiled", "whole"])
def test_map_reads_no_further_than_two_batches_ahead(mode: Any) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield noise(30, 30, taken)

    engine = engine_of(constant(0.3), mode=mode)
    results = Localizer(engine).map(endless(), batch_size=4)
    assert taken == 0
    for done in range(1, 11):
        next(results)
        assert done <= taken <= -(-done // 4) * 4 + 8
    results.close()
    before = taken
    time.sleep(0.05)
    assert taken == before  # nothing goes on reading
    assert set(engine.batches) == {4}
    # The engine never sees more than a batch at once either.
    list(Localizer(engine).map([noise(700, 700)], batch_size=4))
    assert max(engine.batches) <= 4
    with pytest.raises(SpecError, match="batch_size is 0; expected >= 1"):
        next(Localizer(engine).map([noise(9, 9)], batch_size=0))


def test_limits_travel_with_the_localizer() -> None:
    small = Localizer(engine_of(constant(0.3)), max_pixels=80, max_bytes=200)
    first, second, third = small.map([noise(9, 9), noise(8, 10), bytes(201)])
    assert isinstance(first, ImageError) and isinstance(third, ImageError) and isinstance(second, Localization)
    assert (first.kind, third.kind) == ("too-large", "too-large")
    assert "at most 80 pixels are read (--max-megapixels or max_pixels raises the limit)" in str(first)
    assert "at most 200 bytes are read (--max-megabytes or max_bytes raises the limit)" in str(third)
    with pytest.raises(ImageError, match="at most 80"):
        small(noise(9, 9))
    with pytest.raises(SpecError, match="max_pixels is 0"):
        Localizer(engine_of(constant(0.3)), max_pixels=0)
    loaded = load(max_pixels=5000, max_bytes=9000, threads=1)
    for other in (
        loaded.variant(mode="whole"),
        loaded.variant(engine=small.engine),
        pickle.loads(pickle.dumps(loaded)),
    ):
        assert (other.max_pixels, other.max_bytes) == (5000, 9000)


def test_photos_seen_whole_are_read_and_finished_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for another one that is read, or finished, at the same time."""
    pool = ThreadPoolExecutor(4)
    monkeypatch.setattr(pipeline, "cores", lambda: 2)
    monkeypatch.setattr(pipeline, "threads", lambda: pool)
    readers, finishers = threading.Barrier(2), threading.Barrier(2)
    read, resize = read_photo, resize_scores

    def read_together(picture: Any, **limits: Any) -> Any:
        readers.wait(20)
        return read(picture, **limits)

    def resize_together(*given: Any, **named: Any) -> Any:
        finishers.wait(20)
        return resize(*given, **named)

    monkeypatch.setattr("declip.localize.localizer.read_photo", read_together)
    monkeypatch.setattr("declip.localize.tiling.resize_scores", resize_together)
    pictures = [noise(30, 30 + i, i) for i in range(6)]
    found = list(Localizer(engine_of(constant(0.3), mode="whole")).map(pictures, batch_size=2))
    assert [result.scores.shape for result in found if isinstance(result, Localization)] == [
        picture.shape[:2] for picture in pictures
    ]


@pytest.mark.parametrize("mode", ["tiled", "whole"])
def test_two_threads_share_a_localizer(tiny_model: tuple[Path, Path], mode: Any) -> None:
    localizer = load(tiny_model[1], mode=mode, threads=1)
    pictures = [noise(80 + i, 90, seed=i) for i in range(8)]
    expected = [localizer(picture) for picture in pictures]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(localizer, pictures * 2))
    for result, other in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(result.scores, other.scores)
        assert (result.name, result.score) == (other.name, other.score)


def test_the_time_is_that_of_one_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks that go on by a second with each look of their thread: photos are read side by side."""
    clocks: dict[int, Iterator[int]] = {}

    def now() -> float:
        return float(next(clocks.setdefault(threading.get_ident(), itertools.count())))

    monkeypatch.setattr("declip.localize.localizer.time.perf_counter", now)
    for mode in ("tiled", "whole"):
        results = list(Localizer(engine_of(constant(0.3), mode=mode)).map([noise(9, 9)] * 4, batch_size=4))
        assert all(isinstance(r, Localization) and 0 < r.seconds < 4 for r in results)


# ── load ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_load_opens_either_file_and_passes_its_arguments_on(
    tiny_model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = waves(70, 80)
    by_torch, by_onnx = (load(path, threads=1, threshold=0.4) for path in tiny_model)
    assert (by_onnx.mode, by_onnx.threshold, by_onnx.model) == ("tiled", 0.4, "tiny")
    assert by_onnx.sha256 == resolve.sha256_of(tiny_model[1])
    assert float(np.abs(by_torch(picture).scores - by_onnx(picture).scores).max()) <= 1e-4
    assert declip.load(tiny_model[1], mode="whole").mode == "whole"
    with monkeypatch.context() as patch:
        patch.setattr(devices, "has_bf16", lambda device: True)
        assert load(tiny_model[0], precision="fast", threads=1).precision == "fast"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "quick"}, "precision is 'quick'; expected one of 'exact', 'fast'"),
        ({"mode": "foo"}, "mode is 'foo'; expected one of 'whole', 'tiled'"),
        ({"mode": ""}, "mode is ''; expected one of 'whole', 'tiled'"),
        ({"threshold": "0.5"}, r"threshold is '0.5'; expected a number in \[0, 1\]"),
        ({"threshold": float("nan")}, "threshold is nan; expected a number"),
        ({"threshold": 50}, "threshold is 50; expected a number"),
        ({"threshold": True}, "threshold is True; expected a number"),
        ({"threads": 0}, "threads is 0; expected a whole number >= 1"),
        ({"threads": "2"}, "threads is '2'; expected a whole number >= 1"),
        ({"device": "CUDA"}, "cannot use device 'CUDA'; expected 'cpu', 'cuda'"),
        ({"device": ""}, "cannot use device ''; expected 'cpu', 'cuda'"),
        ({"device": 0}, "cannot use device 0; expected 'cpu', 'cuda'"),
    ],
    ids=str,
)
def test_load_refuses_what_is_no_choice(tiny_model: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    """Before a model is fetched, where the model has no say in it."""
    for model in tiny_model if options.keys() & {"threads", "device"} else ("no-such-model",):
        with pytest.raises(SpecError, match=message):
            load(model, **options)


def test_a_localizer_refuses_another_mode() -> None:
    with pytest.raises(SpecError, match="mode is 'foo'"):
        Localizer(engine_of(constant(0.3)), mode="foo")  # type: ignore[arg-type]


def test_a_pickle_of_one_s_own_is_neither_opened_nor_converted_unasked(tmp_path: Path) -> None:
    (tmp_path / "official.pth").write_bytes(b"whatever")
    with pytest.raises(WeightsError, match=r"is a pickle; turn it into \.safetensors with `declip convert"):
        load(tmp_path / "official.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["official.pth"]


def test_a_published_pickle_is_converted_once_in_the_cache(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path))
    (tmp_path / "official.pth").write_bytes(b"whatever")
    asked: list[Path] = []

    def convert(official: Path, out: Path) -> None:
        asked.append(official)
        out.write_bytes(tiny_model[0].read_bytes())

    monkeypatch.setattr("declip.models.official.convert", convert)
    for _ in range(2):
        assert load(tmp_path / "official.pth").model == "official"
    assert asked == [tmp_path / "official.pth"]


def test_an_upright_photo_is_what_is_localized() -> None:
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, :48] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    result = Localizer(engine_of(brightness(64)))(stream.getvalue())
    assert result.scores.shape == (96, 32)
    assert float(result.scores[:40].mean()) > 0.7
    assert float(result.scores[56:].mean()) < 0.1


# ── forks and other processes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_localizes_as_its_parent_does(tiny_model: tuple[Path, Path]) -> None:
    """Of several tiles, after the parent's threads were used; also from a process of `multiprocessing`."""
    code = """
import multiprocessing, sys
import numpy as np
import declip

localizer = declip.load(sys.argv[1], threads=2)
photo = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
expected = localizer(photo).score

def work(_):
    return localizer(photo).score, [found.score for found in localizer.map([photo] * 3)]

with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(work, [0]).get(timeout=60) == [(expected, [expected] * 3)])
"""
    assert script(code, tiny_model[1]) == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("end", ["go on", "close", "drop"])
def test_a_fork_cannot_go_on_with_what_its_parent_iterates_over(tiny_model: tuple[Path, Path], end: str) -> None:
    """It is told at once, and ends: the parent's threads, in the midst of the next photos, are not there."""
    code = """
import os, signal, sys
import numpy as np
import declip

localizer = declip.load(sys.argv[1], threads=2)
photo = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
running = localizer.map((photo for _ in range(5)), batch_size=1)
scores = [next(running).score]
child = os.fork()
if child == 0:
    signal.alarm(60)
    if sys.argv[2] == "go on":
        try:
            next(running)
        except declip.DeclipError as error:
            print(f"cannot go on in its fork {os.getpid()}: begin anew" in str(error), flush=True)
    elif sys.argv[2] == "close":
        running.close()
    del running
    assert localizer(photo).score == scores[0]
    sys.exit(0)
print(os.waitpid(child, 0)[1])
scores += [found.score for found in running]
print(len(scores), len(set(scores)))
"""
    told = "True\n" if end == "go on" else ""
    assert script(code, tiny_model[1], end) == f"{told}0\n5 1\n"


def script(code: str, *arguments: Path | str) -> str:
    """What a script prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_a_localizer_travels_as_what_it_was_loaded_with(tiny_model: tuple[Path, Path], position: int) -> None:
    localizer = load(tiny_model[position], threads=1, mode="whole", threshold=0.4)
    sent = pickle.dumps(localizer)
    assert len(sent) < 2000
    picture = waves(70, 80)
    expected = localizer(picture)
    for other in (pickle.loads(sent), copy.deepcopy(localizer)):
        assert (other.mode, other.threshold, other.rule, other.model) == ("whole", 0.4, MaskRule(threshold=0.4), "tiny")
        assert other.engine is not localizer.engine
        result = other(picture)
        assert result.score == expected.score and np.array_equal(result.scores, expected.scores)


def test_another_process_opens_the_model_anew(tiny_model: tuple[Path, Path]) -> None:
    """By `spawn`, the only way on macOS and Windows."""
    localizer = load(tiny_model[1], threads=1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(localizer, waves(70, 80)).result(timeout=120)
    assert np.array_equal(found.scores, localizer(waves(70, 80)).scores)


def test_the_embedded_model_travels_by_name() -> None:
    """Another machine has it in another place."""
    sent = pickle.dumps(load(threads=1))
    assert b"mini" in sent and b"assets" not in sent
    assert pickle.loads(sent).model == "mini"


def test_an_engine_that_is_no_file_does_not_travel() -> None:
    localizer = Localizer(FakeEngine())
    message = "FakeEngine was not loaded from a file, and cannot be sent to another process: load it in each process"
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=message):
            send(localizer)


def test_what_goes_in_and_comes_out_travels() -> None:
    photo = read_photo(waves(70, 80))
    result = Localizer(engine_of(constant(0.7), calibration=CALIBRATION))(photo)
    assert result.area == 1 and len(result.regions) == 1  # found once, and sent along
    for value in (
        photo,
        result,
        CALIBRATION,
        dataclasses.replace(SPEC, calibration=CALIBRATION),
        result.regions[0],
        MODELS[1],
    ):
        other = pickle.loads(pickle.dumps(value))
        assert type(other) is type(value)
        for field in dataclasses.fields(value):
            ours, theirs = getattr(value, field.name), getattr(other, field.name)
            assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
    (error,) = Localizer(engine_of(constant(0.7))).map(["absent.jpg"])
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


# ── precision ───────────────────────────────────────────────────────────────────────────────────────────────────────


def calibrated(source: Path, folder: Path) -> Path:
    """A copy for which whatever reaches a threshold this low is more than untouched photos have."""
    calibration = Calibration(threshold=1e-6, untouched=((0.0,) * 100, (), ()), photos=(100, 0, 0), mode="tiled")
    return respec.with_spec(
        source, dataclasses.replace(load(source).spec, calibration=calibration), folder / source.name
    )


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "openvino"])
def test_fast_keeps_the_verdict_where_it_computes_exactly(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """Without instructions for bf16."""
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    if position:
        openvino = pytest.importorskip("openvino")
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has bf16")
    path = calibrated(tiny_model[position], tmp_path)
    exact, fast = (load(path, precision=precision) for precision in ("exact", "fast"))
    assert (exact.precision, fast.precision) == ("exact", "exact")
    ours, theirs = exact(waves(70, 80)), fast(waves(70, 80))
    assert ours.verdict == theirs.verdict == "manipulated"
    assert float(np.abs(ours.scores - theirs.scores).max()) <= 1e-4


def test_bf16_has_no_verdict_of_an_exact_calibration(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)
    fast = load(calibrated(tiny_model[0], tmp_path), precision="fast")
    assert fast.precision == "fast" and fast(waves(70, 80)).verdict is None
