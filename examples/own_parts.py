"""A backbone and a decoder of your own: any modules that keep the shapes go into DeclipNet."""

import torch
from torch import Tensor, nn

from declip.nn.backbones import Features
from declip.nn.model import DeclipNet


class Patches(nn.Module):
    """Normalised pictures (N, 3, S, S) → Features: here one map (N, 32, S/8, S/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 32, kernel_size=8, stride=8)

    def forward(self, images: Tensor) -> Features:
        return Features((self.project(images),))


class Pointwise(nn.Conv2d):
    """Features → logits (N, T, T)."""

    def forward(self, features: Features) -> Tensor:
        return nn.functional.interpolate(super().forward(features.fused()), (256, 256), mode="bilinear")[:, 0]


net = DeclipNet([Patches()], Pointwise(32, 1, kernel_size=1))  # the backbone is frozen, the decoder learns
print(tuple(net(torch.randn(2, 3, 224, 224)).shape), sum(p.numel() for p in net.learnt_parameters()), "to learn")
