"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One small tiled model as (.safetensors, .onnx), exported once per session."""
    from declip import export
    from tests.tiny import save_tiny, tiled_spec

    folder = tmp_path_factory.mktemp("tiny")
    source = save_tiny(folder / "tiny.safetensors", tiled_spec())
    return source, export.to_onnx(source, folder / "tiny.onnx")
