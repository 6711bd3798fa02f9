"""5×5 convolutions in a third to a sixth of the multiplications, in fp32 on a CPU: Winograd's algorithm.

Tiles of m × m outputs are polynomials; multiplied at m + 4 points along each axis they need (m + 4)² products where a
plain convolution needs 25 m² (Lavin & Gray, CVPR 2016): 36 against 100, or 64 against 400. The price is memory for the
weights, (m + 4)² / 25 as much, and exactness: the errors of a layer are 1.4e-6 of what it gives for m = 2, 5e-6 for
m = 4 (root mean square), against 5e-7. With many channels the products are large matrices, for which it pays at once;
with fewer on many positions, only piece by piece, so that what lies between the steps stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.lean import Call

__all__ = ["WinogradConv", "quicken"]

TAPS = 5
# By the outputs of a tile along an axis: of the points tried, those with the smallest error.
POINTS = {2: (0.0, 0.75, -0.75, 1.5, -1.5), 4: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}
# Channels, in and out, from which it is faster, and from which the more exact of the two is fast enough.
FEWEST, MANY = 64, 512
# Channels whose kernels are found at once: all of them in double precision would fill hundreds of megabytes.
AT_ONCE = 32
# Bytes between two steps of a piece, at least; or as many as the kernels have, which each piece reads anew.
PIECE = 2 << 20


class WinogradConv(nn.Module):
    """What a Conv2d(C, K, 5, padding=2) computes, on grids whose sides are multiples of `tile`. Not to be trained."""

    before: Tensor
    kernels: Tensor
    after: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, tile: int) -> None:
        super().__init__()
        self.tile = tile
        after, kernel, before = _transforms(tile)
        taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)  # (25, C, K)
        points = torch.kron(kernel, kernel)
        kernels = torch.empty(len(points), *taps.shape[1:])
        for start in range(0, taps.shape[1], AT_ONCE):
            some = taps[:, start : start + AT_ONCE].double()
            kernels[:, start : start + AT_ONCE] = torch.einsum("pt,tck->pck", points, some)
        self.register_buffer("before", torch.kron(before, before).float())
        self.register_buffer("kernels", kernels)
        self.register_buffer("after", torch.kron(after, after).float())
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K, H, W), channels-last."""
        n, channels, height, width = x.shape
        count, tile, side = self.kernels.shape[2], self.tile, self.tile + TAPS - 1
        rows, columns = height // tile, width // tile
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 2, 2, 2))  # (N, H + 4, W + 4, C)
        tiles = padded.unfold(1, side, tile).unfold(2, side, tile)  # (N, rows, columns, C, m + 4, m + 4)
        tiles = tiles.permute(4, 5, 0, 1, 2, 3)
        y = x.new_empty(n, rows, tile, columns, tile, count)
        piece = max(PIECE, self.kernels.nbytes) // (side * side * columns * max(channels, count) * x.itemsize)
        images, piece = max(1, piece // rows), min(max(1, piece), rows)
        for i in range(0, n, images):
            for row in range(0, rows, piece):
                some = tiles[:, :, i : i + images, row : row + piece]
                spectra = (self.before @ some.reshape(side * side, -1)).view(side * side, -1, channels)
                products = torch.bmm(spectra, self.kernels)  # ((m + 4)², tiles, K)
                found = (self.after @ products.view(side * side, -1)).view(tile, tile, *some.shape[2:5], count)
                torch.add(found.permute(2, 3, 0, 4, 1, 5), self.bias, out=y[i : i + images, row : row + piece])
        return y.view(n, height, width, count).permute(0, 3, 1, 2)


def quicken(net: nn.Module, calls: Sequence[Call]) -> int:
    """Replace the 5×5 convolutions for which it pays, in place; calls: of `lean.watch`. Returns how many.

    The others of 5×5 become channels-last, in which those of few channels are computed faster.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and _is_plain(module):
            module.to(memory_format=torch.channels_last)
    sizes = {
        module: shape[2:]
        for module, _, shape in calls
        if isinstance(module, nn.Conv2d)
        and _is_plain(module)
        and min(module.in_channels, module.out_channels) >= FEWEST
    }
    replaced = 0
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if child in sizes and not any(side % _tile(child) for side in sizes[child]):
                setattr(parent, name, WinogradConv(child, _tile(child)))
                replaced += 1
    return replaced


def _tile(conv: nn.Conv2d) -> int:
    return 2 if min(conv.in_channels, conv.out_channels) >= MANY else 4


def _is_plain(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((TAPS, TAPS), (2, 2), (1, 1), (1, 1), 1, "zeros")


def _transforms(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs from products (m, m + 4), kernel (m + 4, 5), inputs (m + 4, m + 4)): Toom and Cook's, float64."""
    points, side = np.array(POINTS[tile]), tile + TAPS - 1
    others = [np.delete(points, i) for i in range(len(points))]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    kernel = np.zeros((side, TAPS))
    kernel[:-1] = points[:, None] ** np.arange(TAPS) / scale[:, None]
    kernel[-1, -1] = 1  # the point at infinity
    after = np.zeros((tile, side))
    after[:, :-1] = points ** np.arange(tile)[:, None]
    after[-1, -1] = 1
    before = np.zeros((side, side))
    for i, rest in enumerate(others):
        before[i, :-1] = np.polynomial.polynomial.polyfromroots(rest)
    before[-1] = np.polynomial.polynomial.polyfromroots(points)
    return torch.from_numpy(after), torch.from_numpy(kernel), torch.from_numpy(before)
