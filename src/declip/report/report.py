"""A page to be filed for one photo: what was found, how steady it is, and what it does and does not mean.

    localizer = declip.load()
    found = declip.report.examine("photo.jpg", localizer, date=datetime.now(UTC))
    found.save("photo.html")

`examine` computes: the localization, the same on changed copies of the photo (stability), the training-free maps as
second opinions, the metadata of the file. `Report.to_dict` gives the facts, `Report.to_html` one page that needs no
other file, no script and no network.

File names and metadata come from strangers: the template escapes every value, and what is not printable (control
characters, marks that turn the direction of writing) is shown as its code. Pictures in the page are made from pixels,
so no metadata travels with them.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from declip import baselines, calibration
from declip._version import __version__
from declip.errors import ImageError, MissingExtraError, WeightsError
from declip.evaluation import metrics
from declip.files import write_atomic
from declip.images.encode import encode_jpeg
from declip.images.overlay import overlay
from declip.images.read import read_photo
from declip.images.tensors import resize_scores
from declip.localize.localizer import Localizer
from declip.models import catalog
from declip.models.catalog import ModelCard
from declip.report import metadata, wording
from declip.results import Localization, MaskRule, Photo, PictureLike, Region, Verdict

__all__ = ["Change", "Opinion", "Report", "Stability", "Variant", "examine"]

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # (x0, y0, x1, y1) px, half-open

Change = Literal["jpeg-95", "jpeg-85", "jpeg-75", "resize-0.75", "crop-1px", "flip"]

# Larger photos are examined in a part at their own resolution: scaling them down would remove the traces looked for.
_STABILITY_SIDE = 1280
_OPINION_SIDE = 4096

# Longest sides of the pictures in the page, px.
_PHOTO_SIDE, _MAP_SIDE, _SMALL_SIDE, _CROP_SIDE = 1400, 1000, 360, 440
_CROPS = 6  # regions that are shown as pictures
_NAME = 200  # characters of a file's name that are shown

# Scores 0 to 1, dark to bright, so that the order survives a grey print; evenly spaced.
_COLOURS = ((14, 16, 34), (72, 34, 104), (176, 50, 102), (240, 124, 66), (252, 236, 186))
_OUTLINE = (90, 230, 255)


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """The map of a changed copy of the photo, beside that of the photo.

    scores: (H, W) float32 in [0, 1], brought back to the grid of the unchanged one ("crop-1px": without its first row
    and column). mask: what is flagged in the changed copy, on that grid, too. iou: of both masks; 1 where both are
    empty, as `metrics.iou`. difference: mean absolute difference of the scores. area: share of the mask. score,
    verdict: of the changed copy.
    """

    change: Change
    scores: Floats = field(repr=False)
    mask: NDArray[np.bool_] = field(repr=False)
    iou: float
    difference: float
    area: float
    score: float | None
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far the map stays the same when the photo is changed in ways that leave its content alone.

    box: the part of the photo that was examined; whole: it is all of it. base: the localization of the unchanged part.
    """

    box: Box
    whole: bool
    base: Localization
    variants: tuple[Variant, ...]

    @property
    def mean_iou(self) -> float:
        """Mean over the variants, in [0, 1]; nan without any."""
        return float(np.mean([variant.iou for variant in self.variants])) if self.variants else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Opinion:
    """A training-free map of the photo, or why there is none.

    scores: (h, w) float32 in [0, 1] of the part `box`. inside, outside: its means in and out of the localizer's mask;
    nan where that is empty, or everything.
    """

    name: str
    box: Box
    scores: Floats | None = field(default=None, repr=False)
    inside: float = math.nan
    outside: float = math.nan
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is known of one photo. position: the place where it was taken is told, too."""

    photo: Photo
    result: Localization
    localizer: Localizer
    stability: Stability
    opinions: tuple[Opinion, ...]
    metadata: metadata.Metadata | None
    date: datetime
    position: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The facts, ready for JSON: the keys of `Localization.to_dict`, and those of docs/report.md. nan is None."""
        spec = self.localizer.spec
        stability = self.stability
        return self.result.to_dict() | {
            "date": _stamp(self.date),
            "declip": __version__,
            "calibration": None if spec.calibration is None else dataclasses.asdict(spec.calibration),
            "spec": json.loads(spec.to_json()),
            "stability": {
                "box": list(stability.box),
                "whole": stability.whole,
                "area": stability.base.area,
                "score": stability.base.score,
                "verdict": stability.base.verdict,
                "mean_iou": _number(stability.mean_iou),
                "variants": [
                    {
                        "change": variant.change,
                        "iou": variant.iou,
                        "difference": variant.difference,
                        "area": variant.area,
                        "score": variant.score,
                        "verdict": variant.verdict,
                    }
                    for variant in stability.variants
                ],
            },
            "second_opinions": [
                {
                    "name": opinion.name,
                    "box": list(opinion.box),
                    "mean": None if opinion.scores is None else float(opinion.scores.mean(dtype=np.float64)),
                    "inside": _number(opinion.inside),
                    "outside": _number(opinion.outside),
                    "missing": opinion.missing or None,
                }
                for opinion in self.opinions
            ],
            "metadata": None if self.metadata is None else self.metadata.to_dict(),
        }

    def to_html(self) -> str:
        """The page: one HTML document that refers to nothing outside of itself."""
        environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(_template),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_visible,
        )
        environment.filters |= {"percent": wording.percent, "rank": wording.rank_percent, "box": _box_text}
        return environment.get_template("report.html").render(_Page(self).values())

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page, whole or not at all. Raises ImageError of kind "exists" unless force, OSError."""
        path = Path(path)
        try:
            write_atomic(path, self.to_html(), new=not force)
        except FileExistsError as error:
            raise ImageError(
                str(path), "exists", "the page is there already; force=True (--force) overwrites it"
            ) from error


def examine(
    picture: PictureLike,
    localizer: Localizer,
    *,
    date: datetime,
    position: bool = False,
    result: Localization | None = None,
) -> Report:
    """Examine one photo.

    picture: as for `read_photo`. date: of the report, with its time zone; shown in UTC. position: tell where the
    photo was taken, and show free text, which may tell it as well. result: of this localizer for this photo, where it
    is there already.

    The photo is localized up to eight times. Beyond 1280 × 1280 px, a tiled model repeats it on a part of that size,
    and beyond 4096 × 4096 px the training-free maps see a part of that size: at its own resolution, around the largest
    region of the mask (or the highest score). Raises ImageError; ValueError for a date without a time zone.
    """
    if date.tzinfo is None:
        raise ValueError(f"the date {date} has no time zone; expected datetime.now(UTC), say")
    photo = localizer.read(picture)
    found = localizer(photo) if result is None else result
    if found.scores.shape != photo.size:
        raise ImageError(
            photo.name, "input", f"the photo has {photo.size} pixels, the result {found.scores.shape}; give the same"
        )
    return Report(
        photo=photo,
        result=found,
        localizer=localizer,
        stability=_stability(photo, found, localizer),
        opinions=tuple(_opinions(photo, found)),
        metadata=metadata.read(photo, position=position),
        date=date.astimezone(UTC),
        position=position,
    )


# --- stability ------------------------------------------------------------------------------------------------------


def _stability(photo: Photo, found: Localization, localizer: Localizer) -> Stability:
    height, width = photo.size
    # A network that squashes its picture takes any size in one step, and would see another scene in a part of it.
    limit = _STABILITY_SIDE if localizer.mode == "tiled" else max(height, width)
    box = _part(found, limit)
    whole = box == (0, 0, width, height)
    part = photo if whole else _cut(photo, box)
    base = found if whole else localizer(part)
    variants = []
    for change in get_args(Change):
        if change == "crop-1px" and min(part.size) == 1:
            continue  # nothing would be left
        again = localizer(_changed(part, change))
        scores = _back(again.scores, change, part.size)
        mask = _back(again.mask.astype(np.float32), change, part.size) >= 0.5
        kept = np.s_[1:, 1:] if change == "crop-1px" else np.s_[:, :]
        variants.append(
            Variant(
                change=change,
                scores=scores,
                mask=mask,
                iou=metrics.iou(mask, base.mask[kept]),
                difference=float(np.abs(scores - base.scores[kept]).mean(dtype=np.float64)),
                area=float(mask.mean()),
                score=again.score,
                verdict=again.verdict,
            )
        )
    return Stability(box=box, whole=whole, base=base, variants=tuple(variants))


def _part(found: Localization, side: int) -> Box:
    """The whole photo; of a larger one a part of at most side × side px, around what was found."""
    height, width = found.scores.shape
    if height * width <= side * side:
        return 0, 0, width, height
    if found.regions:
        x0, y0, x1, y1 = found.regions[0].bbox
        centre = ((y0 + y1) // 2, (x0 + x1) // 2)
    else:
        row, column = np.unravel_index(int(np.argmax(found.scores)), found.scores.shape)
        centre = (int(row), int(column))
    spans = []
    for middle, length in zip(centre, (height, width), strict=True):
        size = min(side, length)
        # Multiples of 8 keep the grid of JPEG in its phase.
        start = max(0, min(middle - size // 2, length - size)) // 8 * 8
        spans.append((start, start + size))
    (top, bottom), (left, right) = spans
    return left, top, right, bottom


def _cut(photo: Photo, box: Box) -> Photo:
    x0, y0, x1, y1 = box
    return Photo(pixels=np.ascontiguousarray(photo.pixels[y0:y1, x0:x1]), name=photo.name)


def _changed(photo: Photo, change: Change) -> Photo:
    """The photo after one change. A saved one keeps its file, for models that read a JPEG's own coefficients."""
    match change:
        case "jpeg-95" | "jpeg-85" | "jpeg-75":
            quality = int(change.removeprefix("jpeg-"))
            data = encode_jpeg(photo.pixels, quality)
            return dataclasses.replace(read_photo(data, max_pixels=photo.pixels.size), name=photo.name)
        case "resize-0.75":
            height, width = (max(1, round(0.75 * side)) for side in photo.size)
            # Lanczos, as the programs do that people scale their photos with.
            small = Image.fromarray(photo.pixels).resize((width, height), Image.Resampling.LANCZOS)
            return Photo(pixels=np.asarray(small), name=photo.name)
        case "crop-1px":
            return Photo(pixels=np.ascontiguousarray(photo.pixels[1:, 1:]), name=photo.name)
        case "flip":
            return Photo(pixels=np.ascontiguousarray(photo.pixels[:, ::-1]), name=photo.name)


