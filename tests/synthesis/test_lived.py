"""Data sets of pictures that have lived."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from declip import datasets
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.synthesis import Recipe, synthesize
from declip.synthesis.history import History
from declip.synthesis.networks import Networks

zoo = pytest.importorskip("declip.synthesis.zoo", reason="needs declip[torch]", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
GENERATORS = ("blur", "splice-hard", "zoo-local", "telea")
PLAIN = History(camera=0, resized=0, messenger=0, screenshot=0, web=0, lossless=1)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixteen photos of as many sources: smooth noise with a bright disc, and maps in which the disc stands out."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "maps").mkdir()
    rows, columns = np.ogrid[:200, :260]
    disc = (rows - 100) ** 2 + (columns - 130) ** 2 < 45**2
    for number in range(16):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 200, (25, 33, 3), dtype=np.uint8)).resize((260, 200))
        pixels = np.asarray(coarse) // 2 + rng.integers(0, 40, (200, 260, 3), dtype=np.uint8)
        pixels[disc] += 90
        path = folder / f"s{number}-photo.png"
        Image.fromarray(pixels).save(path)
        Image.fromarray(np.where(disc, 230, 20).astype(np.uint8)).save(folder / "maps" / f"{path.name}.png")
    net = zoo.ZooAutoencoder(zoo.draw_architecture(3)).requires_grad_(False).eval()
    zoo.save(net, zoo.Fit(steps=0, psnr=0.0), folder / "zoo/003.json")
    return sorted(folder.glob("*.png"))


def _make(photos: list[Path], out: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"generators": GENERATORS, "masks": ("random", "salient", "beside"), "seed": 3}
    settings |= {"count": 16, "smallest_size": 160, "size": 240, "cap": 0.1}
    folder = photos[0].parent
    networks = Networks(weights={"zoo": folder / "zoo"})
    recipe = dataclasses.replace(Recipe.read("lived"), networks=networks, **{**settings, **changes})
    return synthesize(photos, recipe, out, maps=folder / "maps")


def _lines(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(discs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(discs, tmp_path_factory.mktemp("made"))


def test_pairs_differ_where_the_mask_says(made: Path) -> None:
    samples = datasets.read_manifest(made)
    assert len(samples) == 32
    for fake, real in zip(samples[::2], samples[1::2], strict=True):
        assert (fake.label, real.label) == ("fake", "real")
        ours, twin = (read_photo(sample.image).pixels.astype(int) for sample in (fake, real))
        mask = read_mask(fake)
        assert ours.shape == twin.shape == (*mask.shape, 3)
        difference = np.abs(ours - twin).mean(axis=-1)
        assert difference[mask].mean() > 3 * difference[~mask].mean()


def test_provenance_tells_the_whole_story(made: Path) -> None:
    rows = _lines(made)
    for fake, real in zip(rows[::2], rows[1::2], strict=True):
        ours, twin = fake["provenance"], real["provenance"]
        assert {key: ours[key] for key in twin} == twin  # the same history
        assert "cropped" in twin["after"][0] and twin["fate"]
        assert ours["left"] > 0
        assert ours["from"] == ours["photo"].split("-")[0]
        if fake["source"] == "splice-hard":
            assert ours["donor"]["photo"] != ours["photo"]
        assert ours.get("network") == ("zoo-003" if fake["source"] == "zoo-local" else None)
    assert {row["source"] for row in rows} == {*GENERATORS, "real"}
    assert {"salient", "beside"} <= {row["provenance"].get("mask") for row in rows}
    assert len({row["group"] for row in rows}) == 16  # no source more often than its cap allows


def test_masks_of_things_are_on_them_and_the_others_beside(discs: list[Path], tmp_path: Path) -> None:
    places: dict[str, list[float]] = {"salient": [], "beside": []}
    manifest = _make(discs, tmp_path, generators=("blur",), history=PLAIN, downscaled=0)
    for row, sample in zip(_lines(manifest), datasets.read_manifest(manifest), strict=True):
        if (kind := row["provenance"].get("mask")) in places:
            places[kind].append(_inside(row, read_mask(sample)))
    assert min(places["salient"]) > 0.8
    assert max(places["beside"]) == 0


def _inside(row: dict[str, Any], mask: NDArray[np.bool_]) -> float:
    """Return the share of the mask that lies on the disc of the photo."""
    about = row["provenance"]
    x, y = about["crop"][:2]
    for step in about.get("before", []) + about["after"]:
        y, x = y + step["cropped"][0], x + step["cropped"][1]
    rows, columns = np.nonzero(mask)
    return float(((rows + y - 100) ** 2 + (columns + x - 130) ** 2 < 45**2).mean())


def test_an_object_of_another_photo_is_pasted_whole(discs: list[Path], tmp_path: Path) -> None:
    manifest = _make(discs, tmp_path, generators=("splice-object",), history=PLAIN, size=260, smallest_size=240)
    found = [
        read_mask(sample)
        for sample, row in zip(datasets.read_manifest(manifest), _lines(manifest), strict=True)
        if row["provenance"].get("mask") == "salient"
    ]
    assert len(found) >= 4
    for mask in found:
        down, across = (int(mask.any(axis=axis).sum()) for axis in (1, 0))
        # A disc fills 79 % of its box; part of it may have been cropped.
        assert 0.6 < mask.sum() / (down * across) <= 0.95
