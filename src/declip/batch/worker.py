"""A worker of a batch job: one engine, and one part after another.

A part's files are read ahead by threads, decoded and localized in order, and its rows are written as one Parquet file.
One bad file is a row with its error. Kinds are those of `ImageError`, and
- "read": the file is there and cannot be read (no permission, a network that fails for good);
- "crash": the process died each time that it came to this file (see `attempts`);
- "internal": something declip did not foresee.
What the memory does not hold is "too-large"; the others of its batch are then computed alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip.batch import stores
from declip.batch.attempts import Attempts
from declip.batch.job import Job, Model
from declip.batch.rows import Row, encode_mask, to_parquet
from declip.errors import DeclipError, ImageError, WeightsError
from declip.files import printable
from declip.localize.localizer import Localizer, load
from declip.localize.outputs import error_row, outcomes
from declip.models.resolve import cache_dir, sha256_of
from declip.results import Localization, Photo

__all__ = ["Care", "Weights", "Worker", "localize_part"]

# Photos or tiles computed at once; decoded photos that wait together stay below this many pixels.
_BATCH, _HELD_PIXELS = 8, 16_000_000
# Files that are being read while others are computed.
_AHEAD = 8
_CRASH = ("crash", "the process that computed it died, several times")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The weight file: where it lies on the driver's machine, and its bytes as a Ray object for other machines."""

    path: Path
    sha256: str
    reference: Any = None

    def local(self) -> Path:
        """The file on this machine: where the driver has it, or fetched through Ray into the cache."""
        if self.reference is None or (self.path.is_file() and sha256_of(self.path) == self.sha256):
            return self.path
        import ray

        kept = cache_dir() / "batch" / self.sha256 / self.path.name
        if not kept.is_file():
            stores.write(str(kept), ray.get(self.reference))
        return kept


class Worker:
    """What Ray keeps one of in each process: called with the numbers of parts, it computes and writes them.

    attempts: what earlier workers died of. threads, device: of the engine.
    """

    def __init__(
        self,
        job: Job,
        weights: Weights,
        attempts: Attempts,
        *,
        threads: int,
        device: str | None = None,
        offline: bool = False,
    ) -> None:
        self._job = job
        self._attempts = attempts
        self._localizer: Localizer | DeclipError
        try:
            self._localizer = _open(job.model, weights, threads, device, offline)
        except DeclipError as error:
            self._localizer = error

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        """{"part": one number} → {"files": how many it has, "errors": how many of them failed, "failure": why the job
        cannot go on, or ""}. Told and not raised: what Ray makes of an exception has lost its class."""
        (part,) = batch["part"].tolist()
        try:
            files, errors = self._compute(part)
        except DeclipError as error:
            return {"files": [0], "errors": [0], "failure": [str(error)]}
        return {"files": [files], "errors": [errors], "failure": [""]}

    def _compute(self, part: int) -> tuple[int, int]:
        """Write a part; how many files it has, and how many of them failed."""
        if isinstance(self._localizer, DeclipError):
            raise self._localizer
        before, alone, fatal = self._attempts.begin(part)
        care = Care(alone=frozenset(alone), fatal=frozenset(fatal), touch=_nothing)
        if before:
            care = dataclasses.replace(care, touch=lambda places: self._attempts.touch(part, places))
        rows = localize_part(self._localizer, self._job.uris(part), self._job.model.name, care)
        unread = sum(row["kind"] == "read" for row in rows)
        if unread == len(rows) > 1:
            # Expired credentials or a store that is down: no property of the files, and not to be kept as one.
            raise DeclipError(f"no file of part {part} could be read, the first one: {rows[0]['error']}")
        try:
            stores.write(self._job.path(part), to_parquet(rows))
        except OSError as error:
            raise DeclipError(f"cannot write {self._job.path(part)}: {error}") from error
        return len(rows), sum(row["kind"] is not None for row in rows)


def _open(model: Model, weights: Weights, threads: int, device: str | None, offline: bool) -> Localizer:
    """The localizer of a job. Raises as `load`; WeightsError if the weights are others."""
    loaded = load(
        weights.local(),
        threads=threads,
        device=device,
        precision=model.precision,
        offline=offline,
        max_pixels=model.max_pixels,
        max_bytes=model.max_bytes,
    )
    if loaded.sha256 != model.sha256:
        raise WeightsError(f"{weights.path} has SHA-256 {loaded.sha256}; the job has {model.sha256}")
    return loaded.variant(mode=model.mode, threshold=model.threshold)


