"""Official checkpoints of the rivals become files of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from declip.errors import WeightsError
from declip.nn import checkpoint
from declip.nn.rivals import cat_net, patch_forensics, pscc_net
from declip.nn.rivals.patch_forensics import PatchForensics
from declip.nn.rivals.pscc_net import PsccNet

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def official_of(net: torch.nn.Module, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict under official keys: the rules, backwards."""
    state = {}
    for key, value in net.state_dict().items():
        for pattern, own in rules.items():
            plain = re.sub(r"\\([.d])", r"\1", pattern)
            if own and key.startswith(own):
                key = plain.rstrip("$") + key.removeprefix(own)
                break
        state[key] = value
    return state


def pscc_parts(net: PsccNet) -> dict[str, dict[str, Tensor]]:
    return {
        "HRNet": official_of(net.encoder, pscc_net.ENCODER),
        "NLCDetection": official_of(net.localization, pscc_net.LOCALIZATION),
        "DetectionHead": official_of(net.detection, pscc_net.DETECTION),
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("block", [2, 5])
def test_patch_forensics_is_converted_with_its_manipulated_class_second(
    block: int, prefix: str, tmp_path: Path
) -> None:
    torch.manual_seed(block)
    net = PatchForensics(block).eval()
    state = {prefix + key: value for key, value in official_of(net, patch_forensics.OFFICIAL).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "bestval_net_D.pth")
    spec = checkpoint.convert(tmp_path / "bestval_net_D.pth", tmp_path / "out.safetensors")
    assert (spec.architecture, spec.backbones[0].layer) == ("patch-forensics", block)
    opened, found = checkpoint.load(tmp_path / "out.safetensors")
    assert found == spec
    images = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        classes = net(images)
        torch.testing.assert_close(opened(image=images), classes[:, 0] - classes[:, 1])
    assert opened(image=images).shape[-1] == spec.output_size


def test_pscc_net_is_converted_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = PsccNet().eval()
    for name, state in pscc_parts(net).items():
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
        torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "checkpoint" / name / f"{name}.pth")
    spec = checkpoint.convert(tmp_path / "checkpoint", tmp_path / "out.safetensors")
    assert spec.architecture == "pscc-net"
    opened, _ = checkpoint.load(tmp_path / "out.safetensors")
    kept = {f"network.{key}": value for key, value in net.state_dict().items()}
    assert kept.keys() == opened.state_dict().keys()
    assert all(torch.equal(value, kept[key]) for key, value in opened.state_dict().items())
    with pytest.raises(WeightsError, match=r"SegNet, one of PSCC-Net's three files; give the folder"):
        checkpoint.convert(tmp_path / "checkpoint" / "NLCDetection" / "NLCDetection.pth", tmp_path / "x.safetensors")
    (tmp_path / "checkpoint" / "HRNet" / "HRNet.pth").unlink()
    with pytest.raises(WeightsError, match="holds 0 of FENet, 1 of SegNet, 1 of ClsNet"):
        checkpoint.convert(tmp_path / "checkpoint", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("block2.skip.weight"), "Missing key.*block2.skip.weight"),
        (lambda state: state.update({"fc.weight": torch.zeros(1)}), "unexpected tensor 'fc.weight'"),
        (lambda state: state.update({"block12.rep.0.weight": torch.zeros(1)}), "cut behind block 12"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    state = official_of(PatchForensics(2), patch_forensics.OFFICIAL)
    change(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message):
        checkpoint.convert(tmp_path / "odd.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_cat_net_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = cat_net.CatNet().eval()
    torch.save({"state_dict": official_of(net, OFFICIAL_CAT), "epoch": 1}, tmp_path / "CAT_full_v2.pth.tar")
    spec = checkpoint.convert(tmp_path / "CAT_full_v2.pth.tar", tmp_path / "out.safetensors")
    assert (spec.architecture, spec.width) == ("cat-net", None)
    opened, _ = checkpoint.load(tmp_path / "out.safetensors")
    kept = {f"network.{key}": value for key, value in net.state_dict().items()}
    assert all(torch.equal(value, kept[key]) for key, value in opened.state_dict().items())


# The RGB stream's keys are the official ones after "rgb.".
OFFICIAL_CAT = {"": "rgb."} | {k: v for k, v in cat_net.OFFICIAL.items() if v != "rgb."}
