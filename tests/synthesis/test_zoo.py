"""The zoo of small autoencoders: what is drawn, that it learns, and that files bring it back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from declip.errors import WeightsError
from declip.synthesis import neural, zoo

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CROPS = np.stack(
    [
        np.stack(np.meshgrid(np.arange(32) * 4 + shift, np.arange(32) * 7, [9 * shift]), -1)[:, :, 0] % 256
        for shift in range(40)
    ]
).astype(np.uint8)


def small(number: int) -> zoo.ZooAutoencoder:
    torch.manual_seed(0)
    return zoo.ZooAutoencoder(zoo.draw_architecture(number)).requires_grad_(False).eval()


def test_architecture_depends_on_its_number_alone() -> None:
    plans = [zoo.draw_architecture(number) for number in range(35)]
    assert plans == [zoo.draw_architecture(number) for number in range(35)]
    assert len({str({**plan_fields(plan), "number": 0}) for plan in plans}) == 35
    assert {plan.stride for plan in plans} == {4, 8, 16}
    assert {plan.enlargement for plan in plans[28:]} == set(zoo.ENLARGEMENTS)


def plan_fields(plan: zoo.Architecture) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__slots__}


@pytest.mark.parametrize("number", range(7))
def test_every_way_of_enlarging_keeps_the_size(number: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    made = neural.round_trip(small(number), pixels)
    assert made.shape == pixels.shape
    assert made.dtype == np.uint8


def test_training_is_repeatable_and_learns() -> None:
    plan = zoo.draw_architecture(2)
    assert plan.stride == 4
    nets, fits = zip(*(zoo.fit(plan, CROPS, steps=12, size=16, batch=2) for _ in range(2)), strict=True)
    assert fits[0] == fits[1]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert fits[0].psnr > zoo.fit(plan, CROPS, steps=1, size=16, batch=2)[1].psnr + 0.3


def test_a_saved_network_comes_back(tmp_path: Path) -> None:
    net = small(5)
    zoo.save(net, zoo.Fit(steps=3, psnr=20.5), tmp_path / "005.json")
    (found,) = zoo.open_zoo(tmp_path)
    pixels = CROPS[3]
    assert found.plan == net.plan
    assert np.array_equal(neural.round_trip(found, pixels), neural.round_trip(net, pixels))
    assert json.loads((tmp_path / "005.json").read_text())["fit"] == {"steps": 3, "psnr": 20.5}


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    zoo.save(small(5), zoo.Fit(steps=3, psnr=20.5), tmp_path / "005.json")
    zoo.save(small(6), zoo.Fit(steps=3, psnr=20.5), tmp_path / "006.json")
    (tmp_path / "006.safetensors").replace(tmp_path / "005.safetensors")
    with pytest.raises(WeightsError, match="005"):
        zoo.load(tmp_path / "005.json")
    with pytest.raises(WeightsError, match="holds no autoencoders"):
        zoo.open_zoo(tmp_path / "empty")


def test_local_regeneration_changes_the_mask_alone() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    made, same = neural.regenerate_local(small(3), pixels, mask, rng)
    assert same is mask
    assert np.array_equal(made[~mask], pixels[~mask])
    assert (made[mask] != pixels[mask]).any(axis=1).mean() > 0.9
