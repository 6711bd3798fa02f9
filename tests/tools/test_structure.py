"""CONTRIBUTING shows the limits that `make check` holds, and what exceeds one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_contributing_shows_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import structure

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name, limit in structure.LIMITS.items() if f"| {name} | {limit:,} |" not in text] == []
    assert structure.figures().keys() == structure.LIMITS.keys()
    monkeypatch.setitem(structure.LIMITS, "rooms", 3)
    monkeypatch.setattr("sys.argv", ["structure.py", "--check"])
    with pytest.raises(SystemExit, match="worse than before: rooms"):
        structure.main()