def _nothing(places: Sequence[int]) -> None:
    """What a first attempt says before it touches files."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Care:
    """How careful a worker is: the places of files to compute alone and to leave out, and what it calls with those
    that it is about to decode or compute."""

    alone: frozenset[int] = frozenset()
    fatal: frozenset[int] = frozenset()
    touch: Callable[[Sequence[int]], None] = _nothing


class _File(NamedTuple):
    """A file that was looked at: its bytes, or why there are none."""

    uri: str
    data: bytes
    failure: tuple[str, str] | None  # kind, message
    seconds: float


class _Decoded(NamedTuple):
    place: int
    photo: Photo
    seconds: float  # that reading and decoding took


def localize_part(localizer: Localizer, uris: Sequence[str], model: str, care: Care | None = None) -> list[Row]:
    """One row per file, in order. A file whose bytes were met before in this part is not computed again."""
    care = care or Care()
    rows: list[Row] = []
    firsts: dict[str, int] = {}
    twins: list[tuple[int, int]] = []
    waiting: list[_Decoded] = []
    for place, file in enumerate(_read_ahead(uris, localizer.max_bytes)):
        row = _blank(file, model, localizer.sha256)
        rows.append(row)
        if file.failure or place in care.fatal:
            row.update(_failed(file.uri, *(file.failure or _CRASH)))
            continue
        first = firsts.setdefault(row["content"], place)
        if first != place:
            twins.append((place, first))
            continue
        if place in care.alone:
            _flush(localizer, waiting, rows, uris, care)
        care.touch([place])
        waiting += _decode(localizer, place, file, row)
        pixels = sum(item.photo.size[0] * item.photo.size[1] for item in waiting)
        if len(waiting) >= _BATCH or pixels >= _HELD_PIXELS or place in care.alone:
            _flush(localizer, waiting, rows, uris, care)
    _flush(localizer, waiting, rows, uris, care)
    for place, first in twins:
        rows[place] = _twin(rows[first], uris[first], uris[place], rows[place]["seconds"])
    return rows


def _flush(localizer: Localizer, waiting: list[_Decoded], rows: list[Row], uris: Sequence[str], care: Care) -> None:
    """Localize the photos that wait, into their rows."""
    care.touch([item.place for item in waiting])
    found = outcomes(localizer, [item.photo for item in waiting], _BATCH)
    for item, outcome in zip(waiting, found, strict=True):
        uri, row = uris[item.place], rows[item.place]
        match outcome:
            case Localization():
                kept = {"image": row["image"], "model": row["model"], "seconds": outcome.seconds + item.seconds}
                try:
                    row.update({**outcome.to_dict(), "mask": encode_mask(outcome.mask), **kept})
                except MemoryError:
                    row.update(_failed(uri, *_too_large(uri)))
            case ImageError():
                row.update(_failed(uri, outcome.kind, outcome.message))
            case _:
                row.update(_unforeseen(uri, outcome))
    waiting.clear()
    care.touch([])


def _read_ahead(uris: Sequence[str], max_bytes: int) -> Iterator[_File]:
    """The files in order, a few of them being read while others are computed."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        reading: deque[Future[_File]] = deque()
        for uri in uris:
            reading.append(pool.submit(_read, uri, max_bytes))
            if len(reading) > _AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def _read(uri: str, max_bytes: int) -> _File:
    start = time.perf_counter()
    data, failure = b"", None
    try:
        data = stores.fetch(uri, max_bytes)
    except ImageError as error:
        failure = (error.kind, error.message)
    except MemoryError:
        failure = _too_large(uri)
    except Exception as error:  # every store has its own
        failure = ("read", f"cannot be read: {type(error).__name__}: {error}")
    return _File(uri, data, failure, time.perf_counter() - start)


def _decode(localizer: Localizer, place: int, file: _File, row: Row) -> list[_Decoded]:
    """The photo; none if its row tells why."""
    start = time.perf_counter()
    try:
        photo = dataclasses.replace(localizer.read(file.data), name=file.uri)
    except ImageError as error:
        row.update(_failed(file.uri, error.kind, error.message))
    except MemoryError:
        row.update(_failed(file.uri, *_too_large(file.uri)))
    except Exception as error:
        row.update(_unforeseen(file.uri, error))
    else:
        return [_Decoded(place, photo, file.seconds + time.perf_counter() - start)]
    finally:
        row["seconds"] = file.seconds + time.perf_counter() - start
    return []


def _blank(file: _File, model: str, sha256: str) -> Row:
    """A row before anything was computed."""
    known = file.failure is None
    return {
        "image": printable(file.uri),
        "model": model,
        "sha256": sha256,
        "seconds": file.seconds,
        "bytes": len(file.data) if known else None,
        "content": hashlib.sha256(file.data).hexdigest() if known else None,
        "error": None,
        "kind": None,
    }


def _twin(row: Row, first: str, uri: str, seconds: float) -> Row:
    """The row of another file with the same bytes."""
    error = None if row["error"] is None else printable(uri) + row["error"].removeprefix(printable(first))
    return {**row, "image": printable(uri), "error": error, "seconds": seconds}


def _failed(uri: str, kind: str, message: str) -> Row:
    return error_row(printable(uri), kind, printable(f"{uri}: {message}"))


def _too_large(uri: str) -> tuple[str, str]:
    """(kind, message) of a file that the memory does not hold."""
    error = ImageError.out_of_memory(uri)
    return error.kind, error.message


def _unforeseen(uri: str, error: Exception) -> Row:
    _log.error("%s: unforeseen error", printable(uri), exc_info=error)
    return _failed(uri, "internal", f"{type(error).__name__}: {error}")
