"""Read the body of a request, its files and its fields, into memory.

The body is multipart/form-data, parsed as it arrives. What is too large or too many is refused before it is held, and
nothing is written to the disk. File names are what the client says: they are shown, and never used as paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from declip.serve.limits import Claim, Limits
from declip.serve.problems import ProblemError

__all__ = ["Form", "Upload", "discard", "read_form"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The body of a request: its files in order, at least one, and its fields by name, each once."""

    files: tuple[Upload, ...]
    fields: Mapping[str, str]


async def read_form(request: Request, limits: Limits, claim: Claim, fields: Sequence[str]) -> Form:
    """Read the form of a request. fields: the names that are allowed beside the files.

    The memory for it is taken from claim. Raises ProblemError: 400 (no valid multipart), 408 (too slow), 413 (too
    large, too many files), 415 (not multipart), 422 (unknown, repeated or missing fields), 503 (no memory left).
    Raises starlette's ClientDisconnect if the client leaves.
    """
    content_type, length = (request.headers.get(name, "") for name in ("content-type", "content-length"))
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ProblemError(415, f"the body is {content_type or 'of no named type'}; expected multipart/form-data")
    if length.isdecimal() and int(length) > limits.request_bytes:
        raise _too_large(limits)
    parser = _Parser(request, limits, claim, fields)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            await parser.parse()
    except TimeoutError:
        message = f"the body did not come within {limits.upload_seconds:g} s"
        raise ProblemError(408, message, headers={"Connection": "close"}) from None
    except MultiPartException as error:
        said = error.__cause__ or error.message
        raise ProblemError(400, f"the body is no valid multipart/form-data: {said}") from error
    with contextlib.ExitStack() as stack:
        for opened in parser.opened:
            stack.callback(opened.file.close)
        if not parser.ended:
            raise ProblemError(400, "the body breaks off before its last boundary")
        return _form(parser.items)


def _form(items: Sequence[tuple[str, str | UploadFile]]) -> Form:
    fields = {name: value for name, value in items if isinstance(value, str)}
    files = [file for _, file in items if isinstance(file, UploadFile)]
    # A browser sends an empty input as a file without name and content.
    uploads = [Upload(name=file.filename or "", data=file.file.read()) for file in files if file.filename or file.size]
    if not uploads:
        raise ProblemError(422, "there is no file; send at least one as the field 'file'")
    return Form(files=tuple(uploads), fields=fields)


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


async def _measured(request: Request, limits: Limits, claim: Claim) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body, each taken from claim first."""
    size, request.state.reading = 0, True
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.request_bytes:
            raise _too_large(limits)
        claim.take(len(chunk))
        yield chunk


def _too_large(limits: Limits) -> ProblemError:
    return ProblemError(413, f"the body is larger than {limits.request_bytes} bytes; send fewer or smaller files")


class _Parser(MultiPartParser):
    """Starlette's parser in memory, with declip's limits and names of files in every form that clients write."""

    spool_max_size = 0  # no size at which a file would go to the disk
    max_file_size = 0  # the same, as older versions of Starlette call it

    def __init__(self, request: Request, limits: Limits, claim: Claim, known: Sequence[str]) -> None:
        super().__init__(request.headers, _measured(request, limits, claim))
        self.ended = False
        self.opened: list[UploadFile] = []
        self._most_files = limits.files
        self._known = known
        self._seen: list[str] = []

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        super().on_header_value(data, start, end)
        if len(self._current_partial_header_value) > _HEADER_BYTES:
            raise ProblemError(400, f"a part has a header of more than {_HEADER_BYTES} bytes; send a shorter file name")

    def on_headers_finished(self) -> None:
        kind, parameters = _disposition(self._current_part.content_disposition or b"")
        if kind != "form-data" or "name" not in parameters:
            raise ProblemError(400, "a part has no Content-Disposition: form-data with a name")
        name, file = parameters["name"], parameters.get("filename")
        self._check(name, is_file=file is not None)
        self._seen.append(name)
        # Starlette ignores extended names (filename*), so it is told only that there is a file.
        header = f"form-data; name={name}" + ("" if file is None else "; filename=given")
        self._current_part.content_disposition = header.encode()
        super().on_headers_finished()
        if file is not None and self._current_part.file is not None:
            self._current_part.file.filename = _WINDOWS_FOLDERS.sub("", file)
            self.opened.append(self._current_part.file)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > _FIELD_BYTES:
            raise ProblemError(422, f"the field {part.field_name!r} is longer than {_FIELD_BYTES} bytes")
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self.ended = True

    def _check(self, name: str, *, is_file: bool) -> None:
        """Raise ProblemError for a part that is not expected."""
        if is_file and name != "file":
            raise ProblemError(422, f"got a file as the field {name!r}; expected 'file'")
        if not is_file and name not in self._known:
            hint = "; 'file' is sent as a file, with a filename" if name == "file" else ""
            raise ProblemError(422, f"got the field {name!r}; expected file, {', '.join(self._known)}{hint}")
        if not is_file and name in self._seen:
            raise ProblemError(422, f"the field {name!r} is given twice")
        if is_file and self._seen.count("file") >= self._most_files:
            raise ProblemError(413, f"at most {self._most_files} file(s) are taken in one request")


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
