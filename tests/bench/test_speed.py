"""The bench of speed: the official way computes what declip computes, and the pages say what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the bench needs declip[torch]")

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def test_the_pages_are_written_from_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import speed

    (tmp_path / "docs").mkdir()
    (tmp_path / "bench").symlink_to(BENCH)
    (tmp_path / "docs" / "scale.md").write_bytes((ROOT / "docs" / "scale.md").read_bytes())
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    speed.write_pages(json.loads(speed.RESULTS.read_text(encoding="utf-8")))
    for name in ("performance.md", "scale.md"):
        assert (tmp_path / "docs" / name).read_text() == (ROOT / "docs" / name).read_text(), "run bench/speed.py --only"


@pytest.mark.slow
def test_the_official_way_computes_the_same(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, str(BENCH / "speed.py"), "--only", "networks", "steady", "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    (row,) = found["networks"]["rows"]
    assert row["agreement"]["exact_logits"] < 1e-3
    assert row["gmac"]["exact"] < row["gmac"]["official"]
    assert found["steady"]["mb_last"] < 2 * found["steady"]["mb_first"]
