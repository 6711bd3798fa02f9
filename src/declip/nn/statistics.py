"""Fixed statistics of a picture: backbones without weights that see what cameras, filters and compression leave.

They take the network's input (N, 3, S, S), normalised; its scale is undone, so that they measure grey levels of 0-255.
They always compute in float32: what they measure is finer than bfloat16's 8 bits of a pixel. Means are written as what
ONNX Runtime does fast: its pooling takes several times as long as the convolutions before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.maps import Features

__all__ = ["BlockStatistics", "Pixels", "QuantizationStatistics", "ResidualStatistics"]

# JPEG's colour planes in terms of RGB.
PLANES = {
    "Y": (0.299, 0.587, 0.114),
    "Cb": (-0.168736, -0.331264, 0.5),
    "Cr": (0.5, -0.418688, -0.081312),
}


def _plane(name: str, std: tuple[float, float, float]) -> Tensor:
    """Weights (3, 1, 1) that turn normalised RGB into a plane in 0-255, but for a constant."""
    return (torch.tensor(PLANES[name]) * torch.tensor(std) * 255).view(3, 1, 1)


class Pixels(nn.Module):
    """The picture itself, for a decoder that learns filters of its own (`DecoderSpec.stem`)."""

    def __init__(self, std: tuple[float, float, float]) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Features:
        """images (N, 3, S, S) → Features with that one map."""
        return Features((images,))


class ResidualStatistics(nn.Module):
    """Statistics of high-pass residuals: what noise, resampling and compression leave; nothing is learnt.

    The picture in 0-255 is filtered by `FILTERS` (on luma and chroma); per residual the logarithm of its mean
    magnitude over 4×4 and over 12×12 px, and the share of near-zero values over 4×4: (N, C, S/4, S/4).
    """

    # Plane and taps across and down: differences of first, second and third order and products of them, the kinds
    # of residual that steganalysis' rich models use (Fridrich & Kodovsky 2012).
    FILTERS = (
        ("Y", (-1, 1, 0), (1,)),
        ("Y", (1,), (-1, 1, 0)),
        ("Y", (1, -2, 1), (1,)),
        ("Y", (1,), (1, -2, 1)),
        ("Y", (1, -2, 1), (1, -2, 1)),
        ("Y", (1, -4, 6, -4, 1), (1,)),
        ("Y", (1,), (1, -4, 6, -4, 1)),
        ("Y", (1, -4, 6, -4, 1), (1, -4, 6, -4, 1)),
        ("Cb", (1, -2, 1), (1, -2, 1)),
        ("Cr", (1, -2, 1), (1, -2, 1)),
    )
    kernels: Tensor

    def __init__(self, std: tuple[float, float, float]) -> None:
        super().__init__()
        kernels = torch.zeros(len(self.FILTERS), 3, 5, 5)
        for kernel, (plane, across, down) in zip(kernels, self.FILTERS, strict=True):
            taps = torch.outer(_centred(down), _centred(across))
            # The mean of the normalisation falls out of every zero-sum filter.
            kernel += _plane(plane, std) * taps / taps.abs().sum() * 2
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, images: Tensor) -> Features:
        """images (N, 3, S, S), normalised → Features with one map (N, 3 · filters, S/4, S/4)."""
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (2, 2, 2, 2), mode="reflect")
            residuals = F.conv2d(padded, self.kernels).abs()  # (N, F, S, S)
            fine = _pooled(residuals, 4)  # (N, F, S/4, S/4)
            coarse = _around(fine)
            # A smooth stand-in for the share of residuals below a grey level.
            quiet = _pooled(torch.exp(-residuals), 4)
            return Features((torch.cat([torch.log(fine + 0.1), torch.log(coarse + 0.1), 2 * quiet], dim=1),))


class BlockStatistics(nn.Module):
    """Statistics of 8×8 blocks on JPEG's grid, over 3×3 blocks each; nothing is learnt: (N, 172, S/8, S/8).

    Of luma's discrete cosine transform, per frequency, the logarithm of the mean magnitude (63) and the share of
    near-zero coefficients (63): the spectrum, and what quantization left of it. Of chroma's the magnitudes per
    diagonal (2 · 7). Of second differences their magnitude by the phase of the column, of the row (8 + 8), and of
    both modulo 4 (16), against their mean: grids that JPEG blocks, upsampling and transposed convolutions leave.
    """

    DIAGONALS: ClassVar = range(1, 8)
    planes: Tensor
    luma: Tensor
    chroma: Tensor
    groups: Tensor

    def __init__(self, std: tuple[float, float, float]) -> None:
        super().__init__()
        basis = _cosines()  # (64, 8, 8), rows before columns
        diagonal = torch.arange(8).view(8, 1) + torch.arange(8)
        low = [i for i, d in enumerate(diagonal.flatten().tolist()) if d in self.DIAGONALS]
        groups = torch.stack([(diagonal.flatten()[low] == d).float() for d in self.DIAGONALS])
        planes = torch.stack([_plane(name, std).flatten() for name in PLANES])
        self.register_buffer("planes", planes, persistent=False)
        self.register_buffer("luma", basis[1:, None], persistent=False)
        self.register_buffer("chroma", basis[low, None].repeat(2, 1, 1, 1), persistent=False)
        mean = groups / groups.sum(dim=1, keepdim=True)
        apart = torch.zeros_like(mean)
        weights = torch.cat([torch.cat([mean, apart], dim=1), torch.cat([apart, mean], dim=1)])
        self.register_buffer("groups", weights[:, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> Features:
        """images (N, 3, S, S), normalised, S a multiple of 8 → Features with one map (N, 172, S/8, S/8)."""
        with torch.autocast(images.device.type, enabled=False):
            n, _, height, width = images.shape
            # Frequencies above zero sum to nought, so the mean of the normalisation falls out here too.
            planes = (self.planes @ images.float().flatten(2)).view(n, 3, height, width)
            magnitudes = F.conv2d(planes[:, :1], self.luma, stride=8).abs()  # (N, 63, S/8, S/8)
            chroma = F.conv2d(F.conv2d(planes[:, 1:], self.chroma, stride=8, groups=2).abs(), self.groups)
            parts = [magnitudes, chroma, torch.exp(-magnitudes * magnitudes), *_phases(planes[:, :1])]
            spectrum, quiet, *phases = torch.split(_around(torch.cat(parts, dim=1)), [77, 63, 8, 8, 16], dim=1)
            levels = [torch.log(phase + 0.1) for phase in phases]
            apart = [level - level.mean(dim=1, keepdim=True) for level in levels]
            return Features((torch.cat([torch.log(spectrum + 0.1), 2 * quiet, *apart], dim=1),))


class QuantizationStatistics(nn.Module):
    """By which steps the coefficients of 8×8 blocks are or were quantized, over 3×3 blocks; nothing is learnt.

    Per low frequency of luma (20) and step q (16), the mean of cos(2π c / q): 1 where every coefficient c is a multiple
    of q, near 0 where c spreads over more than a step. It is the Fourier transform of the coefficients' histogram, in
    which a first quantization leaves a peak that a second, finer one does not remove: (N, 320, S/8, S/8).
    """

    STEPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 24)
    DIAGONALS: ClassVar = range(1, 6)
    basis: Tensor

    def __init__(self, std: tuple[float, float, float]) -> None:
        super().__init__()
        diagonal = (torch.arange(8).view(8, 1) + torch.arange(8)).flatten().tolist()
        low = [i for i, d in enumerate(diagonal) if d in self.DIAGONALS]
        self.register_buffer("basis", _cosines()[low, None] * _plane("Y", std), persistent=False)

    def forward(self, images: Tensor) -> Features:
        """images (N, 3, S, S), normalised, S a multiple of 8 → Features with one map (N, 320, S/8, S/8)."""
        # In float32: a coefficient of some hundred is divided by a step and only the rest counts.
        with torch.autocast(images.device.type, enabled=False):
            coefficients = F.conv2d(images.float(), self.basis, stride=8)  # (N, 20, S/8, S/8)
            waves = [torch.cos(coefficients * (2 * math.pi / step)) for step in self.STEPS]
        return Features((_around(torch.cat(waves, dim=1)),))


def _phases(luma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second differences of (N, 1, S, S), magnitudes by phase: of columns and of rows modulo 8, of both modulo 4.

    (N, 8, S/8, S/8) twice and (N, 16, S/8, S/8), means over each 8×8 block.
    """
    n, _, height, width = luma.shape
    rows, columns = height // 8, width // 8
    padded = F.pad(luma, (1, 1, 1, 1), mode="reflect")[:, 0]  # (N, S + 2, S + 2)
    across = _second(padded, 2)  # (N, S + 2, S)
    down = _second(padded[:, :, 1:-1], 1)
    both = _second(across, 1).abs() / 2
    by_column = across[:, 1:-1].abs().reshape(n, rows, 8, width).mean(dim=2).view(n, rows, columns, 8)
    by_row = down.abs().reshape(n, rows, 8, columns, 8).mean(dim=4)
    halves = both.reshape(n, rows, 2, 4, width).mean(dim=2).view(n, rows, 4, columns, 8)
    by_both = (halves[..., :4] + halves[..., 4:]) / 2  # (N, S/8, 4, S/8, 4)
    return (
        by_column.permute(0, 3, 1, 2),
        by_row.permute(0, 2, 1, 3),
        by_both.permute(0, 2, 4, 1, 3).reshape(n, 16, rows, columns),
    )


