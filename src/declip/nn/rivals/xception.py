"""Rivals on timm's Xception: Patch Forensics (Chai et al., ECCV 2020) and Grad-CAM (Selvaraju et al., ICCV 2017).

Patch Forensics cuts it and judges every patch by itself. The fewer blocks, the smaller the patch that a judgement sees,
and the more of them there are; the DeCLIP paper has block 2. At 299 px:

| block | patches | receptive field |
|---|---|---|
| 1 | 74×74 | 19 px |
| 2 | 37×37 | 43 px |
| 3 | 19×19 | 91 px |
| 4 | 19×19 | 187 px |
| 5 | 19×19 | 283 px |

Grad-CAM, the weakly supervised baseline of the Dolos paper (Țânțaru et al., WACV 2024), learns from labels of whole
pictures. It weighs each of the last maps A_k by the mean gradient of the picture's logit y in it, sums them, and keeps
what is positive. Here y is the mean over T×T positions of sum_k w_k A_k + b, so that this gradient is w_k / T² at every
position, and

    Grad-CAM = ReLU(sum_k w_k A_k) / T² = ReLU(map − b) / T²

where map = sum_k w_k A_k + b, the class activation map (Zhou et al., CVPR 2016), is what the network gives, without a
gradient. It is kept without the ReLU and the stretching to 0-1 that Grad-CAM is shown with: its mean is the picture's
logit, its sigmoid a score of every position, and where Grad-CAM is positive both order positions alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from declip.errors import SpecError, WeightsError
from declip.nn.backbones import read_tensors

__all__ = ["XCEPTION", "GradCam", "PatchForensics", "load_imagenet"]

XCEPTION = "legacy_xception"
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


class GradCam(nn.Module):
    """timm's whole Xception, and its classifier of one logit as a 1×1 convolution on the last maps, before pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = timm.create_model(XCEPTION, pretrained=False, num_classes=0)
        self.head = nn.Conv2d(2048, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) → map of log-odds (N, 1, h, w), 10×10 of 299 px; its mean is the picture's logit."""
        maps = self.body.forward_features(images)  # (N, 2048, H/32, W/32), after the last ReLU
        logits: Tensor = self.head(maps)  # (N, 1, h, w)
        return logits


def load_imagenet(network: PatchForensics | GradCam, path: Path) -> None:
    """Start from a classifier of ImageNet: all but the head, which stays as it is.

    path: the weights of timm's `legacy_xception` (.pth or .safetensors). Raises WeightsError where they do not fit the
    whole of that network.
    """
    weights = {"state_dict": read_tensors(path)}
    try:
        whole: nn.Module = timm.create_model(XCEPTION, pretrained=True, pretrained_cfg_overlay=weights)
    except (RuntimeError, KeyError) as error:
        raise WeightsError(f"{path} does not fit timm's {XCEPTION}: {error}") from error
    body = network.body if isinstance(network, GradCam) else network
    body.load_state_dict(body.state_dict() | {k: v for k, v in whole.state_dict().items() if k in body.state_dict()})
