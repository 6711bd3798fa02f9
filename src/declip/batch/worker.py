"""A worker of a batch job: one engine, and one part after another.

A part's files are fetched ahead by threads and go through `localize.pipeline`; its rows are one Parquet file.
One bad file is a row with its error. Kinds are those of `ImageError`, and
- "read": the file is there and cannot be read (no permission, a network that fails for good);
- "crash": the process died each time that it came to this file (see `attempts`);
- "internal": something declip did not foresee.
What the memory does not hold is "too-large"; the others of its batch are then computed alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip.batch import stores
from declip.batch.attempts import Attempts
from declip.batch.job import Job, Model
from declip.batch.rows import Row, encode_mask, to_parquet
from declip.errors import DeclipError, ImageError, WeightsError
from declip.files import printable, sha256_of
from declip.localize.folder import failed_row
from declip.localize.localizer import Localizer, load
from declip.localize.pipeline import Outcome, stream
from declip.models.resolve import cache_dir
from declip.process import abandon, ending
from declip.results import Localization, Photo

__all__ = ["Suspects", "Weights", "Worker", "localize_part"]

# Photos or tiles computed at once, and files that are being fetched meanwhile.
_BATCH, _FETCHED = 8, 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The weight file: where it lies on the driver's machine, and its bytes as a Ray object for other machines."""

    path: Path
    sha256: str
    reference: Any = None

    def local(self) -> Path:
        """Return the file on this machine: where the driver has it, or fetched through Ray into the cache."""
        if self.reference is None or (self.path.is_file() and sha256_of(self.path) == self.sha256):
            return self.path
        import ray

        kept = cache_dir() / "batch" / self.sha256 / self.path.name
        if not kept.is_file():
            stores.write(str(kept), ray.get(self.reference))
        return kept


class Worker:
    """Compute and write parts, called with their numbers; Ray keeps one in each process.

    attempts: what earlier workers died of. starts: how many may die while they start, one after another. threads,
    device: of the engine.
    """

    def __init__(
        self,
        job: Job,
        weights: Weights,
        attempts: Attempts,
        *,
        starts: int,
        threads: int,
        device: str | None = None,
        offline: bool = False,
    ) -> None:
        self._job = job
        self._attempts = attempts
        self._localizer: Localizer | DeclipError
        try:
            if attempts.start() > starts:
                raise DeclipError(
                    f"workers died {starts} times while they started, and none was ready in between; each has the "
                    "model in memory, so that fewer of them may do"
                )
            self._localizer = _open(job.model, weights, threads, device, offline)
        except DeclipError as error:
            self._localizer = error
        else:
            attempts.ready()

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        """Compute {"part": [number]}; return {"files": how many it has, "errors": how many failed, "failure": ""}.

        Why the job cannot go on is told as "failure" and not raised: what Ray makes of an exception has lost its class.
        """
        (part,) = batch["part"].tolist()
        try:
            rows = self._compute(part)
        except DeclipError as error:
            return {"files": [0], "errors": [0], "failure": [str(error)]}
        return {"files": [len(rows)], "errors": [sum(row["kind"] is not None for row in rows)], "failure": [""]}

    def _compute(self, part: int) -> list[Row]:
        """Write a part; return its rows."""
        if isinstance(self._localizer, DeclipError):
            raise self._localizer
        before, alone, fatal = self._attempts.begin(part)
        suspects = None
        if before:
            touch = partial(self._attempts.touch, part)
            suspects = Suspects(alone=frozenset(alone), fatal=frozenset(fatal), touch=touch)
        rows = localize_part(self._localizer, self._job.uris(part), self._job.model.name, suspects)
        unread = sum(row["kind"] == "read" for row in rows)
        if unread == len(rows) > 1:
            # Expired credentials or a store that is down: no property of the files, and not to be kept as one.
            raise DeclipError(f"no file of part {part} could be read, the first one: {rows[0]['error']}")
        try:
            stores.write(self._job.path(part), to_parquet(rows))
        except OSError as error:
            raise DeclipError(f"cannot write {self._job.path(part)}: {error}") from error
        return rows


def _open(model: Model, weights: Weights, threads: int, device: str | None, offline: bool) -> Localizer:
    """Open the localizer of a job. Raises as `load`; WeightsError if the weights are others."""
    loaded = load(
        weights.local(),
        threads=threads,
        device=device,
        mode=model.mode,
        threshold=model.threshold,
        precision=model.precision,
        clues=model.clues,
        offline=offline,
        max_pixels=model.max_pixels,
        max_bytes=model.max_bytes,
    )
    if loaded.sha256 != model.sha256:
        raise WeightsError(f"{weights.path} has SHA-256 {loaded.sha256}; the job has {model.sha256}")
    return loaded


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Suspects:
    """What a part's workers died of before: see `attempts`.

    alone: places of files to compute alone. fatal: places of files to leave out. touch: is called with the places that
    are about to be read and computed, and with none when they are done.
    """

    alone: frozenset[int] = frozenset()
    fatal: frozenset[int] = frozenset()
    touch: Callable[[Sequence[int]], None]


