"""Grad-CAM without a gradient: the map against its definition, and against captum's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from declip.errors import WeightsError
from declip.nn.rivals.net import build_rival
from declip.nn.rivals.xception import GradCam, load_imagenet
from declip.spec import BackboneSpec, ModelSpec

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def pair(images: Tensor) -> tuple[GradCam, nn.Module]:
    """The network here, and timm's own classifier (global average pooling, one linear layer) with its weights."""
    torch.manual_seed(0)
    ours = GradCam()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        ours(images)  # its statistics: with those of an untrained network all positions would look alike
    ours.eval()
    nn.init.normal_(ours.head.weight, std=0.1)
    nn.init.constant_(ours.head.bias, 0.7)
    theirs: Any = timm.create_model("legacy_xception", pretrained=False, num_classes=1)
    state = ours.body.state_dict() | {"fc.weight": ours.head.weight[:, :, 0, 0], "fc.bias": ours.head.bias}
    theirs.load_state_dict(state)
    return ours, theirs.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 171, 235, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_the_map_is_the_logit_of_pooling_and_a_linear_layer(
    pair: tuple[GradCam, nn.Module], images: Tensor
) -> None:
    ours, theirs = pair
    with torch.inference_mode():
        found = ours(images)
        assert found.shape == (2, 1, 6, 8)
        assert ours(torch.zeros(1, 3, 299, 299)).shape == (1, 1, 10, 10)
        torch.testing.assert_close(found.mean(dim=(1, 2, 3)), theirs(images)[:, 0])


def cam_of(found: Tensor, bias: Tensor) -> Tensor:
    """Grad-CAM from the map (N, 1, h, w), as the module's docstring has it."""
    positions = found.shape[-2] * found.shape[-1]
    result = F.relu(found - bias) / positions
    assert 0.1 < float((result > 0).float().mean()) < 0.9  # else the ReLU is not put to the test
    return result


def test_the_map_is_grad_cam_as_captum_computes_it(pair: tuple[GradCam, nn.Module], images: Tensor) -> None:
    attr = pytest.importorskip("captum.attr")
    ours, theirs = pair
    network: Any = copy.deepcopy(theirs)
    network.act4.inplace = False  # captum looks at what goes in and what comes out
    found = attr.LayerGradCam(network, network.act4).attribute(images, target=0, relu_attributions=True)
    with torch.inference_mode():
        torch.testing.assert_close(cam_of(ours(images), ours.head.bias), found.detach())


def test_the_body_starts_from_imagenet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("legacy_xception", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    backbone = BackboneSpec(name="legacy_xception", layer=4, weights=str(tmp_path / "whole.safetensors"))
    spec = ModelSpec(architecture="grad-cam", backbones=(backbone,), input_size=75, output_size=3)
    started = build_rival(spec).network
    state = whole.state_dict()
    body = started.body.state_dict()
    assert body.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in body.items())
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not fit timm's legacy_xception"):
        load_imagenet(GradCam(), tmp_path / "other.safetensors")
