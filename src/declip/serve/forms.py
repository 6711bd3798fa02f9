"""Forms: the files of a request's body, the fields beside them, and their description for OpenAPI.

The body is multipart/form-data, parsed into memory as it arrives. What is too large or too many is refused before it is
held, and nothing is written to the disk. File names are what the client says: they are shown, and never used as paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from declip.serve.limits import Claim, Limits
from declip.serve.problems import ProblemError
from declip.spec import Mode

__all__ = ["FIELDS", "Form", "MapName", "Options", "Upload", "describe", "discard", "parse_options", "read_form"]

MapName: TypeAlias = Literal["scores", "mask", "overlay", "photo"]
MAPS: tuple[MapName, ...] = get_args(MapName)

FIELDS: Mapping[str, tuple[str, ...]] = {  # by the last part of the path
    "localize": ("model", "mode", "threshold", "maps", "words"),
    "report": ("model", "mode", "threshold", "position"),
    "metadata": ("position",),
    "detectability": ("model", "mode"),
}
_FLAG = {"type": "string", "enum": ["true", "false"]}
_DESCRIBED: Mapping[str, Mapping[str, Any]] = {
    "model": {"type": "string", "description": "Default: the first."},
    "mode": {"type": "string", "enum": [*get_args(Mode)], "description": "Default: the model's own."},
    "threshold": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "Lowest score in the mask. With it there is no verdict. Default: the model's own rule.",
    },
    "maps": {
        "type": "string",
        "pattern": f"^({'|'.join(MAPS)})(,({'|'.join(MAPS)}))*$",
        "description": "Maps that come with the answer, separated by commas.",
    },
    "words": {**_FLAG, "description": "Add the verdict in plain words to each row. Default: false."},
    "position": {**_FLAG, "description": "Tell the GPS position and free text, too. Default: false."},
}

_FIELD_BYTES = 1000
# The longest header of a part. A name has at most 255 bytes, and each may be sent as three characters.
_HEADER_BYTES = 4000
# The name of a parameter, the "*" of the extended form, the value. In quotes only quotes and backslashes are escaped.
_PARAMETER = re.compile(r';[ \t]*([^\s;=*"]+)(\*?)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_QUOTED_PAIR = re.compile(r'\\(["\\])')
# Charset and percent-encoded text of an extended value; some clients name neither charset nor language.
_EXTENDED = re.compile(r"(?:([^']*)'[^']*')?(.*)", re.DOTALL)
# The folders that some clients on Windows send in front of a name.
_WINDOWS_FOLDERS = re.compile(r"\A(?:[A-Za-z]:)?\\(?:.*\\)?", re.DOTALL)
# How long the rest of a refused body is still read: a client that is cut off while it sends never sees the reason.
_LINGER_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file of a request. name: as the client gave it, hostile input."""

    name: str
    data: bytes = field(repr=False)


class Form(NamedTuple):
    """The body of a request: its files in order, at least one, and its fields by name, each once."""

    files: tuple[Upload, ...]
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a request asks for. threshold: None = the model's own rule. position: tell it and free text, too."""

    model: str
    mode: Mode
    threshold: float | None = None
    maps: tuple[MapName, ...] = ()
    words: bool = False
    position: bool = False


def describe(path: str, models: Sequence[str], files: int = 1) -> dict[str, Any]:
    """Describe the form of a path for OpenAPI. files: how many it may have."""
    properties: dict[str, Any] = {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": files,
            "description": "The pictures; the field is repeated for several." if files > 1 else "The picture.",
        }
    }
    properties |= {name: dict(_DESCRIBED[name]) for name in FIELDS[path]}
    if "model" in properties:
        properties["model"]["enum"] = [*models]
    schema = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def read_form(request: Request, limits: Limits, claim: Claim, fields: Sequence[str]) -> Form:
    """Read the form of a request. fields: the names that are allowed beside the files.

    The memory for it is taken from claim. Raises ProblemError: 400 (no valid multipart), 408 (too slow), 413 (too
    large, too many files), 415 (not multipart), 422 (unknown, repeated or missing fields), 503 (no memory left);
    ClientDisconnect if the client leaves.
    """
    too_large = ProblemError(413, f"the body is larger than {limits.request_bytes} bytes; send fewer or smaller files")
    content_type, length = (request.headers.get(name, "") for name in ("content-type", "content-length"))
    kind, parameters = parse_options_header(content_type)
    if kind.lower() != b"multipart/form-data":
        raise ProblemError(415, f"the body is {content_type or 'of no named type'}; expected multipart/form-data")
    if b"boundary" not in parameters:
        raise ProblemError(400, f"the body is {content_type}; expected its boundary beside it")
    if length.isdecimal() and int(length) > limits.request_bytes:
        raise too_large
    parts = _Parts(limits.files, fields)
    size, request.state.reading = 0, True
    try:
        parser = MultipartParser(parameters[b"boundary"], parts.callbacks())
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.request_bytes:
                    raise too_large
                claim.take(len(chunk))
                parser.write(chunk)
    except TimeoutError:
        message = f"the body did not come within {limits.upload_seconds:g} s"
        raise ProblemError(408, message, headers={"Connection": "close"}) from None
    except FormParserError as error:
        raise ProblemError(400, f"the body is no valid multipart/form-data: {error}") from error
    if not parts.ended:
        raise ProblemError(400, "the body breaks off before its last boundary")
    # A browser sends an empty input as a file without name and content.
    files = [Upload(name=name, data=part.getvalue()) for name, part in parts.files if name or part.tell()]
    if not files:
        raise ProblemError(422, "there is no file; send at least one as the field 'file'")
    texts = {name: part.getvalue().decode("utf-8", "replace") for name, part in parts.fields.items()}
    return Form(tuple(files), texts)


