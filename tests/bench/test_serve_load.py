"""The load bench of the service: a short run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "serve_load.py"


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    """Speed and memory are not judged: a few seconds are too short for that."""
    out = tmp_path / "load.json"
    command = [sys.executable, str(SCRIPT), "--clients", "12", "--seconds", "6", "--first", "30", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["checks"]["answers"] and found["checks"]["sigterm"], done.stdout + done.stderr
    assert done.returncode == (0 if all(found["checks"].values()) else 1)
    assert found["answers"]["good"]["200"] >= 3
    expected = {"good": 200, "too many pixels": 413, "too many bytes": 413, "truncated": 422, "bogus": 415}
    for kind, status in expected.items():
        assert found["answers"][kind].keys() <= {str(status), "503"}
