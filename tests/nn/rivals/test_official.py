"""Renaming and strict loading of official state dicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from declip.errors import WeightsError
from declip.nn.rivals.official import load_strictly, rename

RULES = {r"old(\d)\.": r"new\1.", r"(?=kept\.)": "", r"gain$": "scale"}


def test_keys_follow_the_rules() -> None:
    state = {key: torch.zeros(()) for key in ("old1.weight", "kept.bias", "gain")}
    assert list(rename(state, RULES)) == ["new1.weight", "kept.bias", "scale"]


def test_a_key_without_a_rule_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"'gain\.weight'"):
        rename({"gain.weight": torch.zeros(())}, RULES)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"would both be 'new1\.weight'"):
        rename({"old1.weight": torch.zeros(()), "new1.weight": torch.zeros(())}, {**RULES, r"(?=new)": ""})


@pytest.mark.parametrize(
    "state", [{}, {"weight": torch.zeros(1, 3)}, {"weight": torch.ones(1, 2), "more": torch.ones(1)}]
)
def test_loads_are_strict(state: dict[str, torch.Tensor]) -> None:
    net = nn.Linear(2, 1, bias=False)
    with pytest.raises(WeightsError, match="a file does not fit"):
        load_strictly(net, state, "a file")
    load_strictly(net, {"weight": torch.tensor([[3.0, 4.0]])}, "a file")
    assert net.weight.tolist() == [[3, 4]]
