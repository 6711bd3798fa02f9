"""Write the page of a report from its facts and pictures, with the template assets/report.html.

File names and metadata come from strangers: the template escapes every value, and unprintable characters (control
characters, marks that turn the direction of writing) are shown as their codes.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from declip import calibration
from declip.clues.findings import strongest_of_untouched
from declip.errors import WeightsError
from declip.files import visible
from declip.images.overlay import overlay
from declip.models import catalog
from declip.report import pictures, wording

if TYPE_CHECKING:
    from declip.report.examination import Report

__all__ = ["render", "template"]

# Longest sides of the pictures in the page, px.
_PHOTO_SIDE, _MAP_SIDE, _SMALL_SIDE = 1400, 1000, 360
_CROPS = 6  # regions that are shown as pictures


def render(report: Report, *, signer: str | None = None) -> str:
    """Return the page as one HTML document. signer: fingerprint of the key that it is going to be signed with."""
    return template("report.html").render(_values(report), signer=signer)


@cache
def template(name: str) -> jinja2.Template:
    """Compile one of the templates in assets, once in a process."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
    )
    environment.filters |= {"percent": wording.percent, "rank": wording.rank_percent, "box": _box_text}
    return environment.get_template(name)


def _asset(name: str) -> str:
    return (importlib.resources.files("declip") / "assets" / name).read_text(encoding="utf-8")


def _finalize(value: Any) -> Any:
    """Show the unprintable characters of each value that the template prints as their codes."""
    # The text of a macro (Markup) holds values that went through here, and line ends of the template.
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _box_text(box: pictures.Box) -> str:
    x0, y0, x1, y1 = box
    return f"{x1 - x0} × {y1 - y0} px at ({x0}, {y0})"


def _values(report: Report) -> dict[str, Any]:
    """Return what the template is filled with."""
    result, spec, base = report.result, report.localizer.spec, report.stability.base
    # How often the embedded model is right was measured with one file of weights.
    figures = json.loads(_asset("mini.json"))
    measured = figures["sha256"] == report.localizer.sha256
    photo, marked = Image.fromarray(report.photo.pixels), overlay(report.photo, result)
    steps = list(_steps(report))
    thumbnail = None if report.metadata is None else report.metadata.thumbnail
    compared = spec.calibration and spec.calibration.untouched[spec.calibration.size_class(result.scores.size)]
    return {
        "facts": report.to_dict(),
        "words": wording.explain(result, spec.calibration),
        "limits": wording.LIMITS,
        "no_probability": wording.NO_PROBABILITY,
        "name": pictures.short(result.name),
        "position_asked": report.position,
        "photo_uri": pictures.jpeg_uri(photo, _PHOTO_SIDE),
        "overlay_uri": pictures.jpeg_uri(marked, _PHOTO_SIDE),
        "scores_uri": pictures.map_uri(result.scores, _MAP_SIDE, result.mask),
        "shown": pictures.fit(report.photo.size, _PHOTO_SIDE),
        "overlay_legend": pictures.overlay_legend(result.threshold),
        "colour_legend": pictures.colour_legend(),
        "steps": steps,
        "gauge": _gauge(result.score or 0.0, [step["rank"] for step in steps]),
        "compared_pieces": len(compared or ()),
        "regions": list(_regions(report, photo, marked)),
        "stability_uri": pictures.map_uri(base.scores, _SMALL_SIDE, base.mask),
        "stable_uris": [pictures.map_uri(v.scores, _SMALL_SIDE, v.mask) for v in report.stability.variants],
        "opinion_uris": [pictures.map_uri(o.scores, _SMALL_SIDE) for o in report.opinions if o.scores is not None],
        "thumbnail_uri": None if thumbnail is None else pictures.jpeg_uri(Image.fromarray(thumbnail), _SMALL_SIDE),
        "copies_uri": pictures.copies_uri(report.photo, report.described, _MAP_SIDE) if report.findings else None,
        "edits_uri": None
        if report.detectability is None
        else pictures.jpeg_uri(report.detectability.sheet(), _PHOTO_SIDE),
        "untouched": len(strongest_of_untouched("copy-move")),
        "spec": spec,
        "card": _card(report.localizer.model, measured),
        "figures": figures if measured else None,
    }


def _card(model: str, measured: bool) -> catalog.ModelCard | None:
    """Return the model's row in the catalogue. Any file may be called mini, so that one is known by its weights."""
    try:
        card = catalog.find(model)
    except WeightsError:
        return None
    return card if measured or card.name != "mini" else None


def _steps(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the verdicts that a photo of this size can have, with their rates, and the range in which those lie."""
    found, result = report.localizer.spec.calibration, report.result
    if found is None or result.verdict is None or result.score is None:
        return
    size_class = found.size_class(result.scores.size)
    count = found.photos[size_class]
    # Pieces of photos are not independent photos, so there is no such range for them.
    single = count == len(found.untouched[size_class])
    for step in found.steps(size_class):
        likely = calibration.false_alarm_range(step.rate, count) if single else None
        yield {**step._asdict(), "rank": 1 - step.rate, "likely": likely}


def _gauge(score: float, ranks: list[float]) -> dict[str, float]:
    """Return the places of the photo and of the borders on the scale of the verdict, in percent from the left.

    ranks: from which each verdict begins, the highest first. Each verdict has its own share of the scale, since on an
    even scale all of them would be at its end.
    """
    places = [0.0, 60.0, 80.0, 100.0] if len(ranks) > 1 else [0.0, 70.0, 100.0]
    photo = float(np.interp(score, [0.0, *reversed(ranks), 1.0], places)) if ranks else 0.0
    return {"photo": photo, "flagged": places[1], "manipulated": places[2]}


def _regions(report: Report, photo: Image.Image, marked: Image.Image) -> Iterator[dict[str, Any]]:
    """Yield each region with its number, and the first of them with pictures: of the photo and of the overlay."""
    for number, region in enumerate(report.result.regions, start=1):
        row: dict[str, Any] = {"number": number, "region": region, "photo_uri": None}
        if number <= _CROPS:
            box = pictures.around(region, report.photo.size)
            uris = {"photo_uri": pictures.crop_uri(photo, box), "overlay_uri": pictures.crop_uri(marked, box)}
            row |= {"box": box, **uris}
        yield row