def _back(scores: Floats, change: Change, size: tuple[int, int]) -> Floats:
    """Scores of the changed photo on the grid of the unchanged one."""
    match change:
        case "flip":
            return np.ascontiguousarray(scores[:, ::-1])
        case "resize-0.75":
            return resize_scores(scores, size)
    return scores


# --- second opinions ------------------------------------------------------------------------------------------------


def _opinions(photo: Photo, found: Localization) -> Iterator[Opinion]:
    box = _part(found, _OPINION_SIDE)
    x0, y0, x1, y1 = box
    part = photo if box == (0, 0, photo.size[1], photo.size[0]) else _cut(photo, box)
    mask = found.mask[y0:y1, x0:x1]
    for name, kind in baselines.BASELINES.items():
        try:
            scores = kind().scores(part)
        except (ImageError, MissingExtraError) as error:
            yield Opinion(name=name, box=box, missing=str(error))
            continue
        yield Opinion(
            name=name,
            box=box,
            scores=scores,
            inside=_mean(scores[mask]),
            outside=_mean(scores[~mask]),
        )


def _mean(values: Floats) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


# --- facts as text --------------------------------------------------------------------------------------------------


def _stamp(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _box_text(box: Box) -> str:
    x0, y0, x1, y1 = box
    return f"{x1 - x0} × {y1 - y0} px at ({x0}, {y0})"


def _visible(value: Any) -> Any:
    """Of every value that the template prints: what cannot be seen is shown as its code."""
    # What a macro has made holds values that went through here, and the template's own marks between them.
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)


