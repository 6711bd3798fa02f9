"""A fake model and photos for the tests of reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip import clues, testing
from declip.localize.localizer import Localizer
from declip.report import Report, examine
from tests.fakes import calibration

SPEC = replace(testing.SPEC, mode="tiled", overlap=8, image_score="top", calibration=calibration("tiled", 0.6))
DATE = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
Examine = Callable[..., Report]


def compute(images: Any) -> Any:
    """Bright is manipulated, more so on the right of each tile."""
    return testing.brightness(images, 16) + np.linspace(-0.5, 0.5, 16, dtype=np.float32)


def localizer_of(mode: Any = None, threshold: float | None = None, **fields: Any) -> Localizer:
    """Return a localizer whose spec has these fields."""
    engine = testing.FakeEngine(replace(SPEC, **fields), compute, sha256="0123456789abcdef" * 4)
    return Localizer(engine, mode=mode, threshold=threshold)


def pixels(height: int = 60, width: int = 90, seed: int = 0) -> Any:
    """Return dark noise with a bright patch left of the middle."""
    made = np.random.default_rng(seed).integers(0, 90, (height, width, 3)).astype(np.uint8)
    made[height // 4 : height // 2, width // 6 : width // 3] += 150
    return made


def jpeg(path: Path, made: Any = None, **options: Any) -> Path:
    Image.fromarray(pixels() if made is None else made).save(path, "JPEG", quality=92, **options)
    return path


@pytest.fixture(autouse=True)
def quick_opinions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another map in the place of double-jpeg, which takes seconds for a picture of any size."""
    monkeypatch.setitem(clues.BASELINES, "double-jpeg", clues.ErrorLevel)


@pytest.fixture
def fake() -> Localizer:
    return localizer_of()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Examine a JPEG once; tests replace parts of the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("declip.images.scope.why_not", lambda pixels: None)
        return examine(jpeg(tmp_path_factory.mktemp("plain") / "photo.jpg"), localizer_of(), date=DATE)
