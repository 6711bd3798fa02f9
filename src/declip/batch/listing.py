"""Which pictures: a folder, a URI, or a list of files.

A folder is read as `declip localize` reads it: recursively, in sorted order, only names with an image extension,
declip's own outputs never. A list names files one by one, whatever their extension; relative ones lie beside it:

- `.jsonl`: one object per line, its "image" counts: declip's manifests are such lists;
- `.txt`: one path or URI per line;
- `.parquet`: the column `image` or `uri`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import NamedTuple

from declip import image
from declip.batch import stores
from declip.errors import DatasetError, DeclipError
from declip.outputs import find_pictures, is_output

__all__ = ["Found", "find"]

_LISTS = (".jsonl", ".txt", ".parquet")
_COLUMNS = ("image", "uri")
_LIST_BYTES = 1 << 36


class Found(NamedTuple):
    """Absolute paths and URIs, each once. skipped: files of a folder that are no pictures; repeated: entries of a list
    that were there before."""

    uris: list[str]
    skipped: int = 0
    repeated: int = 0


def find(source: str) -> Found:
    """The pictures that source stands for.

    Raises DatasetError for a list that cannot be read (the message names the line), ImageError of kind "missing" for a
    path that does not exist, DeclipError if there is no picture or the protocol is unknown.
    """
    source = stores.absolute(source)
    if source.lower().endswith(_LISTS):
        entries = list(_entries(source))
        folder = source.rpartition("/")[0]
        uris = list(dict.fromkeys(_resolve(entry, folder) for entry in entries))
        found = Found(uris, repeated=len(entries) - len(uris))
    elif stores.protocol(source) == "file":
        pairs, skipped = find_pictures([source])
        found = Found([str(pair.path) for pair in pairs], skipped)
    else:
        found = _walk(source)
    if not found.uris:
        raise DeclipError(f"there is no picture in {source}; {found.skipped} other files")
    return found


def _walk(source: str) -> Found:
    """The pictures below a URI."""
    system, path = stores.locate(source)
    listed = sorted(system.find(path))
    names = [entry for entry in listed if not is_output(entry)]
    pictures = [entry for entry in names if entry.lower().endswith(tuple(image.EXTENSIONS))]
    return Found([system.unstrip_protocol(entry) for entry in pictures], len(names) - len(pictures))


def _entries(source: str) -> Iterable[str]:
    """What a list names, in its order."""
    data = stores.fetch(source, _LIST_BYTES)
    if source.lower().endswith(".parquet"):
        return _column(data, source)
    try:
        lines = [(number, line.strip()) for number, line in enumerate(data.decode("utf-8").split("\n"), start=1)]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is no text: {error}") from error
    if source.lower().endswith(".txt"):
        return [line for _, line in lines if line]
    return [_image(line, f"{source}, line {number}") for number, line in lines if line]


def _image(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not JSON: {error}") from error
    entry = record.get("image") if isinstance(record, dict) else None
    if not isinstance(entry, str) or not entry:
        raise DatasetError(f'{where}: expected an object with "image", a path or URI')
    return entry


def _column(data: bytes, source: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        column = next((name for name in _COLUMNS if name in file.schema_arrow.names), None)
        entries = file.read([column]).column(0).to_pylist() if column else []
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{source} cannot be read as Parquet: {error}") from error
    if column is None:
        raise DatasetError(f"{source} has neither of the columns {' and '.join(_COLUMNS)}")
    if wrong := [entry for entry in entries if not isinstance(entry, str) or not entry]:
        raise DatasetError(f"{source}: {column} holds {wrong[0]!r}; expected paths or URIs")
    return entries


def _resolve(entry: str, folder: str) -> str:
    """A relative entry lies beside its list."""
    if "://" in entry or entry.startswith("/"):
        return stores.absolute(entry)
    return stores.absolute(stores.join(folder, entry))
