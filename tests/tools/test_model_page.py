"""The pages of figures are what docs/models.json, the catalogue and the rivals' networks hold."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the pages need declip[torch]")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("model_page")


def test_readme_and_shipped_figures_are_the_measured_ones(pages: Any) -> None:
    record = json.loads(pages.RECORD.read_text(encoding="utf-8"))
    shipped = json.loads((ROOT / "src" / "declip" / "assets" / "mini.json").read_text(encoding="utf-8"))
    assert pages.README.read_text(encoding="utf-8") == pages.readme(record), "run `make readme`"
    assert shipped == pages.shipped(record), "run `make readme`"
    assert shipped["sha256"] == record["sha256"]
    assert [row["name"] for row in shipped["kinds"]] == list(record["kinds"])
    telea = record["kinds"]["telea"]
    assert shipped["kinds"][0]["iou"]["mean"] == pytest.approx(telea["iou"]["mean"], abs=5e-5)
    assert shipped["kinds"][0]["verdicts"] == telea["verdicts"]


@pytest.mark.slow
def test_the_page_has_all_that_is_measured(pages: Any) -> None:
    record = json.loads(pages.RECORD.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == pages.page(record), "run `make readme`"
    counts = {row["name"]: row["parameters"] for row in pages.rivals()}
    # Published: the three parts of PSCC-Net, and CAT-Net, in millions.
    assert counts["PSCC-Net"] == pytest.approx((2.03 + 0.72 + 0.92) * 1e6, rel=0.005)
    assert counts["CAT-Net v2"] == pytest.approx(114.26e6, rel=1e-4)
