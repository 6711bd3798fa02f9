"""One part after another: rows, errors, twins, deaths."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from declip.batch import stores, worker
from declip.batch.attempts import Attempts
from declip.batch.job import Job, Model, open_job
from declip.batch.rows import decode_mask
from declip.batch.worker import Suspects, Weights, Worker, localize_part
from declip.images.read import read_photo
from declip.localize.localizer import Localizer, load
from declip.testing import SPEC, FakeEngine, brightness


def deadly(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bright is manipulated; a picture all white is what it dies of."""
    if (images == 1).all(axis=(1, 2, 3)).any():
        raise Killed
    return brightness(images, 16)


class Killed(BaseException):
    """As the end of a process: nothing catches it."""


def png(seed: int, size: tuple[int, int] = (40, 50)) -> bytes:
    """A noisy picture, its left part dark."""
    pixels = np.random.default_rng(seed).integers(0, 200, (*size, 3), dtype=np.uint8)
    pixels[:, : size[1] // 2] //= 4
    pixels[:, -8:] = 250
    return saved(pixels)


def saved(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A few bytes that say 20,000 × 20,000 pixels."""
    data = bytearray(png(0))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def write_all(folder: str, files: Mapping[str, bytes]) -> list[str]:
    for name, data in files.items():
        stores.write(stores.join(folder, name), data)
    return [stores.join(folder, name) for name in files]


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v.tolist() if k == "mask" else v for k, v in row.items() if k != "seconds"} for row in rows]


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_rows_are_what_the_localizer_says(scheme: str, tmp_path: Path) -> None:
    files = {f"{seed}.png": png(seed, (40 + seed, 50)) for seed in range(11)}
    uris = write_all(str(tmp_path) if scheme == "file" else f"memory://{tmp_path.name}", files)
    engine = FakeEngine()
    rows = localize_part(Localizer(engine), uris, "named")
    assert engine.batches == [8, 3]
    localizer = Localizer(FakeEngine())
    for row, uri, data in zip(rows, uris, files.values(), strict=True):
        direct = localizer(data)
        expected = direct.to_dict()
        assert 0.1 < direct.area < 0.9
        kept = {key: row[key] for key in expected if key not in ("image", "model", "seconds")}
        assert kept == {key: expected[key] for key in kept}
        assert np.array_equal(decode_mask(row), direct.mask)
        assert (row["image"], row["model"], row["sha256"]) == (uri, "named", "00" * 32)
        assert (row["bytes"], row["content"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert row["error"] is None and row["kind"] is None and row["seconds"] > 0


def test_bad_files_are_rows_among_good_ones(tmp_path: Path) -> None:
    good = png(1)
    files = {
        "a.png": good,
        "truncated.png": good[:-300],
        "empty.jpg": b"",
        "text.jpg": b"no picture at all\n" * 20,
        "bomb.png": bomb(),
        "wrong-suffix.jpg": png(2),
    }
    uris = [*write_all(str(tmp_path), files), str(tmp_path / "gone.png"), str(tmp_path)]
    rows = localize_part(Localizer(FakeEngine()), uris, "fake")
    assert [row["kind"] for row in rows] == [
        None,
        "corrupt",
        "corrupt",
        "format",
        "too-large",
        None,
        "missing",
        "input",
    ]
    for row, uri in zip(rows, uris, strict=True):
        assert row["image"] == uri and row["sha256"] == "00" * 32
        assert (row["error"] is None) == (row["kind"] is None) == ("score" in row)
        assert row["error"] is None or row["error"].startswith(f"{uri}: ")
    assert rows[3]["bytes"] == 360 and rows[3]["content"] == hashlib.sha256(files["text.jpg"]).hexdigest()
    assert rows[6]["bytes"] is None and rows[6]["content"] is None


def test_the_same_bytes_are_computed_once(tmp_path: Path) -> None:
    files = {"a.png": png(1), "b.png": png(2), "c.png": png(1), "bad.png": b"x" * 99, "worse.png": b"x" * 99}
    uris = write_all(str(tmp_path), files)
    engine = FakeEngine()
    rows = localize_part(Localizer(engine), uris, "fake")
    assert engine.batches == [2]
    first, twin = without_seconds([rows[0], rows[2]])
    assert twin == {**first, "image": uris[2]} and twin["score"] != rows[1]["score"]
    assert rows[4]["error"] == rows[3]["error"].replace("bad", "worse") and rows[4]["kind"] == "format"


def test_what_a_store_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = write_all(str(tmp_path), {"a.png": png(1), "b.png": png(2)})
    fetch = stores.fetch

    def forbidding(uri: str, max_bytes: int) -> bytes:
        if uri == uris[0]:
            raise PermissionError(13, "Access Denied")
        return fetch(uri, max_bytes)

    monkeypatch.setattr(stores, "fetch", forbidding)
    rows = localize_part(Localizer(FakeEngine()), uris, "fake")
    assert [row["kind"] for row in rows] == ["read", None]
    assert rows[0]["error"] == f"{uris[0]}: cannot be read: PermissionError: [Errno 13] Access Denied"


def test_the_unforeseen_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = write_all(str(tmp_path), {"a.png": png(1), "b.png": png(2)})
    read = read_photo

    def failing(data: bytes, **limits: Any) -> Any:
        if data == png(1):
            raise ZeroDivisionError("of a decoder")
        return read(data, **limits)

    monkeypatch.setattr("declip.localize.localizer.read_photo", failing)
    rows = localize_part(Localizer(FakeEngine()), uris, "fake")
    assert [row["kind"] for row in rows] == ["internal", None]
    assert rows[0]["error"] == f"{uris[0]}: ZeroDivisionError: of a decoder"


@pytest.mark.parametrize("where", ["fetch", "read", "mask"])
def test_what_the_memory_does_not_hold_is_a_row(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = write_all(str(tmp_path), {f"{i}.png": png(i, (40, 50 + i)) for i in range(3)})
    fetch, read, encode = stores.fetch, read_photo, worker.encode_mask

    def ended(at: str, found: bool) -> None:
        if at == where and found:
            raise MemoryError

    monkeypatch.setattr(stores, "fetch", lambda uri, size: (ended("fetch", uri == uris[1]), fetch(uri, size))[1])
    monkeypatch.setattr(
        "declip.localize.localizer.read_photo",
        lambda data, **o: (ended("read", data == png(1, (40, 51))), read(data, **o))[1],
    )
    monkeypatch.setattr(worker, "encode_mask", lambda mask: (ended("mask", mask.shape == (40, 51)), encode(mask))[1])
    rows = localize_part(Localizer(FakeEngine()), uris, "fake")
    assert [row["kind"] for row in rows] == [None, "too-large", None]
    assert rows[1]["error"].startswith(f"{uris[1]}: there is not enough memory for this picture")


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    uris = write_all(str(tmp_path), {os.fsdecode(b"caf\xe9.png"): png(1)})
    (row,) = localize_part(Localizer(FakeEngine()), uris, "fake")
    assert row["image"] == f"{tmp_path}/caf\\udce9.png" and row["kind"] is None


# --- deaths ---------------------------------------------------------------------------------------------------------


def test_a_file_that_kills_becomes_a_row(tmp_path: Path) -> None:
    white = saved(np.full((40, 50, 3), 255, np.uint8))
    files = {f"{seed}.png": white if seed == 4 else png(seed) for seed in range(11)}
    uris = write_all(str(tmp_path), files)
    calm = localize_part(Localizer(FakeEngine()), [uri for uri in uris if not uri.endswith("/4.png")], "fake")

    attempts = Attempts()
    for _ in range(3):
        before, alone, fatal = attempts.begin(0)
        suspects = Suspects(alone=frozenset(alone), fatal=frozenset(fatal), touch=partial(attempts.touch, 0))
        with pytest.raises(Killed):
            localize_part(Localizer(FakeEngine(SPEC, deadly)), uris, "fake", suspects if before else None)
    before, alone, fatal = attempts.begin(0)
    assert (before, fatal) == (3, [4]) and set(alone) == {0, 1, 2, 3, 5, 6, 7}
    engine = FakeEngine()
    suspects = Suspects(alone=frozenset(alone), fatal=frozenset(fatal), touch=partial(attempts.touch, 0))
    rows = localize_part(Localizer(engine), uris, "fake", suspects)
    assert engine.batches == [1] * 7 + [3]
    (lost,) = [row for row in rows if row["kind"]]
    assert (lost["image"], lost["kind"]) == (uris[4], "crash")
    assert without_seconds([row for row in rows if row is not lost]) == without_seconds(calm)


# --- the worker -----------------------------------------------------------------------------------------------------


def job_of(folder: str, model: Path, files: Mapping[str, bytes], **fields: Any) -> Job:
    write_all(stores.join(folder, "in"), files)
    found = load(model)
    described: dict[str, Any] = {"mode": "tiled", "threshold": 0.25, **fields}
    described = {"name": "tiny", "sha256": found.sha256, "precision": "exact", **described}
    return open_job(stores.join(folder, "in"), stores.join(folder, "out"), Model(**described), shard_size=2)


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_worker_writes_parts(scheme: str, tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    folder = str(tmp_path) if scheme == "file" else f"memory://{tmp_path.name}"
    path = tiny_model[1]
    files = {"0.png": png(0, (90, 70)), "1.png": b"no picture", "2.png": png(2, (90, 70))}
    job = job_of(folder, path, files)
    worker = Worker(job, Weights(path=path, sha256=job.model.sha256), Attempts(), starts=1, threads=1)
    assert worker({"part": np.array([1])}) == {"files": [1], "errors": [0], "failure": [""]}
    assert job.done() == [1]
    assert worker({"part": np.array([0])}) == {"files": [2], "errors": [1], "failure": [""]}
    assert job.done() == [0, 1] and job.errors([0, 1]) == 1
    (row,) = pq.read_table(io.BytesIO(stores.fetch(job.path(1), 1 << 20))).to_pylist()
    loaded = load(path)
    direct = Localizer(loaded.engine, mode="tiled", threshold=0.25)(files["2.png"])
    assert np.array_equal(decode_mask(row), direct.mask)
    assert (row["score"], row["area"], row["threshold"]) == (direct.score, direct.area, 0.25)
    worker({"part": np.array([1])})
    assert job.done() == [0, 1]


def test_other_weights_compute_nothing(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    job = job_of(str(tmp_path), tiny_model[1], {"0.png": png(0)}, sha256="ab" * 32)
    worker = Worker(job, Weights(path=tiny_model[1], sha256="ab" * 32), Attempts(), starts=1, threads=1)
    (failure,) = worker({"part": np.array([0])})["failure"]
    assert "the job has abab" in failure and job.done() == []


def test_a_part_that_cannot_be_written_ends_the_job(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(str(tmp_path), tiny_model[1], {"0.png": png(0)})
    worker = Worker(job, Weights(path=tiny_model[1], sha256=job.model.sha256), Attempts(), starts=1, threads=1)

    def full(uri: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores, "write", full)
    (failure,) = worker({"part": np.array([0])})["failure"]
    assert failure == f"cannot write {job.path(0)}: [Errno 28] No space left on device"


def test_a_store_that_is_down_is_no_result(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(str(tmp_path), tiny_model[1], {f"{seed}.png": png(seed) for seed in range(3)})
    worker = Worker(job, Weights(path=tiny_model[1], sha256=job.model.sha256), Attempts(), starts=1, threads=1)

    def expired(uri: str, max_bytes: int) -> bytes:
        raise PermissionError("The provided token has expired")

    monkeypatch.setattr(stores, "fetch", expired)
    (failure,) = worker({"part": np.array([0])})["failure"]
    assert failure.startswith(f"no file of part 0 could be read, the first one: {job.uris(0)[0]}: ")
    assert failure.endswith("token has expired") and job.done() == []
    worker({"part": np.array([1])})  # a part of one file says nothing about the store
    assert job.done() == [1] and job.errors([1]) == 1


def test_limits_are_those_of_the_localizer(tmp_path: Path) -> None:
    uris = write_all(str(tmp_path), {"a.png": png(1), "b.png": png(2, (30, 30))})
    rows = localize_part(Localizer(FakeEngine(), max_pixels=1000), uris, "fake")
    assert [row["kind"] for row in rows] == ["too-large", None]
    rows = localize_part(Localizer(FakeEngine(), max_bytes=len(png(2, (30, 30)))), uris, "fake")
    assert [row["kind"] for row in rows] == ["too-large", None]
    assert "(--max-megabytes or max_bytes raises the limit)" in rows[0]["error"]


@pytest.mark.timeout(60)
def test_dropped_files_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python may drop the generator in a thread that is only just starting; to wait there is to wait for ever."""
    uris = write_all(str(tmp_path), {f"{i}.png": png(i) for i in range(4)})
    first, blocked = worker.stores.fetch, threading.Event()
    monkeypatch.setattr(
        worker.stores, "fetch", lambda uri, most: (uri == uris[0] or blocked.wait(), first(uri, most))[1]
    )
    files = worker._fetched(uris, 10**9)
    assert next(files).place == 0
    files.close()  # type: ignore[attr-defined]
    blocked.set()
