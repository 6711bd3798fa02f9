"""A row of the Parquet output, one per file: the keys of `Localization.to_dict()`, the mask, hashes, and the error.

    image, width, height, verdict, score, false_alarm_rate, untouched, not_examined, area, regions, threshold,
    image_score, provenance, notes, pages, page, model, sha256, mode, precision, seconds, bytes, content, mask, error,
    kind

`mask` holds run lengths: column by column (down the first column, then the next), zeros first, so that the counts at
odd places are manipulated pixels; they add up to height × width. These are COCO's uncompressed counts, and
{"size": [height, width], "counts": mask} is COCO's object. `decode_mask` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.errors import DeclipError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Row", "decode_mask", "encode_mask", "schema", "to_parquet"]

Row: TypeAlias = dict[str, Any]


def encode_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """(H, W) bool → run lengths, uint32: column by column, zeros first (the first count may be 0)."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size)
    return (np.insert(counts, 0, 0) if flat[0] else counts).astype(np.uint32)


def decode_mask(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask of a row of the Parquet output, (H, W) bool, True = manipulated, of the upright photo's own size.

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
    """The rows as the bytes of one Parquet file, in their order. What a row lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def schema() -> pa.Schema:
    """Names and types of the columns. A file that failed has `error` and `kind`, and no values of a result."""
    import pyarrow as pa

    region = pa.struct(
        [
            ("bbox", pa.list_(pa.int32())),
            ("area", pa.float64()),
            ("score", pa.float64()),
            ("rank", pa.float64()),
            ("verdict", pa.string()),
        ]
    )
    reasons = pa.list_(pa.struct([("code", pa.string()), ("text", pa.string())]))
    provenance = pa.struct(
        [
            *((name, pa.string()) for name in ("state", "meaning", "headline", "generator")),
            ("reasons", reasons),
            ("says", reasons),
            ("fields", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
        ]
    )
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("verdict", pa.string()),
            ("score", pa.float64()),
            ("false_alarm_rate", pa.float64()),
            ("untouched", pa.int32()),
            ("not_examined", pa.string()),
            ("area", pa.float64()),
            ("regions", pa.list_(region)),
            ("threshold", pa.float64()),
            ("image_score", pa.float64()),
            ("provenance", provenance),
            ("notes", pa.list_(pa.string())),
            ("pages", pa.int32()),
            ("page", pa.int32()),
            pa.field("model", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            ("mode", pa.string()),
            ("precision", pa.string()),
            pa.field("seconds", pa.float64(), nullable=False),
            ("bytes", pa.int64()),
            ("content", pa.string()),
            ("mask", pa.list_(pa.uint32())),
            ("error", pa.string()),
            ("kind", pa.string()),
        ]
    )
