"""Official files by the golden formula, and the way they really come in: convert, point at the towers, load."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from declip.models import official
from declip.spec import SPEC_KEY
from tests.parity.formula import GOLDEN, formula_state

# "ViT-L/14|layer20|conv-4" → a checkpoint of ours.
CaseFile = Callable[[str], Path]

TOWER_KEYS = {"vit_large_patch14_clip_quickgelu_224": "vit_l14_visual", "resnet50_clip_gap": "rn50_visual"}


@pytest.fixture(scope="session")
def towers() -> Iterator[Callable[[str, bool], Path]]:
    """OpenAI-format files of the towers, made when first asked for; those of a fusion are drawn by other keys."""
    keys = json.loads((GOLDEN / "keys.json").read_text())
    with tempfile.TemporaryDirectory() as folder:  # 2.6 GB if all are asked for: not kept

        def tower(name: str, fused: bool) -> Path:
            path = Path(folder) / f"{name}-{fused}.safetensors"
            if not path.exists():
                shapes = {k.removeprefix("model.") if fused else k: s for k, s in keys[TOWER_KEYS[name]].items()}
                state = formula_state(shapes)
                save_file({key.removeprefix("model."): value for key, value in state.items()}, path)
            return path

        yield tower


@pytest.fixture
def case_file(towers: Callable[[str, bool], Path]) -> Iterator[CaseFile]:
    """Write a case as an official file, convert it, and point its backbones at the towers' files."""
    keys = json.loads((GOLDEN / "keys.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def make(case: str) -> Path:
            _, layer, decoder = case.split("|")
            source, converted, out = (
                folder / "official.pth",
                folder / "converted.safetensors",
                folder / "model.safetensors",
            )
            content = {
                "model": formula_state(keys["decoders"][case]),
                "optimizer": {},
                "total_steps": 1,
                "feature_layer": layer,
                "decoder_type": decoder,
            }
            torch.save(content, source)
            # One case is ambiguous in the file itself: RN50 layer4 has the channels of a fusion.
            spec = official.convert(source, converted, tower="rn50" if case == "RN50|layer4|conv-4" else None)
            fused = len(spec.backbones) == 2
            local = tuple(dataclasses.replace(b, weights=str(towers(b.name, fused))) for b in spec.backbones)
            spec = dataclasses.replace(spec, backbones=local)
            save_file(load_file(converted), out, metadata={SPEC_KEY: spec.to_json()})
            return out

        yield make
