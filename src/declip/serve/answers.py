"""Pieces → the answer, in the form that the client accepts.

- application/json: {"results": [row, …]}; the maps that were asked for are in row["maps"], as base64 of their files.
- image/png: one picture's overlay, or the one map that was asked for.
- application/zip: results.json and, of each picture, the maps as files, all that are PNGs unless some were asked for;
  row["maps"] has their names.
- application/octet-stream: one picture's scores as raw uint16, little-endian, row by row, 65535 = 1.0; the size is in
  the headers Declip-Height and Declip-Width. (A browser's canvas would read a 16-bit PNG as 8 bits.)
- multipart/form-data: for browsers, whose `response.formData()` reads it: "results" as in JSON and, of picture N (from
  0), "scores-N" as raw uint16 and "words-N", JSON: the verdict in words, and what the file says of itself; other maps
  that were asked for as "mask-N" and "overlay-N", PNG, and "photo-N", JPEG.

The map "photo" is the photo itself as it was examined, upright and RGB, as a JPEG. Whoever lays scores over a photo
lays them over this one: other decoders turn some files otherwise, and browsers do not read every format.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import secrets
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import Response

from declip.images.encode import Chroma, encode_jpeg
from declip.images.mapfiles import mask_png, scores16, scores_png
from declip.images.overlay import overlay_png
from declip.localize.localizer import Localizer
from declip.report import wording
from declip.report.metadata import Metadata
from declip.results import Localization, Photo
from declip.serve.forms import MapName
from declip.serve.limits import Claim
from declip.serve.problems import ProblemError
from declip.serve.work import Piece, Render

__all__ = ["CONTENT", "AnswerType", "Words", "accepted", "answer", "maps_of", "metadata_answer", "renderer", "words_of"]

AnswerType: TypeAlias = Literal[
    "application/json", "image/png", "application/zip", "application/octet-stream", "multipart/form-data"
]
# The first of those that a client likes equally.
_TYPES: tuple[AnswerType, ...] = (
    "application/json",
    "image/png",
    "application/zip",
    "application/octet-stream",
    "multipart/form-data",
)
_PART_TYPES = {
    "scores": "application/octet-stream",
    "words": "application/json",
    "mask": "image/png",
    "overlay": "image/png",
    "photo": "image/jpeg",
}
_ENDINGS: dict[str, str] = {"scores": "png", "mask": "png", "overlay": "png", "photo": "jpg"}
# For the OpenAPI description: the forms beside JSON.
CONTENT = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _TYPES if kind != "application/json"}
_PREVIEW_SIDE = 320
# The photo keeps its size up to this side, which every browser's canvas takes (and JPEG; its own end is at 65,500).
_PHOTO_SIDE = 16_384
_ALL: tuple[MapName, ...] = ("scores", "mask", "overlay")


def accepted(header: str) -> AnswerType:
    """What an Accept header asks for ("" is anything). Raises ProblemError 406 if it is none of ours."""
    ranges = [_range(text) for text in header.split(",") if text.strip()] or [("*/*", 1.0)]
    likes = {kind: _like(kind, ranges) for kind in _TYPES}
    best = max(_TYPES, key=lambda kind: likes[kind])
    if likes[best] <= 0:
        raise ProblemError(406, f"cannot answer as {header}; this service has {', '.join(_TYPES)}")
    return best


def _range(text: str) -> tuple[str, float]:
    """(media range, how much it is liked) of one part of an Accept header."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    return kind, float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight) else 0.0


