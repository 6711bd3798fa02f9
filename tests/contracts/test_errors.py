"""The tree of errors: drawn as it is, public, and fit to travel between processes."""

from __future__ import annotations

import ast
import inspect
import pickle
import tomllib
from pathlib import Path

import pytest

import declip
from declip import errors

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name in errors.__all__ if name[0].isupper()]
CLASSES = [getattr(errors, name) for name in NAMES]


def test_the_drawing_is_the_tree() -> None:
    lines = (errors.__doc__ or "").splitlines()
    drawn = [line.split()[1] for line in lines if line.startswith(("├── ", "└── "))]
    assert "DeclipError" in lines
    assert sorted(["DeclipError", *drawn]) == NAMES
    assert all(getattr(errors, name).__mro__[1] is errors.DeclipError for name in drawn)


def test_all_errors_are_public() -> None:
    defined = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert sorted(defined) == NAMES
    assert set(NAMES) <= set(declip.__all__)
    assert issubclass(errors.MissingExtraError, ImportError)


@pytest.mark.parametrize(
    "error",
    [
        errors.ImageError("photo.jpg", "corrupt", "it breaks off"),
        errors.MissingExtraError("torch", "torch"),
        *(kind("what came, what was expected") for kind in CLASSES if kind.__init__ is Exception.__init__),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: errors.DeclipError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def test_kinds_are_the_documented_ones() -> None:
    documented = (errors.ImageError.__doc__ or "").partition("for machines:")[2]
    kinds = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ImageError":
                assert isinstance(node.args[1], ast.Constant), f"{path}, line {node.lineno}: a kind is a plain word"
                kinds.add(node.args[1].value)
    assert kinds and all(f'"{kind}"' in documented for kind in kinds)


def test_extras_exist_and_install_what_is_missing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Where the name to import is not the name to install.
    packages = {
        "PIL": "pillow",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
        "patchmatch": "pypatchmatch",
        "pillow_heif": "pillow-heif",
        "c2pa": "c2pa-python",
        "python_multipart": "python-multipart",
        "prometheus_client": "prometheus-client",
        "rfc3161_client": "rfc3161-client",
        "ray": "ray[data]",
    }
    for module, extra in errors._EXTRA_OF.items():
        wanted = packages.get(module, module)
        lines = project["optional-dependencies"][extra]
        assert any(line.startswith(f"{wanted}>") for line in lines), f"{module}: {extra} does not install {wanted}"


def test_nothing_is_caught_blindly() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                where = f"{path}, line {node.lineno}"
                assert node.type is not None, f"{where}: a bare except"
                assert not all(isinstance(s, ast.Pass) for s in node.body), f"{where}: an error is dropped"
