"""Frozen features, computed once and kept on disk.

A cache is a folder that runs share, also at the same time:

    FOLDER/<layer>/about.json            what the layer is: backbone, tensors' digest, preprocessing, precision
    FOLDER/<layer>/3f/3f0c….safetensors  one map (C, h, w), with the class token where there is one
    FOLDER/targets/…                     the targets of the same views

Names are digests of all that decides the content (file bytes, crop and augmentation, backbone tensors), so that
nothing stale can be read. What is interrupted is resumed, what is damaged is computed again. Nothing is ever deleted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from declip._version import __version__
from declip.errors import DatasetError, SpecError
from declip.nn.backbones import STATISTICS, Backbone, Features, exact, extract_layers, neighbours, probe
from declip.nn.model import DeclipNet
from declip.nn.own import source_of
from declip.process import cores
from declip.spec import ModelSpec, check_choice, is_own
from declip.training.recipe import FeaturePrecision
from declip.training.store import TensorStore
from declip.training.views import Views

__all__ = ["BATCH_SIZE", "CachedViews", "describe_layers"]

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_MOST_THREADS = 8
# Pictures that the backbones compute at once; another number moves features by roundings.
BATCH_SIZE = 16


class CachedViews:
    """The features and targets of several views of samples, kept in a folder.

    Item (view · number of samples + position) is view `view` of the sample at `position`. `fill` computes what is not
    there; what turns out to be damaged when it is read is computed again on the spot.

    net: with its backbones' weights, on any device. precision: "fp16", or "fp32" for twice the room. count: views of
    each sample.
    """

    def __init__(
        self,
        net: DeclipNet,
        spec: ModelSpec,
        views: Views,
        folder: Path,
        *,
        precision: FeaturePrecision = "fp16",
        count: int = 1,
    ) -> None:
        check_choice(precision, FeaturePrecision, "precision")
        self.net = net
        self.views = views
        self.count = count
        self.folder = folder
        self._dtype = _DTYPES[precision]
        self._shape = probe(list(net.backbones), spec.input_size)
        self._stores = []
        for about in describe_layers(net, spec):
            about["precision"] = precision
            name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
            readable = about["name"].replace(":", "-")  # which Windows has no names with
            self._stores.append(TensorStore(folder / f"{readable}-{about['layer']}-{name}", about))
        self._targets = TensorStore(folder / "targets", {"targets": "float16, of the views of samples"})
        self._output = spec.output_size
        self.keys = views.keys(count)

    def __len__(self) -> int:
        return len(self.keys)

    def missing(self) -> list[int]:
        """Return the items of which something is not on disk."""
        return [i for i in range(len(self)) if not self._is_there(i)]

    def bytes_per_item(self) -> int:
        """Return about how many bytes the entries of one item take on disk."""
        values = sum(c * g * g for c, g in zip(self._shape.channels, self._shape.grids, strict=True))
        target = self._output**2 if self.views.target == "mask" else 1
        return values * self._dtype.itemsize + 2 * target

    def fill(self, items: Sequence[int], *, batch_size: int = BATCH_SIZE, progress: bool = False) -> None:
        """Compute and keep items; say first how much that will write.

        Raises DatasetError if the disk has less room, ImageError for a picture that cannot be read, and SpecError for
        features that do not fit the precision.
        """
        if not items:
            return
        console = Console(stderr=True)
        size, room = len(items) * self.bytes_per_item(), shutil.disk_usage(self.folder).free
        console.print(
            f"frozen features: {len(items)} of {len(self)} to compute, {size / 1e9:.2f} GB in {self.folder}",
            soft_wrap=True,
        )
        if size > room:
            raise DatasetError(
                f"the features need {size / 1e9:.1f} GB and {self.folder} has room for {room / 1e9:.1f} GB; "
                "choose another folder for the cache, or views = 0 for none"
            )
        starts = track(range(0, len(items), batch_size), "frozen features", console=console, disable=not progress)
        with ThreadPoolExecutor(min(_MOST_THREADS, cores())) as pool:
            for start in starts:
                chosen = items[start : start + batch_size]
                self._compute(chosen, list(pool.map(self._load, chosen)))

    def batch(self, items: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Features, Tensor]:
        """Return features of this dtype, and targets (N, T, T) or (N,) float32, of items in their order, on the CPU."""
        rows = [self._read(int(i)) for i in items]
        maps = tuple(_stack([layers[j]["map"] for layers, _ in rows], dtype) for j in range(len(self._stores)))
        cls = _stack([layers[0]["cls"] for layers, _ in rows], dtype) if self._shape.has_cls else None
        return Features(maps, cls), _stack([target for _, target in rows], torch.float32)

    def _is_there(self, item: int) -> bool:
        content, target = self.keys[item]
        # Of several layers the class tokens are kept as well, since a single one may need its own; they do not.
        there = all(store.has(content, ("map", "cls") if self._shape.has_cls else ("map",)) for store in self._stores)
        return there and self._targets.has(target, ("target",))

    def _read(self, item: int) -> tuple[list[dict[str, Tensor]], Tensor]:
        content, about = self.keys[item]
        layers = [store.read(content) for store in self._stores]
        target = self._targets.read(about)
        if target is None or None in layers:
            self._compute([item], [self._load(item)])
            layers, target = [store.read(content) for store in self._stores], self._targets.read(about)
        found = [layer for layer in layers if layer is not None]
        if len(found) < len(layers) or target is None:
            raise DatasetError(f"what was written into {self.folder} cannot be read back: is its disk damaged or full?")
        return found, target["target"]

    def _load(self, item: int) -> tuple[Tensor, Tensor]:
        view, position = divmod(item, len(self.views))
        inputs, target = self.views.load(position, view)
        return torch.from_numpy(inputs["image"]), torch.from_numpy(target)

    def _compute(self, items: Sequence[int], loaded: Sequence[tuple[Tensor, Tensor]]) -> None:
        device = next((tensor.device for tensor in self.net.state_dict().values()), torch.device("cpu"))
        images = torch.stack([pixels for pixels, _ in loaded]).to(device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), exact():
            layers = extract_layers(list(self.net.backbones), images)
        for (maps, tokens), store in zip(layers, self._stores, strict=True):
            kept = {"map": self._narrow(maps)} | ({} if tokens is None else {"cls": self._narrow(tokens)})
            for row, item in enumerate(items):
                store.write(self.keys[item][0], {name: values[row].contiguous() for name, values in kept.items()})
        for (_, target), item in zip(loaded, items, strict=True):
            self._targets.write(self.keys[item][1], {"target": target.to(torch.float16)})

    def _narrow(self, values: Tensor) -> Tensor:
        narrow = values.to("cpu", self._dtype)
        if not torch.isfinite(narrow).all():
            raise SpecError('features are too large for fp16, or not finite; try features = "fp32" in the recipe')
        return narrow


def describe_layers(net: DeclipNet, spec: ModelSpec) -> list[dict[str, Any]]:
    """Return what decides the features of each layer of a spec beside the input: the identity of its folder.

    The digest is over the tensors up to the layer, so that a network cut further behind has the same entries.
    """
    layers = []
    for group, module in zip(neighbours(spec.backbones), net.backbones, strict=True):
        for row in group:
            about: dict[str, Any] = {"name": row.name, "layer": row.layer, "input_size": spec.input_size}
            if row.name in STATISTICS:
                names, code = list(module.state_dict()), f"declip {__version__}"
            elif is_own(row.name):
                names, code = list(module.state_dict()), hashlib.sha256(source_of(module).encode()).hexdigest()
            else:
                with torch.device("meta"):
                    part = Backbone(row.name, [row.layer], spec.input_size)
                part.prune()
                names, code = list(part.state_dict()), f"timm {timm.__version__}"
            layers.append(about | {"code": code, "tensors": _digest(module, names)})
    return layers


def _digest(module: nn.Module, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in names:
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stack(rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Stack rows in this dtype; maps become channels-last, which convolutions on the CPU compute faster."""
    shape = (len(rows), *rows[0].shape)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    out = torch.empty(shape, dtype=dtype, memory_format=layout)
    for target, row in zip(out, rows, strict=True):
        target.copy_(row)
    return out
