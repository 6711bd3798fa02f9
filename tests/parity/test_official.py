"""Parity with the official implementation: the way an official checkpoint really comes in (convert, load, run)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from declip.models import checkpoint
from tests.parity.formula import GOLDEN, golden_input

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


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_official_ones(case: str, case_file: Callable[[str], Path]) -> None:
    net, spec = checkpoint.load(case_file(case))
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
