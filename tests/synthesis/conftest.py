"""Pictures and tiny networks that the tests of synthesis share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from declip.synthesis.steps import Mask, Pixels


@pytest.fixture(scope="session")
def cat() -> Pixels:
    """160 × 190 px, the cat's face."""
    return np.ascontiguousarray(data.chelsea()[60:220, 100:290])


@pytest.fixture(scope="session")
def donor() -> Pixels:
    return np.ascontiguousarray(data.astronaut()[:150, 100:300])


@pytest.fixture
def block() -> Mask:
    """A mask for the cat."""
    mask = np.zeros((160, 190), dtype=bool)
    mask[60:100, 70:120] = True
    return mask


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.chelsea()[40:200, 80:300]).save(folder / "cat.png")
    Image.fromarray(data.astronaut()[:200, 100:280]).save(folder / "astronaut.jpg", quality=92)
    Image.fromarray(data.coffee()[100:180, 200:290]).save(folder / "small.png")  # 80 × 90
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def taef2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in files as published: float16, numbered layers."""
    torch = pytest.importorskip("torch")
    from declip.synthesis import taef2

    folder = tmp_path_factory.mktemp("taef2")
    torch.manual_seed(0)
    model = taef2.Taef2()
    for part, name in zip((model.encoder, model.decoder), taef2.FILES, strict=True):
        torch.save({key: value.half() for key, value in part.state_dict().items()}, folder / name)
    return folder
