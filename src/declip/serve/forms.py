"""A request's body → its files and options, in memory: nothing is spooled to the disk.

The body is multipart/form-data, parsed as it comes: what is too large, too long or too many is refused before it is
held. Names of files are what the client says: they are shown, and never used as paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from declip.serve.limits import Claim, Limits
from declip.serve.problems import ProblemError
from declip.spec import Mode

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["Body", "Form", "MapName", "Options", "Upload", "parse_options", "parse_position", "read_form"]

MapName: TypeAlias = Literal["scores", "mask", "overlay", "photo"]

_FIELD_BYTES = 1000
# Of one header of a part. A name has at most 255 bytes, each of which may come as three characters.
_HEADER_BYTES = 4000
# Name, "*" of the extended form, and value of a parameter. In quotes only quotes and backslashes are escaped: others
# leave the backslashes of a path as they are.
_PARAMETER = re.compile(r';[ \t]*([^\s;=*"]+)(\*?)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_QUOTED_PAIR = re.compile(r'\\(["\\])')
# Charset and percent-encoded text of an extended value; there are clients that name neither charset nor language.
_EXTENDED = re.compile(r"(?:([^']*)'[^']*')?(.*)", re.DOTALL)
# The folders before a name that some clients on Windows send along.
_WINDOWS_FOLDERS = re.compile(r"\A(?:[A-Za-z]:)?\\(?:.*\\)?", re.DOTALL)
# How long the rest of a body that was refused is still read and thrown away: a client that is cut off while it sends
# sees a broken connection, and not why.
_LINGER_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file of a request. name: as the client gave it, hostile input."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The body of a request; files in their order, at least one; fields by their names, each once."""

    files: tuple[Upload, ...]
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a request asks for; None = the service's own. maps: to come with the answer."""

    model: str
    mode: Mode
    threshold: float | None
    maps: tuple[MapName, ...]


# --- the body -------------------------------------------------------------------------------------------------------


class Body:
    """The body of a request as it comes in, read once."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._asks_first = request.headers.get("expect", "").lower() == "100-continue"
        self._started = self._ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is left of it. Raises starlette's ClientDisconnect if the client leaves."""
        while not self._ended:
            self._started = True
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._ended = not message.get("more_body", False)
            if chunk := message.get("body"):
                yield chunk

    async def discard(self) -> None:
        """Read on for a moment, holding nothing. A client that asked before sending (Expect) has its answer instead."""
        if self._asks_first and not self._started:
            return
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_LINGER_SECONDS):
                async for _ in self.chunks():
                    pass


async def read_form(
    body: Body, content_type: str, content_length: str, limits: Limits, claim: Claim, fields: Sequence[str]
) -> Form:
    """The form that a body is; content_type and content_length are the request's headers, "" where it has none.
    fields: the names that there may be beside the files.

    What is held in memory is taken from claim. Raises ProblemError: 400 (no valid multipart), 408 (too slow), 413 (too
    large, too many files), 415 (not multipart), 422 (unknown, repeated or missing fields), 503 (no memory). Raises
    starlette's ClientDisconnect if the client leaves.
    """
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise ProblemError(415, f"the body is {content_type or 'of no named type'}; expected multipart/form-data")
    if not parameters.get(b"boundary"):
        raise ProblemError(400, "the Content-Type names no boundary of the parts")
    if content_length.isdecimal() and int(content_length) > limits.request_bytes:
        raise _too_large(limits)
    parts = _Parts(limits, fields)
    size = 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            parser = MultipartParser(parameters[b"boundary"], parts.callbacks())
            async for chunk in body.chunks():
                size += len(chunk)
                if size > limits.request_bytes:
                    raise _too_large(limits)
                claim.take(len(chunk))
                parser.write(chunk)
    except TimeoutError:
        message = f"the body did not come within {limits.upload_seconds:g} s"
        raise ProblemError(408, message, headers={"Connection": "close"}) from None
    except FormParserError as error:
        raise ProblemError(400, f"the body is no valid multipart/form-data: {error}") from error
    return parts.form()


def _too_large(limits: Limits) -> ProblemError:
    return ProblemError(413, f"the body is larger than {limits.request_bytes} bytes; send fewer or smaller files")


