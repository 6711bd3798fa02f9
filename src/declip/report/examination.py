"""Examine one photo for a report: what was found, how steady it is, what other maps show, what its file says.

    localizer = declip.load()
    found = declip.report.examine("photo.jpg", localizer, date=datetime.now(UTC))
    found.save("photo.html")

`Report.to_dict` gives the facts; `Report.to_html` one page that needs no other file, no script and no network.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip import clues
from declip._version import __version__
from declip.clues.findings import facts_of, without_doubles
from declip.errors import ImageError, MissingExtraError
from declip.evaluation import metrics
from declip.files import write_atomic
from declip.images.encode import encode_jpeg
from declip.images.read import read_photo
from declip.images.tensors import resize_scores
from declip.localize.localizer import Localizer
from declip.localize.looking import look
from declip.provenance.result import to_plain
from declip.regions import Box, Region, Verdict, describe
from declip.report import metadata, page
from declip.report.detectability import Detectability
from declip.results import Localization, Photo, PictureLike, check_type

__all__ = ["Change", "Opinion", "Report", "Stability", "Variant", "examine"]

Floats: TypeAlias = NDArray[np.float32]
Change: TypeAlias = Literal["jpeg-95", "jpeg-85", "jpeg-75", "resize-0.75", "crop-1px", "flip"]

# Larger photos are examined in a part at their own resolution: scaling them down would remove the traces looked for.
_STABILITY_SIDE = 1280
_OPINION_SIDE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """The map of a changed copy of the photo, compared with that of the unchanged one.

    iou: of both masks; 1 if both are empty, as `metrics.iou`. difference: mean absolute difference of the scores.
    area: share of the mask. score, verdict: of the changed copy. scores (H, W) float32 in [0, 1], mask (H, W) bool: of
    the changed copy, brought back to the grid of the unchanged one ("crop-1px": without its first row and column).
    """

    change: Change
    iou: float
    difference: float
    area: float
    score: float | None
    verdict: Verdict | None
    scores: Floats = field(repr=False)
    mask: NDArray[np.bool_] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far the map stays the same if the photo is changed in ways that leave its content alone.

    box: the part of the photo that was examined; whole: it is all of it. base: the localization of the unchanged part.
    """

    box: Box
    whole: bool
    base: Localization = field(repr=False)
    variants: tuple[Variant, ...]

    @property
    def mean_iou(self) -> float:
        """Mean over the variants, in [0, 1]; nan if there are none."""
        return float(np.mean([variant.iou for variant in self.variants])) if self.variants else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Opinion:
    """A training-free map of the photo, or why there is none (missing).

    scores: (h, w) float32 in [0, 1] of the part `box`. mean: of all scores; inside, outside: of those in and out of the
    localizer's mask. A mean over no pixels is nan.
    """

    name: str
    box: Box
    mean: float = math.nan
    inside: float = math.nan
    outside: float = math.nan
    missing: str | None = None
    scores: Floats | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is known about one photo. notes: of clues. position: whether the place where it was taken is told."""

    photo: Photo
    result: Localization
    localizer: Localizer
    stability: Stability
    opinions: tuple[Opinion, ...]
    findings: tuple[clues.Finding, ...]
    notes: tuple[str, ...] = ()
    metadata: metadata.Metadata | None
    date: datetime
    position: bool = False
    detectability: Detectability | None = None

    @property
    def described(self) -> list[tuple[clues.Finding, Region]]:
        """What clues found, each as a region."""
        return [(each, describe(each, self.result.scores, self.result.threshold)) for each in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, ready for JSON: the keys of `Localization.to_dict` and those of docs/report.md."""
        spec, base = self.localizer.spec, self.stability.base
        unchanged = {"area": base.area, "score": base.score, "verdict": base.verdict}
        return self.result.to_dict() | {
            "date": self.date.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "declip": __version__,
            "calibration": None if spec.calibration is None else dataclasses.asdict(spec.calibration),
            "spec": json.loads(spec.to_json()),
            "stability": to_plain(self.stability) | unchanged | {"mean_iou": to_plain(self.stability.mean_iou)},
            "second_opinions": to_plain(self.opinions),
            "detectability": self.detectability and self.detectability.to_dict(),
            "findings": [facts_of(finding, region) for finding, region in self.described],
            "notes": [*self.result.said, *self.notes],
            "metadata": None if self.metadata is None else self.metadata.to_dict(),
        }

    def to_html(self) -> str:
        """Return the page: one HTML document that refers to nothing outside of itself."""
        return page.render(self)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all. Raises ImageError of kind "exists" unless force, OSError."""
        try:
            write_atomic(path, self.to_html(), new=not force)
        except FileExistsError as error:
            message = "the page is there already; force=True (--force) overwrites it"
            raise ImageError(str(path), "exists", message) from error


def examine(
    picture: PictureLike,
    localizer: Localizer,
    *,
    date: datetime,
    position: bool = False,
    result: Localization | None = None,
) -> Report:
    """Examine one photo.

    picture: as for `read_photo`. date: of the report, with its time zone; shown in UTC. position: tell where the photo
    was taken, and show free text, which may tell it as well. result: what this localizer found in this photo, if known.

    The photo is localized up to eight times. Beyond 1280 × 1280 px, a tiled model repeats it on a part of that size,
    and beyond 4096 × 4096 px the training-free maps see a part of that size: at its own resolution, around the largest
    region of the mask (or the highest score). Raises ImageError; ValueError for a date without a time zone.
    """
    check_type(localizer, Localizer, "declip.load('mini')")
    if date.tzinfo is None:
        raise ValueError(f"the date {date} has no time zone; expected datetime.now(UTC), say")
    photo = localizer.read(picture)
    found = localizer(photo) if result is None else result
    check_type(found, Localization, "what this localizer returns for this picture")
    if found.scores.shape != photo.size:
        message = f"the photo has {photo.size} pixels, the result {found.scores.shape}; give the same"
        raise ImageError(photo.name, "input", message)
    # Clues that take no part in the verdict stand beside it.
    others = [] if localizer.asked == "none" else [clue for clue in clues.CLUES.values() if clue not in localizer.clues]
    looked = look(photo, others)
    return Report(
        photo=photo,
        result=found,
        localizer=localizer,
        stability=_stability(photo, found, localizer),
        opinions=tuple(_opinions(photo, found)),
        findings=(*found.findings, *without_doubles(looked.findings, found.findings)),
        notes=looked.notes,
        metadata=metadata.read(photo, position=position),
        date=date.astimezone(UTC),
        position=position,
    )


def _stability(photo: Photo, found: Localization, localizer: Localizer) -> Stability:
    """Localize changed copies of the photo, or of a part of it, and compare."""
    # In whole mode any size takes one step, and a part of the photo would be another scene.
    box = _part(found, _STABILITY_SIDE if localizer.mode == "tiled" else max(photo.size))
    part = _cut(photo, box)
    whole = part is photo
    localizer = localizer.variant(clues="none")  # it is the map that is to be steady
    base = dataclasses.replace(found, findings=(), clues=()) if whole else localizer(part)
    # Of a photo one pixel wide or high, nothing would be left by the crop.
    changes: list[Change] = [change for change in get_args(Change) if change != "crop-1px" or min(part.size) > 1]
    variants = tuple(_variant(part, base, localizer, change) for change in changes)
    return Stability(box=box, whole=whole, base=base, variants=variants)


def _variant(part: Photo, base: Localization, localizer: Localizer, change: Change) -> Variant:
    again = localizer(_changed(part, change))
    scores = _back(again.scores, change, part.size)
    mask = _back(again.mask.astype(np.float32), change, part.size) >= 0.5
    kept = np.s_[1:, 1:] if change == "crop-1px" else np.s_[:, :]
    return Variant(
        change=change,
        scores=scores,
        mask=mask,
        iou=metrics.iou(mask, base.mask[kept]),
        difference=_mean(np.abs(scores - base.scores[kept])),
        area=float(mask.mean()),
        score=again.score,
        verdict=again.verdict,
    )


def _part(found: Localization, side: int) -> Box:
    """Return the box of the whole photo; for a larger one that of at most side × side px around what was found."""
    height, width = found.scores.shape
    if height * width <= side * side:
        return 0, 0, width, height
    if found.regions:
        x0, y0, x1, y1 = found.regions[0].bbox
        row, column = (y0 + y1) // 2, (x0 + x1) // 2
    else:
        row, column = (int(place) for place in np.unravel_index(int(np.argmax(found.scores)), found.scores.shape))
    spans = []
    for middle, length in ((row, height), (column, width)):
        size = min(side, length)
        # Multiples of 8 keep the grid of JPEG in its phase.
        start = max(0, min(middle - size // 2, length - size)) // 8 * 8
        spans.append((start, start + size))
    (top, bottom), (left, right) = spans
    return left, top, right, bottom


def _cut(photo: Photo, box: Box) -> Photo:
    """Return the part of a photo, without its file; the photo itself if the box is all of it."""
    x0, y0, x1, y1 = box
    if (y1 - y0, x1 - x0) == photo.size:
        return photo
    return Photo(pixels=np.ascontiguousarray(photo.pixels[y0:y1, x0:x1]), name=photo.name)


def _changed(photo: Photo, change: Change) -> Photo:
    """Return a changed copy. A saved one keeps its file, for models that read the coefficients of a JPEG."""
    match change:
        case "resize-0.75":
            height, width = (max(1, round(0.75 * side)) for side in photo.size)
            # Lanczos, as in the programs that people scale their photos with.
            pixels = np.asarray(Image.fromarray(photo.pixels).resize((width, height), Image.Resampling.LANCZOS))
        case "crop-1px":
            pixels = np.ascontiguousarray(photo.pixels[1:, 1:])
        case "flip":
            pixels = np.ascontiguousarray(photo.pixels[:, ::-1])
        case _:
            data = encode_jpeg(photo.pixels, int(change.removeprefix("jpeg-")))
            return dataclasses.replace(read_photo(data, max_pixels=photo.pixels.size), name=photo.name)
    return Photo(pixels=pixels, name=photo.name)


def _back(scores: Floats, change: Change, size: tuple[int, int]) -> Floats:
    """Bring scores of the changed photo to the grid of the unchanged one."""
    if change == "resize-0.75":
        return resize_scores(scores, size)
    return np.ascontiguousarray(scores[:, ::-1]) if change == "flip" else scores


def _opinions(photo: Photo, found: Localization) -> Iterator[Opinion]:
    """Yield the training-free maps of the photo, or of a part of it."""
    box = _part(found, _OPINION_SIDE)
    part, (x0, y0, x1, y1) = _cut(photo, box), box
    mask = found.mask[y0:y1, x0:x1]
    for name, kind in clues.BASELINES.items():
        try:
            scores = kind().scores(part)
        except (ImageError, MissingExtraError) as error:
            yield Opinion(name=name, box=box, missing=str(error))
        else:
            inside, outside = _mean(scores[mask]), _mean(scores[~mask])
            yield Opinion(name=name, box=box, scores=scores, mean=_mean(scores), inside=inside, outside=outside)


def _mean(values: Floats) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan
