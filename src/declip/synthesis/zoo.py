"""Small autoencoders of many architectures: their round trips stand for generators that nobody has.

A generative network leaves a trace in what it draws, mostly by the way it enlarges its features. `draw_architecture`
draws such a way, and everything else about an autoencoder, from a number; `fit` trains it for some minutes.
`tools/make_zoo.py` makes a folder of them:

    FOLDER/train/007.safetensors   FOLDER/train/007.json    the architecture, and how well it learnt
    FOLDER/unseen/028.safetensors  …                        held out, to test on autoencoders that no model has seen

Pictures are (H, W, 3) uint8 RGB outside the networks, (N, 3, H, W) float32 in [0, 1] inside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from declip.errors import WeightsError
from declip.files import write_together

__all__ = ["Architecture", "Fit", "ZooAutoencoder", "draw_architecture", "fit", "load", "open_zoo", "save"]

Enlargement = Literal["nearest", "bilinear", "shuffle", "transposed-2", "transposed-3", "transposed-4", "transposed-5"]
Norm = Literal["none", "batch", "group"]
Activation = Literal["relu", "leaky", "silu", "gelu", "elu"]
Loss = Literal["l1", "l2", "l1-gradient", "l2-gradient"]

# The number of an architecture decides its way of enlarging, so that any seven in a row have all of them.
ENLARGEMENTS: tuple[Enlargement, ...] = get_args(Enlargement)
_SEED = 21
_WIDEST = 64
_RATE = 3e-3
_WARM_UP = 50  # steps over which the learning rate rises; then it falls along half a cosine
_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": partial(nn.LeakyReLU, 0.2),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """All that decides a network of the zoo, but for its weights.

    number: seed of the drawing, and of the first weights. stride: px of the picture per latent; 4, 8 or 16.
    latents: channels of the latents. width: channels at full size; they double with each halving, up to 64.
    blocks: residual blocks at the smallest size, on either side. enlargement: how the decoder doubles sizes.
    refine: a further 3×3 convolution after each doubling. last: what makes RGB of the last features: a 3×3 or 1×1
    convolution at full size, or the last doubling itself ("direct").
    """

    number: int
    stride: int
    latents: int
    width: int
    blocks: int
    enlargement: Enlargement
    refine: bool
    last: Literal["3x3", "1x1", "direct"]
    norm: Norm
    activation: Activation
    loss: Loss


def draw_architecture(number: int) -> Architecture:
    """Return the architecture of a number (at least 0); the same for ever."""
    rng = np.random.default_rng((_SEED, number))
    stride = int(rng.choice((4, 8, 16), p=(0.35, 0.45, 0.2)))
    # At stride 4 latents are a fifth to a half of the values that they stand for, at larger strides less.
    latents = round(3 * stride**2 * float(rng.uniform(0.2, 0.5)) ** (stride**0.5 / 2))
    return Architecture(
        number=number,
        stride=stride,
        latents=max(8, latents),
        width=int(rng.choice((12, 16, 24))),
        blocks=int(rng.integers(0, 3)),
        enlargement=ENLARGEMENTS[number % len(ENLARGEMENTS)],
        refine=bool(rng.random() < 0.4),
        last=rng.choice(np.array(("3x3", "1x1", "direct")), p=(0.5, 0.2, 0.3)).item(),
        norm=rng.choice(np.array(get_args(Norm)), p=(0.4, 0.3, 0.3)).item(),
        activation=rng.choice(np.array(get_args(Activation))).item(),
        loss=rng.choice(np.array(get_args(Loss))).item(),
    )


class _Residual(nn.Module):
    """x + conv(act(conv(act(x)))), (N, C, h, w) → the same shape."""

    def __init__(self, width: int, plan: Architecture) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_stage(width, plan), *_stage(width, plan))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.layers(x))


class ZooAutoencoder(nn.Module):
    """The network of an architecture; (N, 3, H, W) in [0, 1], sides multiples of its stride → the same, not clamped.

    The mean colour of each latent's square goes past the network and is enlarged bilinearly: the network draws what is
    finer. So minutes of training are enough, and colours stay as they were.
    """

    def __init__(self, plan: Architecture) -> None:
        super().__init__()
        self.plan = plan
        self.stride = plan.stride
        levels = round(math.log2(plan.stride))
        widths = [min(_WIDEST, plan.width * 2**level) for level in range(levels + 1)]
        deepest = widths[levels]
        inward: list[nn.Module] = [nn.Conv2d(3, widths[1], 4, stride=2, padding=1)]
        for level in range(1, levels):
            inward += [*_before(widths[level], plan), nn.Conv2d(widths[level], widths[level + 1], 4, 2, 1)]
        inward += [_Residual(deepest, plan) for _ in range(plan.blocks)]
        outward: list[nn.Module] = [_conv(plan.latents, deepest)]
        outward += [_Residual(deepest, plan) for _ in range(plan.blocks)]
        for level in range(levels, 1, -1):
            outward += [*_before(widths[level], plan), _doubling(widths[level], widths[level - 1], plan)]
            if plan.refine:
                outward += _stage(widths[level - 1], plan)
        outward += _before(widths[1], plan)
        if plan.last == "direct":
            outward.append(_doubling(widths[1], 3, plan))
        else:
            outward += [_doubling(widths[1], widths[0], plan), _ACTIVATIONS[plan.activation]()]
            outward.append(nn.Conv2d(widths[0], 3, 1) if plan.last == "1x1" else _conv(widths[0], 3))
        self.encoder = nn.Sequential(*inward, _ACTIVATIONS[plan.activation](), nn.Conv2d(deepest, plan.latents, 1))
        self.decoder = nn.Sequential(*outward)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] → (N, 3, H, W), about [0, 1]."""
        latents = self.encoder(x * 2 - 1)  # (N, latents, H/stride, W/stride)
        colours = F.avg_pool2d(x, self.stride)  # (N, 3, H/stride, W/stride)
        coarse = F.interpolate(colours, scale_factor=float(self.stride), mode="bilinear")  # (N, 3, H, W)
        return cast(Tensor, coarse + self.decoder(latents) / 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a training came to: steps taken, and the peak signal-to-noise ratio in dB on crops it has not seen."""

    steps: int
    psnr: float


def fit(
    plan: Architecture, crops: NDArray[np.uint8], *, steps: int, size: int = 64, batch: int = 8
) -> tuple[ZooAutoencoder, Fit]:
    """Train the network of an architecture; the same crops and numbers give the same weights on the same machine.

    crops: (N, S, S, 3) uint8, at least 33; the last 32 are for measuring only. steps: batches that are learnt from.
    size: px of the parts of crops in a batch, at most S, a multiple of the stride. batch: parts in a batch.
    """
    rng = np.random.default_rng((_SEED, plan.number, 1))
    torch.manual_seed(plan.number)
    net = ZooAutoencoder(plan).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _RATE, total_steps=steps, pct_start=min(0.3, _WARM_UP / steps), cycle_momentum=False
    )
    for images in _batches(crops[:-32], rng, steps, size, batch):
        loss = _loss(net(images), images, plan.loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    net.requires_grad_(False).eval()
    side = crops.shape[1] // plan.stride * plan.stride
    with torch.inference_mode():
        held = _to_tensor(crops[-32:, :side, :side])
        error = float(F.mse_loss(net(held).clamp(0, 1), held))
    return net, Fit(steps=steps, psnr=round(-10 * math.log10(error), 2))


def save(net: ZooAutoencoder, about: Fit, path: Path) -> None:
    """Write PATH.safetensors and PATH.json beside it, the latter last: where it is, both are whole."""
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    record = {"architecture": dataclasses.asdict(net.plan), "fit": dataclasses.asdict(about)}
    write_together(
        {
            path.with_suffix(".safetensors"): lambda partial: save_file(tensors, partial),
            path.with_suffix(".json"): json.dumps(record, indent=1) + "\n",
        }
    )


def load(path: Path) -> ZooAutoencoder:
    """Read a network that `save` wrote, for inference; path: its .json.

    Raises WeightsError if a file is missing or damaged, or the weights are those of another architecture.
    """
    try:
        plan = Architecture(**json.loads(path.read_text(encoding="utf-8"))["architecture"])
        net = ZooAutoencoder(plan)
        net.load_state_dict(load_file(path.with_suffix(".safetensors")), strict=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"{path} and the .safetensors beside it are no autoencoder of tools/make_zoo.py: {error}"
        ) from error
    return net.requires_grad_(False).eval()


@lru_cache(maxsize=2)
def open_zoo(folder: str | Path) -> tuple[ZooAutoencoder, ...]:
    """Read all networks of one folder in the order of their numbers, once per process.

    Raises WeightsError if there are none, or one is damaged.
    """
    found = sorted(Path(folder).glob("*.json"))
    if not found:
        raise WeightsError(
            f"{folder} holds no autoencoders; give the folder train or unseen that tools/make_zoo.py has filled"
        )
    return tuple(load(path) for path in found)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _stage(width: int, plan: Architecture) -> list[nn.Module]:
    return [*_before(width, plan), _conv(width, width)]


def _before(width: int, plan: Architecture) -> list[nn.Module]:
    """Return the normalisation and activation in front of a convolution."""
    activation = _ACTIVATIONS[plan.activation]()
    if plan.norm == "none":
        return [activation]
    return [nn.BatchNorm2d(width) if plan.norm == "batch" else nn.GroupNorm(4, width), activation]


def _doubling(inputs: int, outputs: int, plan: Architecture) -> nn.Module:
    """Make a layer (N, inputs, h, w) → (N, outputs, 2 h, 2 w)."""
    if plan.enlargement in ("nearest", "bilinear"):
        return nn.Sequential(nn.Upsample(scale_factor=2, mode=plan.enlargement), _conv(inputs, outputs))
    if plan.enlargement == "shuffle":
        return nn.Sequential(_conv(inputs, 4 * outputs), nn.PixelShuffle(2))
    kernel = int(plan.enlargement[-1])
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, output_padding=2 * padding + 2 - kernel)


def _loss(made: Tensor, wanted: Tensor, kind: Loss) -> Tensor:
    base = F.l1_loss if kind.startswith("l1") else F.mse_loss
    loss = base(made, wanted)
    if kind.endswith("gradient"):
        for dim in (2, 3):
            loss = loss + base(made.diff(dim=dim), wanted.diff(dim=dim))
    return loss


def _batches(crops: NDArray[np.uint8], rng: np.random.Generator, steps: int, size: int, batch: int) -> Iterator[Tensor]:
    room = crops.shape[1] - size + 1
    for _ in range(steps):
        parts = []
        for index in rng.integers(len(crops), size=batch):
            y, x = rng.integers(room, size=2)
            part = crops[index, y : y + size, x : x + size]
            parts.append(part[:, ::-1] if rng.random() < 0.5 else part)
        yield _to_tensor(np.stack(parts))


def _to_tensor(pictures: NDArray[Any]) -> Tensor:
    """Turn (N, H, W, 3) uint8 into (N, 3, H, W) float32 in [0, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)  # keeps channels last
    return images.float() / 255
