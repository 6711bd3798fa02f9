"""Data sets in Hugging Face's format → files and samples; needs the extra `data`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from declip.errors import DatasetError, naming_extras
from declip.files import is_address, local_path, write_atomic
from declip.images.read import EXTENSIONS
from declip.results import Polarity, Sample

if TYPE_CHECKING:
    import datasets as hf

__all__ = ["hugging_face"]

# Formats whose usual extension is not their name.
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg"}


def hugging_face(
    rows: hf.Dataset | hf.IterableDataset,
    out: str | Path,
    *,
    image: str = "image",
    mask: str | None = "mask",
    group: str | None = None,
    fake_is: Polarity = "white",
    split: str = "",
    source: str = "",
) -> list[Sample]:
    """Write the rows of a Hugging Face data set as files: out/images/000000.jpg, out/masks/000000.png, …

    rows: one split of a data set, streamed or not. Its files are written as they are: encoding them anew would wipe
        out the traces that are looked for.
    image, mask: names of columns of pictures. A row whose mask is None is real; with mask=None all rows are.
    group: name of the column that says which photo a row comes from.
    fake_is: which value of the masks is manipulated. split, source: written into the samples.

    Raises DatasetError for columns that are not there or hold no pictures, a row whose picture cannot be read, and an
    `out` that is not empty (what was written before an error stays); MissingExtraError without `datasets`.
    """
    undecoded = _undecoded(rows, [name for name in (image, mask) if name is not None])
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not an empty folder; name a new one")
    samples = []
    for number, row in enumerate(undecoded):
        missing = [name for name in (image, mask, group) if name is not None and name not in row]
        if missing:
            raise DatasetError(f"row {number} has no column {', '.join(missing)}; it has {', '.join(row)}")
        picture = _keep(row[image], out / "images" / f"{number:06d}")
        if picture is None:
            raise DatasetError(f"row {number}: {image} is empty; every row needs a picture")
        white = None if mask is None else _keep(row[mask], out / "masks" / f"{number:06d}")
        sample = Sample(image=picture, mask=white, fake_is=fake_is, label="fake", split=split, source=source)
        owner = "" if group is None else str(row[group])
        samples.append(replace(sample, label="real" if white is None else "fake", group=owner))
    return samples


def _undecoded(rows: hf.Dataset | hf.IterableDataset, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Yield the rows, where a picture is not decoded but {"bytes": …, "path": …}: either may be None."""
    with naming_extras():
        import datasets as hf
    if not isinstance(rows, hf.Dataset | hf.IterableDataset):
        raise DatasetError(f"got a {type(rows).__name__}; expected one split: a datasets.Dataset or IterableDataset")
    kinds = rows.features or {}  # a stream may not know them before it is read
    for name in columns:
        if kinds and not isinstance(kinds.get(name), hf.Image):
            there = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in kinds.items())
            raise DatasetError(f"there is no column {name!r} of pictures; the columns are {there}")
        rows = rows.cast_column(name, hf.Image(decode=False))
    undecoded: Iterable[dict[str, Any]] = rows
    return undecoded


def _keep(cell: dict[str, Any] | None, target: Path) -> Path | None:
    """Write the picture of a cell as it is, to target and its format's extension; None where the cell is empty."""
    if cell is None:
        return None
    try:
        data = _fetch(cell["path"]) if cell["bytes"] is None else cell["bytes"]
        with Image.open(io.BytesIO(data)) as opened:
            kind = opened.format or ""
    except (OSError, KeyError, ValueError, ImportError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
        raise DatasetError(f"{target.parent.name} of row {int(target.name)}: {error}") from error
    path = target.with_name(target.name + _SUFFIXES.get(kind, f".{kind.lower()}"))
    if path.suffix not in EXTENSIONS:
        raise DatasetError(f"{target.parent.name} of row {int(target.name)}: {kind} is not a format declip reads")
    write_atomic(path, data)
    return path


def _fetch(path: str) -> bytes:
    """Return the bytes of a picture's file. What a data set holds in an archive or elsewhere has an address, as
    "zip://a.jpg::/data.zip" or "hf://…", which fsspec opens as `datasets` does."""
    if not is_address(path):
        return Path(path).read_bytes()
    if (local := local_path(path)) != path:
        return Path(local).read_bytes()
    import fsspec

    with fsspec.open(path, "rb") as file:
        data: bytes = file.read()
    return data
