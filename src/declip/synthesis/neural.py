"""Manipulations by learnt generators: the round trip through the autoencoder of a latent generator.

A latent diffusion model leaves the trace of its decoder on all that it paints. Sending a picture through encoder and
decoder leaves the same trace without painting anything new: inside a mask ("regenerate-local"), or everywhere
("regenerate-global").

The autoencoder is TAEF2 (MIT licence; a folder with `taef2_encoder.pth` and `taef2_decoder.pth`), or one of diffusers',
AutoencoderTiny, AutoencoderKL or VQModel: a folder that `save_pretrained` wrote, or a hub id. `AUTOENCODERS` has some.
A picture of more than 1024 px a side goes through by tiles.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from declip.errors import WeightsError
from declip.nn import devices
from declip.synthesis.classical import paste

__all__ = [
    "AUTOENCODERS",
    "FILES",
    "Autoencoder",
    "AutoencoderCard",
    "LatentAutoencoder",
    "RoundTrip",
    "from_diffusers",
    "load",
    "locate",
    "regenerate_global",
    "regenerate_local",
    "round_trip",
]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FILES = ("taef2_encoder.pth", "taef2_decoder.pth")

_WIDTH = 64
_LATENT = 32
_STRIDE = 8  # px of the picture per latent
_MARGIN = 32  # px around a mask that are sent along, so that its surroundings shape it
_TILE = 1024  # px; a larger picture is sent by tiles of this side
_OVERLAP = 128  # px over which neighbouring tiles blend
_KINDS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderCard:
    """An autoencoder to be had: source is a hub id, or says where else; needs, what must be installed."""

    source: str
    licence: str
    needs: str = "diffusers"


# What `load` accepts is not limited to these.
AUTOENCODERS: Mapping[str, AutoencoderCard] = MappingProxyType(
    {
        "taef2": AutoencoderCard(source="two files of state dicts", licence="MIT", needs="torch"),
        "taesd": AutoencoderCard(source="madebyollin/taesd", licence="MIT"),
        "sd-vae": AutoencoderCard(source="stabilityai/sd-vae-ft-mse", licence="MIT"),
        "ldm-vq": AutoencoderCard(source="CompVis/ldm-celebahq-256/vqvae", licence="Apache-2.0"),
    }
)


class RoundTrip(Protocol):
    """stride: px of the picture per latent; regenerate: (H, W, 3) uint8 → the same picture after the round trip."""

    @property
    def stride(self) -> int: ...

    def regenerate(self, pixels: Pixels) -> Pixels: ...


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

    stride = _STRIDE

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
        device = next(self.decoder.parameters()).device
        return round_trip(pixels, _STRIDE, lambda image: cast(Tensor, self(image.to(device))).cpu())


class LatentAutoencoder:
    """One of diffusers' autoencoders; for inference only.

    stride: px of the picture per latent. scale, shift: latents × as a diffusion model sees them.
    """

    def __init__(self, network: Any, *, device: str = "cpu") -> None:
        """network: an AutoencoderKL, AutoencoderTiny or VQModel."""
        self.network = network.requires_grad_(False).eval().to(device)
        self.kind = type(network).__name__
        config = network.config
        widths = config.encoder_block_out_channels if self.kind == "AutoencoderTiny" else config.block_out_channels
        self.stride: int = 2 ** (len(widths) - 1)
        self.device = device
        self.scale = float(config.scaling_factor or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1], sides multiples of `stride` → (N, C, H/stride, W/stride)."""
        encoded = self.network.encode(image.to(self.device))
        # The likeliest latents rather than drawn ones: a round trip is no lottery.
        latents = encoded.latent_dist.mode() if self.kind == "AutoencoderKL" else encoded.latents
        return (cast(Tensor, latents) - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) → (N, 3, h·stride, w·stride) float32, about [-1, 1], on the CPU."""
        return cast(Tensor, self.network.decode(latents / self.scale + self.shift).sample).float().cpu()

    def regenerate(self, pixels: Pixels) -> Pixels:
        """(H, W, 3) uint8 → the same picture after the round trip; odd sizes are padded by reflection meanwhile."""
        return round_trip(pixels, self.stride, lambda image: self.decode(self.encode(image * 2 - 1)) / 2 + 0.5)


@lru_cache(maxsize=2)
def load(source: str | Path, device: str = "cpu") -> Autoencoder | LatentAutoencoder:
    """An autoencoder; loaded once per process.

    source: the folder of TAEF2's two files, a folder of diffusers' (with a config.json), or, as a string, a hub id
        OWNER/NAME, which may be followed by a folder: OWNER/NAME/vae.
    device: where it computes, as torch names it.

    Raises:
        WeightsError: a file is missing, damaged, or of another architecture.
        SpecError: torch cannot use the device.
        MissingExtraError: diffusers is not installed.
    """
    devices.usable(device)
    folder = Path(source)
    on_hub = isinstance(source, str) and not folder.exists() and _is_hub_id(source)
    if on_hub or (folder / "config.json").is_file():
        return _load_diffusers(str(source), device)
    model = Autoencoder()
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
    if device == "cpu" and _native_bfloat16():
        model.to_bfloat16()
    return model.to(device)


def locate(source: str) -> tuple[str, str]:
    """A local path → (path, ""); a hub id with or without what is to be taken of it → (OWNER/NAME, rest).

    Raises WeightsError for what is neither.
    """
    if Path(source).exists():
        return source, ""
    if not _is_hub_id(source):
        raise WeightsError(f"{source} is no file or folder here, and no hub id OWNER/NAME")
    owner, name, *rest = source.split("/", 2)
    return f"{owner}/{name}", rest[0] if rest else ""


def from_diffusers(kind: Any, source: str, part: str = "") -> Any:
    """A network of the class `kind` from a folder or the hub, loaded strictly; part: a folder inside the source.

    Raises WeightsError if it cannot be had, or if a tensor is missing, left over or of another shape.
    """
    where, inside = locate(source)
    subfolder = "/".join(name for name in (inside, part) if name)
    shown = f"{source}/{part}" if part else source
    try:
        network, info = kind.from_pretrained(where, subfolder=subfolder or None, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise WeightsError(f"{shown} cannot be loaded as {kind.__name__}: {error}") from error
    wrong = [f"{name.replace('_', ' ')}: {', '.join(map(str, found))}" for name, found in info.items() if found]
    if wrong:
        raise WeightsError(f"{shown} does not hold the weights of its {kind.__name__}; {'; '.join(wrong)}")
    return network


def regenerate_local(
    pixels: Pixels, mask: Mask, rng: np.random.Generator, autoencoder: RoundTrip
) -> tuple[Pixels, Mask]:
    """The round trip inside the mask; half of the time with a soft outline. Shapes as in `classical`."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    # The window starts on the latent grid of the whole picture, so the trace is that of the whole picture's round trip.
    top, left = (_on_grid(int(first) - _MARGIN, autoencoder.stride) for first in (rows[0], columns[0]))
    window = slice(top, int(rows[-1]) + 1 + _MARGIN), slice(left, int(columns[-1]) + 1 + _MARGIN)
    filled = pixels.copy()
    filled[window] = autoencoder.regenerate(np.ascontiguousarray(pixels[window]))
    feather = float(rng.uniform(1, 3)) if rng.random() < 0.5 else 0.0
    return paste(pixels, filled, mask, feather), mask


