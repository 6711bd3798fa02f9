"""Official checkpoints of DeCLIP become files of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from declip.errors import SpecError, WeightsError
from declip.models import checkpoint, official
from declip.nn.decoders import AttentionDecoder
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from tests.parity.formula import formula_state, openai_rn50_shapes

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CONVOLUTIONS = {
    # Of conv-4 in the official nn.Sequential; the last one comes behind a resize, if there is one.
    "layer1": [0, 3, 6, 10, 15],
    "layer2": [0, 3, 7, 11, 16],
    "layer3": [0, 4, 8, 12, 17],
    "layer4": [0, 4, 8, 12, 17],
    "vit": [0, 4, 8, 12, 16],
    "fusion": [0, 4, 8, 12, 17],
}


def hollow(shape: tuple[int, ...]) -> Tensor:
    """Zeros that take no room, in a file neither."""
    return torch.zeros(()).expand(shape)


def hollow_conv4(channels: int, case: str) -> dict[str, Tensor]:
    return {key: hollow(shape) for key, shape in conv4_shapes(channels, case).items()}


def conv4(channels: int, case: str) -> dict[str, Tensor]:
    """The tensors of an official conv-4 decoder."""
    return formula_state(conv4_shapes(channels, case))


def conv4_shapes(channels: int, case: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, width in zip(CONVOLUTIONS[case], (512, 256, 128, 64, 1), strict=True):
        shapes |= {f"fc.{index}.weight": (width, channels, 5, 5), f"fc.{index}.bias": (width,)}
        if width > 1:
            shapes |= {f"fc.{index + 1}.{f}": (width,) for f in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"fc.{index + 1}.num_batches_tracked"] = ()
        channels = width
    return shapes


def linear(channels: int) -> dict[str, Tensor]:
    return formula_state({"fc.0.weight": (1, channels), "fc.0.bias": (1,)})


def attention(width: int) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"fc.0.weight": (1, width), "fc.0.bias": (1,)}
    for block in ("att1", "att2"):
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.ln_1.weight": (width,),
            f"{block}.ln_1.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
            f"{block}.ln_2.weight": (width,),
            f"{block}.ln_2.bias": (width,),
        }
    return formula_state(shapes)


def save_official(path: Path, tensors: dict[str, Tensor], layer: object = "layer3", kind: object = "conv-4") -> Path:
    """A file as the official code saves it."""
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}
    content = {"model": tensors, "optimizer": optimizer, "total_steps": 7, "feature_layer": layer, "decoder_type": kind}
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("layer", "channels"),
    [(1, 256), *(pytest.param(k, 128 * 2**k, marks=pytest.mark.slow) for k in (2, 3, 4))],
)
def test_an_rn50_decoder_alone_is_converted(layer: int, channels: int, tmp_path: Path) -> None:
    tensors = conv4(channels, f"layer{layer}")
    source = save_official(tmp_path / "rn50.pth", tensors, f"layer{layer}")
    out = tmp_path / "rn50.safetensors"
    spec = official.convert(source, out, tower="rn50" if layer == 4 else None)
    (backbone,) = spec.backbones
    assert (backbone.name, backbone.weights, backbone.layer) == ("resnet50_clip_gap", "openai", layer)
    assert spec == ModelSpec(backbones=(backbone,), decoder=DecoderSpec(kind="conv-4"))
    written = load_file(out)
    # The file's own numbers are kept, but for what the paper's files count behind a doubling that is not there.
    assert all(torch.equal(written[key.replace("fc.", "decoder.layers.")], value) for key, value in tensors.items())
    assert len(written) == len(tensors)


def test_rn50_layer4_or_a_fusion_must_be_said(tmp_path: Path) -> None:
    source = save_official(tmp_path / "rn50.pth", hollow_conv4(2048, "layer4"), "layer4")
    message = r"2048 channels at layer4 leaves the backbone open; say which .*(vit, )?rn50.* or .*fusion"
    with pytest.raises(WeightsError, match=message):
        official.convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("layer", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_an_rn50_in_the_file_is_kept_in_the_result(layer: int, tmp_path: Path) -> None:
    """With `model.*` the result needs no other file, and the tower is no question; the text tower stays behind."""
    visual = formula_state(openai_rn50_shapes())
    text = {"model.logit_scale": torch.tensor(4.6), "model.transformer.resblocks.0.ln_1.weight": torch.ones(8)}
    tensors = (
        {f"model.{key}": value for key, value in visual.items()} | text | conv4(256 * 2 ** (layer - 1), f"layer{layer}")
    )
    out = tmp_path / "out.safetensors"
    spec = official.convert(save_official(tmp_path / "rn50.pth", tensors, f"layer{layer}"), out)
    assert spec.backbones == (BackboneSpec(name="resnet50_clip_gap", layer=layer),)
    net, found = checkpoint.load(out)
    assert found == spec
    frozen = net.backbones[0].state_dict()
    assert sum(value.numel() for value in frozen.values()) == published_numbers(visual, layer)
    pairs = {
        "stem.conv2.bn.bias": "bn2.bias",
        "stages.0.2.conv2_kxk.conv.weight": "layer1.2.conv2.weight",
        f"stages.{layer - 1}.0.shortcut.conv.conv.weight": f"layer{layer}.0.downsample.0.weight",
    }
    assert [k for k, v in pairs.items() if not torch.equal(frozen[f"model.{k}"], visual[f"visual.{v}"])] == []
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 224, 224)).shape == (1, 256, 256)


def published_numbers(visual: dict[str, Tensor], layer: int) -> int:
    """How many numbers of the tower lie in front of the cut."""
    behind = ("visual.attnpool", *(f"visual.layer{k}." for k in range(layer + 1, 5)))
    return sum(value.numel() for key, value in visual.items() if not key.startswith(behind))


def test_a_tensor_missing_from_the_backbone_or_the_decoder_is_named(tmp_path: Path) -> None:
    visual = {f"model.{key}": hollow(shape) for key, shape in openai_rn50_shapes().items()}
    decoder = hollow_conv4(256, "layer1")
    del visual["model.visual.layer2.0.bn1.weight"]
    with pytest.raises(WeightsError, match=r"stages\.1\.0\.conv1_1x1\.bn\.weight"):
        official.convert(save_official(tmp_path / "a.pth", visual | decoder, "layer1"), tmp_path / "out.safetensors")
    del decoder["fc.3.bias"]
    with pytest.raises(WeightsError, match=r"missing \['layers\.3\.bias'\]"):
        official.convert(save_official(tmp_path / "b.pth", decoder, "layer1"), tmp_path / "out.safetensors")
    del decoder["fc.3.weight"]
    with pytest.raises(WeightsError, match=r"the decoder has 8 layers with weights; expected 9"):
        official.convert(save_official(tmp_path / "c.pth", decoder, "layer1"), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_fusion_file_holds_no_backbone(tmp_path: Path) -> None:
    tensors = {"model.visual.class_embedding": torch.zeros(1024)} | hollow_conv4(2048, "fusion")
    with pytest.raises(WeightsError, match="holds one backbone's tensors; a fusion file was expected to hold none"):
        official.convert(
            save_official(tmp_path / "f.pth", tensors, "layer20"), tmp_path / "out.safetensors", tower="fusion"
        )


@pytest.mark.parametrize(
    ("kind", "tensors", "layer", "channels", "expected"),
    [
        ("linear", linear(1024), 20, 1024, "vit"),
        ("attention", attention(64), 11, 64, "vit"),
        ("conv-4", None, 20, 1024, "vit"),
        ("conv-4", None, 4, 1024, "vit"),
        ("conv-4", None, 20, 2048, "fusion"),
        ("conv-4", None, 3, 2048, "fusion"),
    ],
)
def test_the_tower_is_told_by_the_decoder(
    kind: str,
    tensors: dict[str, Tensor] | None,
    layer: int,
    channels: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Without building CLIP's ViT-L (the slow tests do): what the file is taken for."""

    class EnoughError(Exception):
        pass

    def stop(spec: ModelSpec, **_: object) -> None:
        raise EnoughError([(b.name, b.layer) for b in spec.backbones], spec.decoder)

    monkeypatch.setattr(official, "build", stop)
    content = tensors or hollow_conv4(channels, expected)
    with pytest.raises(EnoughError) as caught:
        official.convert(
            save_official(tmp_path / "a.pth", content, f"layer{layer}", kind), tmp_path / "out.safetensors"
        )
    backbones, decoder = caught.value.args
    vit, rn50 = ("vit_large_patch14_clip_quickgelu_224", layer), ("resnet50_clip_gap", 3)
    assert backbones == {"vit": [vit], "fusion": [vit, rn50]}[expected]
    assert decoder == DecoderSpec(kind=kind, causal=kind == "attention")  # type: ignore[arg-type]


