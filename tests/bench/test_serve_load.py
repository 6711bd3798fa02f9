"""The load bench of the service: what it sends is what it says, and a short run of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from declip.errors import ImageError
from declip.images.read import read_photo

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "serve_load.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    specification = importlib.util.spec_from_file_location("serve_load", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["serve_load"] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    return module


def fine() -> dict[str, Any]:
    """The figures of a run in which all is as it should be."""
    return {
        "answers": {"good": {"200": 90, "503": 3}, "bogus": {"415": 5}},
        "hung_up": 4,
        "faults": {},
        "unanswered": [],
        "answers_nobody_waited_for": {"200": 1, "415": 0, "499": 3},
        "seconds": 60.0,
        "good": 90,
        "direct_seconds": 50.0,
        "speed": 0.83,
        "megabytes": {"started": 150, "after_first": 400, "after_all": 420, "highest": 900},
        "growth": 1.05,
        "sigterm": {
            "in_flight": 40,
            "accepted_and_unanswered": [],
            "faults": {},
            "exit_code": 0,
            "exit_seconds": 12.0,
        },
    }


def test_what_is_sent_is_refused_as_it_says(bench: ModuleType) -> None:
    small = {"a.jpeg": bench._scaled(min(bench.PHOTOS.iterdir()), (200, 300), "JPEG")}
    large = {"b.jpeg": b"stands for a large one"}
    seen: Counter[str] = Counter()
    for shot in islice(bench.shots(small, large, 1), 600):
        seen[shot.kind] += 1
        if shot.kind in ("truncated", "bogus"):
            with pytest.raises(ImageError) as caught:
                read_photo(shot.data)
            assert caught.value.kind == {"truncated": "corrupt", "bogus": "format"}[shot.kind]
        if shot.kind == "too many bytes":
            assert len(shot.data) > 5e6  # --max-megabytes
    for kind, weight in bench.MIX.items():
        assert seen[kind] == pytest.approx(6 * weight, abs=4 * (6 * weight) ** 0.5)
    again = [(shot.kind, shot.name) for shot in islice(bench.shots(small, large, 1), 50)]
    assert again == [(shot.kind, shot.name) for shot in islice(bench.shots(small, large, 1), 50)]


def test_nothing_is_wrong_with_a_run_that_is_fine(bench: ModuleType) -> None:
    assert [good for _, _, good in bench.checks(fine())] == [True] * 7
    assert "| good | 90 |  | 3 |" in bench.table(fine()) and "**no**" not in bench.table(fine())


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"faults": {"good: 500": 1}}, 0),
        ({"unanswered": ["good: ReadError"]}, 1),
        ({"answers_nobody_waited_for": {"200": -1, "499": 1}}, 2),
        ({"answers_nobody_waited_for": {"499": 5}}, 2),
        ({"growth": 1.11}, 3),
        ({"speed": 0.74}, 4),
        ({"sigterm": fine()["sigterm"] | {"accepted_and_unanswered": ["good: ReadError"]}}, 5),
        ({"sigterm": fine()["sigterm"] | {"exit_code": -15}}, 6),
        ({"sigterm": fine()["sigterm"] | {"exit_code": None, "exit_seconds": 60.0}}, 6),
        ({"sigterm": fine()["sigterm"] | {"exit_seconds": 30.1}}, 6),
    ],
)
def test_what_is_wrong_is_noticed(bench: ModuleType, changed: dict[str, Any], number: int) -> None:
    assert [at for at, (_, _, good) in enumerate(bench.checks(fine() | changed)) if not good] == [number]


@pytest.mark.slow
def test_a_short_run(bench: ModuleType, tmp_path: Path) -> None:
    """Speed and memory are not judged: a few seconds are too short for that."""
    out = tmp_path / "load.json"
    command = [sys.executable, str(SCRIPT), "--clients", "12", "--seconds", "6", "--first", "30", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    found = json.loads(out.read_text(encoding="utf-8"))
    passed = [good for _, _, good in bench.checks(found)]
    assert passed[:3] == [True] * 3 and passed[5:] == [True] * 2, done.stdout + done.stderr
    assert done.returncode == (0 if all(passed) else 1)
    assert found["answers"]["good"]["200"] >= 5 and found["hung_up"] > 0
    for kind, counts in found["answers"].items():
        assert counts.keys() <= {str(bench.EXPECTED[kind]), "503"}
    assert 0.2 < found["growth"] < 2
