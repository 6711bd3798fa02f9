"""What a job is, and how far it is."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from declip.batch import stores
from declip.batch.job import Job, Model, open_job
from declip.batch.rows import to_parquet
from declip.errors import DeclipError

MODEL = Model(name="m", sha256="ab", mode="tiled", precision="exact", threshold=0.5)


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


def started(folder: str, files: int = 10, **options: Any) -> Job:
    for number in range(files):
        stores.write(stores.join(folder, f"in/{number:04d}.jpg"), b"x")
    return open_job(stores.join(folder, "in"), stores.join(folder, "out"), MODEL, **options)


def finish(job: Job, part: int, failed: int) -> None:
    rows = [
        {"image": uri, "model": "m", "sha256": "ab", "seconds": 0.0, "kind": "corrupt" if place < failed else None}
        for place, uri in enumerate(job.uris(part))
    ]
    stores.write(job.path(part), to_parquet(rows))


def test_parts_hold_every_file_once_in_order(folder: str) -> None:
    job = started(folder, shard_size=4)
    assert (job.files, job.parts, [job.size(part) for part in range(3)]) == (10, 3, [4, 4, 2])
    uris = [uri for part in range(3) for uri in job.uris(part)]
    assert [uri.rpartition("/")[2] for uri in uris] == [f"{number:04d}.jpg" for number in range(10)]
    assert pickle.loads(pickle.dumps(job)).uris(2) == job.uris(2)  # it travels to workers


def test_parts_are_many_enough_for_the_workers(tmp_path: Path) -> None:
    sizes = [
        started(str(tmp_path / str(n)), 2500, workers=workers).shard_size for n, workers in enumerate((1, 2, 9, 1000))
    ]
    assert sizes == [157, 79, 18, 16]


def test_a_part_with_a_file_is_done(folder: str) -> None:
    job = started(folder, shard_size=4)
    assert job.done() == [] and job.errors([]) == 0
    finish(job, 2, failed=2)
    finish(job, 0, failed=1)
    assert job.done() == [0, 2]
    assert job.errors([0, 2]) == 3 and job.errors([0]) == 1


def test_a_job_goes_on_with_its_own_listing(folder: str) -> None:
    job = started(folder, shard_size=4)
    stores.write(stores.join(folder, "in/00000.jpg"), b"x")  # would move every other file
    again = open_job(job.source, job.out, MODEL, resume=True, workers=50)
    assert again == job and again.uris(0) == job.uris(0)
    renamed = dataclasses.replace(MODEL, name="the same under another name")
    assert open_job(job.source, job.out, renamed, resume=True).model.name == "m"


def test_resume_starts_a_job_where_there_is_none(folder: str) -> None:
    assert started(folder, resume=True).files == 10


def test_without_resume_a_job_is_left_alone(folder: str) -> None:
    job = started(folder)
    with pytest.raises(DeclipError, match=r"exists: .* has a job already; --resume goes on"):
        started(folder)
    assert open_job(job.source, job.out, MODEL, resume=True) == job


def test_parts_of_unknown_origin_are_left_alone(folder: str) -> None:
    stores.write(stores.join(folder, "out/part-00000.parquet"), b"someone's")
    for resume in (False, True):
        with pytest.raises(DeclipError, match=r"exists: .* has parts and no job"):
            started(folder, resume=resume)
    assert stores.fetch(stores.join(folder, "out/part-00000.parquet"), 99) == b"someone's"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("sha256", "cd"), ("mode", "whole"), ("precision", "fast"), ("threshold", 0.25), ("threshold", None)),
        *(("max_pixels", 9), ("max_bytes", 9)),
    ],
)
def test_another_model_does_not_go_on(field: str, value: Any, tmp_path: Path) -> None:
    job = started(str(tmp_path))
    other = dataclasses.replace(MODEL, **{field: value})
    with pytest.raises(DeclipError, match=f"another job: {field} was .* and is {value!r}"):
        open_job(job.source, job.out, other, resume=True)


def test_another_source_or_size_does_not_go_on(tmp_path: Path) -> None:
    job = started(str(tmp_path), shard_size=4)
    with pytest.raises(DeclipError, match="another job: source was"):
        open_job(str(tmp_path), job.out, MODEL, resume=True)
    with pytest.raises(DeclipError, match="another job: shard_size was 4 and is 5"):
        open_job(job.source, job.out, MODEL, resume=True, shard_size=5)


def test_of_two_that_start_at_once_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = started(str(tmp_path), shard_size=4)
    stores.write(stores.join(first.source, "more.jpg"), b"x")
    monkeypatch.setattr("declip.batch.job._read", lambda out: None)  # as if it had looked a moment before
    with pytest.raises(DeclipError, match="another job has just started"):
        open_job(first.source, first.out, MODEL)
    monkeypatch.undo()
    again = open_job(first.source, first.out, MODEL, resume=True)
    assert again == first and again.uris(2) == first.uris(2)


def test_what_describes_no_job_is_refused(tmp_path: Path) -> None:
    job = started(str(tmp_path))
    path = Path(job.out, "_declip", "job.json")
    record = json.loads(path.read_text())
    for wrong in ("[", "{}", json.dumps({**record, "unknown": 1})):
        path.write_text(wrong)
        with pytest.raises(DeclipError, match="does not describe a job"):
            open_job(job.source, job.out, MODEL, resume=True)
    for resume in (False, True):
        path.write_text(json.dumps({**record, "format": 1, "declip": "0.1.0"}))
        with pytest.raises(
            DeclipError, match=r"was started by declip 0\.1\.0, whose jobs have another format.*another --out"
        ):
            open_job(job.source, job.out, MODEL, resume=resume)


def test_who_reads_the_folder_as_parquet_finds_results_only(tmp_path: Path) -> None:
    job = started(str(tmp_path))
    stores.write(job.path(0), b"x")
    assert [path.name for path in Path(job.out).rglob("*.parquet")] == ["part-00000.parquet"]
    assert len(job.uris(0)) == job.size(0)


def test_another_version_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = started(str(tmp_path))
    path = Path(job.out, "_declip", "job.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "declip": "0.0.1"}))
    with caplog.at_level(logging.WARNING, "declip"):
        assert open_job(job.source, job.out, MODEL, resume=True) == job
    assert "was started by declip 0.0.1" in caplog.text


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    stores.write(str(tmp_path / "in" / name), b"x")
    job = open_job(str(tmp_path / "in"), str(tmp_path / "out"), MODEL)
    assert job.uris(0) == [str(tmp_path / "in" / name)]
