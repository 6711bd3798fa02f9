"""The weights of ImageNet for what is built on timm's Xception."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import Tensor, nn

from declip.errors import WeightsError
from declip.nn.backbones import read_tensors

__all__ = ["XCEPTION", "imagenet_tensors"]

XCEPTION = "legacy_xception"


def imagenet_tensors(path: Path | None = None) -> dict[str, Tensor]:
    """Return the state dict of timm's whole Xception, a classifier of ImageNet.

    path: its weights (.pth or .safetensors); None lets timm download them. Raises WeightsError where they cannot be
    had, or do not fit the whole of that network.
    """
    overlay = None if path is None else {"state_dict": read_tensors(path)}
    try:
        whole: nn.Module = timm.create_model(XCEPTION, pretrained=True, pretrained_cfg_overlay=overlay)
    except OSError as error:
        raise WeightsError(
            f"the weights of {XCEPTION} could not be fetched: {error}. Download the file that timm names for it "
            "elsewhere, and pass its path"
        ) from error
    except (RuntimeError, KeyError) as error:
        raise WeightsError(f"{path or 'what was fetched'} does not fit timm's {XCEPTION}: {error}") from error
    return whole.state_dict()
