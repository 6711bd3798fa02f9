"""A rival with the interface of every model: named inputs → one map of logits; and the loss it is trained by.

Of two classes the logit is the difference, manipulated minus untouched: its sigmoid is their softmax.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.errors import SpecError
from declip.nn.backbones import weights_file
from declip.nn.rivals.cat_net import CatNet
from declip.nn.rivals.pscc_net import PsccNet
from declip.nn.rivals.xception import GradCam, PatchForensics, load_imagenet
from declip.spec import ModelSpec

__all__ = ["RivalNet", "build_rival"]

# CAT-Net's weights of the two classes.
UNTOUCHED, MANIPULATED = 0.5, 2.5
# Of a mask's rarer side at least this share is assumed, so that a few pixels do not outweigh a batch.
LEAST_SHARE = 0.01


class RivalNet(nn.Module):
    """Patch Forensics, Grad-CAM, PSCC-Net or CAT-Net, as a map of logits (N, T, T)."""

    def __init__(self, network: PatchForensics | GradCam | PsccNet | CatNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, coefficients: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """image (N, 3, S, S), normalised → logits (N, T, T). CAT-Net: coefficients (N, S, S), table (N, 8, 8), too."""
        match self.network:
            case PatchForensics():
                return _difference(self.network(image))
            case GradCam():
                logits: Tensor = self.network(image)  # (N, 1, T, T)
                return logits[:, 0]
            case PsccNet():
                finest: Tensor = self.network(image).masks[0]  # (N, 1, T, T)
                return finest[:, 0]
            case CatNet():
                return _difference(self.network(image, coefficients, table))

    def loss(
        self, targets: Tensor, image: Tensor, coefficients: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """Return the rival's own loss.

        targets: (N, T, T) in [0, 1], or (N,) of whole pictures: always for Grad-CAM, and possible for Patch Forensics,
        of which every patch then has its picture's label.
        """
        match self.network:
            case PatchForensics():
                logits = self(image)
                labels = targets if targets.ndim == 3 else targets[:, None, None].expand_as(logits)
                return F.binary_cross_entropy_with_logits(logits, labels)
            case GradCam():
                return F.binary_cross_entropy_with_logits(self(image).mean(dim=(1, 2)), targets)
            case PsccNet():
                found = self.network(image)
                masks = sum((_balanced(m[:, 0], targets) for m in found.masks), start=targets.new_zeros(()))
                whole = (targets.amax(dim=(1, 2)) > 0.5).long()
                return masks + F.cross_entropy(found.image, whole)
            case CatNet():
                logits = self(image, coefficients, table)
                weights = UNTOUCHED + (MANIPULATED - UNTOUCHED) * targets
                return _weighted(logits, targets, weights)


def build_rival(spec: ModelSpec, *, load_weights: bool = True, offline: bool = False) -> RivalNet:
    """Build the rival a spec describes, at random but for ImageNet's weights where an Xception's spec names some.

    Raises SpecError for sizes that the network does not have, WeightsError if weights are missing.
    """
    network: PatchForensics | GradCam | PsccNet | CatNet
    match spec.architecture:
        case "pscc-net":
            network, side = PsccNet(spec.output_size), spec.output_size
        case "cat-net":
            network, side = CatNet(spec.width or 48), spec.input_size // 4
        case _:
            (body,) = spec.backbones
            network = GradCam() if spec.architecture == "grad-cam" else PatchForensics(body.layer)
            whole = torch.empty(1, 3, spec.input_size, spec.input_size, device="meta")
            side = copy.deepcopy(network).to("meta")(whole).shape[-1]
            if load_weights and body.weights is not None:
                load_imagenet(network, weights_file(body.name, body.weights, body.sha256, offline))
    if spec.output_size != side:
        raise SpecError(
            f"output_size is {spec.output_size}; {spec.architecture} gives a map of {side} px for an input of "
            f"{spec.input_size} px"
        )
    return RivalNet(network).eval()


def _difference(logits: Tensor) -> Tensor:
    """(N, 2, h, w) → (N, h, w)."""
    return logits[:, 1] - logits[:, 0]


def _balanced(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE in which the two sides of each mask weigh the same; targets are averaged down to the logits' size."""
    labels = F.adaptive_avg_pool2d(targets[:, None], (logits.shape[-2], logits.shape[-1]))[:, 0]
    share = labels.mean(dim=(1, 2), keepdim=True).clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    return _weighted(logits, labels, labels / share + (1 - labels) / (1 - share))


def _weighted(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weights * losses).sum() / weights.sum()