def _second(planes: Tensor, dim: int) -> Tensor:
    """Second differences along a dimension, which becomes 2 shorter."""
    length = planes.shape[dim] - 2
    before, here, after = (planes.narrow(dim, start, length) for start in range(3))
    return before - 2 * here + after


def _pooled(maps: Tensor, side: int) -> Tensor:
    """Average side × side positions each: (N, C, h, w) → (N, C, h/side, w/side)."""
    n, channels, height, width = maps.shape
    rows = maps.reshape(n, channels, height // side, side, width).mean(dim=3)
    return rows.view(n, channels, height // side, width // side, side).mean(dim=4)


def _around(maps: Tensor) -> Tensor:
    """Average over 3×3 positions, fewer at the border."""
    channels, size = maps.shape[1], maps.shape[2:]
    sums = F.conv2d(maps, maps.new_ones(channels, 1, 3, 3), padding=1, groups=channels)
    return sums / F.conv2d(maps.new_ones(1, 1, *size), maps.new_ones(1, 1, 3, 3), padding=1)


def _cosines() -> Tensor:
    """Return the orthonormal basis of the 8×8 discrete cosine transform (type II), (64, 8, 8)."""
    k, x = torch.arange(8.0).view(8, 1), torch.arange(8.0)
    line = torch.cos(math.pi * k * (2 * x + 1) / 16) * 0.5
    line[0] /= math.sqrt(2)
    return torch.einsum("ux,vy->uvxy", line, line).reshape(64, 8, 8)


def _centred(taps: Sequence[int]) -> Tensor:
    """Taps on five points, the middle one in the middle."""
    side = (5 - len(taps)) // 2
    return F.pad(torch.tensor(taps, dtype=torch.float32), (side, side))
