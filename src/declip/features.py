"""Frozen features, computed once and kept on disk.

A frozen backbone gives the same features in every epoch; the decoder is a fraction of the cost. `cache` runs the
backbones over a data set of (image, target) once and memory-maps what they give as fp16.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from declip.nn.backbones import Features
from declip.nn.model import DeclipNet

__all__ = ["CachedFeatures", "Crops", "cache"]


class Crops(Protocol):
    """A data set of network inputs: item i is (image (3, S, S) float32, target (T, T) float32)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


class CachedFeatures:
    """Item i is (maps: tuple of (C, h, w) float32, class token (1, C) or None, target (T, T) float32)."""

    def __init__(self, folder: Path) -> None:
        layout = json.loads((folder / "layout.json").read_text())
        self._maps: list[NDArray[np.float16]] = [
            np.load(folder / f"map{i}.npy", mmap_mode="r") for i in range(len(layout["maps"]))
        ]
        self._cls = np.load(folder / "cls.npy", mmap_mode="r") if layout["cls"] else None
        self._targets = np.load(folder / "targets.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._targets)

    def batch(self, indices: NDArray[np.int64], dtype: torch.dtype = torch.float32) -> tuple[Features, Tensor]:
        """Features, of this dtype, and targets (N, T, T) float32 of some items, in their order."""
        maps = tuple(_tensor(m[indices], dtype) for m in self._maps)
        cls = None if self._cls is None else _tensor(self._cls[indices], dtype)
        return Features(maps, cls), _tensor(self._targets[indices], torch.float32)


def cache(
    net: DeclipNet, crops: Crops, folder: Path, key: dict[str, Any], *, batch_size: int = 16, progress: bool = False
) -> CachedFeatures:
    """Compute the features of all crops into `folder`, or open them if they are there for the same `key`.

    key: all that decides the features and targets (specs, data, seed), JSON-able; a folder of another key, or one
    whose writing was interrupted, is written anew. fp16; the size is estimated and printed before anything is written.
    """
    done = folder / "key.json"
    text = json.dumps(key, sort_keys=True)
    if done.exists() and done.read_text() == text:
        return CachedFeatures(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    console = Console(stderr=True)
    outputs: dict[str, NDArray[Any]] = {}
    with Progress(console=console, disable=not progress) as bar, torch.inference_mode():
        task = bar.add_task("frozen features", total=len(crops))
        for start in range(0, len(crops), batch_size):
            items = [crops[i] for i in range(start, min(start + batch_size, len(crops)))]
            images = torch.stack([image for image, _ in items]).contiguous(memory_format=torch.channels_last)
            features = net.features(images)
            arrays = {f"map{i}": m for i, m in enumerate(features.maps)}
            if features.cls is not None:
                arrays["cls"] = features.cls
            arrays["targets"] = torch.stack([target for _, target in items])
            if not outputs:
                size = len(crops) * sum(2 * math.prod(a.shape[1:]) for a in arrays.values())
                console.print(f"frozen features of {len(crops)} crops: {size / 1e9:.2f} GB in {folder}")
                for name, array in arrays.items():
                    shape = (len(crops), *array.shape[1:])
                    outputs[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
            for name, array in arrays.items():
                outputs[name][start : start + len(items)] = array.cpu().numpy()
            bar.advance(task, len(items))
    for output in outputs.values():
        if isinstance(output, np.memmap):
            output.flush()
    layout = {"maps": [name for name in outputs if name.startswith("map")], "cls": "cls" in outputs}
    (folder / "layout.json").write_text(json.dumps(layout))
    done.write_text(text)
    return CachedFeatures(folder)


def _tensor(array: NDArray[np.float16], dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