class _Parts:
    """The parts of a form as `MultipartParser` finds them. Raises ProblemError at the head of one that is not allowed.

    most: files at most. known: names of fields. files: names and contents; fields: contents by name.
    """

    def __init__(self, most: int, known: Sequence[str]) -> None:
        self.files: list[tuple[str, io.BytesIO]] = []
        self.fields: dict[str, io.BytesIO] = {}
        self.ended = False
        self._most, self._known = most, known
        self._header = self._value = self._disposition = b""
        self._field: str | None = None  # the name of this part, unless it is a file
        self._content = io.BytesIO()

    def callbacks(self) -> Any:
        """Return what the parser calls."""
        names = ("header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        return {f"on_{name}": getattr(self, f"_on_{name}") for name in names}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._value) > _HEADER_BYTES:
            raise ProblemError(400, f"a part has a header of more than {_HEADER_BYTES} bytes; send a shorter file name")

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        kind, parameters = _disposition(self._disposition)
        self._disposition = b""
        if kind != "form-data" or "name" not in parameters:
            raise ProblemError(400, "a part has no Content-Disposition: form-data with a name")
        name, file = parameters["name"], parameters.get("filename")
        self._content = io.BytesIO()
        if file is None:
            self._check_field(name)
            self._field, self.fields[name] = name, self._content
            return
        if name != "file":
            raise ProblemError(422, f"got a file as the field {name!r}; expected 'file'")
        if len(self.files) == self._most:
            raise ProblemError(413, f"at most {self._most} file(s) are taken in one request")
        self._field = None
        self.files.append((_WINDOWS_FOLDERS.sub("", file), self._content))

    def _check_field(self, name: str) -> None:
        if name not in self._known:
            hint = "; 'file' is sent as a file, with a filename" if name == "file" else ""
            raise ProblemError(422, f"got the field {name!r}; expected file, {', '.join(self._known)}{hint}")
        if name in self.fields:
            raise ProblemError(422, f"the field {name!r} is given twice")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._content.write(data[start:end])
        if self._field is not None and self._content.tell() > _FIELD_BYTES:
            raise ProblemError(422, f"the field {self._field!r} is longer than {_FIELD_BYTES} bytes")

    def _on_end(self) -> None:
        self.ended = True


def _disposition(header: bytes) -> tuple[str, dict[str, str]]:
    """Read a Content-Disposition: its kind, and its parameters by their names in lower case.

    A value in the extended form (filename*=charset'language'percent-encoded, RFC 8187) wins over a plain one of the
    same name. RFC 7578 wants plain values only, but some clients send nothing else for names beyond ASCII.
    """
    text = header.decode("latin-1")
    plain: dict[str, str] = {}
    extended: dict[str, str] = {}
    for name, star, value in _PARAMETER.findall(text):
        if star:
            charset, encoded = _EXTENDED.findall(value.strip(' \t"'))[0]
            extended.setdefault(name.lower(), _decoded(unquote_to_bytes(encoded.encode("latin-1")), charset))
        else:
            if value.startswith('"'):
                value = _QUOTED_PAIR.sub(r"\1", value.removeprefix('"').removesuffix('"'))
            plain.setdefault(name.lower(), value.strip(" \t").encode("latin-1").decode("utf-8", "replace"))
    return text.partition(";")[0].strip(" \t").lower(), plain | extended


def _decoded(raw: bytes, charset: str) -> str:
    try:
        return raw.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):  # there is no such charset, or it is none of text
        return raw.decode("utf-8", "replace")


async def discard(request: Request) -> None:
    """Read the rest of a refused body for a moment, holding nothing.

    A client that asks before it sends (Expect: 100-continue) gets its answer instead.
    """
    if request.headers.get("expect", "").lower() == "100-continue" and not hasattr(request.state, "reading"):
        return
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: all of it has been read
        async with asyncio.timeout(_LINGER_SECONDS):
            async for _ in request.stream():
                pass


def parse_options(fields: Mapping[str, str], modes: Mapping[str, Sequence[Mode]]) -> Options:
    """Read fields, or raise ProblemError 422. modes: of each model, its own first; the first model is the default."""
    model = fields.get("model", next(iter(modes)))
    if model not in modes:
        raise ProblemError(422, f"the model is {model!r}; this service has {', '.join(modes)}")
    mode = fields.get("mode", modes[model][0])
    if mode not in modes[model]:
        raise ProblemError(422, f"the mode is {mode!r}; {model} has {' and '.join(modes[model])}")
    maps = tuple(dict.fromkeys(fields["maps"].split(","))) if "maps" in fields else ()
    for name in maps:
        if name not in MAPS:
            raise ProblemError(422, f"maps has {name!r}; expected some of {','.join(MAPS)}")
    return Options(
        model=model,
        mode=cast("Mode", mode),
        threshold=_threshold(fields["threshold"]) if "threshold" in fields else None,
        maps=cast("tuple[MapName, ...]", maps),
        words=_flag(fields, "words"),
        position=_flag(fields, "position"),
    )


def _flag(fields: Mapping[str, str], name: str) -> bool:
    value = fields.get(name, "false")
    if value not in ("true", "false"):
        raise ProblemError(422, f"{name} is {value!r}; expected true or false")
    return value == "true"


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ProblemError(422, f"the threshold is {text!r}; expected a number in [0, 1], as scores are")
    return value
