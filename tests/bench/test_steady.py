"""The bench of thousands of photos: what it makes, and what it says of a localizer that grows or slows down."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from declip.errors import ImageError
from declip.images.read import read_photo

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def steady() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module("steady")
    finally:
        sys.path.remove(str(BENCH))


class Tiring:
    """Takes longer, or more memory, for every picture after the tenth; or meets a bad one."""

    def __init__(self, seconds: float = 0.0, megabytes: int = 0, bad: bool = False) -> None:
        self.seconds, self.megabytes, self.bad = seconds, megabytes, bad
        self.kept: list[Any] = []
        self.count = 0

    def __call__(self, photo: Path) -> None:
        pass

    def map(self, photos: Sequence[Path], batch_size: int) -> Iterator[object]:
        for photo in photos:
            tired = self.count >= 10
            self.count += 1
            time.sleep(0.002 + self.seconds * tired)
            if tired:
                self.kept.append(np.ones(self.megabytes * 10**6, np.uint8))
            yield ImageError("bad", "corrupt", "for the test") if self.bad else photo


def test_photos_are_of_half_a_megapixel_and_always_the_same(steady: Any, tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        made.append([path.read_bytes() for path in steady.make_photos(tmp_path / name, 12)])
    assert made[0] == made[1]
    assert len(set(made[0])) == 12
    assert {read_photo(data).size for data in made[0]} == {steady.SIZE}
    assert steady.SIZE[0] * steady.SIZE[1] == pytest.approx(5e5, rel=0.01)


def test_what_stays_the_same_is_steady(steady: Any) -> None:
    found = steady.measure(Tiring(), [Path("a")] * 20, 10, 4)
    assert found["photos"] == 20 and found["mark"] == 10
    assert 0.95 < found["growth"] < 1.05
    assert 0.5 < found["rate_last"] / found["rate_first"] < 2
    assert found["mb_highest"] >= found["mb_last"] > 10
    assert min(found["gflops_first"], found["gflops_last"]) > 1


def test_what_slows_down_or_grows_shows(steady: Any) -> None:
    slow = steady.measure(Tiring(seconds=0.02), [Path("a")] * 20, 10, 4)
    assert slow["rate_last"] < 0.5 * slow["rate_first"]
    # Of more than 32 MB, which the allocator takes from nowhere else; what other tests left may be given back.
    large = steady.measure(Tiring(megabytes=100), [Path("a")] * 20, 10, 4)
    assert 700 < large["mb_last"] - large["mb_first"] < 1060


def test_a_bad_photo_ends_it(steady: Any) -> None:
    with pytest.raises(ImageError, match="bad"):
        steady.measure(Tiring(bad=True), [Path("a")] * 20, 10, 4)
