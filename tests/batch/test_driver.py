"""Whole jobs: killed, resumed, on S3; and what they tell."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from declip import batch
from declip.batch import driver, stores
from declip.batch.rows import decode_mask
from declip.localize.localizer import load
from tests.batch.test_worker import png

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "batch_job.py"


# --- progress -------------------------------------------------------------------------------------------------------


def test_progress_is_a_line_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 12.0])
    monkeypatch.setattr(driver, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    with caplog.at_level(logging.INFO, "declip"), driver.shown(100, 20, False) as show:
        show(8)  # after 1 s: too early
        show(12)  # after 12 s
    assert caplog.messages == ["40 of 100 files, 1.7 files/s"]


def test_progress_is_a_bar_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with driver.shown(100, 20, True) as show:
        show(30)
    out, err = capsys.readouterr()
    assert out == "" and "50/100" in err and "files/s" in err


def test_the_summary_says_what_was_before() -> None:
    summary = batch.Summary(files=100, errors=3, done_before=20, seconds=16.0)
    assert summary.rate == 5.0
    assert str(summary) == "100 files, 20 of them before, 3 errors, 16.0 s, 5.0 files/s"
    assert str(batch.Summary(files=1, errors=0, done_before=0, seconds=2.0)) == "1 files, 0 errors, 2.0 s, 0.5 files/s"


# --- whole jobs -----------------------------------------------------------------------------------------------------


def declip(source: object, out: object, model: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`declip batch` as a process, with one worker."""
    command = [sys.executable, "-m", "declip", "batch", str(source), "--out", str(out), "--model", str(model)]
    command += ["--workers", "1", "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, **env})


@pytest.mark.slow
def test_a_job_that_is_killed_twice_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """240 files, 12 of them hostile; the driver is killed at a third, a worker at two thirds."""
    out = tmp_path / "figures.json"
    arguments = ("--files", "240", "--hostile", "12", "--side", "128", "--shard-size", "10", "--turns", "0")
    command = [sys.executable, str(SCRIPT), *arguments, "--out", str(out)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert found.returncode == 0, found.stdout + found.stderr
    figures = json.loads(out.read_text())
    assert figures["once"] and figures["errors_right"] and figures["identical"]
    assert figures["errors"] == {"corrupt": 4, "format": 4, "missing": 2, "too-large": 2}
    interruption = figures["interrupted"]
    assert 8 <= interruption["parts_at_third"] < 16 <= interruption["parts_at_two_thirds"] < 24 == figures["parts"]
    assert interruption["line"].startswith(
        f"240 files, {10 * interruption['parts_at_third']} of them before, 12 errors"
    )


def changed(folder: Path, *lines: str) -> str:
    """PYTHONPATH with which every process of Python runs these lines first."""
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.slow
def test_a_file_that_kills_every_worker_is_a_row(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    for seed in range(12):
        stores.write(str(tmp_path / "in" / f"{seed:02d}.png"), png(seed) if seed != 5 else b"POISON")
    path = changed(
        tmp_path,
        "import os",
        "from declip.images import read",
        "read_photo = read.read_photo",
        "read.read_photo = lambda data, **o: os._exit(1) if data == b'POISON' else read_photo(data, **o)",
    )
    done = declip(tmp_path / "in", tmp_path / "out", tiny_model[1], "--shard-size", "6", PYTHONPATH=path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("12 files, 1 errors, ") and done.stdout.count("\n") == 1
    rows = pq.read_table(tmp_path / "out").sort_by("image").to_pylist()
    assert [row["kind"] for row in rows] == [None] * 5 + ["crash"] + [None] * 6


@pytest.mark.slow
def test_ray_data_is_told_to_be_patient(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    """By default it ends a job in which no part is done for half an hour."""
    for seed in range(3):
        stores.write(str(tmp_path / "in" / f"{seed}.png"), png(seed))
    path = changed(
        tmp_path,
        "import time",
        "from declip.images import read",
        "read_photo = read.read_photo",
        "read.read_photo = lambda data, **o: time.sleep(1) or read_photo(data, **o)",
    )
    patience = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "2"}
    done = declip(tmp_path / "in", tmp_path / "out", tiny_model[1], PYTHONPATH=path, **patience)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 files, 0 errors, ")


@pytest.mark.slow
def test_workers_that_never_start_end_the_job(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    """Ray alone starts them for ever."""
    stores.write(str(tmp_path / "in" / "0.png"), png(0))
    died = tmp_path / "died"
    path = changed(
        tmp_path,
        "import os",
        "from declip.batch import worker",
        "def dying(*arguments):",
        f"    open({str(died)!r}, 'a').write('x')",
        "    os._exit(1)",
        "worker._open = dying",
    )
    done = declip(tmp_path / "in", tmp_path / "out", tiny_model[1], PYTHONPATH=path)
    assert done.returncode == 2 and "declip: workers died 3 times while they started" in done.stderr
    assert died.read_text() == "xxx" and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_job_that_cannot_go_on_says_why(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("nothing://a.jpg\nnothing://b.jpg\n")
    done = declip(tmp_path / "list.txt", tmp_path / "out", tiny_model[1])
    assert done.returncode == 2 and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("declip: no file of part 0")]
    assert "the first one: nothing://a.jpg: cannot be read" in line and "Traceback" not in done.stderr
    assert stores.names(str(tmp_path / "out")) == ["_declip"]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An S3 server on this machine with a bucket; the environment that leads to it."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield env
    server.stop()


@pytest.mark.slow
def test_a_job_on_s3(s3: dict[str, str], tiny_model: tuple[Path, Path]) -> None:
    files = {f"in/{seed % 2}/{seed}.png": png(seed) for seed in range(20)}
    files |= {"in/empty.jpg": b"", "in/text.jpg": b"no picture", "in/notes.md": b"none either"}
    for name, data in files.items():
        stores.write(f"s3://bucket/{name}", data)
    with pytest.raises(FileExistsError):
        stores.write("s3://bucket/in/text.jpg", b"another", new=True)
    assert stores.fetch("s3://bucket/in/text.jpg", 99) == b"no picture"

    model = tiny_model[1]
    job = ("s3://bucket/in", "s3://bucket/out", model, "--shard-size", "8")
    done = declip(*job)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("22 files, 2 errors, ")
    assert "passed over: 1 (other files, hidden names)" in done.stderr
    parts = [f"part-0000{part}.parquet" for part in range(3)]
    assert sorted(stores.names("s3://bucket/out")) == ["_declip", *parts]
    rows = [
        row
        for part in parts
        for row in pq.read_table(io.BytesIO(stores.fetch(f"s3://bucket/out/{part}", 1 << 20))).to_pylist()
    ]
    assert sorted(row["image"] for row in rows) == sorted(
        f"s3://bucket/{name}" for name in files if "notes" not in name
    )
    assert {row["image"]: row["kind"] for row in rows if row["kind"]} == {
        "s3://bucket/in/empty.jpg": "corrupt",
        "s3://bucket/in/text.jpg": "format",
    }
    localizer = load(model)
    for row in rows[:3]:
        direct = localizer(files[row["image"].removeprefix("s3://bucket/")])
        assert row["score"] == pytest.approx(direct.score, abs=1e-6)
        assert np.mean(decode_mask(row) != direct.mask) < 1e-3

    refused = declip(*job)
    assert refused.returncode == 2 and "s3://bucket/out has a job already; --resume goes on" in refused.stderr
    resumed = declip(*job, "--resume")
    assert resumed.returncode == 1 and resumed.stdout.startswith("22 files, 22 of them before, 2 errors, 0.0 s")
