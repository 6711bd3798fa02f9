"""Export: the file computes what torch computes, or it is not kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from declip.engines.onnx_engine import OnnxEngine
from declip.errors import ExportError, WeightsError
from declip.models import checkpoint, export
from declip.spec import BackboneSpec, DecoderSpec
from tests.tiny import RESNET, STORED, VIT, save_tiny, tiled_spec, tiny_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_the_file_is_one_graph_with_a_free_batch_and_its_description(tiny_model: tuple[Path, Path]) -> None:
    _, exported = tiny_model
    model = onnx.load(str(exported))
    onnx.checker.check_model(model)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert list(shapes) == ["image", "logits"]
    assert shapes["image"][1:] == [3, 64, 64]
    assert isinstance(shapes["image"][0], str)
    assert shapes["logits"][1:] == [32, 32]
    assert OnnxEngine(exported).spec == tiled_spec()
    # All in one file: nothing lies beside it.
    assert sorted(p.name for p in exported.parent.iterdir()) == ["tiny.onnx", "tiny.safetensors"]


def test_exported_logits_equal_torch_s(tiny_model: tuple[Path, Path]) -> None:
    net, _ = checkpoint.load(tiny_model[0])
    engine = OnnxEngine(tiny_model[1])
    for count in (1, 4):
        images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count)) * 2
        with torch.inference_mode():
            expected = net(images).numpy()
        assert float(np.abs(engine.logits({"image": images.numpy()}) - expected).max()) <= 1e-4


@pytest.mark.slow
def test_the_stored_model_is_what_export_makes(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny.safetensors", tiled_spec())
    assert source.read_bytes() == (STORED / source.name).read_bytes()
    made, stored = OnnxEngine(export.to_onnx(source, tmp_path / "tiny.onnx")), OnnxEngine(STORED / "tiny.onnx")
    assert made.spec == stored.spec == tiled_spec()
    images = {"image": np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)}
    assert float(np.abs(made.logits(images) - stored.logits(images)).max()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbones", "decoder"),
    [
        ((BackboneSpec(name=VIT, layer=2),), DecoderSpec(kind="attention")),
        ((BackboneSpec(name=VIT, layer=2),), DecoderSpec(kind="linear")),
        (
            (BackboneSpec(name=VIT, layer=1), BackboneSpec(name=RESNET, layer=3)),
            DecoderSpec(kind="conv-4", widths=(8, 8, 8, 8)),
        ),
        ((BackboneSpec(name="resnet50_clip_gap", layer=1),), DecoderSpec(kind="conv-12", widths=(8, 8, 8, 8))),
    ],
    ids=["attention", "linear", "fusion", "rn50"],
)
def test_every_kind_of_model_is_exported(
    backbones: tuple[BackboneSpec, ...], decoder: DecoderSpec, tmp_path: Path
) -> None:
    spec = tiny_spec(*backbones, decoder=decoder, output_size=256)
    source = save_tiny(tmp_path / "model.safetensors", spec)
    engine = OnnxEngine(export.to_onnx(source, tmp_path / "deep" / "model.onnx"))
    net, _ = checkpoint.load(source)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        expected = net(images).numpy()
    assert float(np.abs(engine.logits({"image": images.numpy()}) - expected).max()) <= 1e-4
    assert engine.spec == spec


def perturbed(path: Path, change: float) -> onnx.ModelProto:
    """The exported model, the bias of its last convolution moved by `change`."""
    model = onnx.load(str(path))
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        if tensor.name.endswith("decoder.head.bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(change), tensor.name))
            return model
    raise LookupError([t.name for t in model.graph.initializer])


@pytest.mark.parametrize(("change", "kept"), [(0.0, True), (8e-5, True), (1e-2, False), (float("nan"), False)])
def test_a_file_that_computes_something_else_is_not_kept(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float, kept: bool
) -> None:
    def exporter(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(model_proto=perturbed(tiny_model[1], change))

    monkeypatch.setattr(torch.onnx, "export", exporter)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"what was here before")
    if kept:
        assert export.to_onnx(tiny_model[0], out) == out
        assert OnnxEngine(out).spec == tiled_spec()
    else:
        with pytest.raises(ExportError, match=r"logits differ from torch's by (nan|1\.00e-02) \(at most 1e-04\)"):
            export.to_onnx(tiny_model[0], out)
        assert out.read_bytes() == b"what was here before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_an_export_that_breaks_leaves_nothing(
    tiny_model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(ExportError, match="gave no program"):
        export.to_onnx(tiny_model[0], tmp_path / "model.onnx")
    with pytest.raises(WeightsError, match="no weight file"):
        export.to_onnx(tmp_path / "absent.safetensors", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
