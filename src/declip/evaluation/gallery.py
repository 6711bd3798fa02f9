"""Choose the pictures that a report shows."""

from __future__ import annotations

import base64
import bisect
import io
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip.errors import ImageError
from declip.evaluation.figures import Row
from declip.evaluation.protocol import number
from declip.images.overlay import overlay
from declip.images.read import MAX_PIXELS, read_photo
from declip.images.tensors import resize_scores
from declip.regions import MaskRule
from declip.results import Localization, Photo, Sample

__all__ = ["Case", "CaseKind", "Gallery", "Masks"]

# Longer side of the pictures, px.
THUMBNAIL = 256

CaseKind = Literal["worst", "best", "false alarm"]


class Masks(NamedTuple):
    """What is compared, all (H, W) at the known mask's size: scores in [0, 1], the known mask, the flagged part."""

    scores: NDArray[np.float32]
    known: NDArray[np.bool_]
    flagged: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A picture to look at. pictures: (what it shows, data URI), small; "photo" and "overlay" may be missing."""

    kind: CaseKind
    image: str
    caption: str
    pictures: tuple[tuple[str, str], ...]


class Gallery:
    """Keep the worst and best fakes by IoU and the worst untouched pictures, as small pictures."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._shelves: dict[CaseKind, list[tuple[float, Case]]] = {"worst": [], "best": [], "false alarm": []}

    def offer(self, sample: Sample, row: Row, masks: Masks) -> None:
        """Keep a picture if it is among the most extreme ones of its kind. The lowest keys are kept."""
        ranks: list[tuple[CaseKind, float]] = []
        if not math.isnan(row.iou):
            ranks = [("worst", row.iou), ("best", -row.iou)]
        elif row.label == "real" and row.area > 0:
            ranks = [("false alarm", -row.area)]
        pictures = None
        for kind, key in ranks:
            shelf = self._shelves[kind]
            if len(shelf) == self._size and (self._size == 0 or key >= shelf[-1][0]):
                continue
            pictures = pictures or _thumbnails(sample, masks)
            case = Case(kind=kind, image=row.image, caption=_caption(row), pictures=pictures)
            bisect.insort(shelf, (key, case), key=lambda item: item[0])
            del shelf[self._size :]

    def cases(self) -> tuple[Case, ...]:
        """Return the worst, the best and the false alarms, most extreme first; no fake is shown as both."""
        worst, best, alarms = ([case for _, case in shelf] for shelf in self._shelves.values())
        shown = {case.image for case in worst}
        return (*worst, *(case for case in best if case.image not in shown), *alarms)


def _caption(row: Row) -> str:
    caption = f"flagged area {row.area:.1%}, score {row.score:.3f}"
    if row.label == "real":
        return caption
    return f"IoU {number(row.iou)}, AUC {number(row.auc)}, known area {row.manipulated:.1%}, {caption}"


def _thumbnails(sample: Sample, masks: Masks) -> tuple[tuple[str, str], ...]:
    """Return the known mask and the scores (black 0, white 1, never stretched) as data URIs.

    Where the photo can be read, it is among them, and once more with what is flagged.
    """
    scores, mask, shown = masks
    known = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    known.thumbnail((THUMBNAIL, THUMBNAIL))
    small = resize_scores(scores, (known.height, known.width))
    grey = Image.fromarray((small * np.float32(255)).astype(np.uint8))
    found = (("known mask", _data_uri(known, "PNG")), ("scores", _data_uri(grey, "PNG")))
    try:
        photo = read_photo(sample.image, max_pixels=max(MAX_PIXELS, scores.size))
    except ImageError:
        return found
    pixels = np.asarray(Image.fromarray(photo.pixels).resize(known.size))
    flagged = resize_scores(shown.astype(np.float32), (known.height, known.width))
    result = Localization(name="", scores=flagged, rule=MaskRule(threshold=0.5), image_score=0.0, model="", sha256="")
    drawn = overlay(Photo(pixels=pixels, name=photo.name), result)
    return (("photo", _data_uri(Image.fromarray(pixels), "JPEG")), *found, ("overlay", _data_uri(drawn, "JPEG")))


def _data_uri(picture: Image.Image, kind: Literal["PNG", "JPEG"]) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
