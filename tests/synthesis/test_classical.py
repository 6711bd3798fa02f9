"""Every generator changes what its mask says and nothing else, and does what its name says."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from skimage import data

from declip.errors import DatasetError
from declip.synthesis.classical import GENERATORS, Chroma, decode_jpeg, encode_jpeg, paste, splice_object

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.ascontiguousarray(data.chelsea()[60:220, 100:290])  # 160 × 190, the cat's face


@pytest.fixture(scope="module")
def donor() -> Pixels:
    return np.ascontiguousarray(data.astronaut()[:150, 100:300])


def _block(height: int = 160, width: int = 190) -> Mask:
    mask = np.zeros((height, width), dtype=bool)
    mask[60:100, 70:120] = True
    return mask


def _apply(name: str, pixels: Pixels, mask: Mask, donor: Pixels, seed: int = 0) -> tuple[Pixels, Mask]:
    return GENERATORS[name].apply(pixels, mask, np.random.default_rng(seed), donor)


def test_the_table() -> None:
    families: dict[str, set[str]] = {}
    for name, row in GENERATORS.items():
        families.setdefault(row.family, set()).add(name)
    assert families == {
        "in-painting": {"telea", "navier-stokes", "patchmatch", "biharmonic"},
        "splice": {"splice-hard", "splice-feathered", "splice-poisson", "splice-colour"},
        "copy-move": {"copy-move"},
        "local-edit": {"blur", "noise", "resample", "relight"},
    }
    assert {name for name, row in GENERATORS.items() if row.needs_donor} == families["splice"]


@pytest.mark.parametrize("name", GENERATORS)
def test_only_the_mask_changes(name: str, pixels: Pixels, donor: Pixels) -> None:
    before = pixels.copy()
    for seed in range(4):
        result, mask = _apply(name, pixels, _block(), donor, seed)
        assert result.shape == pixels.shape and result.dtype == np.uint8
        assert mask.shape == pixels.shape[:2] and mask.dtype == np.bool_
        assert 0.01 < mask.mean() < 0.3
        assert np.array_equal(result[~mask], pixels[~mask])
        assert (result[mask] != pixels[mask]).any(axis=1).mean() > 0.5
        assert np.array_equal(pixels, before)


@pytest.mark.parametrize("name", GENERATORS)
def test_equal_seeds_give_equal_results(name: str, pixels: Pixels, donor: Pixels) -> None:
    one, same, other = (_apply(name, pixels, _block(), donor, seed) for seed in (5, 5, 6))
    assert np.array_equal(one[0], same[0]) and np.array_equal(one[1], same[1])
    if name != "biharmonic":  # nothing in it is random
        assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("name", [name for name, row in GENERATORS.items() if row.family != "copy-move"])
def test_masks_at_the_border(name: str, pixels: Pixels, donor: Pixels) -> None:
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[:40, :50] = True
    mask[-20:, -30:] = True
    result, returned = _apply(name, pixels, mask, donor)
    assert np.array_equal(result[~returned], pixels[~returned])
    assert (result[returned] != pixels[returned]).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("name", ["telea", "navier-stokes", "patchmatch", "biharmonic"])
def test_in_painting_reads_nothing_inside_the_mask(name: str, pixels: Pixels, donor: Pixels) -> None:
    hidden = pixels.copy()
    hidden[_block()] = (255, 0, 255)
    assert np.array_equal(_apply(name, pixels, _block(), donor)[0], _apply(name, hidden, _block(), donor)[0])


@pytest.mark.parametrize("name", ["telea", "navier-stokes", "patchmatch", "biharmonic"])
def test_in_painting_continues_a_gradient(name: str, donor: Pixels) -> None:
    ramp = np.repeat(np.linspace(40, 200, 190)[None, :, None], 160, axis=0)
    pixels = np.repeat(np.rint(ramp), 3, axis=2).astype(np.uint8)
    result, mask = _apply(name, pixels, _block(), donor)
    limit = 6 if name == "biharmonic" else 30  # the exact answer is the ramp
    assert np.abs(result[mask].astype(int) - pixels[mask]).max() <= limit


def test_hard_splice_is_the_donor(pixels: Pixels, donor: Pixels) -> None:
    """With a donor of one colour that is what the mask holds, whatever was done to the donor first."""
    green = np.zeros_like(donor)
    green[..., 1] = 180
    result, mask = _apply("splice-hard", pixels, _block(), green)
    assert np.abs(result[mask].astype(int) - (0, 180, 0)).max() <= 6


def test_feathered_splice_grows_inwards(pixels: Pixels) -> None:
    pixels = np.zeros_like(pixels)
    white = np.full_like(pixels, 255)
    result, mask = _apply("splice-feathered", pixels, _block(), white)
    edge = mask & ~np.roll(mask, 1, axis=1)
    assert 0 < result[edge].mean() < 150  # half way
    assert result[mask].max() >= 250


def test_poisson_splice_meets_its_surroundings(pixels: Pixels, donor: Pixels) -> None:
    """A flat donor has no gradients: over a flat picture nothing of its colour is left."""
    grey = np.full_like(pixels, 120)
    flat = np.full_like(donor, 30)
    result, mask = _apply("splice-poisson", grey, _block(), flat)
    assert np.abs(result[mask].astype(int) - 120).max() <= 3


def test_colour_matched_splice_has_the_colours_of_the_place(pixels: Pixels, donor: Pixels) -> None:
    hard, colour = (_apply(name, pixels, _block(), donor, 3) for name in ("splice-hard", "splice-colour"))
    was = pixels[_block()].mean(axis=0)
    distances = [np.linalg.norm(result[mask].mean(axis=0) - was) for result, mask in (hard, colour)]
    assert distances[1] < 0.5 * distances[0]


def test_splices_need_a_donor(pixels: Pixels) -> None:
    with pytest.raises(DatasetError, match="needs a donor"):
        GENERATORS["splice-hard"].apply(pixels, _block(), np.random.default_rng(0), None)


@pytest.mark.parametrize("size", [(20, 300), (40, 16), (700, 700)])
def test_donors_of_any_size(size: tuple[int, int], pixels: Pixels) -> None:
    donor = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for seed in range(3):
        result, mask = _apply("splice-hard", pixels, _block(), donor, seed)
        assert (result[mask] != pixels[mask]).any(axis=1).mean() > 0.9


def test_copy_move_copies(pixels: Pixels, donor: Pixels) -> None:
    """A move without turn, scale or feather: what is pasted is found in the source, and elsewhere than the source."""
    source = _block()
    exact = 0
    for seed in range(40):
        result, mask = _apply("copy-move", pixels, source, donor, seed)
        rows, columns = np.nonzero(mask)
        assert not np.array_equal(mask, source)
        if mask.sum() != source.sum() or (np.ptp(rows), np.ptp(columns)) != (39, 49):
            continue
        moved = result[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        exact += np.array_equal(moved, pixels[60:100, 70:120]) or np.array_equal(moved, pixels[60:100, 70:120][:, ::-1])
    assert exact >= 3


def test_copy_move_takes_the_largest_part_and_needs_room(pixels: Pixels, donor: Pixels) -> None:
    mask = _block()
    mask[0:3, 0:3] = True
    _, moved = _apply("copy-move", pixels, mask, donor)
    assert 0.4 * 2000 < moved.sum() < 2.1 * 2000
    with pytest.raises(DatasetError, match="smaller"):
        _apply("copy-move", pixels, np.ones((160, 190), dtype=bool), donor)


def test_local_edits_do_what_they_say(pixels: Pixels, donor: Pixels) -> None:
    mask = _block()

    def detail(picture: Pixels) -> float:
        return float(np.abs(np.diff(picture[60:100, 70:120].astype(float), axis=1)).mean())

    for seed in range(6):
        assert detail(_apply("blur", pixels, mask, donor, seed)[0]) < 0.9 * detail(pixels)
        assert detail(_apply("noise", pixels, mask, donor, seed)[0]) > 1.1 * detail(pixels)
        relit = _apply("relight", pixels, mask, donor, seed)[0]
        assert np.corrcoef(relit[mask].ravel(), pixels[mask].ravel())[0, 1] > 0.75


def test_patchmatch_refuses_a_mask_without_surroundings(pixels: Pixels, donor: Pixels) -> None:
    mask = np.ones((160, 190), dtype=bool)
    mask[:4] = False
    with pytest.raises(DatasetError, match="smaller mask"):
        _apply("patchmatch", pixels, mask, donor)


def test_paste() -> None:
    pixels = np.full((20, 20, 3), 10, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    hard = paste(pixels, np.full((20, 20, 3), 300.0), mask)
    assert hard[mask].min() == 255 and hard[~mask].max() == 10
    soft = paste(pixels, np.full((20, 20, 3), 110, dtype=np.uint8), mask, feather=4)
    assert soft[10, 5:10, 0].tolist() == [35, 60, 85, 110, 110]
    assert np.array_equal(soft[~mask], pixels[~mask])


def test_jpeg_quality_and_chroma(pixels: Pixels) -> None:
    chromas: tuple[Chroma, ...] = ("4:4:4", "4:2:0")
    files = [Image.open(io.BytesIO(encode_jpeg(pixels, 80, chroma))) for chroma in chromas]
    assert [JpegImagePlugin.get_sampling(file) for file in files] == [0, 2]
    good, bad = (decode_jpeg(encode_jpeg(pixels, quality, "4:4:4")).astype(int) for quality in (95, 30))
    assert np.abs(good - pixels).mean() < 2 < np.abs(bad - pixels).mean()


def test_a_thing_is_pasted_along_its_outline() -> None:
    pixels = np.full((120, 160, 3), 30, dtype=np.uint8)
    donor = np.zeros((80, 90, 3), dtype=np.uint8)
    cut = np.zeros((80, 90), dtype=bool)
    cut[20:50, 30:80] = True
    donor[cut] = (200, 150, 100)
    for seed in range(8):
        result, mask = splice_object(pixels, donor, cut, np.random.default_rng(seed))
        assert np.array_equal(result[~mask], pixels[~mask])
        assert 0.3 * cut.sum() < mask.sum() < 2.1 * cut.sum()
        assert result[mask].mean(axis=0).argmax() == 0
        assert result[mask].mean() > 60
    with pytest.raises(DatasetError, match="too large"):
        splice_object(pixels[:10, :10], donor, cut, np.random.default_rng(0))