class _Parts:
    """The parts of a body, fed by MultipartParser."""

    def __init__(self, limits: Limits, known: Sequence[str]) -> None:
        self._limits = limits
        self._known = known
        self._files: list[Upload] = []
        self._fields: dict[str, str] = {}
        self._ended = False
        self._begin()

    def callbacks(self) -> MultipartCallbacks:
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def form(self) -> Form:
        """All of it. Raises ProblemError if the body broke off, or has no file."""
        if not self._ended:
            raise ProblemError(400, "the body breaks off before its last boundary")
        if not self._files:
            raise ProblemError(422, "there is no file; send at least one as the field 'file'")
        return Form(files=tuple(self._files), fields=self._fields)

    def _begin(self) -> None:
        self._header = self._value = b""
        self._disposition = b""
        self._name = ""
        self._file: str | None = None
        self._data: list[bytes] = []
        self._size = 0

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
        if kind != "form-data" or "name" not in parameters:
            raise ProblemError(400, "a part has no Content-Disposition: form-data with a name")
        self._name = parameters["name"]
        if "filename" in parameters:
            self._file = _WINDOWS_FOLDERS.sub("", parameters["filename"])
        if self._file is not None and self._name != "file":
            raise ProblemError(422, f"got a file as the field {self._name!r}; expected 'file'")
        if self._file is None and self._name not in self._known:
            hint = "; 'file' is sent as a file, with a filename" if self._name == "file" else ""
            raise ProblemError(422, f"got the field {self._name!r}; expected file, {', '.join(self._known)}{hint}")
        if self._name in self._fields:
            raise ProblemError(422, f"the field {self._name!r} is given twice")
        if len(self._files) >= self._limits.files and self._file is not None:
            raise ProblemError(413, f"at most {self._limits.files} file(s) are taken in one request")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is None and self._size > _FIELD_BYTES:
            raise ProblemError(422, f"the field {self._name!r} is longer than {_FIELD_BYTES} bytes")
        self._data.append(data[start:end])

    def _on_part_end(self) -> None:
        data = b"".join(self._data)
        self._data = []
        if self._file is None:
            self._fields[self._name] = data.decode("utf-8", "replace")
        elif self._file or data:
            self._files.append(Upload(name=self._file, data=data))
        # Otherwise no file was chosen: this is how a browser sends an empty input.

    def _on_end(self) -> None:
        self._ended = True


def _disposition(header: bytes) -> tuple[str, dict[str, str]]:
    """Read a Content-Disposition: its kind, and its parameters by their names in lower case.

    A value in the extended form (filename*=charset'language'percent-encoded, RFC 8187) stands before a plain one of the
    same name. RFC 7578 wants plain values only, but there are clients that send nothing else for names beyond ASCII.
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
    except (LookupError, ValueError):  # no charset of that name, or none that is of text
        return raw.decode("utf-8", "replace")


# --- the options ----------------------------------------------------------------------------------------------------


def parse_options(fields: Mapping[str, str], modes: Mapping[str, Sequence[Mode]]) -> Options:
    """The fields of a form, checked. modes: of each model that is served, its own first; the first model is default.

    Raises ProblemError 422.
    """
    model = fields.get("model", next(iter(modes)))
    if model not in modes:
        raise ProblemError(422, f"the model is {model!r}; this service has {', '.join(modes)}")
    mode = fields.get("mode", modes[model][0])
    if mode not in modes[model]:
        raise ProblemError(422, f"the mode is {mode!r}; {model} has {' and '.join(modes[model])}")
    maps = tuple(dict.fromkeys(fields["maps"].split(","))) if "maps" in fields else ()
    for name in maps:
        if name not in get_args(MapName):
            raise ProblemError(422, f"maps has {name!r}; expected some of {','.join(get_args(MapName))}")
    return Options(
        model=model,
        mode=cast("Mode", mode),
        threshold=_threshold(fields["threshold"]) if "threshold" in fields else None,
        maps=cast("tuple[MapName, ...]", maps),
    )


def parse_position(fields: Mapping[str, str]) -> bool:
    """Whether the place and free text are asked for, too. Raises ProblemError 422."""
    match fields.get("position", "false"):
        case "true":
            return True
        case "false":
            return False
        case other:
            raise ProblemError(422, f"position is {other!r}; expected true or false")


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ProblemError(422, f"the threshold is {text!r}; expected a number in [0, 1], as scores are")
    return value