def _template(name: str) -> str:
    return (importlib.resources.files("declip") / "assets" / name).read_text(encoding="utf-8")


def _shipped_figures(sha256: str) -> dict[str, Any] | None:
    """How often the embedded model is right, measured with these very weights; None for other weights."""
    figures: dict[str, Any] = json.loads(_template("mini.json"))
    return figures if figures["sha256"] == sha256 else None


def _card(localizer: Localizer, measured: bool) -> ModelCard | None:
    """The model's row in the catalogue. Anybody may call a file mini: that one is known by its weights."""
    try:
        card = catalog.find(localizer.model)
    except WeightsError:
        return None
    return card if measured or card.name != "mini" else None


# --- pictures -------------------------------------------------------------------------------------------------------


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) scaled down to a longest side of at most `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _jpeg(picture: Image.Image, side: int) -> str:
    """A picture as a data URI, at most `side` px long."""
    height, width = _fit((picture.height, picture.width), side)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    # Made anew from the pixels alone: whatever a picture carries in its info stays behind.
    Image.fromarray(np.asarray(picture)).save(stream, "JPEG", quality=88, optimize=True)
    return _uri("jpeg", stream)


def _map(scores: Floats, side: int, mask: NDArray[np.bool_] | None = None) -> str:
    """Scores in fixed colours as a data URI, at most `side` px long; the border of the mask where one is given."""
    size = _fit((scores.shape[0], scores.shape[1]), side)
    levels = np.rint(resize_scores(scores, size) * np.float32(254)).astype(np.uint8)
    if mask is not None:
        small = resize_scores(mask.astype(np.float32), size) >= 0.5
        levels[small & ~ndimage.binary_erosion(small, iterations=2)] = 255
    return _indexed(levels)


def _indexed(levels: Pixels) -> str:
    """(h, w) uint8, 0-254 = scores and 255 = outline, as a data URI."""
    places = np.linspace(0, 254, len(_COLOURS))
    channels = [np.interp(np.arange(255), places, [colour[i] for colour in _COLOURS]) for i in range(3)]
    palette = [*np.rint(np.stack(channels, axis=1)).astype(int).ravel().tolist(), *_OUTLINE]
    picture = Image.fromarray(levels)
    picture.putpalette(palette)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return _uri("png", stream)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _colour_legend() -> str:
    return _indexed(np.tile(np.arange(255, dtype=np.uint8), (16, 1)))


def _overlay_legend(threshold: float) -> str:
    """What the overlay does to a grey photo whose scores grow from 0 on the left to 1 on the right."""
    ramp = np.tile(np.linspace(0, 1, 1020, dtype=np.float32), (48, 1))
    grey = Photo(pixels=np.full((*ramp.shape, 3), 150, np.uint8), name="legend")
    rule = MaskRule(threshold=threshold)
    shown = Localization(name="legend", scores=ramp, rule=rule, image_score=0.0, model="", sha256="")
    return _jpeg(overlay(grey, shown), 1020)


class _Page:
    """What the template is filled with."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.figures = _shipped_figures(report.localizer.sha256)

    @cached_property
    def marked(self) -> Image.Image:
        """The overlay at the photo's own size."""
        return overlay(self.report.photo, self.report.result)

    def values(self) -> dict[str, Any]:
        report, spec = self.report, self.report.localizer.spec
        facts = report.to_dict()
        name = Path(report.result.name).name or report.result.name
        return {
            "facts": facts,
            "words": wording.explain(report.result, spec.calibration),
            "limits": wording.LIMITS,
            "no_probability": wording.NO_PROBABILITY,
            "name": name if len(name) <= _NAME else f"{name[:_NAME]}…",
            "position_asked": report.position,
            "photo_uri": _jpeg(Image.fromarray(report.photo.pixels), _PHOTO_SIDE),
            "overlay_uri": _jpeg(self.marked, _PHOTO_SIDE),
            "scores_uri": _map(report.result.scores, _MAP_SIDE, report.result.mask),
            "shown": _fit(report.photo.size, _PHOTO_SIDE),
            "overlay_legend": _overlay_legend(report.result.threshold),
            "colour_legend": _colour_legend(),
            "steps": self._steps(),
            "gauge": self._gauge(),
            "compared_pieces": self._compared_pieces(),
            "regions": list(self._regions()),
            "stability_uri": _map(report.stability.base.scores, _SMALL_SIDE, report.stability.base.mask),
            "stable_uris": [_map(v.scores, _SMALL_SIDE, v.mask) for v in report.stability.variants],
            "steady": sum(v.iou >= 0.5 for v in report.stability.variants),
            "opinion_uris": [_map(o.scores, _SMALL_SIDE) for o in report.opinions if o.scores is not None],
            "opinion_whole": report.opinions[0].box == (0, 0, *report.photo.size[::-1]),
            "thumbnail_uri": self._thumbnail(),
            "tables": self._tables(),
            "spec": spec,
            "reads_coefficients": spec.traits.reads_coefficients,
            "card": _card(report.localizer, self.figures is not None),
            "figures": self.figures,
        }

    def _steps(self) -> list[dict[str, Any]]:
        """The verdicts that a photo of this size can have, with their rates, and within which range those are."""
        found, result = self.report.localizer.spec.calibration, self.report.result
        if found is None or result.verdict is None or result.score is None:
            return []
        size_class = found.size_class(result.scores.size)
        count = found.photos[size_class]
        # Pieces of photos are no independent photos: there is no such range for them.
        single = count == len(found.untouched[size_class])
        return [
            {
                **step._asdict(),
                "rank": 1 - step.rate,
                "likely": calibration.false_alarm_range(step.rate, count) if single else None,
            }
            for step in found.steps(size_class)
        ]

    def _compared_pieces(self) -> int:
        """With how many pictures this one was compared: untouched photos, and pieces of them."""
        found = self.report.localizer.spec.calibration
        return 0 if found is None else len(found.untouched[found.size_class(self.report.result.scores.size)])

    def _gauge(self) -> dict[str, float]:
        """Where on the scale of the verdict the photo and the borders lie, in percent from the left.

        Each verdict has a share of the scale of its own: in even steps of the rank all of them would be at its end.
        """
        steps = self._steps()
        ranks = [0.0, *(step["rank"] for step in reversed(steps)), 1.0]
        places = [0.0, 60.0, 80.0, 100.0] if len(steps) > 1 else [0.0, 70.0, 100.0]
        score = self.report.result.score
        return {
            "photo": float(np.interp(0.0 if score is None else score, ranks, places)) if steps else 0.0,
            "flagged": float(places[1]),
            "manipulated": float(places[2]),
        }

    def _regions(self) -> Iterator[dict[str, Any]]:
        for number, region in enumerate(self.report.result.regions, start=1):
            row: dict[str, Any] = {"number": number, "region": region, "photo_uri": None}
            if number <= _CROPS:
                box = _around(region, self.report.photo.size)
                row["box"] = box
                row["photo_uri"] = _crop(Image.fromarray(self.report.photo.pixels), box)
                row["overlay_uri"] = _crop(self.marked, box)
            yield row

    def _thumbnail(self) -> str | None:
        found = self.report.metadata
        if found is None or found.thumbnail is None:
            return None
        return _jpeg(Image.fromarray(found.thumbnail), _SMALL_SIDE)

    def _tables(self) -> list[list[tuple[int, ...]]]:
        """The JPEG's tables, each as eight rows of eight steps."""
        found = self.report.metadata
        if found is None or found.jpeg is None:
            return []
        return [[table[row : row + 8] for row in range(0, 64, 8)] for table in found.jpeg.tables]


def _around(region: Region, size: tuple[int, int]) -> Box:
    """The region with what is around it: a quarter of its sides, and at least 96 px in all."""
    x0, y0, x1, y1 = region.bbox
    spans = []
    for start, end, length in ((x0, x1, size[1]), (y0, y1, size[0])):
        margin = max((end - start) // 4, (96 - (end - start)) // 2, 8)
        spans.append((max(0, start - margin), min(length, end + margin)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _crop(picture: Image.Image, box: Box) -> str:
    """A part as a data URI; a small one enlarged in whole steps, so that its pixels stay what they are."""
    part = picture.crop(box)
    factor = max(1, (_CROP_SIDE // 2) // max(part.size))
    if factor > 1:
        part = part.resize((part.width * factor, part.height * factor), Image.Resampling.NEAREST)
    return _jpeg(part, _CROP_SIDE)
