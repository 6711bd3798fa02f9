"""Which photos a data set is made from, and how often each: no source may dominate.

Photos of one source (a site, a camera, a collection) share more than their content. A data set that is mostly of one
source teaches that source.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError

__all__ = ["allot", "source_of"]


def source_of(photo: str | Path) -> str:
    """Return the source of a photo: the first part of its file's name, up to the first "-"."""
    return Path(photo).stem.split("-", 1)[0]


def allot(photos: Sequence[Path], total: int, *, cap: float = 0.08, seed: int = 0) -> list[Path]:
    """Return a list of `total` photos, with repetitions, in which no source has more than the share `cap`, in (0, 1].

    Photos have equal shares, but for those of large sources, which have less. The list consists of rounds: every photo
    appears in each round at most once, and each round has a random order of its own, so that the beginning of the list
    is a fair part of the whole. seed: of the order and of who gets the places that do not divide evenly.

    Raises DatasetError if there are no photos, or fewer than 1 / cap sources, so that the cap cannot be kept.
    """
    sources: dict[str, list[Path]] = defaultdict(list)
    for photo in sorted(set(photos)):
        sources[source_of(photo)].append(photo)
    limit = math.floor(cap * total)
    if limit * len(sources) < total:
        raise DatasetError(
            f"{len(sources)} sources cannot fill {total} places with at most {cap:.0%} each; "
            f"give photos of more sources, or set cap to more than {cap:g} in the recipe"
        )
    rng = np.random.default_rng(seed)
    sizes = np.array([len(members) for members in sources.values()])
    counts: dict[Path, int] = {}
    for members, places in zip(sources.values(), _places(sizes, total, limit), strict=True):
        lucky = set(rng.permutation(len(members))[: places % len(members)].tolist())
        counts |= {photo: places // len(members) + (i in lucky) for i, photo in enumerate(members)}
    rounds: list[list[Path]] = [[] for _ in range(max(counts.values()))]
    for photo, count in counts.items():
        # The rounds that a photo takes part in are spread evenly over all of them.
        start = rng.random()
        for turn in range(count):
            rounds[int((turn + start) * len(rounds) / count)].append(photo)
    return [members[i] for members in rounds for i in rng.permutation(len(members))]


def _places(sizes: NDArray[np.int64], total: int, limit: int) -> list[int]:
    """Return how many of `total` places each source gets: in proportion to its size, at most `limit`."""
    low, high = 0.0, float(total)  # places per photo
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(sizes * middle, limit).sum() < total else (low, middle)
    wanted = np.minimum(sizes * high, limit)
    places = np.floor(wanted).astype(np.int64)
    rest = np.where(places < limit, wanted - places, -1.0)
    places[np.argsort(-rest, kind="stable")[: total - int(places.sum())]] += 1
    return [int(count) for count in places]
