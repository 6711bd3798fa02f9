"""The networks of the bench, of random weights: as weight files for declip's engines, and in the official way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from official_way import OfficialResNet, OfficialViT, OfficialWay
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from declip.engines.engines import in_torch_thread
from declip.images.read import read_photo
from declip.images.tensors import to_input
from declip.models import checkpoint
from declip.nn.backbones import Backbone, FeatureShape, extract, probe
from declip.nn.decoders import build_decoder
from declip.nn.model import DeclipNet
from declip.spec import BackboneSpec, DecoderKind, DecoderSpec, ModelSpec

__all__ = ["MAIN", "MODELS", "PHOTOS", "Built", "build", "empty_official", "inputs"]

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224", layer=20)
RN50 = BackboneSpec(name="resnet50_clip_gap", layer=3)
MAIN = "ViT-L/14, conv-20"
MODELS: dict[str, tuple[tuple[BackboneSpec, ...], DecoderKind]] = {
    MAIN: ((VIT,), "conv-20"),
    "ViT-L/14, conv-4": ((VIT,), "conv-4"),
    "ViT-L/14 + RN50, conv-20": ((VIT, RN50), "conv-20"),
    "RN50, conv-20": ((RN50,), "conv-20"),
    "ViT-L/14, linear": ((VIT,), "linear"),
    "RN50, linear": ((RN50,), "linear"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """One network both ways. path: its weight file. gmac, official_gmac: 10⁹ multiply-accumulates of a picture."""

    spec: ModelSpec
    path: Path
    official: OfficialWay | None
    gmac: float
    official_gmac: float | None

    def official_logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) → (N, T, T) in the official way; in the thread of declip's engines, so that neither slows the
        other down."""
        assert self.official is not None
        logits: torch.Tensor = in_torch_thread(partial(torch.inference_mode()(self.official), pictures))
        return logits


def build(name: str, folder: Path, seed: int = 0) -> Built:
    """Draw the weights of a network of MODELS and write its file into folder."""
    return in_torch_thread(partial(_build, name, folder, seed))


def _build(name: str, folder: Path, seed: int) -> Built:
    torch.manual_seed(seed)
    specs, kind = MODELS[name]
    spec = ModelSpec(backbones=specs, decoder=DecoderSpec(kind=kind))
    backbones = [Backbone(one.name, [one.layer], spec.input_size) for one in specs]
    _draw_batchnorm(backbones)
    # Both copy from the whole backbones, which are cut only then.
    towers = _towers(backbones)
    for one in backbones:
        one.prune()
        one.freeze()
    decoder = build_decoder(DecoderSpec(kind=kind), probe(backbones, spec.input_size), spec.output_size)
    net = DeclipNet(backbones, decoder).eval()
    pictures = torch.from_numpy(inputs(spec, 4))
    _draw(net, pictures)
    official = None if kind == "linear" else OfficialWay(towers, copy.deepcopy(decoder))
    path = checkpoint.save(net, spec, folder / f"{name.replace('/', '-').replace(' ', '')}.safetensors")
    return Built(
        spec=spec,
        path=path,
        official=official,
        gmac=_gmac(net, pictures[:1]),
        official_gmac=None if official is None else _gmac(official, pictures[:1]),
    )


def empty_official(name: str) -> tuple[ModelSpec, OfficialWay]:
    """The official way of a network of MODELS without its tensors (on the device "meta"), to load them into."""
    specs, kind = MODELS[name]
    spec = ModelSpec(backbones=specs, decoder=DecoderSpec(kind=kind))
    with torch.device("meta"):
        backbones = [Backbone(one.name, [one.layer], spec.input_size) for one in specs]
        maps = extract(backbones, torch.zeros(1, 3, spec.input_size, spec.input_size)).maps
        shape = FeatureShape(
            channels=tuple(one.shape[1] for one in maps),
            grids=tuple(one.shape[-1] for one in maps),
            has_cls=len(maps) == 1,
        )
        return spec, OfficialWay(_towers(backbones), build_decoder(DecoderSpec(kind=kind), shape, spec.output_size))


def inputs(spec: ModelSpec, count: int) -> NDArray[np.float32]:
    """(count, 3, S, S) float32: the example photos, squashed; again from the first where there are too few."""
    files = sorted(PHOTOS.iterdir())
    found = [to_input(read_photo(files[number % len(files)]).pixels, spec) for number in range(count)]
    return np.stack(found)


def _towers(backbones: Sequence[Backbone]) -> list[nn.Module]:
    return [OfficialViT(one) if one.has_cls else OfficialResNet(copy.deepcopy(one)) for one in backbones]


def _draw_batchnorm(modules: Sequence[nn.Module]) -> None:
    """Statistics that are not 0 and 1, so that a folding that goes wrong shows."""
    with torch.no_grad():
        for norm in _norms(modules):
            norm.running_mean.normal_(0.0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.fill_(1.0)  # timm starts some at 0


def _draw(net: DeclipNet, pictures: torch.Tensor) -> None:
    """The decoder's weights so that signals keep their size through 20 layers, and logits of mean 0 and deviation 1, so
    that decisions at 0.5 are as close as can be.

    Random layers of BatchNorm and ReLU are chaotic: 20 of them make any rounding 45 times as large, which no trained
    network does. With shifts of 1 before the ReLU it is 3 times: (Φ(β) / var ReLU(N(β, 1)))^½ for every layer.
    """
    norms = _norms([net.decoder])
    with torch.no_grad():
        for layer in net.decoder.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, 0.0, (2 / layer.weight[0].numel()) ** 0.5)
                nn.init.normal_(layer.bias, 0.0, 0.1)
        features = net.features(pictures)
        for norm in norms:
            norm.bias.fill_(1.0)
            norm.momentum = 1.0  # of the photos' own statistics
            norm.train()
        net.decode(features)
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()
        last = [layer for layer in net.decoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)][-1]
        logits = net.decode(features)
        last.weight /= logits.std()
        last.bias.sub_(logits.mean()).div_(logits.std())


def _norms(modules: Sequence[nn.Module]) -> list[nn.Module]:
    return [part for module in modules for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def _gmac(net: nn.Module, picture: torch.Tensor) -> float:
    # Fused attention is one operation that the counter does not know on the CPU; as a formula it is counted.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(picture)
    return round(counter.get_total_flops() / 2e9, 2)
