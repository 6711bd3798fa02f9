"""Winograd's convolution against the plain one in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from declip.nn import lean, winograd
from declip.nn.model import build
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(("tile", "error"), [(2, 2e-6), (4, 1e-5)])
@pytest.mark.parametrize(
    ("channels", "kernels", "size", "bias"),
    [(1, 1, (4, 4), True), (3, 5, (8, 12), False), (32, 16, (16, 16), True), (256, 256, (16, 16), True)],
)
def test_it_is_a_convolution(
    channels: int, kernels: int, size: tuple[int, int], bias: bool, tile: int, error: float
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, kernels, 5, padding=2, bias=bias)
    images = torch.randn(3, channels, *size)
    with torch.inference_mode():
        exact = F.conv2d(
            images.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=2
        )
        for given in (images, images.contiguous(memory_format=torch.channels_last)):
            found = winograd.WinogradConv(conv, tile)(given)
            assert found.shape == exact.shape
            assert float((found - exact).abs().max() / exact.std()) < 1e-4
            assert float((found - exact).std() / exact.std()) < error


@pytest.mark.parametrize("piece", [1, 1 << 16, 1 << 18, 1 << 30])
def test_pieces_of_any_size_give_the_same(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 5, padding=2)
    images = torch.randn(3, 8, 24, 16)
    monkeypatch.setattr(winograd, "PIECE", 0)
    with torch.inference_mode():
        layer = winograd.WinogradConv(conv, 4)
        expected = layer(images)  # of few bytes for kernels: in many pieces
        monkeypatch.setattr(winograd, "PIECE", piece)
        assert float((layer(images) - expected).abs().max()) < 1e-5


def test_what_pays_is_replaced() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(
        backbones=(BackboneSpec(name="vit_tiny_patch16_224", layer=0),),
        decoder=DecoderSpec(kind="conv-12", widths=(512, 256, 64, 8)),
    )
    net = build(spec, load_weights=False)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = net(image)
        # On 14 × 14 one that reads 192 channels, in tiles of 4, and two of 512, in tiles of 2; on 28 × 28 three of 256
        # and on 56 × 56 three of 64, in tiles of 4; those of 8 channels stay.
        assert winograd.quicken(net, lean.watch(net, image)) == 8
        tiles = [module.tile for module in net.modules() if isinstance(module, winograd.WinogradConv)]
        assert tiles == [2, 2, 4, 4, 4, 4, 4, 4]
        found = net(image)
    assert float((found - expected).abs().max() / expected.std()) < 1e-4
    assert winograd.quicken(net, lean.watch(net, image)) == 0


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Conv2d(256, 256, 5, padding=2, stride=2),
        nn.Conv2d(256, 256, 5, padding=2, groups=2),
        nn.Conv2d(256, 256, 5, padding=4, dilation=2),
        nn.Conv2d(256, 256, 5, padding=2, padding_mode="reflect"),
        nn.Conv2d(256, 63, 5, padding=2),
    ],
)
def test_what_it_does_not_compute_stays(conv: nn.Conv2d) -> None:
    net = nn.Sequential(conv)
    assert winograd.quicken(net, lean.watch(net, torch.randn(1, 256, 8, 8))) == 0
