"""Decoders: features → one map of logits (paper §3.2).

| kind | what it computes |
|---|---|
| linear | 1×1 convolution, bicubic to the output |
| attention | two pre-norm Transformer blocks over the tokens, then as linear |
| conv-N | 4 levels of N/4 (Conv 5×5, BatchNorm, ReLU), bilinear ×2 after each, Conv 5×5 → 1 |
| dilated | 1×1 projections, residual blocks of growing dilation at half the grid, one at the full; for small models |

A decoder of your own is any `nn.Module` that takes `Features` and returns logits (N, T, T); `nn/own.py` finds it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.backbones import Features, FeatureShape
from declip.nn.dilated import DilatedDecoder
from declip.nn.own import make_part
from declip.spec import DecoderSpec, is_own

__all__ = ["AttentionDecoder", "ConvDecoder", "LinearDecoder", "build_decoder"]

PAPER_WIDTHS = (512, 256, 128, 64)


class LinearDecoder(nn.Module):
    """One linear map per position: CLIP-linear of the paper."""

    def __init__(self, channels: int, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.head = nn.Linear(channels, 1)

    def forward(self, features: Features) -> Tensor:
        """Features → logits (N, T, T)."""
        tokens = features.fused().permute(0, 2, 3, 1)  # (N, h, w, C)
        logits: Tensor = self.head(tokens)  # (N, h, w, 1)
        return self.upsample(logits.permute(0, 3, 1, 2))

    def upsample(self, logits: Tensor) -> Tensor:
        """(N, 1, h, w) → (N, T, T), bicubic without antialias."""
        size = (self.output_size, self.output_size)
        return F.interpolate(logits, size, mode="bicubic", align_corners=False)[:, 0]


class AttentionBlock(nn.Module):
    """Pre-norm Transformer block with a QuickGELU MLP of ×4: CLIP's own kind.

    causal: every token sees only itself and those before it. The official code masks so, its checkpoints need it.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, C) → (N, L, C)."""
        n, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, L, C/heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        tokens = tokens + self.proj(attended.transpose(1, 2).reshape(n, length, width))
        hidden = self.fc1(self.norm2(tokens))
        out: Tensor = tokens + self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return out


class AttentionDecoder(LinearDecoder):
    """Two attention blocks, then the linear decoder.

    Width = channels of the fused features, heads = largest divisor of it ≤ max(1, width/64). A class token stands in
    front where the backbone has one; it is dropped again before the linear map.
    """

    def __init__(self, channels: int, output_size: int, causal: bool) -> None:
        super().__init__(channels, output_size)
        heads = next(h for h in range(max(1, channels // 64), 0, -1) if channels % h == 0)
        self.blocks = nn.ModuleList([AttentionBlock(channels, heads, causal) for _ in range(2)])

    def forward(self, features: Features) -> Tensor:
        """Features → logits (N, T, T)."""
        grid = features.fused()  # (N, C, h, w)
        n, _, h, w = grid.shape
        tokens = grid.flatten(2).transpose(1, 2)  # (N, h·w, C)
        if features.cls is not None:
            tokens = torch.cat([features.cls, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        logits = self.head(tokens[:, tokens.shape[1] - h * w :])  # (N, h·w, 1)
        return self.upsample(logits.transpose(1, 2).reshape(n, 1, h, w))


class ConvDecoder(nn.Module):
    """conv-N: four levels, each N/4 convolutions and a ×2.

    Keeps as many ×2 as stay within the output size, dropping them from level 1 on (so RN50's layer2 loses one and
    layer1 two, as in the official code); a last bilinear resize reaches the output size if they do not.
    """

    def __init__(self, channels: int, grid: int, output_size: int, per_level: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.output_size = output_size
        doublings = sum(grid * 2**i <= output_size for i in range(1, len(widths) + 1))
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            for _ in range(per_level):
                layers += [nn.Conv2d(channels, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            if level >= len(widths) - doublings:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        if grid * 2**doublings != output_size:
            layers.append(nn.Upsample(size=(output_size, output_size), mode="bilinear", align_corners=False))
        layers.append(nn.Conv2d(channels, 1, 5, padding=2))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Features) -> Tensor:
        """Features → logits (N, T, T)."""
        logits: Tensor = self.layers(features.fused())
        return logits[:, 0]


def build_decoder(spec: DecoderSpec, shape: FeatureShape, output_size: int) -> nn.Module:
    """Build a decoder for features of the given sizes; every backbone goes with every decoder.

    One of another package is made from (shape, output_size).
    """
    if is_own(spec.kind):
        return make_part(spec.kind, shape, output_size)
    channels, grid = sum(shape.channels), shape.grids[0]
    match spec.kind:
        case "linear":
            return LinearDecoder(channels, output_size)
        case "attention":
            return AttentionDecoder(channels, output_size, spec.causal)
        case "dilated":
            return DilatedDecoder(shape, output_size, spec.widths or (), spec.stem)
        case _:
            per_level = int(spec.kind.removeprefix("conv-")) // 4
            return ConvDecoder(channels, grid, output_size, per_level, spec.widths or PAPER_WIDTHS)
