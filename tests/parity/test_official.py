"""Parity with the official implementation: the way an official checkpoint really comes in (convert, load, run)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from declip.nn import checkpoint
from declip.types import ModelSpec
from tests.parity.formula import GOLDEN, formula_state, golden_input

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not on this machine"),
]

CASES = [
    *(f"ViT-L/14|layer20|{decoder}" for decoder in ("linear", "attention", "conv-4", "conv-12", "conv-20")),
    *(f"ViT-L/14|layer{layer}|conv-4" for layer in (0, 11, 23)),
    *(f"RN50|layer{layer}|conv-4" for layer in (1, 2, 3, 4)),
    "RN50|layer3|conv-20",
    "ViT-L/14,RN50|layer20|conv-4",
    "ViT-L/14,RN50|layer20|conv-20",
]
TOWERS = {"ViT-L/14": "vit", "RN50": "rn50", "ViT-L/14,RN50": "fusion"}


@pytest.fixture(scope="module")
def keys() -> dict[str, dict[str, list[int]]]:
    return json.loads((GOLDEN / "keys.json").read_text())


@pytest.fixture(scope="module")
def towers(keys: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OpenAI-format files of the towers; those of the fusion are drawn by keys without the prefix `model.`."""
    folder = tmp_path_factory.mktemp("towers")
    paths = {}
    for name, group in (
        ("vit_large_patch14_clip_quickgelu_224", "vit_l14_visual"),
        ("resnet50_clip_gap", "rn50_visual"),
    ):
        for fused in (False, True):
            shapes = {key.removeprefix("model.") if fused else key: shape for key, shape in keys[group].items()}
            state = {key.removeprefix("model."): value for key, value in formula_state(shapes).items()}
            path = folder / f"{name}-{fused}.safetensors"
            save_file(state, path)
            paths[f"{name}-{fused}"] = path
    return paths


def convert_case(case: str, keys: dict, towers: dict[str, Path], folder: Path) -> tuple[Path, ModelSpec]:
    """Write the case as an official file, convert it, and point its backbones at the towers' files."""
    backbone, layer, decoder = case.split("|")
    official, converted, out = folder / "official.pth", folder / "converted.safetensors", folder / "model.safetensors"
    content = {
        "model": formula_state(keys["decoders"][case]),
        "optimizer": {},
        "total_steps": 1,
        "feature_layer": layer,
        "decoder_type": decoder,
    }
    torch.save(content, official)
    # One pair of cases is ambiguous in the file itself: RN50 layer4 has the channels of a fusion.
    tower = TOWERS[backbone] if case == "RN50|layer4|conv-4" else None
    spec = checkpoint.convert(official, converted, tower=tower)
    fused = len(spec.backbones) == 2
    local = tuple(dataclasses.replace(b, weights=str(towers[f"{b.name}-{fused}"])) for b in spec.backbones)
    spec = dataclasses.replace(spec, backbones=local)
    save_file(load_file(converted), out, metadata={checkpoint.SPEC_KEY: spec.to_json()})
    return out, spec


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_official_ones(case: str, keys: dict, towers: dict[str, Path], tmp_path: Path) -> None:
    path, _ = convert_case(case, keys, towers, tmp_path)
    net, spec = checkpoint.load(path)
    assert [b.layer for b in spec.backbones][:1] == [int(case.split("|")[1].removeprefix("layer"))]
    with torch.inference_mode():
        logits = net(golden_input()).numpy()
    assert logits.shape == (2, 256, 256)
    golden = np.load(GOLDEN / "declip_golden.npz")[f"{case}|grid"]
    stats = json.loads((GOLDEN / "declip_golden.json").read_text())[case]
    assert np.abs(logits[:, ::8, ::8] - golden).max() <= 1e-3 * stats["std"]
    assert abs(logits.mean() - stats["mean"]) <= 1e-3 * stats["std"]
    assert abs(logits.std() - stats["std"]) <= 1e-3 * stats["std"]
    assert abs(logits.min() - stats["min"]) <= 1e-3 * stats["std"]
    assert abs(logits.max() - stats["max"]) <= 1e-3 * stats["std"]
