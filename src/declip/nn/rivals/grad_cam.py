"""Grad-CAM on an Xception that judges whole pictures: a map from labels alone (Selvaraju et al., ICCV 2017).

The weakly supervised baseline of the Dolos paper (Țânțaru et al., WACV 2024). Grad-CAM weighs each of the last maps
A_k by the mean gradient of the picture's logit y in it, sums them, and keeps what is positive. Here y is the mean over
T×T positions of sum_k w_k A_k + b, so that this gradient is w_k / T² at every position, and

    Grad-CAM = ReLU(sum_k w_k A_k) / T² = ReLU(map − b) / T²

where map = sum_k w_k A_k + b, the class activation map (Zhou et al., CVPR 2016), is what the network gives. No
gradient is computed. The map is kept as it is, without the ReLU and the stretching to 0-1 that Grad-CAM is shown with:
its mean is the picture's logit, its sigmoid a score of every position, and where Grad-CAM is positive both order
positions alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from declip.nn.rivals.xception import XCEPTION, imagenet_tensors

__all__ = ["GradCam"]

CHANNELS = 2048
LAST = 4  # timm's index of the last maps


class GradCam(nn.Module):
    """timm's whole Xception, and its classifier of one logit as a 1×1 convolution on the last maps, before pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = timm.create_model(XCEPTION, pretrained=False, num_classes=0)
        self.head = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) → map of log-odds (N, 1, h, w), 10×10 of 299 px; its mean is the picture's logit."""
        maps = self.body.forward_features(images)  # (N, 2048, H/32, W/32), after the last ReLU
        logits: Tensor = self.head(maps)  # (N, 1, h, w)
        return logits

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start from a classifier of ImageNet: all but the head, which stays as it is.

        path: the weights of timm's `legacy_xception` (.pth or .safetensors); None lets timm download them.
        Raises WeightsError as `imagenet_tensors` does.
        """
        self.body.load_state_dict({k: v for k, v in imagenet_tensors(path).items() if not k.startswith("fc.")})