def _like(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that matches."""
    for wanted in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        for name, weight in ranges:
            if name == wanted:
                return weight
    return 0.0


def maps_of(kind: AnswerType, asked: tuple[MapName, ...], files: int) -> tuple[MapName, ...]:
    """The maps that an answer holds. Raises ProblemError 422 where it cannot hold what was asked for."""
    match kind:
        case "application/json":
            return asked
        case "application/zip":
            return asked or _ALL
        case "multipart/form-data":
            return asked
        case "image/png" | "application/octet-stream":
            if files > 1:
                raise ProblemError(
                    422, f"{kind} holds one map, and there are {files} files; accept application/zip instead"
                )
    if kind == "application/octet-stream":
        if asked not in ((), ("scores",)):
            raise ProblemError(422, f"{kind} holds the scores, and maps is {','.join(asked)}; leave it out")
        return ("scores",)
    if "photo" in asked:
        raise ProblemError(422, f"the map photo is a JPEG; accept another form than {kind}, or ask for another map")
    if len(asked) > 1:
        raise ProblemError(422, f"{kind} holds one map, and maps is {','.join(asked)}; choose one")
    return asked or ("overlay",)


def renderer(kind: AnswerType, maps: tuple[MapName, ...], claim: Claim, words: Words) -> Render:
    """What makes the maps of an answer, each by its name; the memory they take is taken from claim."""
    raw = kind in ("application/octet-stream", "multipart/form-data")
    names = dict.fromkeys((*(("scores",) if raw else ()), *maps))

    def render(photo: Photo, result: Localization) -> dict[str, bytes]:
        made: dict[str, bytes] = {}
        for name in names:
            made[name] = _map(name, photo, result, raw=raw)
            claim.take(len(made[name]))
        if kind == "multipart/form-data":
            # Beside the verdict in words, what the file says of itself: neither is shown without the other.
            made["words"] = json.dumps(words(result)).encode()
        return made

    return render


# A result → what "words-N" holds.
Words: TypeAlias = Callable[[Localization], dict[str, Any]]


def words_of(localizer: Localizer) -> Words:
    """Return what puts the results of a model into words: the keys of `wording.Wording`, `limits`, `no_probability`,
    and `steps`, the verdicts that a photo of this size can have."""
    calibration = localizer.spec.calibration

    def words(result: Localization) -> dict[str, Any]:
        compared = calibration is not None and result.score is not None and result.verdict is not None
        steps = calibration.steps(calibration.size_class(result.scores.size)) if calibration and compared else ()
        return dataclasses.asdict(wording.explain(result, calibration)) | {
            "limits": wording.LIMITS,
            "no_probability": wording.NO_PROBABILITY,
            "steps": [step._asdict() for step in steps],
        }

    return words


def _map(name: str, photo: Photo, result: Localization, *, raw: bool) -> bytes:
    match name:
        case "scores" if raw:
            return scores16(result.scores).astype(np.dtype("<u2"), copy=False).tobytes()
        case "scores":
            return scores_png(result.scores)
        case "mask":
            return mask_png(result.mask)
        case "photo":
            return _jpeg(photo.pixels, _PHOTO_SIDE, quality=95, chroma="4:4:4")
    return overlay_png(photo, result)


def answer(kind: AnswerType, pieces: Sequence[Piece]) -> Response:
    """The answer; at least one of the pieces is no error, and for one map the only one."""
    match kind:
        case "application/json":
            return Response(_json([_with_base64(piece) for piece in pieces]), media_type=kind)
        case "application/zip":
            return Response(_zip(pieces), media_type=kind, headers=_download("declip.zip"))
        case "multipart/form-data":
            return _multipart(pieces)
    (piece,) = pieces
    ((name, data),) = piece.maps.items()
    size = {"Declip-Height": str(piece.row["height"]), "Declip-Width": str(piece.row["width"])}
    if kind == "application/octet-stream":
        return Response(data, media_type=kind, headers=size | _download("scores.u16"))
    return Response(data, media_type=kind, headers=size | {"Content-Disposition": f'inline; filename="{name}.png"'})


def metadata_answer(name: str, found: Metadata) -> Response:
    """The answer of /v1/metadata. name: of the file, as the client sent it."""
    preview = None
    if found.thumbnail is not None:  # the small picture in the file
        preview = base64.b64encode(_jpeg(found.thumbnail, _PREVIEW_SIDE, quality=90, chroma="4:2:0")).decode()
    row = {"image": name, **found.to_dict(), "preview": preview}
    return Response(json.dumps(row, allow_nan=False), media_type="application/json")


def _jpeg(pixels: NDArray[np.uint8], side: int, *, quality: int, chroma: Chroma) -> bytes:
    """Pixels as a JPEG of at most this side, made anew: no metadata, and no orientation, travels with it."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))  # leaves what is smaller as it is
    return encode_jpeg(np.asarray(picture), quality, chroma)


def _download(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps({"results": rows}, allow_nan=False).encode()


def _with_base64(piece: Piece) -> dict[str, Any]:
    if not piece.maps:
        return piece.row
    return piece.row | {"maps": {name: base64.b64encode(data).decode() for name, data in piece.maps.items()}}


def _zip(pieces: Sequence[Piece]) -> bytes:
    stream = io.BytesIO()
    rows = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # the maps are compressed already
        for number, piece in enumerate(pieces, start=1):
            stem = f"{number:03}-{_harmless(piece.row['image'])}"
            names = {name: f"{stem}.{name}.{_ENDINGS[name]}" for name in piece.maps}
            for name, data in piece.maps.items():
                archive.writestr(names[name], data)
            rows.append(piece.row | {"maps": names} if piece.maps else piece.row)
        archive.writestr("results.json", _json(rows))
    return stream.getvalue()


def _harmless(name: str) -> str:
    """A client's file name as part of a name: no folders, nothing hidden, nothing that a shell or a disk dislikes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-80:].lstrip("._-") or "picture"


def _multipart(pieces: Sequence[Piece]) -> Response:
    boundary = secrets.token_hex(16)
    parts = [_part(boundary, "results", "application/json", _json([piece.row for piece in pieces]))]
    for number, piece in enumerate(pieces):
        for name, data in piece.maps.items():
            kind = _PART_TYPES[name]
            parts.append(_part(boundary, f"{name}-{number}", kind, data))
    body = b"".join((*parts, f"--{boundary}--\r\n".encode()))
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def _part(boundary: str, name: str, kind: str, data: bytes) -> bytes:
    # A part without a filename is read as text, in UTF-8.
    file = "" if kind == "application/json" else f'; filename="{name}"'
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\nContent-Type: {kind}\r\n\r\n'
    return b"".join((head.encode(), data, b"\r\n"))
