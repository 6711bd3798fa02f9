"""Features: the output of backbones and the input of decoders."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FeatureShape", "Features"]


class Features(NamedTuple):
    """The features of a batch of pictures.

    maps: one (N, C_i, h_i, w_i) per backbone layer, in the order of the spec.
    cls: (N, 1, C) class token beside the single map of a Vision Transformer, else None.
    """

    maps: tuple[Tensor, ...]
    cls: Tensor | None = None

    def fused(self) -> Tensor:
        """Resize all maps to the first one's grid (bilinear, as in the paper) and join them: (N, sum C_i, h_0, w_0)."""
        first, *others = self.maps
        size = first.shape[-2:]
        resized = [m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear") for m in others]
        return torch.cat([first, *resized], dim=1) if resized else first


class FeatureShape(NamedTuple):
    """Sizes a decoder is built for: channels and grid sides per map, and whether there is a class token."""

    channels: tuple[int, ...]
    grids: tuple[int, ...]
    has_cls: bool
