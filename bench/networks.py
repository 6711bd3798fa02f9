"""The networks of the bench, of random weights: as weight files for declip's engines, and in the official way.

The official way was written for this bench from what is known of the official code, none of which is used here. In
fp32 and eager mode:

- all 24 blocks of ViT-L/14 run although block 20 is read, and all four stages of RN50 although layer3 is;
- attention writes its matrix of scores out: softmax(Q Kᵀ) V as two matrix products and a softmax between them;
- QuickGELU is a product with a sigmoid, LayerNorm computes in fp32, tokens come before pictures: (L, N, C);
- tokens become a grid in a loop over the tokens;
- the decoder is convolution, BatchNorm, ReLU one after the other, on maps in the order N, C, H, W.

Both ways have the same weights, so that they compute the same logits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from declip.images import read_photo, to_input
from declip.models import checkpoint
from declip.nn.backbones import Backbone, probe
from declip.nn.decoders import ConvDecoder, build_decoder
from declip.nn.model import DeclipNet
from declip.spec import BackboneSpec, DecoderKind, DecoderSpec, ModelSpec

__all__ = ["MAIN", "MODELS", "PHOTOS", "Built", "build", "inputs"]

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224", layer=20)
RN50 = BackboneSpec(name="resnet50_clip_gap", layer=3)
MAIN = "ViT-L/14, conv-20"
MODELS: dict[str, tuple[tuple[BackboneSpec, ...], DecoderKind]] = {
    MAIN: ((VIT,), "conv-20"),
    "ViT-L/14, conv-4": ((VIT,), "conv-4"),
    "ViT-L/14 + RN50, conv-20": ((VIT, RN50), "conv-20"),
    "RN50, conv-20": ((RN50,), "conv-20"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """One network both ways. path: its weight file. gmac, official_gmac: 10⁹ multiply-accumulates of a picture."""

    spec: ModelSpec
    path: Path
    official: OfficialWay
    gmac: float
    official_gmac: float


def build(name: str, folder: Path, seed: int = 0) -> Built:
    """Draw the weights of a network of MODELS and write its file into folder."""
    torch.manual_seed(seed)
    specs, kind = MODELS[name]
    spec = ModelSpec(backbones=specs, decoder=DecoderSpec(kind=kind))
    backbones = [Backbone(one.name, [one.layer], spec.input_size) for one in specs]
    for norm in _norms(*backbones):  # no statistics of 0 and 1, so that a folding that goes wrong shows
        norm.running_mean.normal_(0.0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.ones_(norm.weight)
    # The official way copies the whole backbones, which are cut only then.
    towers = [OfficialViT(one) if one.has_cls else OfficialResNet(copy.deepcopy(one)) for one in backbones]
    for one in backbones:
        one.prune()
        one.freeze()
    decoder = build_decoder(DecoderSpec(kind=kind), probe(backbones, spec.input_size), spec.output_size)
    net = DeclipNet(backbones, decoder).eval()
    pictures = torch.from_numpy(inputs(spec, 4))
    _draw(net, pictures)
    official = OfficialWay(towers, copy.deepcopy(decoder))
    path = checkpoint.save(net, spec, folder / "network.safetensors")
    gmac, official_gmac = _gmac(net, pictures[:1]), _gmac(official, pictures[:1])
    return Built(spec=spec, path=path, official=official, gmac=gmac, official_gmac=official_gmac)


def inputs(spec: ModelSpec, count: int) -> NDArray[np.float32]:
    """Return the example photos squashed, (count, 3, S, S) float32; again from the first where there are too few."""
    files = sorted(PHOTOS.iterdir())
    return np.stack([to_input(read_photo(files[i % len(files)]).pixels, spec) for i in range(count)])


@torch.no_grad()
def _draw(net: DeclipNet, pictures: Tensor) -> None:
    """Draw the decoder's weights so that logits have mean 0 and deviation 1: decisions at 0.5 are as close as can be.

    Random layers of BatchNorm and ReLU are chaotic: 20 of them make any rounding 45 times as large, which no trained
    network does. With shifts of 1 before the ReLU it is 3 times: (Φ(β) / var ReLU(N(β, 1)))^½ for every layer.
    """
    layers = [layer for layer in net.decoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, (2 / layer.weight[0].numel()) ** 0.5)
        nn.init.normal_(layer.bias, 0.0, 0.1)
    features, norms = net.features(pictures), _norms(net.decoder)
    for norm in norms:
        norm.bias.fill_(1.0)
        norm.momentum = 1.0  # of the photos' own statistics
        norm.train()
    net.decode(features)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()
    logits = net.decode(features)
    layers[-1].weight /= logits.std()
    layers[-1].bias.sub_(logits.mean()).div_(logits.std())


def _norms(*modules: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for module in modules for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def _gmac(net: nn.Module, picture: Tensor) -> float:
    # Fused attention is one operation that the counter does not know on the CPU; as a formula it is counted.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(picture)
    return round(counter.get_total_flops() / 2e9, 2)


# --- the official way ---------------------------------------------------------------------------------------------


class OfficialBlock(nn.Module):
    """A residual block of CLIP's vision transformer, its attention with the scores written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(L, N, C) → (L, N, C)."""
        tokens = tokens + self.attention(self.norm1(tokens.float()))
        hidden = self.fc1(self.norm2(tokens.float()))
        out: Tensor = tokens + self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return out

    def attention(self, tokens: Tensor) -> Tensor:
        """(L, N, C) → (L, N, C)."""
        length, count, width = tokens.shape
        # each (N · heads, L, C / heads)
        q, k, v = (
            part.reshape(length, count * self.heads, -1).transpose(0, 1) for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))  # (N · heads, L, L)
        attended = torch.bmm(torch.softmax(scores, dim=-1), v)
        out: Tensor = self.proj(attended.transpose(0, 1).reshape(length, count, width))
        return out


