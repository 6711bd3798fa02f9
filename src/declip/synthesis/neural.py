"""Manipulations by the round trip through the autoencoder of a latent generator.

A latent diffusion model leaves the trace of its decoder on all that it paints. Sending a picture through encoder and
decoder leaves the same trace without painting anything new: inside a mask ("regenerate-local"), or everywhere
("regenerate-global").

The autoencoder is TAEF2 (a folder with its two files), or one of diffusers', AutoencoderTiny, AutoencoderKL or VQModel:
a folder that `save_pretrained` wrote, or a hub id. A picture of more than 1024 px a side goes through by tiles.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from declip.errors import WeightsError
from declip.nn import devices
from declip.synthesis import taef2
from declip.synthesis.editing import Apply, filled, window_of
from declip.synthesis.steps import Mask, Pixels

__all__ = [
    "LatentAutoencoder",
    "RoundTrip",
    "from_diffusers",
    "load",
    "locate",
    "regenerate_global",
    "regenerate_local",
    "round_trip",
]

_MARGIN = 32  # px around a mask that are sent along, so that its surroundings shape it
_TILE = 1024  # px; a larger picture is sent by tiles of this side
_OVERLAP = 128  # px over which neighbouring tiles blend
_KINDS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


class RoundTrip(Protocol):
    """An autoencoder: images (N, 3, H, W) float32 in [0, 1], sides multiples of its stride → the same, on the CPU.

    stride: px of the picture per latent.
    """

    @property
    def stride(self) -> int: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


class LatentAutoencoder:
    """One of diffusers' autoencoders (`_KINDS`); for inference only.

    stride: px of the picture per latent. scale, shift: latents × as a diffusion model sees them.
    """

    def __init__(self, network: Any, device: str) -> None:
        self.network = network.requires_grad_(False).eval().to(device)
        self.kind = type(network).__name__
        config = network.config
        widths = config.encoder_block_out_channels if self.kind == "AutoencoderTiny" else config.block_out_channels
        self.stride: int = 2 ** (len(widths) - 1)
        self.device = device
        self.scale = float(config.scaling_factor or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1], sides multiples of `stride` → (N, C, H/stride, W/stride)."""
        encoded = self.network.encode(images.to(self.device))
        # The likeliest latents rather than drawn ones: a round trip is no lottery.
        latents = encoded.latent_dist.mode() if self.kind == "AutoencoderKL" else encoded.latents
        return (cast(Tensor, latents) - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) → (N, 3, h·stride, w·stride) float32, about [-1, 1], on the CPU."""
        return cast(Tensor, self.network.decode(latents / self.scale + self.shift).sample).float().cpu()

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.decode(self.encode(images * 2 - 1)) / 2 + 0.5


Autoencoder: TypeAlias = taef2.Taef2 | LatentAutoencoder


@lru_cache(maxsize=2)
def load(source: str | Path, device: str = "cpu") -> Autoencoder:
    """Open an autoencoder; it is loaded once per process.

    source: the folder of TAEF2's two files, a folder of diffusers' (with a config.json), or, as a string, a hub id
        OWNER/NAME, which may be followed by a folder: OWNER/NAME/vae. device: where it computes, as torch names it.

    Raises WeightsError if a file is missing, damaged, or of another architecture, and SpecError if torch cannot use
    the device.
    """
    devices.usable(device)
    folder = Path(source)
    on_hub = isinstance(source, str) and not folder.exists() and _is_hub_id(source)
    if not on_hub and not (folder / "config.json").is_file():
        return taef2.load(folder, device)
    import diffusers

    where, inside = locate(str(source))
    try:
        config = diffusers.AutoencoderKL.load_config(where, subfolder=inside or None)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{source}: its config.json cannot be read: {error}") from error
    name = config.get("_class_name")
    if name not in _KINDS:
        raise WeightsError(f"{source} is a {name}; expected an autoencoder: {', '.join(_KINDS)}")
    return LatentAutoencoder(from_diffusers(getattr(diffusers, name), str(source)), device)


def locate(source: str, part: str = "") -> tuple[str, str]:
    """Split a hub id into OWNER/NAME and the folder or file in it, ""  for all; a local path is a whole by itself.

    part: a further folder inside the source. Raises WeightsError for what is neither.
    """
    if Path(source).exists():
        return source, part
    if not _is_hub_id(source):
        raise WeightsError(f"{source} is no file or folder here, and no hub id OWNER/NAME")
    owner, name, *inside = source.split("/", 2)
    return f"{owner}/{name}", "/".join(filter(None, (*inside, part)))


def from_diffusers(kind: Any, source: str, part: str = "") -> Any:
    """Load a network of the class `kind` from a folder or the hub, strictly; part: a folder inside the source.

    Raises WeightsError if it cannot be had, or if a tensor is missing, left over or of another shape.
    """
    where, subfolder = locate(source, part)
    shown = f"{source}/{part}" if part else source
    try:
        network, info = kind.from_pretrained(where, subfolder=subfolder or None, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise WeightsError(f"{shown} cannot be loaded as {kind.__name__}: {error}") from error
    wrong = [f"{name.replace('_', ' ')}: {', '.join(map(str, found))}" for name, found in info.items() if found]
    if wrong:
        raise WeightsError(f"{shown} does not hold the weights of its {kind.__name__}; {'; '.join(wrong)}")
    return network


def regenerate_local(autoencoder: RoundTrip) -> Apply:
    """Make the generator that sends what is inside the mask through an autoencoder."""

    def fill(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        # It starts on the latent grid of the whole picture, so the trace is that of the whole picture's round trip.
        window = window_of(mask, _MARGIN, autoencoder.stride)
        made = pixels.copy()
        made[window] = round_trip(autoencoder, np.ascontiguousarray(pixels[window]))
        return made

    return filled(fill, feather=3)


def regenerate_global(autoencoder: RoundTrip) -> Apply:
    """Make the generator that sends the whole picture through an autoencoder."""
    return filled(lambda pixels, mask, rng: round_trip(autoencoder, pixels), whole=True)


def round_trip(autoencoder: RoundTrip, pixels: Pixels) -> Pixels:
    """Send (H, W, 3) uint8 of any size through an autoencoder; return the same size."""
    height, width = pixels.shape[:2]
    tops, lefts = (_starts(side, autoencoder.stride) for side in (height, width))
    total = np.zeros(pixels.shape, dtype=np.float32)
    weights = np.zeros((height, width, 1), dtype=np.float32)
    for top in tops:
        for left in lefts:
            window = slice(top, min(top + _TILE, height)), slice(left, min(left + _TILE, width))
            tile = _once(autoencoder, np.ascontiguousarray(pixels[window]))
            if len(tops) == len(lefts) == 1:
                return np.rint(tile).astype(np.uint8)
            weight = np.outer(_ramp(tile.shape[0]), _ramp(tile.shape[1]))[..., None].astype(np.float32)
            total[window] += weight * tile
            weights[window] += weight
    return np.asarray(np.rint(total / weights), dtype=np.uint8)


def _once(autoencoder: RoundTrip, pixels: Pixels) -> NDArray[np.float32]:
    """Send (H, W, 3) uint8 through an autoencoder at once; return (H, W, 3) float32 in [0, 255].

    Sides that are no multiples of the stride are padded by reflection meanwhile.
    """
    height, width = pixels.shape[:2]
    stride = autoencoder.stride
    mode: Any = "reflect" if min(height, width) >= stride else "edge"
    padded = np.pad(pixels, ((0, -height % stride), (0, -width % stride), (0, 0)), mode=mode)
    images = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255  # (1, 3, H', W')
    with torch.inference_mode():
        made = autoencoder(images)[0, :, :height, :width].clamp(0, 1).mul(255).permute(1, 2, 0)
    return np.ascontiguousarray(made.numpy())


def _starts(side: int, stride: int) -> list[int]:
    """Return where tiles begin: on the latent grid of the whole picture, the last where it just reaches the end."""
    if side <= _TILE:
        return [0]
    last = -(-(side - _TILE) // stride) * stride
    return [*range(0, last, _TILE - _OVERLAP), last]


def _ramp(side: int) -> NDArray[np.float64]:
    """Return the weights of a tile's pixels along one side: rising over the overlap from both ends, never 0."""
    rise = np.minimum(np.arange(side) + 1, _OVERLAP) / _OVERLAP
    return np.minimum(rise, rise[::-1])


def _is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w./-]+)?", source) is not None
