"""Turn the items of a request into the answer, in the form that the client accepts.

- application/json: {"results": [row, …]}; the maps that were asked for are in row["maps"], as base64 of their files.
- image/png: the overlay of one picture, or the one map that was asked for.
- application/zip: results.json, and the maps of each picture as files: all PNG files, or those that were asked for;
  row["maps"] has their names.

With `words`, each row also has row["words"]: its verdict in plain words.

The map "photo" is the photo as it was examined, upright and RGB, as a JPEG. Whoever lays scores over a photo lays them
over this one: other decoders turn some files differently, and browsers cannot read every format.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import re
import secrets
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import Response

from declip.errors import ImageError
from declip.images.encode import Chroma, encode_jpeg
from declip.images.mapfiles import mask_png, scores_png
from declip.images.overlay import overlay_png
from declip.localize.localizer import Localizer
from declip.report import wording
from declip.report.metadata import Metadata
from declip.results import Localization, Photo
from declip.serve.forms import MapName, Options
from declip.serve.limits import Claim
from declip.serve.problems import ProblemError
from declip.serve.queue import Item, Render

__all__ = ["CONTENT", "AnswerType", "accepted", "answer", "maps_of", "metadata_answer", "renderer"]

AnswerType: TypeAlias = Literal["application/json", "image/png", "application/zip"]
_TYPES: tuple[AnswerType, ...] = get_args(AnswerType)  # the first of those that a client likes equally is taken
# For the OpenAPI description: the forms beside JSON.
CONTENT = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _TYPES if kind != "application/json"}
_PREVIEW_SIDE = 320
# The photo keeps its size up to this side, which the canvas of every browser can hold.
_PHOTO_SIDE = 16_384

_log = logging.getLogger(__name__)


def accepted(header: str) -> AnswerType:
    """Return the form that an Accept header asks for ("" is any). Raises ProblemError 406 if it is none of ours."""
    weights = dict(map(_range, filter(str.strip, header.split(",")))) or {"*/*": 1.0}

    def weight(kind: str) -> float:
        """Return the weight of the most specific range that matches."""
        ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((weights[name] for name in ranges if name in weights), 0.0)

    best = max(_TYPES, key=weight)
    if weight(best) <= 0:
        raise ProblemError(406, f"cannot answer as {header}; this service has {', '.join(_TYPES)}")
    return best


def _range(text: str) -> tuple[str, float]:
    """Split one part of an Accept header into its media range and its weight."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    return kind, float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight) else 0.0


def maps_of(kind: AnswerType, options: Options, files: int) -> tuple[MapName, ...]:
    """Return the maps that an answer holds. Raises ProblemError 422 where it cannot hold what was asked for."""
    asked = options.maps
    if kind == "application/json":
        return asked
    if kind == "application/zip":
        return asked or ("scores", "mask", "overlay")
    if files > 1:
        raise ProblemError(422, f"{kind} holds one map, and there are {files} files; accept application/zip instead")
    if "photo" in asked or options.words:
        what = "the map photo, which is a JPEG" if "photo" in asked else "words"
        raise ProblemError(422, f"{kind} cannot hold {what}; accept application/json instead")
    if len(asked) > 1:
        raise ProblemError(422, f"{kind} holds one map, and maps is {','.join(asked)}; choose one")
    return asked or ("overlay",)


def renderer(
    maps: tuple[MapName, ...], claim: Claim, localizer: Localizer, *, words: bool, kept: Path | None
) -> Render:
    """Return what makes an item of a result: its row, and its maps by name. Their memory is taken from claim.

    kept: the folder that every picture is written to first (see `_keep`).
    """

    def render(photo: Photo, result: Localization) -> Item:
        if kept is not None:
            _keep(kept, photo, result)
        made: dict[str, bytes] = {}
        for name in maps:
            made[name] = _map(name, photo, result)
            claim.take(len(made[name]))
        row = result.to_dict()
        return Item(row | {"words": _words(result, localizer)} if words else row, made)

    return render


