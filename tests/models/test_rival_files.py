"""Official checkpoints of the rivals become files of ours."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from declip.cli.main import main
from declip.errors import WeightsError
from declip.models import checkpoint, official
from declip.nn.rivals import cat_net
from declip.nn.rivals.pscc_net import PsccNet
from declip.nn.rivals.xception import PatchForensics

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `declip ARGUMENTS` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["declip", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


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
        "HRNet": official_of(net.encoder, official.PSCC_NET["FENet"][1]),
        "NLCDetection": official_of(net.localization, official.PSCC_NET["SegNet"][1]),
        "DetectionHead": official_of(net.detection, official.PSCC_NET["ClsNet"][1]),
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("block", [2, 5])
def test_patch_forensics_is_converted_with_its_manipulated_class_second(
    block: int, prefix: str, tmp_path: Path
) -> None:
    torch.manual_seed(block)
    net = PatchForensics(block).eval()
    state = {prefix + key: value for key, value in official_of(net, official.PATCH_FORENSICS).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "bestval_net_D.pth")
    spec = official.convert(tmp_path / "bestval_net_D.pth", tmp_path / "out.safetensors")
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
    spec = official.convert(tmp_path / "checkpoint", tmp_path / "out.safetensors")
    assert spec.architecture == "pscc-net"
    opened, _ = checkpoint.load(tmp_path / "out.safetensors")
    kept = {f"network.{key}": value for key, value in net.state_dict().items()}
    assert kept.keys() == opened.state_dict().keys()
    assert all(torch.equal(value, kept[key]) for key, value in opened.state_dict().items())
    with pytest.raises(WeightsError, match=r"SegNet, one of PSCC-Net's three files; give the folder"):
        official.convert(tmp_path / "checkpoint" / "NLCDetection" / "NLCDetection.pth", tmp_path / "x.safetensors")
    (tmp_path / "checkpoint" / "HRNet" / "HRNet.pth").unlink()
    with pytest.raises(WeightsError, match="holds 0 of FENet, 1 of SegNet, 1 of ClsNet"):
        official.convert(tmp_path / "checkpoint", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("block2.skip.weight"), r"missing \['block2.skip.weight'\]"),
        (lambda state: state.update({"fc.weight": torch.zeros(1)}), "unexpected tensor 'fc.weight'"),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "unexpected tensor 'head.weight'"),
        (lambda state: state.update({"block12.rep.0.weight": torch.zeros(1)}), "cut behind block 12"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    state = official_of(PatchForensics(2), official.PATCH_FORENSICS)
    change(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message):
        official.convert(tmp_path / "odd.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# The RGB stream's keys are the official ones after "rgb.".
OFFICIAL_CAT = {"": "rgb."} | {k: v for k, v in official.CAT_NET.items() if v != "rgb."}


def pixels(side: int) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def converted(monkeypatch: pytest.MonkeyPatch, source: Path, *options: object) -> torch.nn.Module:
    """What `declip convert` makes of a file, opened."""
    out = source.parent / f"converted-{len(options)}.safetensors"
    assert call(monkeypatch, "convert", source, "--out", out, "--force", *options) == 0
    return checkpoint.load(out)[0]


def save_patch_forensics(net: PatchForensics, path: Path) -> Path:
    torch.save({"state_dict": official_of(net, official.PATCH_FORENSICS)}, path)
    return path


def test_the_command_takes_either_class_of_patch_forensics_as_the_manipulated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = PatchForensics(1).eval()
    source = save_patch_forensics(net, tmp_path / "bestval_net_D.pth")
    images = pixels(75)
    with torch.inference_mode():
        first, second = net(images).unbind(dim=1)
        assert float((first - second).abs().mean()) > 0.01
        torch.testing.assert_close(converted(monkeypatch, source)(images), first - second)
        torch.testing.assert_close(converted(monkeypatch, source, "--fake-class", 0)(images), first - second)
        torch.testing.assert_close(converted(monkeypatch, source, "--fake-class", 1)(images), second - first)
    assert capfd.readouterr().out.splitlines()[0].endswith(": legacy_xception layer 1, patch-forensics")
    assert call(monkeypatch, "convert", source, "--out", tmp_path / "x.safetensors", "--fake-class", 2) == 2
    assert "fake-class" in capfd.readouterr().err


@pytest.mark.slow
def test_the_command_converts_cat_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = cat_net.CatNet().eval()
    torch.save({"state_dict": official_of(net, OFFICIAL_CAT), "epoch": 1}, tmp_path / "CAT_full_v2.pth.tar")
    opened = converted(monkeypatch, tmp_path / "CAT_full_v2.pth.tar")
    generator = torch.Generator().manual_seed(1)
    inputs = (
        2 * pixels(64) - 1,
        torch.randint(-30, 31, (1, 64, 64), generator=generator).float(),
        torch.randint(1, 65, (1, 8, 8), generator=generator).float(),
    )
    with torch.inference_mode():
        untouched, manipulated = net(*inputs).unbind(dim=1)
        assert float((manipulated - untouched).abs().mean()) > 1e-3
        torch.testing.assert_close(opened(*inputs), manipulated - untouched)


def test_an_option_that_the_file_has_no_use_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, state in pscc_parts(PsccNet()).items():
        torch.save(state, folder / f"{name}.pth")
    patches = save_patch_forensics(PatchForensics(1), tmp_path / "patches.pth")
    tensors = {"fc.0.weight": torch.zeros(1, 1024), "fc.0.bias": torch.zeros(1)}
    declip_s = tmp_path / "declip.pth"
    torch.save({"model": tensors, "decoder_type": "linear", "feature_layer": "layer20"}, declip_s)
    out = tmp_path / "out.safetensors"
    for source, option, message in (
        (folder, ("--fake-class", 0), "is of PSCC-Net, whose classes are known; fake_class is for Patch Forensics"),
        (folder, ("--tower", "vit"), "is of PSCC-Net, which has no tower: leave it out"),
        (patches, ("--tower", "rn50"), "is of Patch Forensics, which has no tower: leave it out"),
        (declip_s, ("--fake-class", 1), "is of DeCLIP, whose classes are known; fake_class is for Patch Forensics"),
    ):
        assert call(monkeypatch, "convert", source, "--out", out, *option) == 2
        assert message in capfd.readouterr().err
        assert not out.exists()
