"""Views of samples: picture and target stay together, and a view is the same wherever it appears."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.errors import DatasetError
from declip.images.mapfiles import write_mask
from declip.images.tensors import resize_scores
from declip.results import Sample
from declip.training.views import AUGMENTATIONS, Views
from tests.tiny import RESIDUALS, tiny_spec

SPEC = tiny_spec(RESIDUALS, output_size=16, mode="tiled", overlap=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WHOLE = dataclasses.replace(SPEC, mode="whole")


def mask_as_picture(folder: Path, mask: np.ndarray[Any, Any], polarity: Any = "white") -> Sample:
    """A picture that is its own mask, so that whatever happens to one must happen to the other."""
    picture, path = folder / "picture.png", folder / "mask.png"
    Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB").save(picture)
    write_mask(path, mask if polarity == "white" else ~mask)
    return Sample(image=picture, mask=path, fake_is=polarity, label="fake")


def make_noise(folder: Path, count: int, size: tuple[int, int] = (120, 120)) -> list[Sample]:
    samples = []
    for i in range(count):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i}.png")
        write_mask(folder / f"{i}-mask.png", rng.random(size) < 0.3)
        samples.append(Sample(image=folder / f"{i}.png", mask=folder / f"{i}-mask.png", label="fake"))
    return samples


@pytest.mark.parametrize("polarity", ["white", "black"])
@pytest.mark.parametrize("spec", [SPEC, WHOLE], ids=["tiled", "whole"])
def test_picture_and_target_stay_together(spec: Any, polarity: str, tmp_path: Path) -> None:
    mask = np.zeros((150, 220), bool)
    mask[30:90, 50:160] = True
    mask[100:140, 5:30] = True
    views = Views([mask_as_picture(tmp_path, mask, polarity)], spec, augment=["flip", "jpeg"])
    means = set()
    for inputs, target in (views.load(0, view) for view in range(12)):
        picture = inputs["image"]
        assert (picture.shape, target.shape) == ((3, 64, 64), (16, 16))
        assert (picture.dtype, target.dtype) == (np.float32, np.float32)
        assert 0 <= target.min() <= target.max() <= 1
        small = resize_scores((picture[0] + 1) / 2, (16, 16))
        assert np.abs(small - target).max() < 0.15  # JPEG down to quality 30, and two ways of resizing
        means.add(round(float(target[:8].mean()), 3))
    assert len(means) >= 4  # turned, mirrored and cropped differently


def test_whole_pictures_are_squashed_and_masks_stay_soft(tmp_path: Path) -> None:
    mask = np.zeros((150, 220), bool)
    mask[31:90, 53:160] = True
    _, target = Views([mask_as_picture(tmp_path, mask)], WHOLE).load(0)
    assert float(target.mean()) == pytest.approx(mask.mean(), abs=0.005)
    assert bool(((target > 0.05) & (target < 0.95)).any())


def test_the_target_of_a_whole_picture_is_its_label(tmp_path: Path) -> None:
    samples = [dataclasses.replace(s, mask=None) for s in make_noise(tmp_path, 2)]
    samples[1] = dataclasses.replace(samples[1], label="real")
    views = Views(samples, WHOLE, target="image")
    assert [float(views.load(i)[1]) for i in range(2)] == [1.0, 0.0]
    assert views.load(0)[1].shape == ()
    with pytest.raises(DatasetError, match="a fake sample without a mask"):
        Views(samples, WHOLE).load(0)


def test_a_view_is_decided_by_seed_number_and_picture(tmp_path: Path) -> None:
    samples = make_noise(tmp_path, 3)
    views, again = (Views(samples, SPEC, augment=["flip"]) for _ in range(2))
    fewer = Views(samples[2:], SPEC, augment=["flip"])
    other = Views(samples, SPEC, augment=["flip"], seed=1)
    for i in range(3):
        assert np.array_equal(views.load(i, 1)[0]["image"], again.load(i, 1)[0]["image"])
        assert not np.array_equal(views.load(i, 1)[0]["image"], views.load(i, 0)[0]["image"])
        assert not np.array_equal(views.load(i, 1)[0]["image"], other.load(i, 1)[0]["image"])
    # In another list, at another place, it is the same: so its features can be shared.
    assert np.array_equal(views.load(2, 1)[0]["image"], fewer.load(0, 1)[0]["image"])
    assert views.keys(2)[5] == fewer.keys(2)[1]


@pytest.mark.parametrize("spec", [SPEC, WHOLE], ids=["tiled", "whole"])
def test_keys_name_all_that_decides_a_view(spec: Any, tmp_path: Path) -> None:
    (sample,) = make_noise(tmp_path, 1)

    def key(sample: Sample = sample, spec: Any = spec, view: int = 0, **options: Any) -> tuple[str, str]:
        return Views([sample], spec, **options).key(0, view)

    before = key()
    black = key(dataclasses.replace(sample, fake_is="black"))
    assert (black[0], black[1] != before[1]) == (before[0], True)
    larger = key(spec=dataclasses.replace(spec, output_size=32))
    assert (larger[0], larger[1] != before[1]) == (before[0], True)
    for changed in (
        key(spec=dataclasses.replace(spec, mean=(0.5, 0.5, 0.4))),
        key(spec=dataclasses.replace(spec, input_size=128)),
        key(augment=["flip"]),
        key(augment=["blur"], share=0.5),
    ):
        assert changed[0] != before[0]
        assert changed[1] != before[1]
    # Only a crop or an augmentation makes views differ; a whole picture as it is has one.
    assert (key(seed=1) == before) == (key(view=1) == before) == (spec.mode == "whole")
    Image.fromarray(np.zeros((120, 120, 3), np.uint8)).save(sample.image)
    assert key()[0] != before[0]  # the same path, other bytes
    write_mask(str(sample.mask), np.ones((120, 120), bool))
    assert key()[1] != before[1]


def test_photometric_augmentations_come_after_the_resize_and_leave_the_target(tmp_path: Path) -> None:
    (sample,) = make_noise(tmp_path, 1)
    plain, target = Views([sample], WHOLE).load(0)
    for kind in AUGMENTATIONS:
        if kind != "flip":
            changed, same = Views([sample], WHOLE, augment=[kind]).load(0)
            assert np.array_equal(same, target)
            assert 0.005 < float(np.abs(changed["image"] - plain["image"]).mean()) < 1.0, kind
    unchanged, _ = Views([sample], WHOLE, augment=["blur"], share=0.0).load(0)
    assert np.array_equal(unchanged["image"], plain["image"])


def test_a_picture_smaller_than_a_crop_is_reflected(tmp_path: Path) -> None:
    mask = np.zeros((40, 100), bool)
    mask[30:40] = True
    inputs, target = Views([mask_as_picture(tmp_path, mask)], SPEC).load(0)
    picture = inputs["image"]
    assert picture.shape == (3, 64, 64)
    # Rows 30-39 and their mirror image, 39-48.
    assert (target.mean(1) > 0.5).nonzero()[0].tolist() == [8, 9, 10, 11]
    assert (picture[0].mean(1) > 0).nonzero()[0].tolist() == list(range(30, 49))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    sample = mask_as_picture(tmp_path, np.ones((40, 50), bool))
    write_mask(tmp_path / "mask.png", np.ones((50, 40), bool))
    with pytest.raises(DatasetError, match=r"mask\.png is \(50, 40\), its picture \(40, 50\); they must agree"):
        Views([sample], SPEC).load(0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (sample,) = make_noise(tmp_path, 1)
    assert sample.mask is not None
    sample.mask.unlink()
    with pytest.raises(DatasetError, match=r"0-mask\.png cannot be read: .*No such file"):
        Views([sample], SPEC).keys(1)
