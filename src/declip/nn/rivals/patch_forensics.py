"""Patch Forensics: a truncated Xception that judges every patch by itself (Chai et al., ECCV 2020).

The fewer blocks, the smaller the patch that a judgement sees, and the more of them there are. At 299 px:

| block | patches | receptive field |
|---|---|---|
| 1 | 74×74 | 19 px |
| 2 | 37×37 | 43 px |
| 3 | 19×19 | 91 px |
| 4 | 19×19 | 187 px |
| 5 | 19×19 | 283 px |

Block 2 is the one of the DeCLIP paper. Input: RGB in [0, 1], mean = std = 0.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.rivals.xception import XCEPTION, imagenet_tensors

__all__ = ["PatchForensics"]

CHANNELS = {1: 128, 2: 256, 3: 728, 4: 728, 5: 728}  # behind each block


class PatchForensics(nn.Module):
    """timm's Xception up to a block, and a 1×1 convolution to two classes. Raises SpecError for a block outside 1-5."""

    def __init__(self, block: int = 2) -> None:
        super().__init__()
        if block not in CHANNELS:
            raise SpecError(f"Patch Forensics is cut behind block {block!r}; expected 1, 2, 3, 4 or 5")
        # timm's own taps lie behind the ReLU that the next block begins with; these blocks end before it.
        whole: Any = timm.create_model(XCEPTION, pretrained=False)
        self.conv1 = whole.conv1
        self.bn1 = whole.bn1
        self.conv2 = whole.conv2
        self.bn2 = whole.bn2
        self.blocks = [f"block{i}" for i in range(1, block + 1)]
        for name in self.blocks:
            self.add_module(name, getattr(whole, name))
        self.head = nn.Conv2d(CHANNELS[block], 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) → logits (N, 2, h, w) of the patches: untouched, manipulated (as trained here)."""
        x = F.relu(self.bn1(self.conv1(images)))  # (N, 32, H/2, W/2), without padding: 299 → 149
        x = F.relu(self.bn2(self.conv2(x)))  # (N, 64, …), without padding: 149 → 147
        for name in self.blocks:
            x = self.get_submodule(name)(x)  # (N, 128, …/2), (N, 256, …/4), then (N, 728, …/8)
        logits: Tensor = self.head(x)  # (N, 2, h, w)
        return logits

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start from a classifier of ImageNet: all but the head, which stays as it is.

        path: the weights of timm's `legacy_xception` (.pth or .safetensors); None lets timm download them.
        Raises WeightsError where they cannot be had, or do not fit the whole of that network.
        """
        kept = tuple(f"{name}." for name in ("conv1", "bn1", "conv2", "bn2", *self.blocks))
        body = {k: v for k, v in imagenet_tensors(path).items() if k.startswith(kept)}
        self.load_state_dict(self.state_dict() | body)
