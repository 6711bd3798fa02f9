"""The zoo of small autoencoders: what is drawn, that it learns, and that files bring it back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from declip.errors import WeightsError
from declip.synthesis import neural, zoo

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SHIFT, ROWS, COLUMNS = np.ogrid[:40, :32, :32]
CROPS = np.stack(np.broadcast_arrays(COLUMNS * 4 + SHIFT, ROWS * 7, SHIFT * 9), -1).astype(np.uint8)


def small(number: int) -> zoo.ZooAutoencoder:
    torch.manual_seed(0)
    return zoo.ZooAutoencoder(zoo.draw_architecture(number)).requires_grad_(False).eval()


def test_architecture_depends_on_its_number_alone() -> None:
    plans = [zoo.draw_architecture(number) for number in range(35)]
    assert plans == [zoo.draw_architecture(number) for number in range(35)]
    assert len({dataclasses.replace(plan, number=0) for plan in plans}) == 35
    assert {plan.stride for plan in plans} == {4, 8, 16}
    assert {plan.enlargement for plan in plans[28:]} == set(zoo.ENLARGEMENTS)


@pytest.mark.parametrize("number", range(7))
def test_every_way_of_enlarging_keeps_the_size(number: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    made = neural.round_trip(small(number), pixels)
    assert made.shape == pixels.shape and made.dtype == np.uint8


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
