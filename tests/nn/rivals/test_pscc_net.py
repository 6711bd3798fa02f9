"""PSCC-Net: its parts' sizes, what they compute, and strict loading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.rivals.pscc_net import Correlation, PsccNet


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        net = PsccNet()
    counts = [round(parameters(part) / 1e6, 2) for part in (net.encoder, net.localization, net.detection)]
    assert counts == [2.03, 0.72, 0.92]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 75)])
def test_masks_have_the_size_of_the_network_whatever_the_picture_has(height: int, width: int) -> None:
    net = PsccNet(size=64).eval()
    with torch.inference_mode():
        masks, image = net(torch.rand(2, 3, height, width))
    assert [tuple(m.shape) for m in masks] == [(2, 1, 64, 64), (2, 1, 32, 32), (2, 1, 16, 16), (2, 1, 8, 8)]
    assert image.shape == (2, 2)


def test_training_starts_from_small_logits_and_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    net = PsccNet(size=32).train()
    masks, image = net(torch.rand(2, 3, 32, 32))
    assert all(m.abs().mean() < 2 for m in (*masks, image))
    sum((m.square().mean() for m in masks), start=image.square().mean()).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert all(m.momentum == 0.01 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def explicit(module: Correlation, x: Tensor) -> Tensor:
    """The correlation of one picture (C, h, w), position by position, as the paper's facts have it."""
    channels, h, w = x.shape
    r = module.reduction
    wide = x.reshape(channels * r * r, -1)

    def project(conv: nn.Conv2d, y: Tensor) -> Tensor:
        bias = conv.bias
        assert bias is not None
        return conv.weight[:, :, 0, 0] @ y + bias[:, None]

    g, theta, phi = (project(conv, wide) for conv in (module.value, module.query, module.key))
    spatial = torch.stack([g @ torch.softmax(phi.T @ theta[:, p], dim=0) for p in range(wide.shape[1])], dim=1)
    channel = g.T @ torch.softmax(theta @ phi.T, dim=1)
    z = (
        x.reshape(channels, -1)
        + module.spatial_gain * project(module.spatial, spatial.reshape(channels, -1))
        + module.channel_gain * project(module.channel, channel.reshape(channels, -1))
    )
    return module.mask(z.reshape(1, channels, h, w))


@pytest.mark.parametrize("reduction", [1, 2])
def test_the_correlation_is_the_one_described(reduction: int) -> None:
    torch.manual_seed(0)
    module = Correlation(3, reduction).double()
    nn.init.constant_(module.spatial_gain, 0.7)
    nn.init.constant_(module.channel_gain, 1.3)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    with torch.inference_mode():
        expected = torch.cat([explicit(module, one) for one in x])
        assert torch.allclose(module(x), expected, atol=1e-12)


def test_a_coarse_mask_weighs_the_next_finer_scale() -> None:
    net = PsccNet(size=32).eval()
    images = torch.rand(1, 3, 32, 32)
    coarsest = net.localization[3]
    assert isinstance(coarsest, Correlation)
    with torch.inference_mode():
        before, judged = net(images)
        nn.init.zeros_(coarsest.mask[2].weight)
        nn.init.constant_(coarsest.mask[2].bias, -100.0)  # the coarsest mask is nowhere …
        after, judged_again = net(images)
        nothing = net.localization[2](torch.zeros(1, 72, 8, 8))
    assert torch.allclose(after[2], nothing, atol=1e-6)  # … so the next scale sees nothing,
    assert not torch.allclose(before[2], after[2], atol=1e-6)
    assert torch.equal(judged, judged_again)  # and the judgement of the picture does not depend on masks


def test_sizes_that_do_not_halve_thrice_are_refused() -> None:
    for size in (0, 36):
        with pytest.raises(SpecError, match="multiple of 8"):
            PsccNet(size=size)
