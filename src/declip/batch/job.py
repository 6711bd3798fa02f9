"""What a batch job is, and how far it is: the folder OUT, so that it can be killed at any moment.

    OUT/_declip/files-….bin    the listing, made once: Parquet whose row group N are the files of part N. It has another
                               suffix so that who reads OUT and all below as Parquet finds results only
    OUT/_declip/job.json       which listing, which model, which options; its appearance starts the job
    OUT/part-00000.parquet …   one row per file of that part

A part is written whole or not at all, under a name that its number gives: a part that has its file is done, one that
is computed twice is written over by the same rows. So every file of the listing has exactly one row, whatever was
killed when. Files that are added to the source later belong to a new job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from declip._version import __version__
from declip.batch import stores
from declip.batch.listing import find
from declip.errors import DeclipError
from declip.images.read import MAX_BYTES, MAX_PIXELS
from declip.spec import Mode, Precision

__all__ = ["Job", "Model", "open_job"]

# Files of a part: at most so many, and at least so few; and parts that each worker should have, so that none waits
# long for the last one.
_LARGEST, _SMALLEST, _EACH = 256, 16, 16
_FORMAT = 2
_PART = re.compile(r"part-(\d+)\.parquet")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What decides the rows of a file: weights (their name and hash) and how they are used.

    threshold: of the mask; None = the model's own rule. clues: whether those that the model knows are looked for.
    """

    name: str
    sha256: str
    mode: Mode
    precision: Precision
    threshold: float | None
    clues: bool = True
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job whose listing is written.

    source: as it was given, absolute. listing: the file's name in OUT/_declip. files: how many it has. shard_size:
    files of a part (the last may have fewer). skipped, repeated: see `listing.Found`.
    """

    out: str
    source: str
    model: Model
    listing: str
    files: int
    shard_size: int
    skipped: int = 0
    repeated: int = 0

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.files // self.shard_size)

    def size(self, part: int) -> int:
        """How many files a part has."""
        return min(self.shard_size, self.files - part * self.shard_size)

    def path(self, part: int) -> str:
        """Where the part is, or will be."""
        return stores.join(self.out, f"part-{part:05d}.parquet")

    def uris(self, part: int) -> list[str]:
        """Return the files of a part: absolute paths and URIs."""
        column = _opened(stores.join(_folder(self.out), self.listing)).read_row_group(part).column("uri")
        return [entry.decode("utf-8", "surrogateescape") for entry in column.to_pylist()]

    def done(self) -> list[int]:
        """Return the parts that have their file, in order."""
        found = (_PART.fullmatch(name) for name in stores.names(self.out))
        return sorted(int(match[1]) for match in found if match)

    def errors(self, parts: Sequence[int]) -> int:
        """How many files of these parts, which are done, failed."""
        import pyarrow.dataset as ds

        if not parts:
            return 0
        system = stores.locate(self.out)[0]
        paths = [stores.locate(self.path(part))[1] for part in parts]
        failed: int = ds.dataset(paths, filesystem=system).count_rows(filter=ds.field("kind").is_valid())
        return failed


@lru_cache(maxsize=1)
def _opened(listing: str) -> Any:
    """Open a listing, once in a process: its name says what is in it."""
    import pyarrow.parquet as pq

    system, path = stores.locate(listing)
    return pq.ParquetFile(system.open(path, "rb"))


def open_job(
    source: str, out: str, model: Model, *, resume: bool = False, shard_size: int | None = None, workers: int = 1
) -> Job:
    """Start the job of out, or go on with it.

    source is listed and the listing kept, unless resume finds a job: then its own listing is used, whatever has
    changed in source since. shard_size: files of a part; None = 256, or fewer where that leaves fewer than 16 parts to
    each of so many workers.

    Raises DeclipError where out has a job and resume is not given, where the job is one of other weights, options or
    source, and where out cannot be written to; as `listing.find`.
    """
    source, out = stores.absolute(source), stores.absolute(out)
    stores.check_writable(out)
    if job := _read(out):
        if not resume:
            raise DeclipError(f"exists: {out} has a job already; --resume goes on with it, another --out starts anew")
        _check_same(job, source, model, shard_size)
        return job
    if any(_PART.fullmatch(name) for name in stores.names(out)):
        raise DeclipError(f"exists: {out} has parts and no job; nothing is overwritten: choose another --out")
    found = find(source)
    size = shard_size or max(_SMALLEST, min(_LARGEST, -(-len(found.uris) // (_EACH * workers))))
    listing = _listing(found.uris, size)
    # Named by its content: of two who start at once, the one that comes second changes nothing of the first one's.
    name = f"files-{hashlib.sha256(listing).hexdigest()[:16]}.bin"
    job = Job(
        out=out,
        source=source,
        model=model,
        listing=name,
        files=len(found.uris),
        shard_size=size,
        skipped=sum(found.skipped),
        repeated=found.repeated,
    )
    stores.write(stores.join(_folder(out), name), listing)
    record = {"format": _FORMAT, "declip": __version__, **dataclasses.asdict(job)}
    del record["out"]  # the folder may be moved
    try:
        stores.write(_json(out), (json.dumps(record, indent=1) + "\n").encode(), new=True)
    except FileExistsError as error:
        raise DeclipError(f"exists: another job has just started in {out}; choose another --out") from error
    return job


def _read(out: str) -> Job | None:
    """Return the job of a folder, if it has one."""
    path = _json(out)
    if not stores.exists(path):
        return None
    try:
        record = json.loads(stores.fetch(path, 1 << 20))
        if record.pop("format") != _FORMAT:
            raise DeclipError(
                f"{path} was started by declip {record.get('declip')}, whose jobs have another format; this declip "
                "cannot go on with it: use that release, or choose another --out"
            )
        version = record.pop("declip")
        job = Job(**{**record, "out": out, "model": Model(**record["model"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DeclipError(f"{path} does not describe a job: {error}; choose another --out") from error
    if version != __version__:
        _log.warning("%s was started by declip %s; this is %s", path, version, __version__)
    return job


def _check_same(job: Job, source: str, model: Model, shard_size: int | None) -> None:
    """Check that going on gives what the job began with."""
    asked = {"source": source, **dataclasses.asdict(model)}
    there = {"source": job.source, **dataclasses.asdict(job.model)}
    if shard_size is not None:
        asked["shard_size"], there["shard_size"] = shard_size, job.shard_size
    # The same weights may have another name.
    differ = [key for key in asked if asked[key] != there[key] and key != "name"]
    if differ:
        told = "; ".join(f"{key} was {there[key]!r} and is {asked[key]!r}" for key in differ)
        raise DeclipError(f"{job.out} has another job: {told}. Give what it was started with, or another --out")


def _listing(uris: list[str], size: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Names of files need not be text: bytes, as the system has them.
    names = [uri.encode("utf-8", "surrogateescape") for uri in uris]
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": pa.array(names, pa.binary())}), sink, row_group_size=size, compression="zstd")
    return sink.getvalue()


def _folder(out: str) -> str:
    return stores.join(out, "_declip")


def _json(out: str) -> str:
    return stores.join(_folder(out), "job.json")