def _words(result: Localization, localizer: Localizer) -> dict[str, Any]:
    """Put a result into words, with the verdicts that a photo of this size can have."""
    calibration = localizer.spec.calibration
    compared = calibration is not None and result.score is not None and result.verdict is not None
    steps = calibration.steps(calibration.size_class(result.scores.size)) if calibration and compared else ()
    return dataclasses.asdict(wording.explain(result, calibration)) | {
        "limits": wording.LIMITS,
        "no_probability": wording.NO_PROBABILITY,
        "steps": [step._asdict() for step in steps],
    }


def _map(name: MapName, photo: Photo, result: Localization) -> bytes:
    match name:
        case "scores":
            return scores_png(result.scores)
        case "mask":
            return mask_png(result.mask)
        case "overlay":
            return overlay_png(photo, result)
        case "photo":
            return _jpeg(photo.pixels, _PHOTO_SIDE, quality=95, chroma="4:4:4")


def answer(kind: AnswerType, items: Sequence[Item]) -> Response:
    """Make the answer. At least one of the items is no error; for image/png it is the only one."""
    if kind == "application/json":
        return Response(_json([_with_base64(item) for item in items]), media_type=kind)
    if kind == "application/zip":
        headers = {"Content-Disposition": 'attachment; filename="declip.zip"'}
        return Response(_zip(items), media_type=kind, headers=headers)
    (item,) = items
    ((name, data),) = item.maps.items()
    headers = {
        "Declip-Height": str(item.row["height"]),
        "Declip-Width": str(item.row["width"]),
        "Content-Disposition": f'inline; filename="{name}.png"',
    }
    return Response(data, media_type=kind, headers=headers)


def metadata_answer(name: str, found: Metadata) -> Response:
    """Make the answer of /v1/metadata. name: of the file, as the client sent it."""
    preview = None
    if found.thumbnail is not None:  # the small picture in the file
        preview = base64.b64encode(_jpeg(found.thumbnail, _PREVIEW_SIDE, quality=90, chroma="4:2:0")).decode()
    row = {"image": name, **found.to_dict(), "preview": preview}
    return Response(json.dumps(row, allow_nan=False), media_type="application/json")


def _jpeg(pixels: NDArray[np.uint8], side: int, *, quality: int, chroma: Chroma) -> bytes:
    """Encode pixels as a JPEG of at most this side, without metadata or orientation."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))  # leaves smaller ones as they are
    return encode_jpeg(np.asarray(picture), quality, chroma)


def _json(rows: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"results": rows}, allow_nan=False).encode()


def _with_base64(item: Item) -> dict[str, Any]:
    if not item.maps:
        return item.row
    return item.row | {"maps": {name: base64.b64encode(data).decode() for name, data in item.maps.items()}}


def _zip(items: Sequence[Item]) -> bytes:
    stream = io.BytesIO()
    rows = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # the maps are compressed already
        for number, item in enumerate(items, start=1):
            # The client's name without folders, hidden names, and signs that a shell or a disk dislikes.
            plain = re.sub(r"[^A-Za-z0-9._-]+", "_", item.row["image"])[-80:].lstrip("._-") or "picture"
            names = {name: f"{number:03}-{plain}.{name}.{'jpg' if name == 'photo' else 'png'}" for name in item.maps}
            for name, data in item.maps.items():
                archive.writestr(names[name], data)
            rows.append(item.row | {"maps": names} if item.maps else item.row)
        archive.writestr("results.json", _json(rows))
    return stream.getvalue()


def _keep(folder: Path, photo: Photo, result: Localization) -> None:
    """Write photo (the file's bytes as they came), scores.png, mask.png, overlay.png and result.json to a new folder.

    It is named by the time (UTC) and a random word; the client's file name is only in result.json. It appears whole
    or, after a crash, under a name that begins with a dot. Raises ImageError of kind "write".
    """
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}"
    partial = folder / f".{name}"
    try:
        partial.mkdir(parents=True)
        (partial / "photo").write_bytes(photo.data)
        for kind in ("scores", "mask", "overlay"):
            (partial / f"{kind}.png").write_bytes(_map(kind, photo, result))
        (partial / "result.json").write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")
        partial.rename(folder / name)
    except OSError as error:
        _log.error("cannot keep a picture", exc_info=error)
        message = f"the service cannot keep this picture: {error.strerror or error}"
        raise ImageError(photo.name, "write", message) from error
