"""Ray: what is set before it is imported, and how its machines are shared."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from declip import batch
from declip.batch import cluster
from declip.batch.worker import Weights
from declip.errors import DeclipError, MissingExtraError, SpecError
from declip.localize.localizer import load

CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
NAMES = (CLUSTER, "RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)


def fake_ray(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=None, **members))
    monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace())


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'declip\[ray\]'"):
        batch.run(tmp_path, tmp_path / "out")


def test_nothing_is_sent_and_here_nothing_listens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_ray(monkeypatch)
    cluster.prepare(here=False)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and CLUSTER not in os.environ and caplog.text == ""
    cluster.prepare(here=True)  # too late for what was imported with open ports
    assert "Ray was imported before" in caplog.text and os.environ[CLUSTER] == "0"
    caplog.clear()
    cluster.prepare(here=True)
    assert caplog.text == ""


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ray(monkeypatch)
    monkeypatch.setenv(CLUSTER, "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    cluster.prepare(here=True)
    assert os.environ[CLUSTER] == os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [
        (1, None, None, (1, 1)),
        (2, None, None, (2, 1)),
        (8, None, None, (2, 4)),
        (64, None, None, (16, 4)),
        (8, 3, None, (3, 2)),
        (8, None, 2, (4, 2)),
        (2, None, 4, (1, 4)),
        (2, 6, None, (6, 1)),
        (2, 6, 3, (6, 3)),
    ],
)
def test_workers_and_threads_share_the_cores(
    cores: int, workers: int | None, threads: int | None, expected: tuple[int, int]
) -> None:
    assert cluster.shared(cores, workers, threads) == expected


def test_a_cluster_is_shared_by_what_its_machines_have(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    fake_ray(monkeypatch, nodes=lambda: nodes)
    assert cluster._sized(None, None, None) == (3, 4, None)
    assert cluster._sized(1, None, None) == (1, 8, None)  # no machine has 12
    assert cluster._sized(None, None, "cuda") == (2, 6, "cuda")
    assert cluster._sized(5, 1, "cuda").workers == 2
    with pytest.raises(SpecError, match="threads is 9; the largest machine has 8 cores"):
        cluster._sized(None, 9, None)
    fake_ray(monkeypatch, nodes=lambda: nodes[:1])
    with pytest.raises(SpecError, match="Ray knows of no GPU"):
        cluster._sized(None, None, "cuda")


def test_weights_come_through_ray_where_the_file_is_not(
    monkeypatch: pytest.MonkeyPatch, tiny_model: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tiny_model[1]
    sha256 = load(path).sha256
    assert Weights(path=path, sha256=sha256).local() == path
    fake_ray(monkeypatch, get=lambda reference: reference)
    assert Weights(path=path, sha256=sha256, reference=b"").local() == path
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path))
    fetched = Weights(path=Path("/elsewhere/tiny.onnx"), sha256=sha256, reference=path.read_bytes()).local()
    assert fetched.is_relative_to(tmp_path) and load(fetched).sha256 == sha256 and fetched.name == "tiny.onnx"
    other = tmp_path / "tiny.onnx"
    other.write_bytes(b"another file of that name")
    assert Weights(path=other, sha256=sha256, reference=b"unused").local() == fetched


def test_a_ray_that_does_not_start_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    with (
        pytest.raises(DeclipError, match="Ray did not start on this machine"),
        cluster.started(None, 1, 1, None),
    ):
        pass
