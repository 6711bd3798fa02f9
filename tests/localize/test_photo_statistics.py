"""Two passes over a photo: its tiles are measured against all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from declip import testing
from declip.engines import open_engine
from declip.localize.localizer import Localizer
from declip.localize.tiling import spread
from declip.models.resolve import embedded_path
from declip.models.respec import with_spec
from declip.testing import FakeEngine
from tests.tiny import tiled_spec

SPEC = dataclasses.replace(
    testing.SPEC, input_size=64, output_size=16, mode="tiled", overlap=16, decoder=tiled_spec().decoder
)


class Contrast(FakeEngine):
    """Brightness against its mean: that of the tile, or of the photo."""

    def __init__(self, statistics: Any) -> None:
        super().__init__(dataclasses.replace(SPEC, statistics=statistics))
        self.photos: list[int] = []

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.photos.append(len(views["image"]))
        return {"photo_mean": views["image"].mean(axis=(0, 2, 3))[None]}

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.batches.append(len(inputs["image"]))
        images = inputs["image"]
        means = inputs.get("photo_mean", images.mean(axis=(2, 3)))
        return self.compute(images - means[:, :, None, None]).astype(np.float32)


def ramp(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Dark on the left, light on the right, with some noise."""
    noise = np.random.default_rng(seed).integers(0, 9, (height, width, 3))
    return (np.linspace(40, 200, width)[None, :, None] + noise).astype(np.uint8)


def fall(scores: NDArray[np.float32]) -> float:
    """By how much a map falls from the left to the right, all its ways down added."""
    return float(-np.minimum(np.diff(scores.mean(axis=0)[::16]), 0).sum())


def test_tiles_are_spread_over_the_photo() -> None:
    def grid(rows: int, columns: int) -> list[tuple[int, int]]:
        return [(8 * y, 8 * x) for y in range(rows) for x in range(columns)]

    assert spread(grid(1, 2)) == grid(1, 2)
    assert spread(grid(3, 3)) == grid(3, 3)
    assert spread(grid(5, 7)) == [(y, x) for y in (0, 16, 32) for x in (0, 24, 48)]
    assert spread(grid(1, 20)) == [(0, 8 * x) for x in (0, 2, 5, 7, 10, 12, 14, 17, 19)]
    assert spread(grid(20, 1)) == [(8 * y, 0) for y in (0, 2, 5, 7, 10, 12, 14, 17, 19)]
    assert spread(grid(2, 9)) == [(y, 8 * x) for y in (0, 8) for x in (0, 3, 5, 8)]
    for rows in range(1, 14):
        for columns in range(1, 14):
            chosen = spread(grid(rows, columns))
            assert len(chosen) == len(set(chosen)) >= min(rows * columns, 6) and len(chosen) <= 9
            assert {chosen[0], chosen[-1]} == {(0, 0), (8 * (rows - 1), 8 * (columns - 1))}


def test_seams_fall_and_crops_agree() -> None:
    pixels = ramp(120, 400)
    tile, photo = (Localizer(Contrast(way)) for way in ("tile", "photo"))
    assert fall(tile(pixels).scores) > 1  # each tile has a zero of its own
    assert fall(photo(pixels).scores) == 0  # it rises as the picture does
    # Cut off where tiles then lie elsewhere: the rest has another mean, but not another one in each tile.
    cut = np.ascontiguousarray(pixels[:, 24:])
    changes = []
    for localizer in (tile, photo):
        before, after = localizer(pixels), localizer(cut)
        mask = before.mask[:, 24:]
        changes.append((mask & after.mask).sum() / (mask | after.mask).sum())
    assert changes[0] < 0.2 < 0.9 < changes[1]


def test_a_photo_is_measured_once_and_a_single_tile_not_at_all() -> None:
    engine = Contrast("photo")
    localizer = Localizer(engine)
    alone = localizer(ramp(64, 50))
    assert engine.photos == []
    assert np.array_equal(alone.scores, Localizer(Contrast("tile"))(ramp(64, 50)).scores)
    localizer(ramp(112, 112))
    localizer(ramp(500, 800))
    assert engine.photos == [4, 9]
    assert not Contrast("tile").photos
    engine.photos.clear()
    localizer.variant(mode="whole")(ramp(500, 800))
    assert engine.photos == []


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_no_score_depends_on_the_batch(batch_size: int, tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    photos = [ramp(64, 50, 1), ramp(100, 130, 2), ramp(40, 64, 3), ramp(64, 100, 4), ramp(200, 90, 5)]
    path = with_spec(tiny_model[1], tiled_spec(statistics="photo"), tmp_path / "photo.onnx")
    for engine in (Contrast("photo"), open_engine(path)):
        localizer = Localizer(engine)
        for result, pixels in zip(localizer.map(photos, batch_size=batch_size), photos, strict=True):
            assert not isinstance(result, Exception)
            assert np.array_equal(result.scores, localizer(pixels).scores)


def test_tiles_of_several_photos_share_a_batch() -> None:
    engine = Contrast("photo")
    list(Localizer(engine).map([ramp(64, 100), ramp(64, 64), ramp(100, 64), ramp(64, 60)], batch_size=8))
    assert engine.photos == [2, 2]
    assert engine.batches == [4, 2]  # those with a photo around them, and those without


@pytest.mark.slow
def test_the_embedded_model_s_map_holds_after_a_crop(tmp_path: Path) -> None:
    """Noise grows from the left to the right; 144 px are cut off above and on the left."""
    y, x = np.mgrid[0:608, 0:896]
    noise = np.random.default_rng(0).normal(size=(608, 896, 3)) * (1 + 10 * x / 896)[..., None]
    waves = 128 + 60 * np.sin(x / 90) + 40 * np.cos(y / 60)
    pixels = np.clip(waves[..., None] + noise, 0, 255).astype(np.uint8)
    path = embedded_path()
    spec = dataclasses.replace(open_engine(path).spec, calibration=None)
    change = {}
    for way in ("tile", "photo"):
        of_this = dataclasses.replace(spec, statistics=way)
        localizer = Localizer(open_engine(with_spec(path, of_this, tmp_path / f"{way}.onnx")))
        before = localizer(pixels).scores
        after = localizer(np.ascontiguousarray(pixels[144:, 144:])).scores
        change[way] = float(np.abs(before[144:, 144:] - after).mean() / before.std())
    assert change["photo"] < 0.6 * change["tile"], change
