"""CAT-Net v2: traces of double compression, read in JPEG's own coefficients (Kwon et al., IJCV 2022).

Two streams, pixels and quantised coefficients, are fused scale by scale. What belongs to one file is given together:
RGB as (x − 127.5) / 127.5, the luma coefficients each at its place in the picture (images.jpeg), and their table.
Sides are multiples of 8, on JPEG's grid; what is padded is grey (RGB 0 here) with coefficients 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.rivals.hrnet import (
    HighResolutionTrunk,
    advance,
    initialise,
    residual_blocks,
    resize,
    stage,
    transition,
)

__all__ = ["CatNet", "coefficient_planes"]

BINS = 21  # |c| = 0, 1, …, 19, and ≥ 20
BLOCKS = 4  # basic blocks a branch, between two exchanges


class CatNet(nn.Module):
    """RGB stream, DCT stream, fusion, and a head of two classes.

    width: channels of the RGB stream's finest branch, all others follow; a multiple of 4. The published network has 48.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        if width <= 0 or width % 4:
            raise SpecError(f"CAT-Net's width is {width}; expected a multiple of 4 (the published network has 48)")
        rgb = [width, 2 * width, 4 * width, 8 * width]  # at 1/4, 1/8, 1/16, 1/32
        dct = rgb[1:]  # from 1/8 on
        fused = [width // 2, width, 2 * width, 4 * width]
        self.rgb = HighResolutionTrunk(
            widths=rgb, stem_stride=2, layer1_blocks=4, modules=(1, 4, 3), blocks=BLOCKS, align_corners=False
        )
        self.dct = DctStream(dct)
        self.transition = transition([rgb[0], *(a + b for a, b in zip(rgb[1:], dct, strict=True))], fused)
        self.fusion = stage(fused, 1, BLOCKS, align_corners=False)
        channels = sum(fused)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, 2, 1)
        )
        initialise(self)

    def forward(self, rgb: Tensor, coefficients: Tensor, table: Tensor) -> Tensor:
        """Pixels and coefficients of JPEG files → logits (N, 2, H/4, W/4): untouched, manipulated.

        rgb: (N, 3, H, W) float, (x − 127.5) / 127.5; H and W multiples of 8. coefficients: (N, H, W), quantised, of
        any dtype. table: (N, 8, 8), the steps they are quantised by. Raises SpecError for other shapes.
        """
        n, _, h, w = rgb.shape
        if h % 8 or w % 8 or coefficients.shape != (n, h, w) or table.shape != (n, 8, 8):
            raise SpecError(
                f"CAT-Net got pictures of {h}×{w} px, coefficients {tuple(coefficients.shape)} and tables "
                f"{tuple(table.shape)}; expected sides that are multiples of 8, ({n}, {h}, {w}) and ({n}, 8, 8)"
            )
        first, *others = self.rgb(rgb)  # (N, C, H/4, W/4), then H/8, H/16, H/32
        traces = self.dct(coefficient_planes(coefficients).to(rgb.dtype), table.to(rgb.dtype))  # H/8, H/16, H/32
        maps = [first, *(torch.cat(pair, dim=1) for pair in zip(others, traces, strict=True))]
        maps = self.fusion(advance(self.transition, maps))
        joined = torch.cat([resize(m, first.shape[-2:], align_corners=False) for m in maps], dim=1)
        logits: Tensor = self.head(joined)  # (N, 2, H/4, W/4)
        return logits


class DctStream(nn.Module):
    """Planes of coefficients → maps at 1/8, 1/16 and 1/32."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        # Dilation 8 brings together the same frequency of neighbouring blocks.
        self.dilated = nn.Sequential(
            nn.Conv2d(BINS, 64, 3, padding=8, dilation=8), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        self.narrow = nn.Sequential(nn.Conv2d(64, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = residual_blocks(2 * 4 * 64, widths[0], BLOCKS)
        self.transition3 = transition(widths[:1], widths[:2])
        self.stage3 = stage(widths[:2], 3, BLOCKS, align_corners=False)
        self.transition4 = transition(widths[:2], widths[:3])
        self.stage4 = stage(widths[:3], 2, BLOCKS, align_corners=False)

    def forward(self, planes: Tensor, table: Tensor) -> list[Tensor]:
        """planes (N, 21, H, W), table (N, 8, 8) → three maps (N, C_i, H/8/2^i, W/8/2^i), rounded up."""
        x = self.narrow(self.dilated(planes))  # (N, 64, H, W), (N, 4, H, W)
        x = F.pixel_unshuffle(x, 8)  # (N, 256, H/8, W/8): channel, row and column within the block
        steps = table.reshape(-1, 1, 64).expand(-1, 4, 64).reshape(-1, 256, 1, 1)
        x = torch.cat([x, x * steps], dim=1)  # (N, 512, H/8, W/8)
        maps = [self.blocks(x)]  # (N, C_0, H/8, W/8)
        maps = self.stage3(advance(self.transition3, maps))  # two maps
        result: list[Tensor] = self.stage4(advance(self.transition4, maps))  # three
        return result


def coefficient_planes(coefficients: Tensor) -> Tensor:
    """Quantised coefficients (N, H, W) → bool (N, 21, H, W): |c| is 0, 1, …, 19, or at least 20."""
    magnitudes = coefficients.abs().clamp(max=BINS - 1)
    return magnitudes[:, None] == torch.arange(BINS, device=coefficients.device).view(1, BINS, 1, 1)
