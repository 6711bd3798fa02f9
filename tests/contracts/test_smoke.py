"""Every module can be imported, and so can every test: what a rename has missed shows here first."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import declip

PACKAGE = Path(declip.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


def test_every_module_can_be_imported() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__main__":
            importlib.import_module(".".join(("declip", *parts)).removesuffix(".__init__"))


def test_what_is_imported_of_declip_is_there() -> None:
    """Of tests and scripts, too, also where the import stands inside a function."""
    missing = []
    for folder in ("src", "tests", "tools", "bench", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("declip"):
                    missing += [f"{path}: {node.module}.{one.name}" for one in node.names if not _is_there(node, one)]
    assert not missing


def _is_there(node: ast.ImportFrom, one: ast.alias) -> bool:
    try:
        module = importlib.import_module(node.module or "")
        return hasattr(module, one.name) or bool(importlib.import_module(f"{node.module}.{one.name}"))
    except ModuleNotFoundError:
        return False
