"""Networks that take milliseconds, and the files they are kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from declip.models import checkpoint, export
from declip.nn.model import DeclipNet, build
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

VIT = "test_vit"  # 6 blocks, width 64, patches of 16 px, a class token
RESNET = "test_resnet"  # stem and 4 stages, BatchNorm
STORED = Path(__file__).parent / "data"
RESIDUALS = BackboneSpec(name="residual-statistics", layer=0)
NARROW = (8, 8, 8, 8)


def tiny_spec(*backbones: BackboneSpec, **fields: Any) -> ModelSpec:
    """64 px in and out, conv-4 of 8 channels on the second block of a small ViT, unless told otherwise."""
    given: dict[str, Any] = {
        "backbones": backbones or (BackboneSpec(name=VIT, layer=1),),
        "decoder": DecoderSpec(kind="conv-4", widths=NARROW),
        "input_size": 64,
        "output_size": 64,
    }
    return ModelSpec(**{**given, **fields})


def tiled_spec(**fields: Any) -> ModelSpec:
    """As the embedded model: residual statistics and a frozen backbone, a narrow decoder, tiled, a map of half size.

    `data/tiny.safetensors` and `data/tiny.onnx` hold the network of this spec and seed 0; `python -m tests.tiny` makes
    them anew.
    """
    given: dict[str, Any] = {
        "decoder": DecoderSpec(kind="dilated", widths=(8, 8, 8)),
        "mode": "tiled",
        "overlap": 16,
        "output_size": 32,
    }
    return tiny_spec(RESIDUALS, BackboneSpec(name=RESNET, layer=1), **{**given, **fields})


def randomise(net: nn.Module, seed: int = 0) -> None:
    """Every tensor from the seed, also BatchNorm's statistics, so that no layer is the identity by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                gain = 2 if value.ndim == 4 else 1  # a ReLU behind a convolution halves what passes
                value.copy_(noise * (gain / value[0].numel()) ** 0.5)
            elif key.endswith(("_var", "weight")):
                value.copy_(1 + 0.2 * noise.abs())
            else:
                value.copy_(0.2 * noise)


def tiny_net(spec: ModelSpec, seed: int = 0) -> DeclipNet:
    """The network of a spec, its published backbones as they are, all else from the seed."""
    torch.manual_seed(seed)
    net = build(spec)
    randomise(net.decoder, seed)
    return net


def save_tiny(path: Path, spec: ModelSpec, seed: int = 0) -> Path:
    """A checkpoint of `tiny_net`."""
    return checkpoint.save(tiny_net(spec, seed), spec, path)


if __name__ == "__main__":
    export.to_onnx(save_tiny(STORED / "tiny.safetensors", tiled_spec()), STORED / "tiny.onnx")
