"""The manifest: one line of JSON per sample, in a file that people read, edit and compare.

    {"image": "images/0.jpg", "mask": "masks/0.png", "fake_is": "white", "label": "fake", "split": "train",
     "source": "telea", "group": "kodim01", "provenance": {…}}

Paths are relative to the manifest's own folder and written with forward slashes, so that a data set can be moved.
`image` and `label` are required; a real picture has no mask; `provenance` (how the sample came to be) is any object.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from declip.errors import DatasetError, SpecError
from declip.files import local_path, read_text, write_atomic
from declip.results import Sample, check_samples

__all__ = ["format_line", "parse_line", "read_manifest", "read_records", "write_manifest"]

_KEYS = tuple(field.name for field in dataclasses.fields(Sample))


def read_manifest(path: str | Path, split: str | None = None) -> list[Sample]:
    """Read a manifest, in its order; empty lines are skipped. Whether the pictures exist is not looked at.

    split: only its samples. Raises DatasetError if there is no such file or split, or a line is not a sample (the
    message names the line).
    """
    samples = [sample for sample, _ in read_records(path)]
    chosen = [sample for sample in samples if split in (None, sample.split)]
    if not chosen and samples:
        there = ", ".join(sorted({repr(sample.split) for sample in samples}))
        raise DatasetError(f"{path} has no samples of the split {split!r}; it has {there}")
    return chosen


def read_records(path: str | Path) -> list[tuple[Sample, dict[str, Any]]]:
    """As `read_manifest`, with the provenance of each sample (empty where there is none)."""
    path = Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such manifest; write one with `declip index`") from error
    except IsADirectoryError as error:
        advice = f"write one with `declip index folder {path} --out samples.jsonl`"
        raise DatasetError(f"{path} is a folder; expected a manifest (.jsonl); {advice}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: the manifest cannot be read: {error}") from error
    lines = enumerate(text.split("\n"), start=1)
    return [parse_line(line, path.parent, f"{path}, line {number}") for number, line in lines if line.strip()]


def write_manifest(
    path: str | Path, samples: Sequence[Sample], provenance: Sequence[Mapping[str, Any] | None] | None = None
) -> None:
    """Write a manifest: the file appears whole or not at all.

    provenance: one object (or None) per sample, anything JSON can hold. Raises DatasetError for another number of them.
    """
    check_samples(samples, "write_manifest(path, […])")
    path = Path(path)
    if provenance is None:
        provenance = [None] * len(samples)
    if len(provenance) != len(samples):
        raise DatasetError(f"got {len(provenance)} provenances for {len(samples)} samples; expected one each")
    lines = [format_line(sample, path.parent, extra) for sample, extra in zip(samples, provenance, strict=True)]
    write_atomic(path, "".join(line + "\n" for line in lines))


def format_line(sample: Sample, folder: Path, provenance: Mapping[str, Any] | None = None) -> str:
    """Return a line of a manifest that lies in `folder`, without the line break; the same keys in the same order."""
    values = {key: getattr(sample, key) for key in _KEYS}
    record = {key: _relative(value, folder) if isinstance(value, Path) else value for key, value in values.items()}
    if provenance is not None:
        record["provenance"] = dict(provenance)
    return json.dumps(record, ensure_ascii=False)


def parse_line(line: str, folder: Path, where: str) -> tuple[Sample, dict[str, Any]]:
    """Read one line of a manifest that lies in `folder`: the sample and its provenance (empty where there is none).

    where: names the line in errors. Raises DatasetError for everything that is not a sample.
    """
    record = _object(line, where)
    provenance = record.pop("provenance", None)
    if provenance is not None and not isinstance(provenance, dict):
        raise DatasetError(f"{where}: provenance is a {type(provenance).__name__}; expected a JSON object")
    unknown = sorted(record.keys() - set(_KEYS))
    if unknown:
        raise DatasetError(f"{where}: unknown keys {', '.join(unknown)}; expected {', '.join(_KEYS)}, provenance")
    missing = [key for key in ("image", "label") if record.get(key) in (None, "")]
    if missing:
        raise DatasetError(f"{where}: {' and '.join(missing)} missing or empty; every sample needs them")
    for key, value in record.items():
        if not isinstance(value, str) and not (key == "mask" and value is None):
            raise DatasetError(f"{where}: {key} is {value!r}; expected a string")
    for key in ("image", "mask"):
        if record.get(key) is not None:
            record[key] = folder / local_path(record[key])
    try:
        return Sample(**record), provenance or {}
    except SpecError as error:
        raise DatasetError(f"{where}: {error}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    """Read one JSON object. Raises DatasetError."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{where}: got a {type(record).__name__}; expected a JSON object")
    return record


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive: there is no relative way
        return path.resolve().as_posix()
