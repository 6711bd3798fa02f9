"""Stand-ins: photos never cross the parts, and what was made is not made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from declip import datasets
from declip.errors import DatasetError
from declip.images.mapfiles import read_mask
from declip.reproduce.sources import Dolos, Split, StandIns
from tests.reproduce.making import make_photos

PARTS: tuple[Split, ...] = ("train", "valid", "test")


def test_photos_never_cross_the_parts(tmp_path: Path) -> None:
    sources = StandIns(make_photos(tmp_path / "photos", 10), tmp_path / "data")
    groups = {
        (name, part): {sample.group for sample in sources.samples(name, part)}
        for name in ("blur", "noise")
        for part in PARTS
    }
    assert [len(sources.photos[part]) for part in PARTS] == [6, 2, 2]
    for part in PARTS:
        assert groups["blur", part] == groups["noise", part] == {path.stem for path in sources.photos[part]}
    assert not groups["blur", "train"] & (groups["blur", "valid"] | groups["noise", "test"])
    assert not groups["blur", "valid"] & groups["blur", "test"]


def test_samples_are_fakes_unless_asked(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 10)
    sources = StandIns(photos, tmp_path / "data")
    fakes = sources.samples("blur", "train")
    assert {sample.label for sample in fakes} == {"fake"} and len(fakes) == 12
    both = sources.samples("blur", "train", reals=True)
    assert both[:12] == fakes and {sample.label for sample in both[12:]} == {"real"}
    assert {sample.image.suffix for sample in both} == {".png"}
    # What was made is not made again.
    times = {sample.image: sample.image.stat().st_mtime_ns for sample in fakes}
    assert StandIns(photos[::-1], tmp_path / "data").samples("blur", "train") == fakes
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_few_photos_are_refused_and_of_many_some_are_drawn(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has 9 pictures; expected at least 10"):
        StandIns([Path()] * 9, tmp_path)
    photos = [Path(f"{i}.png") for i in range(1000)]
    first, second = StandIns(photos, tmp_path, seed=5), StandIns(photos[::-1], tmp_path, seed=5)
    drawn = [path for part in PARTS for path in first.photos[part]]
    assert len(drawn) == len(set(drawn)) == 240 and second.photos == first.photos


def test_dolos_reads_what_the_loader_reads(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder celebahq"):
        Dolos(tmp_path, tmp_path)
    for folder in ("images", "masks"):
        path = tmp_path / "celebahq/fake/lama" / folder / "test/7-0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    assert Dolos(tmp_path, tmp_path).samples("lama", "test") == datasets.dolos(tmp_path, "lama", split="test")


def test_whole_fakes_have_a_mask_of_everything(tmp_path: Path) -> None:
    make_photos(tmp_path / "celebahq/fake/p2/test", 2)
    make_photos(tmp_path / "celebahq/real/test", 1)
    first, second, real = Dolos(tmp_path, tmp_path / "data").samples("p2", "test", reals=True)
    assert read_mask(first).shape == (256, 256) and read_mask(first).all()
    assert first.mask == second.mask and real.label == "real" and real.mask is None
