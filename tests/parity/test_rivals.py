"""Parity of the rivals with their official implementations: official keys, official values."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from declip.models.official import CAT_NET, PATCH_FORENSICS, PSCC_NET, load_renamed
from declip.nn.rivals.cat_net import CatNet, coefficient_planes
from declip.nn.rivals.pscc_net import PsccNet
from declip.nn.rivals.xception import PatchForensics
from tests.parity.formula import GOLDEN, formula_state

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not on this machine")

QUICK = [f"patch-forensics|block{block}" for block in (1, 2, 3)]
SLOW = [
    *(f"pscc|feature{scale}" for scale in range(4)),
    *(f"pscc|mask{scale}" for scale in range(4)),
    "pscc|logits",
    "catnet|logits",
]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]


def official(network: str) -> dict[str, Tensor]:
    return formula_state(json.loads((GOLDEN / "rivals_keys.json").read_text())[network])


def drawn(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def patch_forensics(case: str) -> Tensor:
    net = PatchForensics(int(case[-1])).eval()
    load_renamed(net, official(case), PATCH_FORENSICS, case)
    images = torch.from_numpy(drawn(0).standard_normal((1, 3, 299, 299), dtype=np.float32))
    return net(images)


@cache
def pscc_net() -> dict[str, Tensor]:
    net = PsccNet().eval()
    for module, (name, (_, rules)) in zip(
        (net.encoder, net.localization, net.detection), PSCC_NET.items(), strict=True
    ):
        load_renamed(module, official(name), rules, name)
    images = torch.from_numpy(drawn(0).random((1, 3, 256, 256), dtype=np.float32))
    features = net.encoder(images)
    masks, image = net(images)
    return {
        **{f"pscc|feature{i}": f.flatten()[:: max(1, f.numel() // 4096)][None] for i, f in enumerate(features)},
        **{f"pscc|mask{i}": torch.sigmoid(m) for i, m in enumerate(masks)},
        "pscc|logits": image,
    }


def cat_net() -> Tensor:
    net = CatNet().eval()
    load_renamed(net, official("CAT_Net"), CAT_NET, "CAT_Net")
    rgb = torch.from_numpy(drawn(0).standard_normal((1, 3, 256, 256), dtype=np.float32))
    # Signed: the golden planes are those of the magnitudes.
    coefficients = torch.from_numpy(np.rint(6 * drawn(1).standard_normal((1, 256, 256))))
    table = torch.from_numpy(drawn(2).integers(1, 65, (1, 1, 8, 8)).astype(np.float32))
    assert coefficient_planes(coefficients).sum() == 256 * 256
    return net(rgb, coefficients, table[:, 0])


def test_every_golden_case_is_tested() -> None:
    assert sorted(QUICK + SLOW) == sorted(np.load(GOLDEN / "rivals_golden.npz").files)


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_official_ones(case: str) -> None:
    with torch.inference_mode():
        match case.partition("|")[0]:
            case "patch-forensics":
                ours = patch_forensics(case)
            case "pscc":
                ours = pscc_net()[case]
            case _:
                ours = cat_net()
    golden = np.load(GOLDEN / "rivals_golden.npz")[case]
    stats = json.loads((GOLDEN / "rivals_golden.json").read_text())[case]
    tolerance = 1e-3 * stats["std"]
    assert list(ours.shape) == stats["shape"]
    for field in ("mean", "std", "min", "max"):
        assert abs(float(getattr(ours, field)()) - stats[field]) <= tolerance
    kept = ours[..., ::4, ::4] if case == "pscc|mask0" else ours
    assert kept.shape == golden.shape
    assert np.abs(kept.numpy() - golden).max() <= tolerance
