"""Every generator changes what its mask says and nothing else, and does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from declip.errors import DatasetError, WeightsError
from declip.synthesis import Recipe, forge
from declip.synthesis.classical import GENERATORS
from declip.synthesis.editing import paste
from declip.synthesis.generators import family_of
from declip.synthesis.networks import Networks
from declip.synthesis.splices import splice_object
from declip.synthesis.steps import Mask, Pixels

IN_PAINTING = [name for name, row in GENERATORS.items() if row.family == "in-painting"]


def _apply(name: str, pixels: Pixels, mask: Mask, donor: Pixels | None, seed: int = 0) -> tuple[Pixels, Mask]:
    apply = GENERATORS[name].apply
    assert apply is not None
    return apply(pixels, mask, np.random.default_rng(seed), donor)


def test_the_table() -> None:
    assert {name for name, row in GENERATORS.items() if row.needs_donor} == {n for n in GENERATORS if "splice" in n}
    assert {family_of(name) for name in GENERATORS} == {"in-painting", "splice", "copy-move", "local-edit"}
    assert GENERATORS["biharmonic"].area((200, 300)) == (0.01, 0.1)
    assert GENERATORS["biharmonic"].area((1000, 1000)) == (0.003, 0.006)


@pytest.mark.parametrize("name", GENERATORS)
def test_only_the_mask_changes_and_the_seed_decides(name: str, cat: Pixels, block: Mask, donor: Pixels) -> None:
    before = cat.copy()
    found = []
    for seed in (0, 0, 1, 2):
        result, mask = _apply(name, cat, block, donor, seed)
        assert result.shape == cat.shape and result.dtype == np.uint8
        assert mask.shape == cat.shape[:2] and mask.dtype == np.bool_
        assert 0.01 < mask.mean() < 0.3
        assert np.array_equal(result[~mask], cat[~mask])
        assert (result[mask] != cat[mask]).any(axis=1).mean() > 0.5
        found.append((result, mask))
    assert np.array_equal(cat, before)
    assert all(np.array_equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert name == "biharmonic" or not np.array_equal(found[0][0], found[2][0])  # nothing in that is random


@pytest.mark.parametrize("name", [name for name, row in GENERATORS.items() if row.family != "copy-move"])
def test_masks_at_the_border(name: str, cat: Pixels, donor: Pixels) -> None:
    mask = np.zeros(cat.shape[:2], dtype=bool)
    mask[:30, :40] = True
    mask[-20:, -30:] = True
    result, returned = _apply(name, cat, mask, donor)
    assert np.array_equal(result[~returned], cat[~returned])
    assert (result[returned] != cat[returned]).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("name", IN_PAINTING)
def test_in_painting_continues_a_gradient_and_reads_nothing_inside_the_mask(name: str, block: Mask) -> None:
    ramp = np.repeat(np.linspace(40, 200, 190)[None, :, None], 160, axis=0)
    pixels = np.repeat(np.rint(ramp), 3, axis=2).astype(np.uint8)
    hidden = pixels.copy()
    hidden[block] = (255, 0, 255)
    result, mask = _apply(name, hidden, block, None)
    limit = 6 if name == "biharmonic" else 30  # the exact answer is the ramp
    assert np.abs(result[mask].astype(int) - pixels[mask]).max() <= limit


def test_hard_splice_is_the_donor(cat: Pixels, block: Mask, donor: Pixels) -> None:
    """With a donor of one colour that is what the mask holds, whatever was done to the donor first."""
    green = np.zeros_like(donor)
    green[..., 1] = 180
    result, mask = _apply("splice-hard", cat, block, green)
    assert np.abs(result[mask].astype(int) - (0, 180, 0)).max() <= 6
    with pytest.raises(DatasetError, match="needs a donor"):
        _apply("splice-hard", cat, block, None)


def test_feathered_splice_grows_inwards(cat: Pixels, block: Mask) -> None:
    result, mask = _apply("splice-feathered", np.zeros_like(cat), block, np.full_like(cat, 255))
    edge = mask & ~np.roll(mask, 1, axis=1)
    assert 0 < result[edge].mean() < 150  # half way
    assert result[mask].max() >= 250


def test_poisson_splice_meets_its_surroundings(cat: Pixels, block: Mask, donor: Pixels) -> None:
    """A flat donor has no gradients: over a flat picture nothing of its colour is left."""
    result, mask = _apply("splice-poisson", np.full_like(cat, 120), block, np.full_like(donor, 30))
    assert np.abs(result[mask].astype(int) - 120).max() <= 3


def test_colour_matched_splice_has_the_colours_of_the_place(cat: Pixels, block: Mask, donor: Pixels) -> None:
    hard, colour = (_apply(name, cat, block, donor, 3) for name in ("splice-hard", "splice-colour"))
    was = cat[block].mean(axis=0)
    distances = [np.linalg.norm(result[mask].mean(axis=0) - was) for result, mask in (hard, colour)]
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("size", [(20, 300), (40, 16), (700, 700)])
def test_donors_of_any_size(size: tuple[int, int], cat: Pixels, block: Mask) -> None:
    donor = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for seed in range(3):
        result, mask = _apply("splice-hard", cat, block, donor, seed)
        assert (result[mask] != cat[mask]).any(axis=1).mean() > 0.9


def test_a_thing_is_pasted_along_its_outline() -> None:
    pixels = np.full((120, 160, 3), 30, dtype=np.uint8)
    donor = np.zeros((80, 90, 3), dtype=np.uint8)
    cut = np.zeros((80, 90), dtype=bool)
    cut[20:50, 30:80] = True
    donor[cut] = (200, 150, 100)
    for seed in range(8):
        result, mask = splice_object(pixels, cut, np.random.default_rng(seed), donor)
        assert np.array_equal(result[~mask], pixels[~mask])
        assert 0.3 * cut.sum() < mask.sum() < 2.1 * cut.sum()
        assert result[mask].mean(axis=0).argmax() == 0
        assert result[mask].mean() > 60
    with pytest.raises(DatasetError, match="too large"):
        splice_object(pixels[:10, :10], cut, np.random.default_rng(0), donor)


def test_copy_move_copies(cat: Pixels, block: Mask) -> None:
    """A move without turn, scale or feather: what is pasted is found in the source, and elsewhere than the source."""
    exact = 0
    for seed in range(40):
        result, mask = _apply("copy-move", cat, block, None, seed)
        rows, columns = np.nonzero(mask)
        assert not np.array_equal(mask, block)
        if mask.sum() != block.sum() or (np.ptp(rows), np.ptp(columns)) != (39, 49):
            continue
        moved = result[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        exact += np.array_equal(moved, cat[60:100, 70:120]) or np.array_equal(moved, cat[60:100, 70:120][:, ::-1])
    assert exact >= 3
    block[0:3, 0:3] = True  # the largest part is taken
    assert 0.4 * 2000 < _apply("copy-move", cat, block, None)[1].sum() < 2.1 * 2000
    with pytest.raises(DatasetError, match="smaller"):
        _apply("copy-move", cat, np.ones((160, 190), dtype=bool), None)


def test_local_edits_do_what_they_say(cat: Pixels, block: Mask) -> None:
    def detail(picture: Pixels) -> float:
        return float(np.abs(np.diff(picture[60:100, 70:120].astype(float), axis=1)).mean())

    for seed in range(6):
        assert detail(_apply("blur", cat, block, None, seed)[0]) < 0.9 * detail(cat)
        assert detail(_apply("noise", cat, block, None, seed)[0]) > 1.1 * detail(cat)
        relit = _apply("relight", cat, block, None, seed)[0]
        assert np.corrcoef(relit[block].ravel(), cat[block].ravel())[0, 1] > 0.75


def test_patchmatch_refuses_a_mask_without_surroundings(cat: Pixels) -> None:
    mask = np.ones((160, 190), dtype=bool)
    mask[:4] = False
    with pytest.raises(DatasetError, match="smaller mask"):
        _apply("patchmatch", cat, mask, None)


def test_paste() -> None:
    pixels = np.full((20, 20, 3), 10, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    hard = paste(pixels, np.full((20, 20, 3), 300.0), mask)
    assert hard[mask].min() == 255 and hard[~mask].max() == 10
    soft = paste(pixels, np.full((20, 20, 3), 110, dtype=np.uint8), mask, feather=4)
    assert soft[10, 5:10, 0].tolist() == [35, 60, 85, 110, 110]
    assert np.array_equal(soft[~mask], pixels[~mask])


@pytest.mark.parametrize("generator", ["telea", "splice-poisson", "copy-move", "resample"])
def test_forge(generator: str, cat: Pixels, donor: Pixels) -> None:
    result, mask = forge(cat, generator, np.random.default_rng(1), donor)
    assert np.array_equal(result, forge(cat, generator, np.random.default_rng(1), donor)[0])
    assert np.array_equal(result[~mask], cat[~mask])
    assert (np.abs(result[mask].astype(int) - cat[mask]).max(axis=1) >= 2).mean() >= 0.5


def test_forge_says_what_it_needs(cat: Pixels) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DatasetError, match="needs a donor"):
        forge(cat, "splice-hard", rng)
    with pytest.raises(DatasetError, match="unknown generators splices"):
        forge(cat, "splices", rng)
    with pytest.raises(DatasetError, match="at least 32 px"):
        forge(np.zeros((20, 90, 3), dtype=np.uint8), "telea", rng)
    with pytest.raises(DatasetError, match="need a folder of autoencoders"):
        forge(cat, "zoo-local", rng)
    pytest.importorskip("torch")
    with pytest.raises(WeightsError, match="is missing"):
        forge(cat, "regenerate-global", rng, recipe=Recipe(networks=Networks(autoencoder=data.__file__)))
