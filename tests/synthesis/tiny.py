"""Tiny networks of diffusers with random weights, and files of TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch


def autoencoder(kind: str, levels: int = 2, **settings: Any) -> Any:
    """Make an AutoencoderKL, VQModel or AutoencoderTiny."""
    torch.manual_seed(0)
    widths = (8,) * levels
    if kind == "AutoencoderTiny":
        counts = (1,) * levels
        blocks = {"num_encoder_blocks": counts, "num_decoder_blocks": counts}
        return diffusers.AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths, **blocks)
    network: Any = getattr(diffusers, kind)
    return network(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        norm_num_groups=4,
        **settings,
    )


def unet(outputs: int = 3) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        out_channels=outputs,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )


def save(folder: Path, **parts: Any) -> Path:
    """Write the parts of a model into folders of their names, as `save_pretrained` lays them out."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


def script(network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], path: Path) -> Path:
    """Write what an in-painter does to an image and a mask as TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
        example = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
        torch.jit.trace(network, example).save(str(path))  # type: ignore[no-untyped-call]
    return path