def regenerate_global(pixels: Pixels, autoencoder: RoundTrip) -> tuple[Pixels, Mask]:
    """The round trip of the whole picture; the mask is all of it."""
    return autoencoder.regenerate(pixels), np.ones((pixels.shape[0], pixels.shape[1]), dtype=bool)


def _on_grid(position: int, stride: int) -> int:
    return max(0, position) // stride * stride


def round_trip(pixels: Pixels, stride: int, network: Callable[[Tensor], Tensor]) -> Pixels:
    """(H, W, 3) uint8 through a network of images in [0, 1] whose sides are multiples of the stride."""
    height, width = pixels.shape[:2]
    tops, lefts = _starts(height, stride), _starts(width, stride)
    if len(tops) == len(lefts) == 1:
        return np.ascontiguousarray(_once(pixels, stride, network).round().to(torch.uint8).numpy())
    total = np.zeros(pixels.shape, dtype=np.float32)
    weights = np.zeros((height, width, 1), dtype=np.float32)
    for top in tops:
        for left in lefts:
            window = slice(top, min(top + _TILE, height)), slice(left, min(left + _TILE, width))
            tile = _once(np.ascontiguousarray(pixels[window]), stride, network).numpy()
            weight = np.outer(_ramp(tile.shape[0]), _ramp(tile.shape[1]))[..., None].astype(np.float32)
            total[window] += weight * tile
            weights[window] += weight
    return np.asarray(np.rint(total / weights), dtype=np.uint8)


def _once(pixels: Pixels, stride: int, network: Callable[[Tensor], Tensor]) -> Tensor:
    """(H, W, 3) uint8 → (H, W, 3) float32 in [0, 255]."""
    height, width = pixels.shape[:2]
    below, right = -height % stride, -width % stride
    mode = "reflect" if min(height, width) >= stride else "edge"
    padded = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode=mode)  # type: ignore[call-overload]
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255  # (1, 3, H', W')
    with torch.inference_mode():
        return network(image)[0, :, :height, :width].clamp(0, 1).mul(255).permute(1, 2, 0)


def _starts(side: int, stride: int) -> list[int]:
    """Where tiles begin: on the latent grid of the whole picture, the last where it just reaches the end."""
    if side <= _TILE:
        return [0]
    last = -(-(side - _TILE) // stride) * stride
    return [*range(0, last, _TILE - _OVERLAP), last]


def _ramp(side: int) -> NDArray[np.float64]:
    """The weights of a tile's pixels along one side: rising over the overlap from both ends, never 0."""
    rise = np.minimum(np.arange(side) + 1, _OVERLAP) / _OVERLAP
    return np.minimum(rise, rise[::-1])


def _is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w./-]+)?", source) is not None


def _load_diffusers(source: str, device: str) -> LatentAutoencoder:
    import diffusers

    where, inside = locate(source)
    try:
        config = diffusers.AutoencoderKL.load_config(where, subfolder=inside or None)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{source}: its config.json cannot be read: {error}") from error
    name = config.get("_class_name")
    if name not in _KINDS:
        raise WeightsError(f"{source} is a {name}; expected an autoencoder: {', '.join(_KINDS)}")
    return LatentAutoencoder(from_diffusers(getattr(diffusers, name), source), device=device)


def _native_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 (elsewhere it is emulated, and slower than float32)."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest torch that is allowed
    found = ask() if ask is not None else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
