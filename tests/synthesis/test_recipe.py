"""Recipes: the files that declip has, changes from the command line, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from declip.errors import DatasetError
from declip.synthesis import ALL_GENERATORS, Recipe
from declip.synthesis.generators import SETS
from declip.synthesis.history import History, Saving
from declip.synthesis.inpainters import INPAINTERS
from declip.synthesis.networks import Networks


def test_the_recipes_that_declip_has() -> None:
    assert Recipe.read() == Recipe()
    lived = Recipe.read("lived")
    assert lived.history == History() and lived.saving == Saving()
    assert (lived.smallest_size, lived.size, lived.count, lived.cap) == (448, 1400, 1500, 0.08)


def test_sets_of_generators() -> None:
    recipe = Recipe(generators=("splice", "splice-hard", "copy-move"))
    names = ("splice-hard", "splice-feathered", "splice-poisson", "splice-colour")
    assert recipe.generators == (*names, "splice-hard", "copy-move")  # one that is named twice is twice as frequent
    learnt = {"splice-object", *SETS["regenerate"], *SETS["zoo"], *SETS["upscale"], *INPAINTERS}
    assert set(SETS["all-classical"]) == set(ALL_GENERATORS) - learnt


def test_a_file_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('size = 320\n[saving]\njpeg = 0.3\nwebp = 0.2\n[networks]\nweights.lama = "a.pt"\n')
    changes = ["saving.jpeg=0.4", "generators=telea,splice-hard", "masks=face", "split=valid", "saving.before=1"]
    changes += ["saving.jpeg_quality=[70, 80]", "networks.weights.zoo=o/n"]
    changes += ["networks.steps=9", "networks.autoencoder=o/v"]
    assert Recipe.read(path, changes) == Recipe(
        size=320,
        generators=("telea", "splice-hard"),
        masks=("face",),
        split="valid",
        saving=Saving(jpeg=0.4, webp=0.2, before=1.0, jpeg_quality=(70, 80)),
        networks=Networks(weights={"lama": "a.pt", "zoo": "o/n"}, steps=9, autoencoder="o/v"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise = 3", "a recipe has no setting sise; did you mean size"),
        ("saving.jpg = 1", r"no setting saving\.jpg; did you mean jpeg"),
        ("size = '3'", "size is '3'; expected int"),
        ("seed = 1.5", "seed is 1.5; expected int"),
        ("saving = 3", "saving is 3; expected Saving"),
        ("saving.jpeg_quality = [3]", r"jpeg_quality is \[3\]; expected tuple"),
        ("masks = [3]", "masks is 3"),
        ("size = ", "mine.toml is no TOML"),
        ("[history]\n[saving]\njpeg = 0.1", "not both"),
    ],
)
def test_wrong_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        Recipe.read(path)


def test_no_file_and_no_change(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"old cannot be read.*declip has fresh and lived"):
        Recipe.read("old")
    for change in ("size", "=3", "a b=3"):
        with pytest.raises(DatasetError, match="expected KEY=VALUE"):
            Recipe.read("fresh", [change])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Recipe, {"generators": ["telea", "inpaint"]}, "unknown generators inpaint; expected some of telea"),
        (Recipe, {"generators": []}, "no generators"),
        (Recipe, {"masks": ["hands"]}, "masks are hands; expected some of random, object, grabcut, face"),
        (Recipe, {"masks": []}, "masks are none"),
        (Recipe, {"seed": -1}, "seed is -1"),
        (Recipe, {"size": 16}, "size is 16; expected at least 32"),
        (Recipe, {"size": 100, "smallest_size": 200}, "smallest_size is 200; expected at most the size, 100"),
        (Recipe, {"per_photo": 0}, "per_photo is 0"),
        (Recipe, {"count": 0}, "count is 0"),
        (Recipe, {"narrowest": 1.5}, r"narrowest is 1\.5; expected a share"),
        (Recipe, {"layout": "coco"}, "layout is coco; expected manifest or dolos"),
        (Saving, {"jpeg": 1.5}, r"jpeg is 1\.5; expected a share"),
        (Saving, {"jpeg_quality": (90, 60)}, "lowest <= highest"),
        (Saving, {"jpeg": 0.6, "webp": 0.6}, r"webp 0\.6; expected at most 1 together"),
        (Saving, {"social_side": 8}, "social_side is 8; expected at least 32"),
        (Saving, {"resize_range": (1.5, 0.5)}, "0 < lowest <= highest"),
        (Saving, {"donor": -0.5}, r"donor is -0\.5"),
        (History, {"camera": 2}, "camera is 2"),
        (History, {"messenger": 0.9, "resized": 0.2, "screenshot": 0, "lossless": 0.12}, r"shares of 1\.30"),
        (Networks, {"weights": {"telea": "x.pt"}}, "weights for telea; the generators that take some are lama"),
        (Networks, {"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_settings_are_named(kind: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        kind(**settings)