def test_the_tensors_of_attention_are_renamed(tmp_path: Path) -> None:
    """The other kinds of decoder are numbered; parity with the official values tests them all."""
    tensors = attention(64)
    decoder = AttentionDecoder(64, 256, causal=True)
    official.load_renamed(decoder, tensors, official._decoder_rules(tensors, decoder, tmp_path), "a.pth")
    pairs = {
        "att1.attn.in_proj_weight": "blocks.0.qkv.weight",
        "att1.attn.out_proj.bias": "blocks.0.proj.bias",
        "att2.ln_2.weight": "blocks.1.norm2.weight",
        "att2.mlp.c_fc.bias": "blocks.1.fc1.bias",
        "att2.mlp.c_proj.weight": "blocks.1.fc2.weight",
        "fc.0.weight": "head.weight",
    }
    assert all(torch.equal(tensors[theirs], decoder.state_dict()[ours]) for theirs, ours in pairs.items())


# ── files that are none ─────────────────────────────────────────────────────────────────────────────────────────────


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_a_pickle_that_runs_code_is_refused_and_does_not(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    source = save_official(tmp_path / "evil.pth", {**conv4(256, "layer1"), "fc.0.weight": Malicious(proof)}, "layer1")  # type: ignore[dict-item]
    with pytest.raises(WeightsError, match=r"evil\.pth cannot be opened as a checkpoint of plain tensors"):
        official.convert(source, tmp_path / "out.safetensors")
    assert not proof.exists()
    torch.load(source, weights_only=False)  # the file is as dangerous as it claims
    assert proof.is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "expected a dict with tensors under 'model'"),
        ({"model": {"fc.0.weight": [1.0]}}, "expected a dict with tensors under 'model'"),
        ({"decoder_type": "conv-8"}, "says decoder_type='conv-8'; expected linear, attention, conv-4, -12 or -20"),
        ({"decoder_type": None}, "says decoder_type=None"),
        ({"feature_layer": "last"}, "says feature_layer='last'; expected 'layerK'"),
        ({"feature_layer": None}, "says feature_layer=None"),
        ({"model": {"head.weight": torch.zeros(1)}}, r"unexpected tensors \['head\.weight'\]"),
        ({"model": {"fc.last.weight": torch.zeros(1)}}, r"unexpected tensors \['fc\.last\.weight'\]"),
        ({"model": {}}, r"has no decoder: expected tensors named fc\.\*"),
        ({"model": {"fc.0.weight": torch.zeros(512, 768, 5, 5)}}, "a decoder of 768 channels at layer3"),
    ],
)
def test_what_is_no_official_checkpoint_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {"model": linear(1024), "feature_layer": "layer3", "decoder_type": "linear"} | changes
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message):
        official.convert(tmp_path / "odd.pth", tmp_path / "out.safetensors")


def test_damaged_official_files_are_refused(tmp_path: Path) -> None:
    whole = save_official(tmp_path / "whole.pth", linear(1024), "layer20", "linear").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"not a checkpoint", b"\x80\x02}q\x00", whole[:100], whole[: len(whole) // 2], whole[:-1]]
    damaged += [rng.bytes(500) for _ in range(20)]
    torn = tmp_path / "torn.pth"
    for content in damaged:
        torn.write_bytes(content)
        with pytest.raises(WeightsError, match=r"torn\.pth"):
            official.convert(torn, tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match=r"no file at .*absent\.pth"):
        official.convert(tmp_path / "absent.pth", tmp_path / "out.safetensors")


def test_a_layer_the_tower_does_not_have_is_refused(tmp_path: Path) -> None:
    source = save_official(tmp_path / "a.pth", hollow_conv4(1024, "layer3"), "layer7")
    with pytest.raises(SpecError, match=r"resnet50_clip_gap has layers 0-4; asked for \[7\]"):
        official.convert(source, tmp_path / "out.safetensors", tower="rn50")
