"""Decoders: features → one map of logits (paper §3.2).

| kind | what it computes |
|---|---|
| linear | 1×1 convolution, bicubic to the output |
| attention | two pre-norm Transformer blocks over the tokens, then as linear |
| conv-N | 4 levels of N/4 (Conv 5×5, BatchNorm, ReLU), bilinear ×2 after each, Conv 5×5 → 1 |
| dilated | 1×1 projections, residual blocks of growing dilation at half the grid, one at the full; for small models |

A decoder of your own is any `nn.Module` that takes `Features` and returns logits (N, T, T).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.backbones import Features, FeatureShape
from declip.spec import DecoderSpec

__all__ = ["AttentionDecoder", "ConvDecoder", "DilatedDecoder", "LinearDecoder", "build_decoder"]

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


class ResidualBlock(nn.Module):
    """ReLU(x + BN(Conv 1×1(ReLU(BN(Conv 3×3 dilated(x))))))."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → the same shape."""
        return F.relu(x + self.layers(x))


class Projection(nn.Module):
    """A map → `width` channels, seen twice: against all training data, and against the rest of its own window.

    A (x − mean) / deviation + B (x − window's mean) / deviation within windows + c, with learnt A, B and c: what is
    manipulated differs from the rest of its picture by far less than pictures differ. Both are one 1×1 convolution.
    """

    BATCHES = 200  # the first of a training, whose statistics are kept: frozen features do not change
    running_mean: Tensor
    running_var: Tensor
    within_var: Tensor
    batches: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.overall = nn.Parameter(torch.empty(width, channels))
        self.contrast = nn.Parameter(torch.empty(width, channels))
        for weight in (self.overall, self.contrast):
            nn.init.normal_(weight, 0.0, (2 * channels) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("within_var", torch.ones(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, width, h, w)."""
        means = x.mean(dim=(2, 3), dtype=torch.float32)  # (N, C)
        with torch.autocast(x.device.type, enabled=False):
            if self.training and self.batches < self.BATCHES:
                self._follow(x, means)
            overall = self.overall / (self.running_var + 1e-4).sqrt()
            contrast = self.contrast / (self.within_var + 1e-4).sqrt()
            bias = self.bias - overall @ self.running_mean - means @ contrast.T  # (N, width)
        y = F.conv2d(x, (overall + contrast)[:, :, None, None])
        return y + bias[:, :, None, None].to(y.dtype)

    @torch.no_grad()
    def _follow(self, x: Tensor, means: Tensor) -> None:
        """Move the statistics to the mean over all batches so far."""
        within = x.float().var(dim=(2, 3), unbiased=False).mean(dim=0)
        between = means.var(dim=0, unbiased=False)
        self.batches += 1
        for kept, new in (
            (self.running_mean, means.mean(dim=0)),
            (self.within_var, within),
            (self.running_var, within + between),
        ):
            kept.lerp_(new, 1 / self.batches)


class Stem(nn.Module):
    """Learnt filters on the picture: (N, 3, S, S) → (N, width, S/4, S/4).

    The first ones, 5×5, start as high-pass filters: their taps sum to nought, so that what a picture shows is taken
    away and what its making left behind stays.
    """

    def __init__(self, widths: tuple[int, int, int], width: int) -> None:
        super().__init__()
        first, second, third = widths
        self.residuals = nn.Conv2d(3, first, 5, padding=2, bias=False)
        with torch.no_grad():
            self.residuals.weight -= self.residuals.weight.mean(dim=(2, 3), keepdim=True)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            *_halving(first, second),
            ResidualBlock(second, 1),
            *_halving(second, third),
            ResidualBlock(third, 1),
            nn.Conv2d(third, width, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, width, S/4, S/4)."""
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 keeps 8 bits of a pixel: no noise
            residuals = self.residuals(images.float())
        out: Tensor = self.layers(residuals)
        return out


def _halving(channels: int, width: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)


class DilatedDecoder(nn.Module):
    """For small models: sees far at little cost; outlines on the finest grid of its backbones.

    Each map is projected at its own size and only then resized: the same as projecting the fused features, cheaper. On
    half that grid, residual blocks of dilation 1, 2, 4, 8, 1, … look around; in their middle the window's mean and
    deviation join every position. One block on the fine grid draws the outline. With a stem, the first map is the
    picture, and what the stem makes of it joins the others.
    """

    def __init__(
        self,
        shape: FeatureShape,
        output_size: int,
        widths: tuple[int, ...],
        stem: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        fine, coarse, depth = widths[0], widths[1], len(widths) - 1
        self.output_size = output_size
        grids = shape.grids if stem is None else (shape.grids[0] // 4, *shape.grids[1:])
        self.grid = max(grids)
        inputs: list[nn.Module] = [Projection(channels, fine) for channels in shape.channels]
        if stem is not None:
            inputs[0] = Stem(stem, fine)
        self.projections = nn.ModuleList(inputs)
        self.widen = nn.Conv2d(fine, coarse, 1)
        self.blocks = nn.ModuleList([ResidualBlock(coarse, 2 ** (i % 4)) for i in range(depth)])
        self.context = nn.Conv2d(2 * coarse, coarse, 1)
        self.narrow = nn.Conv2d(coarse, fine, 1)
        self.outline = ResidualBlock(fine, 1)
        self.head = nn.Conv2d(fine, 1, 3, padding=1)

    def forward(self, features: Features) -> Tensor:
        """Features → logits (N, T, T)."""
        size = (self.grid, self.grid)
        parts = [projection(m) for projection, m in zip(self.projections, features.maps, strict=True)]
        # A resize of a sum is the sum of the resized: one for each size will do.
        sizes = dict.fromkeys(part.shape[-2:] for part in parts)
        sums = [_sum([part for part in parts if part.shape[-2:] == side]) for side in sizes]
        resized = [part if part.shape[-2:] == size else F.interpolate(part, size, mode="bilinear") for part in sums]
        x = F.relu(_sum(resized))  # (N, fine, grid, grid)
        y = F.relu(self.widen(F.avg_pool2d(x, 2, ceil_mode=True)))  # (N, coarse, grid/2, grid/2)
        for i, block in enumerate(self.blocks):
            if i == len(self.blocks) // 2:
                mean = y.mean(dim=(2, 3), keepdim=True)
                deviation = ((y - mean) ** 2).mean(dim=(2, 3), keepdim=True).add(1e-4).sqrt()
                y = F.relu(y + self.context(torch.cat([mean, deviation], dim=1)))
            y = block(y)
        x = F.relu(x + F.interpolate(self.narrow(y), size, mode="bilinear"))
        logits = self.head(self.outline(x))  # (N, 1, grid, grid)
        out = (self.output_size, self.output_size)
        return (logits if logits.shape[-2:] == out else F.interpolate(logits, out, mode="bilinear"))[:, 0]


def _sum(maps: Sequence[Tensor]) -> Tensor:
    return sum(maps[1:], start=maps[0])


def build_decoder(spec: DecoderSpec, shape: FeatureShape, output_size: int) -> nn.Module:
    """Build a decoder for features of the given sizes; every backbone goes with every decoder."""
    channels, grid = sum(shape.channels), shape.grids[0]
    match spec.kind:
        case "linear":
            return LinearDecoder(channels, output_size)
        case "attention":
            return AttentionDecoder(channels, output_size, spec.causal)
        case "dilated":
            return DilatedDecoder(shape, output_size, spec.widths or (), spec.stem)
        case "conv-4" | "conv-12" | "conv-20":
            per_level = int(spec.kind.removeprefix("conv-")) // 4
            return ConvDecoder(channels, grid, output_size, per_level, spec.widths or PAPER_WIDTHS)
