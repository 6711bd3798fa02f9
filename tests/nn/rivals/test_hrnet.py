"""The trunk of both HRNets."""

from __future__ import annotations

import timm
import torch

from declip.nn.rivals.hrnet import HighResolutionTrunk, advance, bottlenecks, stage, transition


def trunk(stem_stride: int) -> HighResolutionTrunk:
    return HighResolutionTrunk(
        widths=(4, 8, 12, 16), stem_stride=stem_stride, layer1_blocks=1, modules=(1, 2, 1), blocks=1, align_corners=True
    )


def test_scales_halve_and_round_up() -> None:
    with torch.inference_mode():
        full = trunk(1)(torch.randn(2, 3, 37, 50))
        quarter = trunk(2)(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in full] == [(2, 4, 37, 50), (2, 8, 19, 25), (2, 12, 10, 13), (2, 16, 5, 7)]
    assert [tuple(m.shape) for m in quarter] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 12, 4, 6), (2, 16, 2, 3)]


def test_names_and_shapes_are_those_of_timm() -> None:
    """So ImageNet's weights of timm's hrnet_w48 load as they are into the RGB stream of CAT-Net."""
    with torch.device("meta"):
        ours = HighResolutionTrunk(
            widths=(48, 96, 192, 384), stem_stride=2, layer1_blocks=4, modules=(1, 4, 3), blocks=4, align_corners=False
        )
        theirs = timm.create_model("hrnet_w48", pretrained=False)
    head = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith(head)}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


def test_every_branch_receives_all_others() -> None:
    exchange = stage([4, 8, 12], 1, 1, False).eval()
    maps = [torch.randn(1, 4 * (i + 1), 16 >> i, 16 >> i, requires_grad=True) for i in range(3)]
    for out, given in zip(exchange(list(maps)), maps, strict=True):
        assert out.shape == given.shape and out.min() >= 0
        gradients = torch.autograd.grad(out.sum(), maps, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_transition_keeps_changes_and_adds() -> None:
    layers = transition([4, 6], [4, 8, 16])
    maps = [torch.randn(1, 4, 16, 16), torch.randn(1, 6, 8, 8)]
    first, second, third = advance(layers.eval(), maps)
    assert first is maps[0]
    assert second.shape == (1, 8, 8, 8) and third.shape == (1, 16, 4, 4)
    # The new branch starts from the last one.
    assert torch.equal(third, layers[2](maps[1]))


def test_bottlenecks_expand() -> None:
    for expansion in (2, 4):
        blocks = bottlenecks(8, 12, 2, expansion)
        assert blocks(torch.randn(2, 8, 4, 4)).shape == (2, 12 * expansion, 4, 4)
        assert blocks[0].conv2.weight.shape == (12, 12, 3, 3)
