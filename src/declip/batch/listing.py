"""Which pictures: a folder, a URI, or a list of files.

A folder is read as `declip localize` reads it (`files.walk`): recursively, in sorted order, only names with an image
extension; hidden names and declip's own outputs never. A list names files one by one, whatever their extension but for
declip's own outputs; relative ones lie beside it. It is UTF-8, or UTF-16 with a byte order mark:

- `.jsonl`: one object per line, its "image" counts: declip's manifests are such lists;
- `.txt`: one path or URI per line, as it is or in quotation marks. Empty lines say nothing, nor do lines that begin
  with "#", unless they go on without a space and end like a picture: "#1.jpg" is a name. Bytes that are no UTF-8 are
  taken as the system has them in names of files;
- `.parquet`: the column `image` or `uri`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from declip.batch import stores
from declip.errors import DatasetError, DeclipError
from declip.files import Skipped, decode, is_address, is_hidden
from declip.images.read import EXTENSIONS
from declip.localize.folder import find_pictures, is_output

__all__ = ["Found", "find"]

_LISTS = (".jsonl", ".txt", ".parquet")
_COLUMNS = ("image", "uri")
_LIST_BYTES = 1 << 36


class Found(NamedTuple):
    """Absolute paths and URIs, each once. skipped: what was passed over; repeated: entries of a list that were there
    before."""

    uris: list[str]
    skipped: Skipped = Skipped()
    repeated: int = 0


def find(source: str) -> Found:
    """Return the pictures that source stands for.

    Raises DatasetError for a list that cannot be read (the message names the line), ImageError of kind "missing" for a
    path that does not exist, DeclipError if there is no picture or the protocol is unknown.
    """
    source = stores.absolute(source)
    if source.lower().endswith(_LISTS):
        listed = [_resolve(entry, source) for entry in _entries(source)]
        entries = [entry for entry in listed if not is_output(entry)]
        uris = list(dict.fromkeys(entries))
        found = Found(uris, Skipped(outputs=len(listed) - len(entries)), repeated=len(entries) - len(uris))
    elif stores.protocol(source) == "file":
        pairs, skipped = find_pictures([source])
        found = Found([str(pair.path) for pair in pairs], skipped)
    else:
        found = _walk(source)
    if not found.uris:
        raise DeclipError(f"there is no picture in {source}: {found.skipped}")
    return found


def _walk(source: str) -> Found:
    """Return the pictures below a URI, by the rule of `files.walk` (stores of objects have no links)."""
    system, path = stores.locate(source)
    listed = sorted(system.find(path))
    below = len(path.rstrip("/"))
    seen = [entry for entry in listed if not any(map(is_hidden, entry[below:].split("/")))]
    names = [entry for entry in seen if not is_output(entry)]
    pictures = [entry for entry in names if entry.lower().endswith(tuple(EXTENSIONS))]
    skipped = Skipped(others=len(names) - len(pictures), hidden=len(listed) - len(seen), outputs=len(seen) - len(names))
    return Found([system.unstrip_protocol(entry) for entry in pictures], skipped)


def _entries(source: str) -> Iterable[str]:
    """Return what a list names, in its order."""
    data = stores.fetch(source, _LIST_BYTES)
    if source.lower().endswith(".parquet"):
        return _column(data, source)
    plain = source.lower().endswith(".txt")
    try:
        text = decode(data, names=plain)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is no text: {error}") from error
    if "\0" in text:
        raise DatasetError(f"{source} is no text: it has bytes that are 0")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    if plain:
        return [_unquoted(line) for _, line in lines if line and not _is_comment(line)]
    return [_image(line, f"{source}, line {number}") for number, line in lines if line]


def _is_comment(line: str) -> bool:
    return line.startswith("#") and (line[1:2].isspace() or not line.lower().endswith(tuple(EXTENSIONS)))


def _unquoted(line: str) -> str:
    """Without the quotation marks that Windows' "Copy as path" puts around."""
    return line[1:-1] if len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" else line


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


def _resolve(entry: str, source: str) -> str:
    """Return an entry of the list at source as an absolute one: a relative one lies beside its list."""
    if is_address(entry):
        return stores.absolute(entry)
    if stores.protocol(source) == "file":
        return stores.absolute(str(Path(source).parent / entry))  # which on Windows knows C:\\photos, too
    return entry if entry.startswith("/") else stores.join(source.rpartition("/")[0], entry)