class OfficialViT(nn.Module):
    """CLIP's vision transformer, run to its end; gives the tokens behind one block as a grid."""

    def __init__(self, backbone: Backbone) -> None:
        """Copy the weights of a CLIP ViT of one layer that is whole, not yet pruned."""
        super().__init__()
        model = backbone.model
        (self.layer,) = backbone.layers
        width, patch = model.embed_dim, model.patch_embed.patch_size
        self.patches = nn.Conv2d(3, width, patch, patch, bias=False)
        self.cls_token = nn.Parameter(torch.empty_like(model.cls_token))
        self.pos_embed = nn.Parameter(torch.empty_like(model.pos_embed))
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([OfficialBlock(width, model.blocks[0].attn.num_heads) for _ in model.blocks])
        self.load_state_dict(
            {
                key.replace("patch_embed.proj.", "patches.").replace("attn.", "").replace("mlp.", ""): value
                for key, value in model.state_dict().items()
                if not key.startswith(("norm.", "head."))
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, C, h, h)."""
        grid = self.patches(images)  # (N, C, h, h)
        tokens = grid.flatten(2).permute(0, 2, 1)  # (N, h·h, C)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1) + self.pos_embed
        kept = tokens = self.norm_pre(tokens.float()).permute(1, 0, 2)  # (L, N, C)
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            kept = tokens if number == self.layer else kept
        placed = torch.empty_like(grid)
        for number, token in enumerate(kept[1:]):
            placed[:, :, number // grid.shape[-1], number % grid.shape[-1]] = token
        return placed


class OfficialResNet(nn.Module):
    """CLIP's ResNet, all of its stages run; gives the map behind one of them."""

    def __init__(self, backbone: Backbone) -> None:
        """Use a CLIP ResNet of one layer that is whole, not yet pruned, as it is."""
        super().__init__()
        self.model = backbone.model
        (self.layer,) = backbone.layers

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, C, h, h)."""
        maps = self.model.forward_intermediates(images, intermediates_only=True, stop_early=False)
        kept: Tensor = maps[self.layer]
        return kept


class OfficialWay(nn.Module):
    """Pictures (N, 3, S, S) float32 → logits (N, T, T)."""

    def __init__(self, towers: list[nn.Module], decoder: ConvDecoder) -> None:
        """Join the towers and a decoder, whose layers run as they are, one after the other."""
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.decoder = decoder
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, T, T)."""
        maps = [tower(images) for tower in self.towers]
        size = maps[0].shape[-2:]
        others = [F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps[1:]]
        logits: Tensor = self.decoder.layers(torch.cat([maps[0], *others], dim=1))
        return logits[:, 0]
