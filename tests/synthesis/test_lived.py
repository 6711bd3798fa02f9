"""Data sets of pictures that have lived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from declip import datasets
from declip.errors import DatasetError
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.synthesis import lived, zoo
from declip.synthesis.history import History
from declip.synthesis.sources import source_of

GENERATORS = ("blur", "splice-hard", "zoo-local", "telea")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
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
    recipe = lived.Recipe(**{**settings, "count": 16, "sides": (160, 240), "cap": 0.1, **changes})
    folder = photos[0].parent
    return lived.make(photos, recipe, lived.Places(out=out, zoo=folder / "zoo", saliency=folder / "maps"))


def _lines(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(photos, tmp_path_factory.mktemp("made"))


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
        assert "cropped" in twin["after"][0]
        assert ours["left"] > 0
        assert ours["from"] == source_of(ours["photo"])
        if fake["source"] == "splice-hard":
            assert ours["donor"]["photo"] != ours["photo"]
        assert ours.get("network") == ("zoo-003" if fake["source"] == "zoo-local" else None)
    assert {row["source"] for row in rows} == {*GENERATORS, "real"}
    assert {"salient", "beside"} <= {row["provenance"].get("mask") for row in rows}


def test_masks_of_things_are_on_them_and_the_others_beside(photos: list[Path], tmp_path: Path) -> None:
    plain = History(camera=0, downscaled=0, resized=0, messenger=0, screenshot=0, web=0, lossless=1)
    places = {}
    for kind in ("salient", "beside"):
        manifest = _make(photos, tmp_path / kind, masks=(kind, "random"), generators=("blur",), history=plain, count=16)
        places[kind] = [
            _inside(row, read_mask(sample))
            for row, sample in zip(_lines(manifest), datasets.read_manifest(manifest), strict=True)
            if row["provenance"].get("mask") == kind
        ]
    assert min(places["salient"]) > 0.8
    assert max(places["beside"]) == 0


def test_an_object_of_another_photo_is_pasted_whole(photos: list[Path], tmp_path: Path) -> None:
    plain = History(camera=0, downscaled=0, resized=0, messenger=0, screenshot=0, web=0, lossless=1)
    manifest = _make(photos, tmp_path, generators=("splice-object",), history=plain, sides=(240, 260))
    rows, samples = _lines(manifest), datasets.read_manifest(manifest)
    discs = [read_mask(s) for s, row in zip(samples, rows, strict=True) if row["provenance"].get("mask") == "salient"]
    assert len(discs) >= 4
    for mask in discs:
        down, across = (int(mask.any(axis=axis).sum()) for axis in (1, 0))
        # A disc fills 79 % of its box; part of it may have been cropped.
        assert 0.6 < mask.sum() / (down * across) <= 0.95


def _inside(row: dict[str, Any], mask: NDArray[np.bool_]) -> float:
    """The share of the mask that lies on the disc of the photo."""
    about = row["provenance"]
    x, y = about["crop"][:2]
    for step in about["before"] + about["after"]:
        y, x = y + step["cropped"][0], x + step["cropped"][1]
    rows, columns = np.nonzero(mask)
    return float(((rows + y - 100) ** 2 + (columns + x - 130) ** 2 < 45**2).mean())


def test_resumed_is_the_same(photos: list[Path], made: Path, tmp_path: Path) -> None:
    again = _make(photos, tmp_path)
    assert again.read_bytes() == made.read_bytes()
    again.unlink()
    (tmp_path / "images" / _lines(made)[4]["image"].split("/")[1]).unlink()
    half = "\n".join(made.read_text().splitlines()[:20]) + "\n"
    (tmp_path / "samples.jsonl.part").write_text(half)
    assert _make(photos, tmp_path).read_bytes() == made.read_bytes()
    for path in made.parent.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(made.parent)).read_bytes()


def test_another_recipe_is_refused(photos: list[Path], made: Path) -> None:
    with pytest.raises(DatasetError, match="other settings \\(history\\)"):
        _make(photos, made.parent, history=History(camera=0.1))


def test_bad_recipes_are_refused() -> None:
    with pytest.raises(DatasetError, match="sides are"):
        lived.Recipe(generators=("blur",), masks=("random",), seed=0, count=1, sides=(400, 300))
    with pytest.raises(DatasetError, match="unknown generators blurr"):
        lived.Recipe(generators=("blurr",), masks=("random",), seed=0, count=1)
