"""The decoder of the kind `dilated`, for small models; `nn.decoders` has the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.backbones import Features, FeatureShape

__all__ = ["DilatedDecoder", "Projection", "ResidualBlock", "Stem"]


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
    """A map → `width` channels, seen twice: against all training data, and against the rest of its own picture.

    A (x − mean) / deviation + B (x − picture's mean) / deviation within windows + c, with learnt A, B and c: what is
    manipulated differs from the rest of its picture by far less than pictures differ. Both are one 1×1 convolution.
    The picture is the window itself, unless another mean is given.
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

    def forward(self, x: Tensor, means: Tensor | None = None) -> Tensor:
        """(N, C, h, w) → (N, width, h, w). means: to measure against, (N, C) float32; None = those of x."""
        if means is None:
            means = self.means(x)
        with torch.autocast(x.device.type, enabled=False):
            if self.training and self.batches < self.BATCHES:
                self._follow(x, means)
            overall = self.overall / (self.running_var + 1e-4).sqrt()
            contrast = self.contrast / (self.within_var + 1e-4).sqrt()
            bias = self.bias - overall @ self.running_mean - means @ contrast.T  # (N, width)
        y = F.conv2d(x, (overall + contrast)[:, :, None, None])
        return y + bias[:, :, None, None].to(y.dtype)

    @staticmethod
    def means(x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C) float32: each window's own."""
        return x.mean(dim=(2, 3), dtype=torch.float32)

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

    def means(self, features: Features) -> Tensor:
        """Features → (N, C) float32: what the projections measure against, one map's after the other's."""
        pairs = zip(self.projections, features.maps, strict=True)
        return torch.cat([part.means(m) for part, m in pairs if isinstance(part, Projection)], dim=1)

    def forward(self, features: Features, photo_mean: Tensor | None = None) -> Tensor:
        """Features → logits (N, T, T). photo_mean: as `means` gives, of the whole photo; None = each window's own."""
        size = (self.grid, self.grid)
        parts = self._project(features, photo_mean)
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

    def _project(self, features: Features, photo_mean: Tensor | None) -> list[Tensor]:
        """Each map → (N, fine, h, w), at its own size."""
        parts, start = [], 0
        for part, m in zip(self.projections, features.maps, strict=True):
            if photo_mean is None or not isinstance(part, Projection):
                parts.append(part(m))
                continue
            parts.append(part(m, photo_mean[:, start : start + m.shape[1]]))
            start += m.shape[1]
        return parts


def _sum(maps: Sequence[Tensor]) -> Tensor:
    return sum(maps[1:], start=maps[0])
