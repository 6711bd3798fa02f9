"""The whole official way on three real photos: file → tensor → scores at the photo's own size, through Localizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from declip.engines.torch_engine import TorchEngine
from declip.images.read import read_photo
from declip.images.tensors import to_input, to_scores
from declip.localize.localizer import Localizer
from tests.parity.formula import GOLDEN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not on this machine"),
]

TOLERANCE = 1e-4


def shipped(name: str) -> Path:
    """A photo as scikit-image has it on disk."""
    package = find_spec("skimage")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data" / name


def test_scores_of_photos_equal_the_official_ones(case_file: Callable[[str], Path]) -> None:
    engine = TorchEngine(case_file("ViT-L/14|layer20|conv-4"))
    localizer = Localizer(engine)
    golden, numbers = np.load(GOLDEN / "photos_golden.npz"), json.loads((GOLDEN / "photos_golden.json").read_text())
    assert sorted(numbers) == ["astronaut.png", "chelsea.png", "rocket.jpg"]
    for name, expected in numbers.items():
        photo = read_photo(shipped(name))
        tensor = to_input(photo.pixels, engine.spec)
        assert np.abs(tensor[:, ::16, ::16] - golden[f"{name}|input"]).max() <= TOLERANCE
        scores = to_scores(engine.logits({"image": tensor[None]})[0])
        assert np.abs(scores[::8, ::8] - golden[f"{name}|p256"]).max() <= TOLERANCE

        result = localizer(shipped(name))
        assert list(result.scores.shape) == expected["size"]
        assert np.abs(result.scores[::16, ::16] - golden[f"{name}|scores"]).max() <= TOLERANCE
        assert abs(float(result.scores.mean()) - expected["mean"]) <= TOLERANCE
        assert abs(result.score - expected["image_score"]) <= TOLERANCE
        assert abs(result.area - expected["flagged"]) <= TOLERANCE
