"""DeclipNet: every pair works, the backbones stand still, only the decoder learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.backbones import Features
from declip.nn.model import DeclipNet, build
from declip.spec import BackboneSpec, ModelSpec
from tests.tiny import RESIDUALS, RESNET, VIT, tiny_net, tiny_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

BACKBONES = {
    "vit": (BackboneSpec(name=VIT, layer=1),),
    "stage3": (BackboneSpec(name=RESNET, layer=3),),
    "vit+stage3": (BackboneSpec(name=VIT, layer=2), BackboneSpec(name=RESNET, layer=3)),
    "residuals+stages": (RESIDUALS, BackboneSpec(name=RESNET, layer=1), BackboneSpec(name=RESNET, layer=2)),
}


def pictures(batch: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_a_built_net_is_in_eval_and_a_picture_s_map_is_its_own() -> None:
    net = tiny_net(tiny_spec(*BACKBONES["vit+stage3"]))
    assert not any(m.training for m in net.modules())
    with torch.inference_mode():
        together = net(pictures(3))
        alone = torch.cat([net(picture[None]) for picture in pictures(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_two_halves_make_the_whole() -> None:
    net = tiny_net(tiny_spec(*BACKBONES["vit+stage3"]))
    with torch.inference_mode():
        features = net.features(pictures())
        assert [m.shape for m in features.maps] == [(2, 64, 4, 4), (2, 192, 4, 4)]
        assert torch.equal(net.decode(features), net(pictures()))


@pytest.mark.parametrize("backbone", ["vit", "stage3", "vit+stage3", "residuals+stages"])
def test_training_changes_the_decoder_and_nothing_else(backbone: str) -> None:
    """Frozen: no gradient, eval after .train(), and not a bit moves, BatchNorm's running statistics included."""
    net = tiny_net(tiny_spec(*BACKBONES[backbone]))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    # As an optimizer is often made: over all parameters; weight decay would shrink even those without a gradient.
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    net.train()
    for seed in range(3):
        logits = net(pictures(seed=seed) * 3 + 1)  # not the statistics BatchNorm has
        optimizer.zero_grad()
        (logits - 1).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert not any(m.training for m in net.backbones.modules())
    assert all(m.training for m in net.decoder.modules())
    assert not any(p.requires_grad or p.grad is not None for p in net.backbones.parameters())
    after = net.state_dict()
    frozen = [key for key in before if key.startswith("backbones.")]
    assert any("running_mean" in key for key in frozen) == ("stage" in backbone)
    assert [key for key in frozen if not torch.equal(before[key], after[key])] == []
    learnt = [key for key in before if key.startswith("decoder.")]
    assert len(learnt) + len(frozen) == len(before)
    still = [key for key in learnt if torch.equal(before[key], after[key])]
    assert still == []  # weights, biases, BatchNorm's own numbers: all of the decoder moved


def test_training_mode_holds_through_every_way_to_ask() -> None:
    net = build(tiny_spec(*BACKBONES["stage3"]))
    for ask in (net.train, lambda: net.train(True), net.backbones.train, lambda: net.eval().train()):
        ask()
        assert not any(m.training for m in net.backbones[0].modules())
    assert list(net.learnt_parameters()) == [p for p in net.parameters() if p.requires_grad]


def test_modules_of_your_own_are_frozen_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.Dropout(0.5))

        def forward(self, images: Tensor) -> Features:
            return Features((self.layers(images),))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(4, 1, 1)

        def forward(self, features: Features) -> Any:
            return self.head(features.fused())[:, 0]

    net = DeclipNet([Own()], Head()).train()
    before = {key: value.clone() for key, value in net.backbones.state_dict().items()}
    first, second = net(pictures()), net(pictures())
    assert first.shape == (2, 8, 8)
    assert torch.equal(first, second)  # dropout stands still
    assert all(torch.equal(value, before[key]) for key, value in net.backbones.state_dict().items())
    assert [p.shape for p in net.parameters() if p.requires_grad] == [(1, 4, 1, 1), (1,)]


def test_building_needs_no_forward_pass_and_no_weights_where_only_shapes_matter() -> None:
    spec = tiny_spec(BackboneSpec(name=RESNET, layer=1, weights="/nowhere/resnet.safetensors"))
    assert build(spec, load_weights=False).decoder is not None


def test_another_architecture_is_refused() -> None:
    spec = ModelSpec(architecture="cat-net", mode="tiled", input_size=64, output_size=16)
    with pytest.raises(SpecError, match="architecture 'cat-net' has no backbone and decoder; build_network builds it"):
        build(spec)


def test_an_input_the_backbone_cannot_take_is_refused() -> None:
    with pytest.raises(SpecError, match="cannot take pictures of 2×2 px"):
        build(tiny_spec(RESIDUALS, input_size=2))
