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


def golden_input() -> Tensor:
    """(2, 3, 224, 224) float32, fed as the normalised batch."""
    rng = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(rng.standard_normal((2, 3, 224, 224), dtype=np.float32))
