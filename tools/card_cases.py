"""The pictures that models are measured on, and what a model makes of one: always the same, for all of them.

`forgeries` and `untouched` of `photos/valid`, `published` of `forged/dev` give Cases; `measure` turns them into
Outcomes. tools/model_card.py says what they stand for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError, ImageError
from declip.evaluation import metrics
from declip.images.encode import encode_jpeg
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Predictor, Sample
from declip.synthesis import Recipe, forge
from declip.synthesis.networks import Networks

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Half = Literal["choose", "report"]

KINDS = (
    *("telea", "navier-stokes", "patchmatch", "biharmonic", "regenerate-local"),
    *("splice-hard", "splice-feathered", "splice-poisson", "splice-colour"),
    *("copy-move", "blur", "noise", "resample", "relight"),
)
SEED = 2
CROP = 512  # px
JPEG_QUALITY = (75, 95)
FLAGGED = 0.02  # share of the area above which an untouched photo counts as falsely flagged
THRESHOLDS = (np.arange(1, 200) / 200).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture with its known mask. group: what it shares a photo or scene with; jpeg: re-saved by this script; path:
    of the file, where it is measured as it is."""

    kind: str
    group: str
    half: Half
    pixels: Pixels
    mask: Mask
    jpeg: bool = False
    path: Path | None = None

    def saved(self, quality: int, kind: str | None = None) -> Case:
        """Return the same picture, re-saved as JPEG."""
        pixels = resaved(self.pixels, quality)
        return dataclasses.replace(self, kind=kind or self.kind, pixels=pixels, jpeg=True, path=None)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one model made of one case.

    hits, alarms: (T + 1,) manipulated and untouched pixels with a score of at least each of THRESHOLDS, and last of all
    those in the model's own mask.
    """

    kind: str
    group: str
    half: Half
    jpeg: bool
    pixels: int
    manipulated: int
    hits: NDArray[np.int64]
    alarms: NDArray[np.int64]
    ap: float
    auc: float
    score: float
    verdict: str | None
    threshold: float

    def iou(self) -> NDArray[np.float64]:
        """(T + 1,) IoU at each threshold; nan where nothing is manipulated."""
        union = self.manipulated + self.alarms
        return self.hits / union if self.manipulated else np.full(len(union), np.nan)

    def f1(self) -> NDArray[np.float64]:
        """(T + 1,) F1 of the pixels at each threshold; nan where nothing is manipulated."""
        both = self.manipulated + self.hits + self.alarms
        return 2 * self.hits / both if self.manipulated else np.full(len(both), np.nan)

    def flagged(self) -> NDArray[np.float64]:
        """(T + 1,) flagged share of the area."""
        return (self.hits + self.alarms) / self.pixels


def half_of(name: str) -> Half:
    """Which half a photo belongs to, from its file name alone."""
    return "choose" if hashlib.sha256(name.encode()).digest()[0] % 2 else "report"


def forgeries(photos: Sequence[Path], kinds: Sequence[str], autoencoder: Path) -> Iterator[Case | None]:
    """Every photo manipulated by every kind, in order; None where a manipulation did not succeed.

    A splice's donor is another photo of the same half. Exactly half of each kind's results are re-saved as JPEG.
    """
    recipe = Recipe(networks=Networks(autoencoder=autoencoder))
    for number, path in enumerate(photos):
        half = half_of(path.name)
        others = [other for other in photos if other != path and half_of(other.name) == half]
        pixels = read_photo(path).pixels
        for place, kind in enumerate(kinds):
            rng = np.random.default_rng((SEED, zlib.crc32(path.name.encode()), zlib.crc32(kind.encode())))
            crop = _crop(pixels, rng)
            donor = None
            if kind.startswith("splice"):
                if not others:
                    yield None
                    continue
                donor = _crop(read_photo(others[int(rng.integers(len(others)))]).pixels, rng)
            try:
                forged, mask = forge(crop, kind, rng, donor, recipe)
            except DatasetError:
                yield None
                continue
            case = Case(kind=kind, group=path.name, half=half, pixels=forged, mask=mask)
            lossless = (number + place) % 2 == 0
            yield case if lossless else case.saved(int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)))


def untouched(photos: Sequence[Path]) -> Iterator[Case]:
    """Every photo whole, as it is and re-saved as JPEG 75."""
    for path in photos:
        pixels = read_photo(path).pixels
        nothing = np.zeros(pixels.shape[:2], dtype=bool)
        case = Case(kind="as they are", group=path.name, half=half_of(path.name), pixels=pixels, mask=nothing)
        yield case
        yield case.saved(75, "JPEG 75")


def published(folder: Path, what: Literal["image", "original"], quick: int | None = None) -> Iterator[Case]:
    """The real manipulated pictures, or the untouched originals that some sets have: as they are, and as JPEG 90.

    kind: the set's name. quick: at most so many of each set.
    """
    for dataset in sorted(path for path in folder.iterdir() if (path / what).is_dir()):
        for path in sorted((dataset / what).iterdir())[:quick]:
            pixels = read_photo(path).pixels
            if what == "image":
                group = _scene(path.stem)
                mask = read_mask(Sample(image=path, mask=dataset / "mask" / f"{path.stem}.png", label="fake"))
            else:
                group, mask = path.stem, np.zeros(pixels.shape[:2], dtype=bool)
            case = Case(kind=dataset.name, group=group, half="report", pixels=pixels, mask=mask, path=path)
            yield case
            yield case.saved(90)


def _scene(stem: str) -> str:
    """Variants of one photo share it: boat_inpainted_0 and boat_inpainted_1, rotation_img16 and scale_img16."""
    for mark in ("_inpainted", "_ours"):
        stem = stem.partition(mark)[0]
    for prefix in ("rotation_", "scale_", "scaling_"):
        stem = stem.removeprefix(prefix)
    return stem


def _crop(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = (min(CROP, side) for side in pixels.shape[:2])
    y = int(rng.integers(pixels.shape[0] - height + 1))
    x = int(rng.integers(pixels.shape[1] - width + 1))
    return np.ascontiguousarray(pixels[y : y + height, x : x + width])


def resaved(pixels: Pixels, quality: int) -> Pixels:
    """As a JPEG file of this quality, read again."""
    return read_photo(encode_jpeg(pixels, quality)).pixels


def measure(predictor: Predictor, cases: Iterable[Case]) -> Iterator[Outcome]:
    """What a model makes of each case, in order. Raises ImageError if it refuses one."""
    for case in cases:
        (result,) = predictor.map([case.pixels if case.path is None else case.path])
        if isinstance(result, ImageError):
            raise result
        inside, outside = result.scores[case.mask], result.scores[~case.mask]
        yield Outcome(
            kind=case.kind,
            group=case.group,
            half=case.half,
            jpeg=case.jpeg,
            pixels=case.mask.size,
            manipulated=inside.size,
            hits=_at_least(inside, result.mask[case.mask]),
            alarms=_at_least(outside, result.mask[~case.mask]),
            ap=metrics.average_precision(result.scores, case.mask),
            auc=metrics.auc(result.scores, case.mask),
            score=0.0 if result.score is None else result.score,
            verdict=result.verdict,
            threshold=result.threshold,
        )


def _at_least(scores: NDArray[np.float32], own: Mask) -> NDArray[np.int64]:
    reached = np.bincount(np.searchsorted(THRESHOLDS, scores, side="right"), minlength=len(THRESHOLDS) + 1)
    counts = reached[::-1].cumsum()[::-1][1:]
    return np.append(counts, np.count_nonzero(own)).astype(np.int64)
