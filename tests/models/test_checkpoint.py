"""Weight files: strict, self-describing, and official .pth files turned into them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from declip.errors import WeightsError
from declip.files import sha256_of
from declip.models import checkpoint
from declip.nn.statistics import ResidualStatistics
from declip.spec import SPEC_KEY, BackboneSpec, Calibration, DecoderSpec, ModelSpec
from tests.tiny import RESIDUALS, RESNET, VIT, randomise, save_tiny, tiled_spec, tiny_net, tiny_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def pictures(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


# ── our own files ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(),
        tiny_spec(decoder=DecoderSpec(kind="attention", causal=True)),
        tiny_spec(BackboneSpec(name=RESNET, layer=2), BackboneSpec(name=VIT, layer=1), image_score="mean-logit"),
        tiled_spec(
            calibration=Calibration(temperature=1.5, untouched=((0.1, 0.2), (), ()), photos=(2, 0, 0), mode="tiled")
        ),
    ],
    ids=["vit", "attention", "fusion", "tiled"],
)
def test_what_is_saved_is_loaded(spec: ModelSpec, tmp_path: Path) -> None:
    net = tiny_net(spec, seed=3)
    path = checkpoint.save(net, spec, tmp_path / "new" / "model.safetensors")
    state = torch.get_rng_state()
    loaded, found = checkpoint.load(path)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn that the file then replaces
    assert found == spec
    assert not any(m.training for m in loaded.modules())
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(loaded(pictures()), net(pictures()))
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_published_backbones_stay_out_of_the_file(tmp_path: Path) -> None:
    """Also between others: the one behind the high-pass statistics is the same published one again."""
    whole = timm.create_model(RESNET)
    randomise(whole)
    source = tmp_path / "resnet.safetensors"
    save_file(whole.state_dict(), source)

    def stage(layer: int) -> BackboneSpec:
        return BackboneSpec(name=RESNET, layer=layer, weights=str(source), sha256=sha256_of(source))

    spec = tiny_spec(stage(2), RESIDUALS, stage(3), BackboneSpec(name=VIT, layer=0))
    net = tiny_net(spec)
    assert isinstance(net.backbones[1], ResidualStatistics)
    path = checkpoint.save(net, spec, tmp_path / "model.safetensors")
    assert {key.split(".")[0] + "." + key.split(".")[1] for key in load_file(path) if "backbones" in key} == {
        "backbones.3"
    }
    loaded, _ = checkpoint.load(path)
    with torch.inference_mode():
        assert torch.equal(loaded(pictures()), net(pictures()))
    # Another file under that name is noticed.
    save_file({**whole.state_dict(), "fc.bias": torch.ones(1000)}, source)
    with pytest.raises(WeightsError, match=r"resnet\.safetensors has sha256 [0-9a-f]{64}; the model was made with"):
        checkpoint.load(path)
    source.unlink()
    with pytest.raises(WeightsError, match=r"no weights of test_resnet at .*resnet\.safetensors"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.layers.0.bias"), r"missing \['decoder\.layers\.0\.bias'\], unexpected nothing"),
        (lambda t: t.update(extra=torch.zeros(1)), r"missing nothing, unexpected \['extra'\]"),
        (
            lambda t: t.update({"decoder.layers.0.bias": torch.zeros(9)}),
            r"of other shape \['decoder\.layers\.0\.bias: \(9,\), expected \(8,\)'\]",
        ),
        (lambda t: t.pop("backbones.0.model.cls_token"), r"missing \['backbones\.0\.model\.cls_token'\]"),
    ],
    ids=["missing", "unexpected", "shape", "backbone"],
)
def test_a_load_is_strict_and_names_the_tensor(change: Any, message: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors", tiny_spec())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={SPEC_KEY: tiny_spec().to_json()})
    with pytest.raises(WeightsError, match=message):
        checkpoint.load(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors", tiny_spec())
    content = path.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    torn = tmp_path / "torn.safetensors"
    for length in (0, 4, 8 + header // 2, 8 + header, len(content) - 1):
        torn.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"torn\.safetensors is no readable \.safetensors file"):
            checkpoint.load(torn)
    with pytest.raises(WeightsError, match=r"no weight file at .*absent\.safetensors"):
        checkpoint.load(tmp_path / "absent.safetensors")


def test_a_file_without_or_with_a_wrong_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"bare\.safetensors has no declip model description.*declip convert"):
        checkpoint.load(path)
    fields = {**json.loads(tiny_spec().to_json()), "format_version": 99}
    save_file({"weight": torch.zeros(1)}, path, metadata={SPEC_KEY: json.dumps(fields)})
    with pytest.raises(WeightsError, match=r"bare\.safetensors: format_version is 99; this release reads 1"):
        checkpoint.load(path)


def test_a_pickle_under_our_suffix_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"model": {}}, path)
    with pytest.raises(WeightsError, match=r"is no readable \.safetensors file"):
        checkpoint.load(path)
