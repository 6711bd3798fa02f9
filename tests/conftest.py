"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

STORED = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For tests of tiny networks: handing pieces of so little work to threads takes longer than doing it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One small tiled model as (.safetensors, .onnx): copies of the stored ones, see `tests.tiny.tiled_spec`."""
    folder = tmp_path_factory.mktemp("tiny")
    first, second = (Path(shutil.copy(STORED / name, folder)) for name in ("tiny.safetensors", "tiny.onnx"))
    return first, second


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test downloads or computes goes into the user's cache."""
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def patterns_are_photographs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests draw patterns and flat squares, which `declip.images.scope` rightly calls no photographs.

    Where a test is about that, its module asks for it: `REAL_SCOPE = True`. Subprocesses have the real one.
    """
    if not getattr(request.module, "REAL_SCOPE", False):
        monkeypatch.setattr("declip.images.scope.why_not", lambda pixels: None)
