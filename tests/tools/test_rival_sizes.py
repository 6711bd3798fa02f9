"""The table of the rivals in docs/models.md is what tools/rival_sizes.py measures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("rival_sizes")


def test_parameters_on_the_page_are_those_of_the_networks(tool: ModuleType) -> None:
    (text,) = tool.PLACE.findall((ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    shown = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| ([\d.]+) \|", text, re.MULTILINE))
    counts = {name: tool.parameters(net) for name, (net, _) in tool.networks().items()}
    assert shown == {name: tool.millions(count) for name, count in counts.items()}
    # Published: the three parts of PSCC-Net, and CAT-Net, in millions.
    assert counts["PSCC-Net"] == pytest.approx((2.03 + 0.72 + 0.92) * 1e6, rel=0.005)
    assert counts["CAT-Net v2"] == pytest.approx(114.26e6, rel=1e-4)


@pytest.mark.slow
def test_the_page_has_all_that_is_measured(tool: ModuleType) -> None:
    assert tool.PLACE.findall((ROOT / "docs" / "models.md").read_text(encoding="utf-8")) == [
        tool.section(tool.measure())
    ], "run `python tools/rival_sizes.py --write`"
