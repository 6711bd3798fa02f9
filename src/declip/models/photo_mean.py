"""An exported network that can be told what mean to measure features against.

A decoder of the kind `dilated` measures each feature map against the mean of its own window
(`nn.dilated.Projection`). `open_up` adds to its graph the output `tile_mean` (N, C), those means one after the other,
and the input `photo_mean` (N, C), which takes their place. An input that is not given is nan, and each window then has
its own, to the bit as before. No weight changes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from declip.errors import WeightsError

__all__ = ["PHOTO_MEAN", "TILE_MEAN", "check", "open_up", "required"]

PHOTO_MEAN = "photo_mean"
TILE_MEAN = "tile_mean"


def open_up(model: Any, name: str) -> None:
    """Add `tile_mean` and `photo_mean` to a ModelProto, in place; one that has them stays as it is.

    name: of its file, for errors. Raises WeightsError for a network that multiplies no means by weights.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    if any(value.name == PHOTO_MEAN for value in graph.input):
        return
    widths = {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if len(tensor.dims) == 2}
    means = {node.output[0]: node for node in graph.node if node.op_type == "ReduceMean"}
    products = [
        node for node in graph.node if node.op_type == "MatMul" and node.input[0] in means and node.input[1] in widths
    ]
    if not products:
        raise WeightsError(f"{name} measures nothing against its tile's mean; its decoder is not of the kind dilated")
    own = [product.input[0] for product in products]
    sizes = [widths[product.input[1]] for product in products]
    added = [
        helper.make_node("Concat", own, [TILE_MEAN], axis=1),
        helper.make_node("IsNaN", [PHOTO_MEAN], ["photo_mean.absent"]),
        helper.make_node("Where", ["photo_mean.absent", TILE_MEAN, PHOTO_MEAN], ["photo_mean.used"]),
        helper.make_node(
            "Split", ["photo_mean.used", "photo_mean.sizes"], [f"photo_mean.{i}" for i in range(len(own))], axis=1
        ),
    ]
    for i, product in enumerate(products):
        product.input[0] = f"photo_mean.{i}"
    # A node comes after those that it takes from: what measures has to be moved in front of the first product.
    measuring = [means[name] for name in own]
    nodes = [node for node in graph.node if node not in measuring]
    place = nodes.index(products[0])
    nodes[place:place] = [*measuring, *added]
    del graph.node[:]
    graph.node.extend(nodes)
    default = np.full((1, sum(sizes)), np.nan, np.float32)
    graph.initializer.extend(
        [
            numpy_helper.from_array(default, PHOTO_MEAN),
            numpy_helper.from_array(np.array(sizes, np.int64), "photo_mean.sizes"),
        ]
    )
    graph.input.append(helper.make_tensor_value_info(PHOTO_MEAN, TensorProto.FLOAT, ["means", sum(sizes)]))
    graph.output.append(helper.make_tensor_value_info(TILE_MEAN, TensorProto.FLOAT, ["batch", sum(sizes)]))


def required(model: Any) -> int:
    """Have a ModelProto always be given `photo_mean`, in place, as OpenVINO needs it. Return its C."""
    default = next(tensor for tensor in model.graph.initializer if tensor.name == PHOTO_MEAN)
    model.graph.initializer.remove(default)
    return int(default.dims[1])


def check(path: Path, inputs: Collection[str]) -> None:
    """Raise WeightsError unless `photo_mean` is among the inputs of a file whose spec asks for it."""
    if PHOTO_MEAN not in inputs:
        raise WeightsError(
            f"{path} is to be measured against the whole photo, but its network has no input {PHOTO_MEAN!r}; make it "
            "anew with `declip export`"
        )
