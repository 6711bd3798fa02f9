"""What tools/model_page.py puts beside the weights is what docs/models.json holds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the page needs declip[torch]")

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "src" / "declip" / "assets" / "mini.json"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module("model_page")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_shipped_figures_are_the_measured_ones(page: Any) -> None:
    record = json.loads((ROOT / "docs" / "models.json").read_text(encoding="utf-8"))
    shipped = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert shipped == page.shipped(record), "make model-card writes both"
    assert shipped["sha256"] == record["sha256"]
    assert [row["name"] for row in shipped["kinds"]] == list(record["kinds"])
    telea = record["kinds"]["telea"]
    assert shipped["kinds"][0]["iou"]["mean"] == pytest.approx(telea["iou"]["mean"], abs=5e-5)
    assert shipped["kinds"][0]["verdicts"] == telea["verdicts"]
