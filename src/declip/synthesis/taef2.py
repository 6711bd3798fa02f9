"""TAEF2, a small autoencoder of a latent generator (MIT licence): its network, and how its two files are read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from declip.errors import WeightsError
from declip.nn import devices

__all__ = ["FILES", "Taef2", "load"]

FILES = ("taef2_encoder.pth", "taef2_decoder.pth")
_WIDTH = 64
_LATENT = 32


class _Block(nn.Module):
    """ReLU(conv(x) + x), (N, 64, h, w) → the same; with `pool`, x first gathers what lies in its neighbourhood."""

    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(inplace=True), _conv(), nn.ReLU(inplace=True), _conv())
        self.pool: nn.Sequential | None = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(_WIDTH, 4 * _WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * _WIDTH),
                nn.ReLU(inplace=True),
                nn.Conv2d(4 * _WIDTH, _WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        # In place: memory traffic is a fifth of the time.
        return cast(Tensor, self.conv(x)).add_(x).relu_()


class _SoftClamp(nn.Module):
    """Keeps latents within ±3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _conv(inputs: int = _WIDTH, outputs: int = _WIDTH, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Taef2(nn.Module):
    """RGB in [0, 1] → 32 latent channels at an eighth of the size → RGB in [0, 1]. For inference only."""

    stride = 8  # px of the picture per latent

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3), _Block()]
        for pool in (False, False, True):
            layers += [_conv(stride=2, bias=False), *(_Block(pool=pool) for _ in range(3))]
        self.encoder = nn.Sequential(*layers, _conv(outputs=_LATENT))
        layers = [_SoftClamp(), _conv(_LATENT), nn.ReLU(inplace=True)]
        for pool in (True, False, False):
            layers += [*(_Block(pool=pool) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(bias=False)]
        self.decoder = nn.Sequential(*layers, _Block(), _conv(outputs=3))
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1], H and W multiples of 8 → the same, on the CPU."""
        first = next(self.encoder.parameters())
        x = self.encoder(x.to(first.device, first.dtype, memory_format=torch.channels_last))  # (N, 32, H/8, W/8)
        x = self.decoder[:-1](x)  # (N, 64, H, W)
        return cast(Tensor, self.decoder[-1](x.float())).clamp(0, 1).cpu()


def load(folder: Path, device: str) -> Taef2:
    """Read the two files of a folder, strictly. On a CPU that can, all but the last layer compute in bfloat16.

    Raises WeightsError if a file is missing, damaged, or of another architecture.
    """
    model = Taef2()
    for part, name in zip((model.encoder, model.decoder), FILES, strict=True):
        path = folder / name
        if not path.is_file():
            raise WeightsError(
                f"{path} is missing; the folder must hold {' and '.join(FILES)}, or a config.json and its weights"
            )
        try:
            part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
            raise WeightsError(f"{path} does not hold the weights of a TAEF2 autoencoder: {error}") from error
    if device == "cpu" and devices.has_bf16(torch.device(device)):
        # The last layer stays as it is: a picture in bfloat16 would have fewer levels than one of 8 bits.
        model.encoder.to(torch.bfloat16)
        model.decoder[:-1].to(torch.bfloat16)
    return model.to(device)
