"""The scripts of examples/ run as they stand, and stay short. (demo.py is `make demo`, and has a test of its own.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name != "demo.py")
PRINTED = {
    "own_parts.py": "2 epochs tracked, 8 evaluated\n(512, 512) scores\n",
}


@pytest.mark.slow  # own_parts.py trains and exports
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_has_at_most_50_lines(name: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / name
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 50
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stdout == PRINTED.get(name, done.stdout)
