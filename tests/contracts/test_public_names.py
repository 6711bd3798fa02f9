"""Every module says what it is, what of it is public, and what that does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import declip

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "declip"
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def all_of(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            assert isinstance(names, list)
            return names
    return None


def bound(tree: ast.Module) -> set[str]:
    """Names that exist in a module once it is imported, and for type checkers."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return names


def rank(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions; in a row by their letters."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", TREES)
def test_module_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", TREES)
def test_all_is_there_and_valid(name: str) -> None:
    tree = TREES[name]
    public = all_of(tree)
    if public is None:
        defined = [node.name for node in tree.body if isinstance(node, Definition)]
        assert not defined, f"{name} defines {defined} and has no __all__"
        return
    assert public == sorted(set(public), key=rank)
    assert set(public) <= bound(tree)


@pytest.mark.parametrize("name", TREES)
def test_what_is_public_has_a_docstring(name: str) -> None:
    missing = []
    for node in TREES[name].body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            missing.append(node.name)
        if isinstance(node, ast.ClassDef) and node.name in (all_of(TREES[name]) or []):
            # A Protocol's own docstring describes its members; of other classes every public method is described.
            protocol = any(ast.unparse(base) == "Protocol" for base in node.bases)
            missing += [
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, Definition)
                and not (method.name.startswith("_") or protocol)
                and ast.get_docstring(method) is None
            ]
    assert not missing


def test_public_names_can_be_had() -> None:
    for name in declip.__all__:
        assert getattr(declip, name) is not None
        assert name in dir(declip)
    with pytest.raises(AttributeError, match="no attribute 'localise'"):
        _ = declip.localise
