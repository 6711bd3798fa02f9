"""The cost model is arithmetic on what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    path = ROOT / "bench" / "scale_page.py"
    spec = importlib.util.spec_from_file_location("scale_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_page"] = module
    spec.loader.exec_module(module)
    return module


def measured(seconds: float) -> dict[str, Any]:
    row = {"model": "mini", "precision": "exact", "photo": "0.5 MP", "parts": {"whole": {"median": seconds}}}
    return {
        "environment": {"threads": 2},
        "pipeline": {"rows": [row, row | {"photo": "12 MP", "parts": {"whole": {"median": 9.0}}}]},
        "storage": {
            "photos": 8,
            "bytes_per_megapixel": {"file": 400_000, "scores": 300_000, "mask": 1000},
            "row_bytes": 600,
            "row_bytes_without_mask": 200,
        },
    }


def test_costs_are_multiplied(page: ModuleType) -> None:
    text = page.section(measured(0.18), 0.04)
    # 0.18 s on two cores are 0.36 core seconds: 100 core hours a million, $4; 10⁹ take 64 cores 65 days.
    assert "| mini | exact | 0.18 | 100 | 65 | 4 | 4,000 |" in text
    assert "9" not in text.split("|---|---|---|---|---|---|---|")[1].split("What is kept")[0]
    assert "| the photos themselves | 200.00 kB | 200.00 GB | 200.00 TB |" in text
    assert "| a row of Parquet with its mask | 0.60 kB | 0.60 GB | 0.60 TB |" in text
    # 200 kB every 0.36 core seconds.
    assert "a core reads 4.4 Mbit/s of photos, a thousand cores 4.4 Gbit/s" in text


def test_sizes_are_those_of_results(page: ModuleType) -> None:
    pytest.importorskip("pyarrow")
    photos = sorted((ROOT / "examples" / "photos").iterdir())[:2]
    found = page.sizes(photos)
    assert found["photos"] == 2
    assert found["row_bytes"] > found["row_bytes_without_mask"] > 50
    assert found["bytes_per_megapixel"]["scores"] > found["bytes_per_megapixel"]["mask"]


def test_the_page_holds_what_was_measured(page: ModuleType) -> None:
    found = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.section(found, page.PRICE) == text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
