"""Statistics of a whole photo for a network that reads it in tiles.

The decoder `dilated` measures every feature against the mean of its own window (`nn.decoders.Projection`). Read in
tiles, each tile then has a zero of its own: maps show seams, and change when a photo is cropped. `split` cuts an
exported network in two: the first part gives the means of a tile, the second takes means and gives logits. With the
means of all tiles averaged, every tile is measured against the whole photo. No training is needed, but another
calibration is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from declip.errors import SpecError

__all__ = ["PhotoStatistics", "split"]

Inputs = Mapping[str, NDArray[Any]]
Means = tuple[NDArray[np.float32], ...]


def split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return two networks: pictures → means of their features, and pictures and means → logits.

    model: an export of a network whose decoder is of the kind `dilated`.
    Raises SpecError for another network: one that multiplies no means by weights.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    used = {
        name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
        for name in node.input
    }
    means = [node.output[0] for node in model.graph.node if node.op_type == "ReduceMean" and node.output[0] in used]
    if not means:
        raise SpecError(
            "this network measures nothing against its window's mean; its decoder is not of the kind dilated"
        )
    # Shapes of what is inside are not in the file; batches are of any size, channels are what the weights have.
    widths = {
        node.input[0]: next(t.dims[0] for t in model.graph.initializer if t.name == node.input[1])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[0] in means
    }
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", int(widths[name])]) for name in means]
    return _part(model, [], values), _part(model, values, list(model.graph.output))


def _part(
    model: onnx.ModelProto, given: list[onnx.ValueInfoProto], wanted: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """Return the network that computes `wanted` from the model's inputs and what is given beside them."""
    maker = {name: node for node in model.graph.node for name in node.output}
    needed = {value.name for value in wanted}
    waiting, known = list(needed), {value.name for value in given}
    while waiting:
        name = waiting.pop()
        if name in known or name not in maker:
            continue
        new = set(maker[name].input) - needed
        needed |= new
        waiting += new
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for kept, field in (
        ([node for node in model.graph.node if needed & set(node.output) - known], part.graph.node),
        ([tensor for tensor in model.graph.initializer if tensor.name in needed], part.graph.initializer),
        ([*model.graph.input, *given], part.graph.input),
        (wanted, part.graph.output),
    ):
        del field[:]
        field.extend(kept)
    del part.graph.value_info[:]
    return part


class PhotoStatistics:
    """Both halves of an exported network, on the CPU by ONNX Runtime."""

    def __init__(self, path: str | Path) -> None:
        """path: an .onnx file of declip's. Raises SpecError as `split`."""
        self._first, self._second = (_session(model) for model in split(onnx.load(path)))
        self._names = [value.name for value in self._first.get_outputs()]

    def means(self, inputs: Inputs) -> Means:
        """{"image": (N, 3, S, S) float32 normalised} → for each backbone map its means (N, C) float32."""
        return tuple(self._first.run(self._names, dict(inputs)))

    def logits(self, inputs: Inputs, means: Sequence[NDArray[np.float32]] | None = None) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S)} → (N, T, T) float32 logits.

        means: for each backbone map (C,) float32, of the whole photo; None: those of each input itself, which gives
        what the uncut network gives.
        """
        count = len(next(iter(inputs.values())))
        given = self.means(inputs) if means is None else [np.repeat(mean[None], count, axis=0) for mean in means]
        fed = dict(inputs) | dict(zip(self._names, given, strict=True))
        found: NDArray[np.float32] = self._second.run(None, fed)[0]
        return found


def _session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
