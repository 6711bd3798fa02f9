"""The page of a recipe's keys is what the dataclasses say."""

from __future__ import annotations

import importlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the page needs declip[torch]")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("recipe_page")


def test_the_page_is_what_the_code_says(tool: Any) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == tool.page(), "run `python tools/recipe_page.py`"
    assert "| `lr` | number > 0 | `0.001` | the learning rate at the start. |" in page
    for path in (ROOT / "recipes").glob("*.toml"):
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
        assert [key for key in (*keys, *keys["model"]) if f"| `{key}` |" not in page] == []


def test_a_key_that_no_docstring_explains_is_an_error(tool: Any) -> None:
    @dataclass
    class Half:
        """A recipe. first: is explained, and the rest: is not."""

        first: int = 1
        rest: int = 2

    assert tool.meanings(Half) == {"first": "is explained, and the rest: is not."}
    with pytest.raises(KeyError, match="rest"):
        tool.table(Half)
