"""Weights and inputs that anyone can regenerate: the formula of the golden values' README."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "golden"


def formula_tensor(key: str, shape: Sequence[int]) -> Tensor:
    """The tensor of an official state dict's key."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    n = rng.standard_normal(tuple(shape) or (1,), dtype=np.float32)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    if key.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif key.endswith("running_mean"):
        n = 0.1 * n
    elif len(shape) == 1 and key.endswith("weight"):
        n = 1 + 0.1 * n
    elif len(shape) <= 1:
        n = 0.02 * n
    else:
        gain = 2 if len(shape) == 4 and key.startswith("fc.") else 1
        n = n * np.sqrt(gain / np.prod(shape[1:]))
    return torch.from_numpy(n.astype(np.float32).reshape(tuple(shape)))


def formula_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A whole state dict by its official keys and shapes."""
    return {key: formula_tensor(key, shape) for key, shape in shapes.items()}


def openai_rn50_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of CLIP's RN50 image tower as OpenAI's files have them (`visual.…`)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"visual.{conv}.weight"] = shape
        for field in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"visual.{norm}.{field}"] = shape[:1]
        shapes[f"visual.{norm}.num_batches_tracked"] = ()

    for i, (inputs, width) in enumerate([(3, 32), (32, 32), (32, 64)], start=1):
        layer(f"conv{i}", f"bn{i}", (width, inputs, 3, 3))
    inputs = 64
    for stage, blocks in enumerate([3, 4, 6, 3], start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            layer(f"{name}.conv1", f"{name}.bn1", (width, inputs, 1, 1))
            layer(f"{name}.conv2", f"{name}.bn2", (width, width, 3, 3))
            layer(f"{name}.conv3", f"{name}.bn3", (4 * width, width, 1, 1))
            if block == 0:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", (4 * width, inputs, 1, 1))
            inputs = 4 * width
    shapes["visual.attnpool.positional_embedding"] = (50, 2048)
    for field, width in (("k_proj", 2048), ("q_proj", 2048), ("v_proj", 2048), ("c_proj", 1024)):
        shapes[f"visual.attnpool.{field}.weight"] = (width, 2048)
        shapes[f"visual.attnpool.{field}.bias"] = (width,)
    return shapes


def golden_input() -> Tensor:
    """(2, 3, 224, 224) float32, fed as the normalised batch."""
    rng = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(rng.standard_normal((2, 3, 224, 224), dtype=np.float32))
