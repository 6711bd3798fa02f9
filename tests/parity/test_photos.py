"""Parity of the whole way: a photo's file → tensor → scores at the photo's own size, through Localizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from declip import image
from declip.engines import TorchEngine
from declip.localizer import Localizer
from declip.nn import checkpoint
from tests.parity.formula import GOLDEN, formula_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not on this machine"),
]

PHOTOS = ("astronaut.png", "chelsea.png", "rocket.jpg")


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    """ViT-L/14, layer20, conv-4 with the formula's weights, by the way of an official checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    keys = json.loads((GOLDEN / "keys.json").read_text())
    tower = {key.removeprefix("model."): value for key, value in formula_state(keys["vit_l14_visual"]).items()}
    save_file(tower, folder / "tower.safetensors")
    content = {
        "model": formula_state(keys["decoders"]["ViT-L/14|layer20|conv-4"]),
        "optimizer": {},
        "total_steps": 1,
        "feature_layer": "layer20",
        "decoder_type": "conv-4",
    }
    torch.save(content, folder / "official.pth")
    spec = checkpoint.convert(folder / "official.pth", folder / "converted.safetensors")
    (vit,) = spec.backbones
    spec = dataclasses.replace(spec, backbones=(dataclasses.replace(vit, weights=str(folder / "tower.safetensors")),))
    tensors = load_file(folder / "converted.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={checkpoint.SPEC_KEY: spec.to_json()})
    return Localizer(TorchEngine(folder / "model.safetensors", device="cpu"))


@pytest.mark.parametrize("name", PHOTOS)
def test_scores_equal_the_official_ones(name: str, localizer: Localizer) -> None:
    skimage = pytest.importorskip("skimage")
    path = Path(skimage.__file__).parent / "data" / name
    golden = np.load(GOLDEN / "photos_golden.npz")
    stats = json.loads((GOLDEN / "photos_golden.json").read_text())[name]
    photo = image.read(path)
    assert photo.size == tuple(stats["size"])
    tensor = image.to_input(photo.pixels, localizer.spec)
    assert np.abs(tensor[:, ::16, ::16] - golden[f"{name}|input"]).max() <= 1e-4
    scores = image.to_scores(localizer.engine.logits({"image": tensor[None]})[0])
    assert np.abs(scores[::8, ::8] - golden[f"{name}|p256"]).max() <= 1e-4
    result = localizer(path)
    assert result.scores.shape == photo.size
    assert np.abs(result.scores[::16, ::16] - golden[f"{name}|scores"]).max() <= 1e-4
    assert abs(float(result.scores.mean()) - stats["mean"]) <= 1e-4
    assert abs(result.score - stats["image_score"]) <= 1e-4
    assert abs(result.area - stats["flagged"]) <= 1e-3
