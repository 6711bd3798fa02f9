"""Patch Forensics: patches, what each one sees, and where its weights come from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from declip.errors import SpecError, WeightsError
from declip.nn.rivals.xception import PatchForensics, load_imagenet

PATCHES = {1: 74, 2: 37, 3: 19, 4: 19, 5: 19}
FIELDS = {1: 19, 2: 43, 3: 91, 4: 187, 5: 283}


def receptive_field(net: PatchForensics, size: int = 299) -> tuple[int, int]:
    """(height, width) px of all that the middle patch depends on.

    Every weight is made positive and every maximum a mean, so that what can reach the patch does.
    """
    seen = copy.deepcopy(net).eval()
    for module in list(seen.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                module.register_module(name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    logits = seen.double()(image)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 1, middle, middle], image)
    rows, columns = gradient[0, 0].nonzero(as_tuple=True)
    return int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)


@pytest.mark.parametrize("block", PATCHES)
def test_patches_and_their_receptive_field(block: int) -> None:
    net = PatchForensics(block).eval()
    with torch.inference_mode():
        assert net(torch.randn(2, 3, 299, 299)).shape == (2, 2, PATCHES[block], PATCHES[block])
    assert receptive_field(net) == (FIELDS[block], FIELDS[block])


def test_a_patch_depends_on_its_own_surroundings_only() -> None:
    net = PatchForensics(2).eval()
    image = torch.randn(1, 3, 299, 299)
    changed = image.clone()
    changed[:, :, :, 200:] = 0
    with torch.inference_mode():
        apart = (net(image) - net(changed)).abs().sum(dim=(0, 1, 2))
    # Column j sees pixels 8j − 18 … 8j + 24.
    assert (apart[: (200 - 25) // 8 + 1] == 0).all() and (apart[23:] > 0).all()


def test_other_sizes_and_gradients() -> None:
    net = PatchForensics(2).train()
    logits = net(torch.randn(2, 3, 64, 107))
    assert logits.shape == (2, 2, 8, 13)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_blocks_outside_are_refused() -> None:
    for block in (0, 6):
        with pytest.raises(SpecError, match="1, 2, 3, 4 or 5"):
            PatchForensics(block)


def test_imagenet_weights_fill_all_but_the_head(tmp_path: Path) -> None:
    whole = timm.create_model("legacy_xception", pretrained=False).state_dict()
    save_file(whole, tmp_path / "xception.safetensors")
    net = PatchForensics(2)
    head = net.head.weight.clone()
    load_imagenet(net, tmp_path / "xception.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, head if key == "head.weight" else whole.get(key, value))
    assert torch.equal(net.head.weight, head)

    save_file({k: v for k, v in whole.items() if k != "block9.rep.1.conv1.weight"}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match="does not fit timm's legacy_xception"):
        load_imagenet(net, tmp_path / "part.safetensors")
