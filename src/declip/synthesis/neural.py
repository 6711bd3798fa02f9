"""Manipulations by learnt generators: the round trip through the autoencoder of a latent generator.

A latent diffusion model leaves the trace of its decoder on all that it paints. Sending a picture through encoder and
decoder leaves the same trace without painting anything new: inside a mask ("regenerate-local"), or everywhere
("regenerate-global").

The autoencoder is TAEF2 (MIT licence): a folder with `taef2_encoder.pth` and `taef2_decoder.pth`.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from declip.errors import WeightsError
from declip.synthesis.classical import paste

__all__ = ["FILES", "Autoencoder", "load", "regenerate_global", "regenerate_local"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FILES = ("taef2_encoder.pth", "taef2_decoder.pth")

_WIDTH = 64
_LATENT = 32
_STRIDE = 8  # px of the picture per latent
_MARGIN = 32  # px around a mask that are sent along, so that its surroundings shape it


class _Block(nn.Module):
    """ReLU(conv(x) + x), (N, 64, h, w) → the same; with `pool`, x first gathers what lies in its neighbourhood."""

    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), _relu(), _conv(), _relu(), _conv())
        self.pool: nn.Sequential | None = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(_WIDTH, 4 * _WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * _WIDTH),
                _relu(),
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


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3), _Block()]
    for pool in (False, False, True):
        layers += [_conv(stride=2, bias=False), *(_Block(pool=pool) for _ in range(3))]
    return nn.Sequential(*layers, _conv(outputs=_LATENT))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), _conv(_LATENT), _relu()]
    for pool in (True, False, False):
        layers += [*(_Block(pool=pool) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(outputs=3))


class Autoencoder(nn.Module):
    """RGB in [0, 1] → 32 latent channels at an eighth of the size → RGB in [0, 1].

    For inference only. `to_bfloat16` makes it several times as fast on processors with such instructions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.decoder = _decoder()
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1], H and W multiples of 8 → the same."""
        dtype = next(self.encoder.parameters()).dtype
        x = self.encoder(x.to(dtype, memory_format=torch.channels_last))  # (N, 32, H/8, W/8)
        x = self.decoder[:-1](x)  # (N, 64, H, W)
        return cast(Tensor, self.decoder[-1](x.float())).clamp(0, 1)

    def to_bfloat16(self) -> None:
        """All but the last layer: a picture in bfloat16 would have fewer levels than one of 8 bits."""
        self.encoder.to(torch.bfloat16)
        self.decoder[:-1].to(torch.bfloat16)

    def regenerate(self, pixels: Pixels) -> Pixels:
        """(H, W, 3) uint8 → the same picture after the round trip; odd sizes are padded by reflection meanwhile."""
        height, width = pixels.shape[:2]
        below, right = -height % _STRIDE, -width % _STRIDE
        mode = "reflect" if min(height, width) >= _STRIDE else "edge"
        padded = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode=mode)  # type: ignore[call-overload]
        image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255  # (1, 3, H', W')
        with torch.inference_mode():
            result = self(image)[0, :, :height, :width] * 255
        return np.ascontiguousarray(result.round().to(torch.uint8).permute(1, 2, 0).numpy())


@lru_cache(maxsize=2)
def load(folder: Path) -> Autoencoder:
    """The autoencoder whose two files lie in `folder`; loaded once per process.

    Raises:
        WeightsError: a file is missing, damaged, or of another architecture.
    """
    model = Autoencoder()
    for part, name in zip((model.encoder, model.decoder), FILES, strict=True):
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{path} is missing; the folder must hold {' and '.join(FILES)}")
        try:
            part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
            raise WeightsError(f"{path} does not hold the weights of a TAEF2 autoencoder: {error}") from error
    if _native_bfloat16():
        model.to_bfloat16()
    return model


def regenerate_local(
    pixels: Pixels, mask: Mask, rng: np.random.Generator, autoencoder: Autoencoder
) -> tuple[Pixels, Mask]:
    """The round trip inside the mask; half of the time with a soft outline. Shapes as in `classical`."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    # The window starts on the latent grid of the whole picture, so the trace is that of the whole picture's round trip.
    top, left = (max(0, int(first) - _MARGIN) // _STRIDE * _STRIDE for first in (rows[0], columns[0]))
    window = slice(top, int(rows[-1]) + 1 + _MARGIN), slice(left, int(columns[-1]) + 1 + _MARGIN)
    filled = pixels.copy()
    filled[window] = autoencoder.regenerate(np.ascontiguousarray(pixels[window]))
    feather = float(rng.uniform(1, 3)) if rng.random() < 0.5 else 0.0
    return paste(pixels, filled, mask, feather), mask


def regenerate_global(pixels: Pixels, autoencoder: Autoencoder) -> tuple[Pixels, Mask]:
    """The round trip of the whole picture; the mask is all of it."""
    return autoencoder.regenerate(pixels), np.ones((pixels.shape[0], pixels.shape[1]), dtype=bool)


def _native_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 (elsewhere it is emulated, and slower than float32)."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest torch that is allowed
    found = ask() if ask is not None else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
