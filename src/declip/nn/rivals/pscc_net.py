"""PSCC-Net: masks from coarse to fine by progressive spatio-channel correlation (Liu et al., TCSVT 2022).

An HRNet that keeps full resolution gives four scales. On the coarsest, every position and every channel is compared
with all others, which gives a mask; that mask weighs the next finer scale, and so on up to the finest. A second head
judges the picture as a whole. Input: RGB in [0, 1], 256 px or a picture's native size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.rivals.hrnet import HighResolutionTrunk, bottlenecks, initialise, resize

__all__ = ["PsccNet", "PsccOutput"]

WIDTHS = (18, 36, 72, 144)
REDUCTIONS = (4, 2, 2, 1)  # of the four scales, finest first: the finest has too many positions to compare all


class PsccOutput(NamedTuple):
    """The output of PSCC-Net for a batch.

    masks: logits (N, 1, S/2^i, S/2^i) of the four masks, finest first. image: logits (N, 2): untouched, manipulated.
    """

    masks: tuple[Tensor, ...]
    image: Tensor


class PsccNet(nn.Module):
    """Encoder, localization and detection.

    size: side S of the finest mask, px, a multiple of 8; features of pictures of other sizes are resized to it. The
    official network has 256.
    """

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        if size <= 0 or size % 8:
            raise SpecError(f"PSCC-Net's size is {size}; expected a multiple of 8, as its four scales halve thrice")
        self.size = size
        self.encoder = HighResolutionTrunk(
            widths=WIDTHS, stem_stride=1, layer1_blocks=2, modules=(1, 1, 1), blocks=2, align_corners=True
        )
        scales = zip(WIDTHS, REDUCTIONS, strict=True)
        self.localization = nn.ModuleList([Correlation(width, reduction) for width, reduction in scales])
        self.detection = Detection(WIDTHS)
        initialise(self)

    def forward(self, images: Tensor) -> PsccOutput:
        """images (N, 3, H, W), RGB in [0, 1], any size → logits of four masks and of the picture."""
        scales = self.scales(self.encoder(images))
        masks: list[Tensor] = []
        for correlation, scale in zip(reversed(self.localization), reversed(scales), strict=True):
            if masks:  # weighed by what the coarser scale found
                scale = scale * resize(torch.sigmoid(masks[-1]), scale.shape[-2:], align_corners=True)
            masks.append(correlation(scale))  # (N, 1, S/8, S/8) first, (N, 1, S, S) last
        return PsccOutput(tuple(reversed(masks)), self.detection(scales))

    def scales(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Resize the encoder's maps: (N, C_i, H/2^i, W/2^i) → (N, C_i, S/2^i, S/2^i)."""
        sides = [self.size >> i for i in range(len(features))]
        return [resize(m, (side, side), align_corners=True) for m, side in zip(features, sides, strict=True)]


class Correlation(nn.Module):
    """Spatio-channel correlation, and a mask from what it adds to its input.

    With a reduction r, C channels of h×w positions are viewed as C·r² channels of (h/r)×(w/r): memory as it lies, not
    blocks of pixels (the official code's way, which its weights have learnt).
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        wide = channels * reduction**2
        self.value = nn.Conv2d(wide, wide, 1)
        self.query = nn.Conv2d(wide, wide, 1)
        self.key = nn.Conv2d(wide, wide, 1)
        self.spatial = nn.Conv2d(channels, channels, 1)
        self.channel = nn.Conv2d(channels, channels, 1)
        self.spatial_gain = nn.Parameter(torch.ones(1))
        self.channel_gain = nn.Parameter(torch.ones(1))
        self.mask = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w), h and w multiples of r → logits of a mask (N, 1, h, w)."""
        n, channels, h, w = x.shape
        r = self.reduction
        wide = x.reshape(n, channels * r * r, h // r, w // r)  # P = h·w/r² positions
        value, query, key = (conv(wide).flatten(2) for conv in (self.value, self.query, self.key))  # (N, C·r², P)
        value = value.transpose(1, 2)  # (N, P, C·r²)
        # Every position takes the values of those like it: softmax(queryᵀ key) value.
        spatial = F.scaled_dot_product_attention(
            query.transpose(1, 2).contiguous(), key.transpose(1, 2).contiguous(), value.contiguous(), scale=1.0
        )  # (N, P, C·r²)
        spatial = spatial.transpose(1, 2).reshape(n, channels, h, w)
        # Every channel takes those like it. Not transposed back before it is viewed: so does the official code.
        alike = torch.softmax(query @ key.transpose(1, 2), dim=-1)  # (N, C·r², C·r²)
        channel = (value @ alike).reshape(n, channels, h, w)
        x = x + self.spatial_gain * self.spatial(spatial) + self.channel_gain * self.channel(channel)
        logits: Tensor = self.mask(x)  # (N, 1, h, w)
        return logits


class Detection(nn.Module):
    """HRNet's classification head, narrower: four scales → one judgement."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        doubled = [2 * width for width in widths]
        self.widen = nn.ModuleList([bottlenecks(width, width, 1, expansion=2) for width in widths])
        self.down = nn.ModuleList([_biased_unit(a, b, kernel=3, stride=2) for a, b in pairwise(doubled)])
        self.final = _biased_unit(doubled[-1], 128, kernel=1, stride=1)
        self.classifier = nn.Sequential(nn.Linear(128, 16), nn.ReLU(inplace=True), nn.Linear(16, 2))

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Four maps (N, C_i, S/2^i, S/2^i) → logits (N, 2)."""
        first, *others = [widen(scale) for widen, scale in zip(self.widen, scales, strict=True)]  # (N, 2·C_i, S/2^i, …)
        x = first
        for down, other in zip(self.down, others, strict=True):
            x = other + down(x)  # (N, 2·C_i, S/2^i, S/2^i)
        pooled = self.final(x).mean(dim=(2, 3))  # (N, 128)
        logits: Tensor = self.classifier(pooled)  # (N, 2)
        return logits


def _biased_unit(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    """Conv (with a bias, unlike the trunk's), BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