class _File(NamedTuple):
    """A file that was fetched: its bytes, or why there are none."""

    place: int
    uri: str
    content: bytes | Exception
    seconds: float


def localize_part(localizer: Localizer, uris: Sequence[str], model: str, suspects: Suspects | None = None) -> list[Row]:
    """Return one row per file, in order. A file whose bytes were met before in this part is not computed again.

    suspects: what an earlier worker may have died of; then one batch is read and computed after the other.
    """
    rows: list[Row] = []
    firsts: dict[str, int] = {}
    twins: list[tuple[int, int]] = []

    def files() -> Iterator[_File]:
        for file in _fetched(uris, localizer.max_bytes):
            row: Row = {"image": printable(file.uri), "model": model, "sha256": localizer.sha256}
            row |= {"seconds": file.seconds, "bytes": None, "content": None, "error": None, "kind": None}
            rows.append(row)
            if isinstance(file.content, Exception):
                row.update(_failed(file.uri, file.content))
                continue
            digest = hashlib.sha256(file.content).hexdigest()
            row.update(bytes=len(file.content), content=digest)
            first = firsts.setdefault(digest, file.place)
            if suspects and file.place in suspects.fatal:
                died = ImageError(file.uri, "crash", "the process that computed it died, several times")
                row.update(_failed(file.uri, died))
            elif first != file.place:
                twins.append((file.place, first))
            else:
                yield file

    found = _careful(localizer, files(), suspects) if suspects else _stream(localizer, files())
    for file, _, result in found:
        rows[file.place].update(_result(file, result, model))
    for place, first in twins:
        rows[place] = _twin(rows[first], uris[first], uris[place], rows[place]["seconds"])
    return rows


def _stream(localizer: Localizer, files: Iterable[_File]) -> Iterator[Outcome[_File]]:
    def read(file: _File) -> Photo:
        assert isinstance(file.content, bytes)
        return dataclasses.replace(localizer.read(file.content), name=file.uri)

    return stream(localizer, files, read, _BATCH, lambda file: file.uri)


def _careful(localizer: Localizer, files: Iterable[_File], suspects: Suspects) -> Iterator[Outcome[_File]]:
    """Localize as `_stream`, but say before each batch what is in it; suspects are batches of their own."""
    for alone, group in itertools.groupby(files, lambda file: file.place in suspects.alone):
        while batch := list(itertools.islice(group, 1 if alone else _BATCH)):
            suspects.touch([file.place for file in batch])
            yield from _stream(localizer, batch)
            suspects.touch([])


def _fetched(uris: Sequence[str], max_bytes: int) -> Iterator[_File]:
    """Yield the files in order; a few of them are being fetched while others are computed."""
    with ending(ThreadPoolExecutor(_FETCHED), abandon) as pool:
        waiting: deque[Future[_File]] = deque()
        for place, uri in enumerate(uris):
            waiting.append(pool.submit(_fetch, place, uri, max_bytes))
            if len(waiting) > _FETCHED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _fetch(place: int, uri: str, max_bytes: int) -> _File:
    start = time.perf_counter()
    content: bytes | Exception
    try:
        content = stores.fetch(uri, max_bytes)
    except (ImageError, MemoryError) as error:
        content = error
    except Exception as error:  # every store has its own
        content = ImageError(uri, "read", f"cannot be read: {type(error).__name__}: {error}")
    return _File(place, uri, content, time.perf_counter() - start)


def _result(file: _File, result: Localization | Exception, model: str) -> Row:
    """Return what a result adds to the row of its file."""
    if isinstance(result, Localization):
        try:
            own = {"image": printable(file.uri), "model": model, "seconds": result.seconds + file.seconds}
            return {**result.to_dict(), "mask": encode_mask(result.mask), **own}
        except MemoryError as error:
            result = error
    return _failed(file.uri, result)


def _failed(uri: str, error: Exception) -> Row:
    return {key: printable(value) for key, value in failed_row(uri, error).items()}


def _twin(row: Row, first: str, uri: str, seconds: float) -> Row:
    """Return the row of another file with the same bytes."""
    error = None if row["error"] is None else printable(uri) + row["error"].removeprefix(printable(first))
    return {**row, "image": printable(uri), "error": error, "seconds": seconds}
