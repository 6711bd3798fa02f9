"""Devices that are there, and those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from declip.errors import SpecError
from declip.nn import devices
from declip.synthesis import inpainters, neural


def test_the_cpu_is_always_there() -> None:
    assert devices.usable("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["toaster", "CUDA", "cuda:99", "meta", "mps:7", ""])
def test_others_are_refused_by_name(name: str) -> None:
    with pytest.raises(SpecError, match=f"torch cannot use device '{name}': ."):
        devices.usable(name)


def test_the_networks_of_synthesis_are_not_read_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot use device 'cuda:99'"):
        neural.load(tmp_path, "cuda:99")
    with pytest.raises(SpecError, match="cannot use device 'cuda:99'"):
        inpainters.load("torchscript", str(tmp_path / "a.pt"), "cuda:99")
