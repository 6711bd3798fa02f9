"""CAT-Net: sizes, the coefficients' way in, and strict loading."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.rivals.cat_net import CatNet, DctStream, coefficient_planes


def inputs(n: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(n, 3, height, width, generator=generator) * 2 - 1
    coefficients = torch.randint(-30, 31, (n, height, width), generator=generator, dtype=torch.int16)
    table = torch.randint(1, 65, (n, 8, 8), generator=generator, dtype=torch.int32)
    return rgb, coefficients, table


def test_the_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        net = CatNet()
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 114.26


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 104)])
def test_logits_have_a_quarter_of_the_sides(height: int, width: int) -> None:
    net = CatNet(width=8).eval()
    with torch.inference_mode():
        assert net(*inputs(2, height, width)).shape == (2, 2, height // 4, width // 4)


def test_planes_tell_magnitudes_up_to_twenty() -> None:
    values = torch.tensor([[[0, 1, -1, 19], [-19, 20, 21, -500]]], dtype=torch.int16)
    planes = coefficient_planes(values)
    assert planes.shape == (1, 21, 2, 4) and planes.dtype == torch.bool
    assert planes.int().argmax(dim=1)[0].tolist() == [[0, 1, 1, 19], [19, 20, 20, 20]]
    assert (planes.sum(dim=1) == 1).all()


def test_the_table_multiplies_its_own_frequencies() -> None:
    """Behind the 1×1 convolution, channel c·64 + 8·row + column of a block is multiplied by table[row, column]."""
    stream = DctStream([4, 8, 16]).eval()
    seen: list[Tensor] = []
    stream.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    _, coefficients, table = inputs(2, 16, 24)
    planes = coefficient_planes(coefficients).float()
    with torch.inference_mode():
        stream(planes, table.float())
        narrow = stream.narrow(stream.dilated(planes))
    (x,) = seen
    assert x.shape == (2, 512, 2, 3)
    for n, channel, row, column in [(0, 0, 0, 0), (1, 3, 2, 7), (0, 2, 6, 1)]:
        plain = narrow[n, channel, row::8, column::8]
        assert torch.equal(x[n, 64 * channel + 8 * row + column], plain)
        assert torch.equal(x[n, 256 + 64 * channel + 8 * row + column], plain * table[n, row, column])


def test_training_starts_from_small_logits_and_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    net = CatNet(width=8).train()
    logits = net(*inputs(2, 64, 64))
    assert logits.abs().mean() < 2
    logits.square().mean().backward()
    # A bias before a BatchNorm changes nothing, so its gradient is rounding; it is there all the same.
    assert not [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert all(m.momentum == 0.01 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_both_streams_count() -> None:
    net = CatNet(width=8).eval()
    rgb, coefficients, table = inputs(1, 64, 64)
    with torch.inference_mode():
        first = net(rgb, coefficients, table)
        others = [
            net(rgb.flip(3), coefficients, table),
            net(rgb, coefficients + 1, table),
            net(rgb, coefficients, table + 1),
        ]
        mirrored = net(rgb, -coefficients, table)
    assert all((first - other).abs().max() > 1e-4 for other in others)
    assert torch.equal(first, mirrored)  # magnitudes only


def test_shapes_that_do_not_fit_are_refused() -> None:
    net = CatNet(width=8)
    rgb, coefficients, table = inputs(1, 64, 64)
    for wrong in (
        (rgb[..., 4:], coefficients[..., 4:], table),
        (rgb, coefficients[..., 8:], table),
        (rgb, coefficients, table[:, None]),
    ):
        with pytest.raises(SpecError, match="multiples of 8"):
            net(*wrong)
    with pytest.raises(SpecError, match="multiple of 4"):
        CatNet(width=6)
