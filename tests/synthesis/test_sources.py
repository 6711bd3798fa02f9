"""Who may have how much of a data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from declip.errors import DatasetError
from declip.synthesis.sources import allot, source_of

PHOTOS = [Path(f"big-{i}.png") for i in range(50)] + [Path(f"s{i // 2}-{i}.jpg") for i in range(40)]


def test_source_is_the_first_part_of_the_name() -> None:
    assert source_of("x/codrops-ColumnScroll-1.jpg") == "codrops"
    assert source_of("lena.png") == "lena"


def test_no_source_exceeds_the_cap_and_the_rest_is_even() -> None:
    places = allot(PHOTOS, 1000, cap=0.1)
    assert len(places) == 1000
    per_source = Counter(map(source_of, places))
    assert per_source.pop("big") == 100
    assert set(per_source.values()) == {45}
    assert set(Counter(photo for photo in places if source_of(photo) == "big").values()) == {2}


def test_any_beginning_is_a_fair_part() -> None:
    places = allot(PHOTOS, 1000, cap=0.1)
    assert 15 <= sum(source_of(photo) == "big" for photo in places[:200]) <= 25
    assert set(PHOTOS[50:]) < set(places[:200])


def test_the_order_follows_the_seed() -> None:
    assert allot(PHOTOS, 100, cap=0.1) == allot(PHOTOS[::-1], 100, cap=0.1)
    assert allot(PHOTOS, 100, cap=0.1) != allot(PHOTOS, 100, cap=0.1, seed=1)


def test_a_cap_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(DatasetError, match="21 sources cannot fill 100 places with at most 4% each"):
        allot(PHOTOS, 100, cap=0.04)
