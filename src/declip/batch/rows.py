"""A row of the Parquet output, one per file: the fields of `ResultRow`, then bytes, content, mask, error and kind.

`mask` holds run lengths: column by column (down the first column, then the next), zeros first, so that the counts at
odd places are manipulated pixels; they add up to height × width. These are COCO's uncompressed counts, and
{"size": [height, width], "counts": mask} is COCO's object. `decode_mask` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from declip.errors import DeclipError
from declip.results import ResultRow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Row", "decode_mask", "encode_mask", "schema", "to_parquet"]

Row: TypeAlias = dict[str, Any]

# Columns that also a file that failed has.
_ALWAYS = ("image", "model", "sha256", "seconds")


def encode_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """(H, W) bool → run lengths, uint32: column by column, zeros first (the first count may be 0)."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size)
    return (np.insert(counts, 0, 0) if flat[0] else counts).astype(np.uint32)


def decode_mask(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask of a row of the Parquet output, (H, W) bool, True = manipulated, of the upright photo's own size.

    row: anything with the keys "mask", "height" and "width": a dict, or a row of a pandas data frame.
    Raises DeclipError for a file that failed, which has no mask, and for counts that do not fit the size.
    """
    if row["mask"] is None or not np.size(row["mask"]) or np.ndim(row["mask"]) != 1:
        raise DeclipError(f"{row.get('image', 'this row')} has no mask: expected the row of a file that was localized")
    counts = np.asarray(row["mask"], dtype=np.int64)
    height, width = int(row["height"]), int(row["width"])
    if counts.min() < 0 or counts.sum() != height * width:
        raise DeclipError(f"the run lengths of a mask add up to {counts.sum()}; expected {height} × {width} pixels")
    flat = np.repeat(np.arange(counts.size) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def to_parquet(rows: list[Row]) -> bytes:
    """Return the rows as the bytes of one Parquet file, in their order. What a row lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def schema() -> pa.Schema:
    """Return names and types of the columns: those of `ResultRow`, and of what a job adds.

    A file that failed has `error` and `kind`, and no values of a result.
    """
    import pyarrow as pa

    reasons = pa.list_(pa.struct([("code", pa.string()), ("text", pa.string())]))
    provenance = pa.struct(
        [
            *((name, pa.string()) for name in ("state", "meaning", "headline", "generator")),
            ("reasons", reasons),
            ("says", reasons),
            ("fields", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
        ]
    )
    columns = {
        name: provenance if name == "provenance" else _arrow_type(hint)
        for name, hint in get_type_hints(ResultRow).items()
    }
    columns |= {"bytes": pa.int64(), "content": pa.string(), "mask": pa.list_(pa.uint32())}
    columns |= {"error": pa.string(), "kind": pa.string()}
    return pa.schema([pa.field(name, kind, nullable=name not in _ALWAYS) for name, kind in columns.items()])


def _arrow_type(hint: Any) -> pa.DataType:
    """Return the Arrow type of a field: of "X | None" that of X."""
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int32(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    if dataclasses.is_dataclass(hint):
        return pa.struct([(name, _arrow_type(field)) for name, field in get_type_hints(hint).items()])
    origin, first = get_origin(hint), get_args(hint)[0]
    if origin is Literal:
        return pa.string()
    return pa.list_(_arrow_type(first)) if origin in (list, tuple) else _arrow_type(first)
