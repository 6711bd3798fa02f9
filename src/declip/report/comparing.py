"""Write what a comparison found: an overlay, the mask, the facts, and a page with both pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from declip._version import __version__
from declip.clues.comparison import Comparison, compare
from declip.errors import ImageError
from declip.files import write_together
from declip.images.encode import encode_png
from declip.images.mapfiles import mask_png
from declip.images.overlay import overlay
from declip.regions import MaskRule
from declip.report import pictures
from declip.results import Localization, Photo

__all__ = ["SUFFIXES", "Comparison", "compare", "facts", "overlay_of", "save", "to_html"]

SUFFIXES = (".compare.png", ".changed.png", ".compare.json", ".compare.html")

_PHOTO_SIDE, _HALF_SIDE = 1400, 900  # px, of the pictures in the page
_CROPS = 12
_STRIPE = 600  # of the longer side: the hatching's period


def facts(found: Comparison, date: datetime) -> dict[str, Any]:
    """Return the facts, ready for JSON: those of `Comparison.to_dict`, with the date and the version."""
    return found.to_dict() | {
        "date": date.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "declip": __version__,
    }


def overlay_of(found: Comparison) -> Image.Image:
    """Draw the photo paler, with what differs tinted and outlined, and what was not compared hatched."""
    scores = found.mask.astype(np.float32)
    rule = MaskRule(threshold=0.5)
    marks = Localization(name=found.photo.name, scores=scores, rule=rule, image_score=0.0, model="", sha256="")
    drawn = np.array(overlay(found.photo, marks))
    height, width = found.photo.size
    period = max(8, max(height, width) * 12 // _STRIPE)
    rows, columns = np.ogrid[:height, :width]
    hatched = ~found.compared & ((rows + columns) % period < max(2, period // 4))
    drawn[~found.compared] = drawn[~found.compared] // 2 + 64
    drawn[hatched] = 200
    return Image.fromarray(drawn)


def save(found: Comparison, folder: str | Path, *, date: datetime, force: bool = False) -> list[Path]:
    """Write overlay, mask, facts and page to a folder, all or none; return their paths.

    Each is named by the photo's file and one of SUFFIXES. Raises ImageError of kind "exists" unless force, OSError.
    """
    name = Path(found.photo.name).name
    told = json.dumps(facts(found, date), indent=1) + "\n"
    contents = (encode_png(np.asarray(overlay_of(found))), mask_png(found.mask), told, to_html(found, date))
    paths = [Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES]
    try:
        write_together(dict(zip(paths, contents, strict=True)), new=not force)
    except FileExistsError as error:
        message = "there is a comparison of this name already; force=True (--force) overwrites it"
        raise ImageError(str(Path(folder) / name), "exists", message) from error
    return paths


def to_html(found: Comparison, date: datetime) -> str:
    """Return the page: one HTML document that refers to nothing outside of itself. Needs the extra `report`."""
    from declip.report import page  # jinja2; all else is in the core

    photo, aligned = Image.fromarray(found.photo.pixels), Image.fromarray(found.aligned)
    return page.template("compare.html").render(
        facts=facts(found, date),
        photo=_file(found.photo),
        original=_file(found.original),
        overlay_uri=pictures.jpeg_uri(overlay_of(found), _PHOTO_SIDE),
        photo_uri=pictures.jpeg_uri(photo, _HALF_SIDE),
        aligned_uri=pictures.jpeg_uri(aligned, _HALF_SIDE),
        regions=list(_regions(found, photo, aligned)),
        shown=min(_CROPS, found.parts),
    )


def _file(photo: Photo) -> dict[str, str | None]:
    digest = hashlib.sha256(photo.data).hexdigest() if photo.data else None
    return {"name": pictures.short(photo.name), "sha256": digest}


def _regions(found: Comparison, photo: Image.Image, aligned: Image.Image) -> Iterator[dict[str, Any]]:
    for number, region in enumerate(found.regions[:_CROPS], start=1):
        box = pictures.around(region, found.photo.size)
        uris = {"photo_uri": pictures.crop_uri(photo, box), "original_uri": pictures.crop_uri(aligned, box)}
        yield {"number": number, "region": region, **uris}
