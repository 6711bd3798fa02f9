"""In-painting by learnt generators: `INPAINTERS` lists them, `load` opens one.

Weights are never part of declip. Each row has a default source where there is a well-known one on the model hub; any
other comes by a local path or hub id. Formats:

    torchscript       a file of torch.jit: (image (1, 3, H, W) in [0, 1], mask (1, 1, H, W), 1 = hole) → image
    pixel-diffusion   a folder of diffusers with unet/ (UNet2DModel) and scheduler/, or with both at its root: RePaint
    latent-diffusion  a folder of diffusers with unet/, vqvae/ or vae/, scheduler/: RePaint between encoder and decoder
    pipeline          a folder of diffusers that AutoPipelineForInpainting opens; needs transformers

RePaint (Lugmayr et al. 2022) in-paints with a diffusion model that was never trained to: at every step, what is known
is put back, as noisy as the step wants it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError, WeightsError
from declip.models import resolve
from declip.synthesis.classical import Family

if TYPE_CHECKING:
    from torch import Tensor

    from declip.synthesis.neural import LatentAutoencoder

__all__ = ["INPAINTERS", "Format", "Inpainter", "InpainterCard", "fingerprint", "load"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Format = Literal["torchscript", "pixel-diffusion", "latent-diffusion", "pipeline"]

_REPAINT_STEPS = 250
_PIPELINE_STEPS = 50
# RePaint goes ten steps back and forth, ten times: its own defaults.
_JUMP = 10
_AUTOENCODER_FOLDERS = ("vqvae", "vae")
_RECORDED = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class InpainterCard:
    """A row of the catalogue.

    source: hub id of the default weights, or "" where a path must be given; licence: of those weights.
    needs: packages.
    stride: px; pictures are padded by reflection to multiples of it. 0: the network says.
    whole: the whole picture passes the autoencoder, so that outside the mask it changes too, by a trace.
    """

    name: str
    format: Format
    source: str
    licence: str
    needs: tuple[str, ...]
    family: Family = "in-painting"
    stride: int = 0
    whole: bool = False


INPAINTERS: Mapping[str, InpainterCard] = MappingProxyType(
    {
        card.name: card
        for card in (
            InpainterCard(
                name="lama", format="torchscript", source="", licence="Apache-2.0", needs=("torch",), stride=8
            ),
            InpainterCard(
                name="pluralistic", format="torchscript", source="", licence="research", needs=("torch",), stride=32
            ),
            InpainterCard(
                name="torchscript", format="torchscript", source="", licence="your own", needs=("torch",), stride=32
            ),
            InpainterCard(
                name="repaint",
                format="pixel-diffusion",
                source="google/ddpm-ema-celebahq-256",
                licence="Apache-2.0",
                needs=("torch", "diffusers"),
            ),
            InpainterCard(
                name="ldm",
                format="latent-diffusion",
                source="CompVis/ldm-celebahq-256",
                licence="Apache-2.0",
                needs=("torch", "diffusers"),
                whole=True,
            ),
            InpainterCard(
                name="sd-inpaint",
                format="pipeline",
                source="stable-diffusion-v1-5/stable-diffusion-inpainting",
                licence="CreativeML OpenRAIL-M",
                needs=("torch", "diffusers", "transformers"),
                stride=64,
            ),
        )
    }
)


class Inpainter(Protocol):
    """A loaded generator."""

    def __call__(self, pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        """(H, W, 3) uint8, (H, W) bool → (H, W, 3) uint8, the whole picture as the network returns it.

        Raises DatasetError where it will not do this one.
        """
        ...


@lru_cache(maxsize=4)
def load(name: str, source: str = "", device: str = "cpu", steps: int | None = None) -> Inpainter:
    """The in-painter of a row, with weights from `source`; loaded once per process.

    source: a local path or a hub id; "" takes the row's own. On the hub, a TorchScript file is OWNER/NAME/FILE.pt.
    device: where it computes, as torch names it. steps: of the diffusion; None: 250 for RePaint, 50 for a pipeline.

    Raises:
        WeightsError: no source, or one that is missing, damaged, or of another format.
        SpecError: torch cannot use the device.
        MissingExtraError, ModuleNotFoundError: a package is not installed.
    """
    card = INPAINTERS[name]
    source = source or card.source
    if not source:
        raise WeightsError(f"{name} has no weights of its own: give a local path or hub id ({name}=SOURCE)")
    from declip.nn import devices

    devices.usable(device)
    match card.format:
        case "torchscript":
            return _TorchScript(network=_open_torchscript(source, device), stride=card.stride, device=device)
        case "pixel-diffusion" | "latent-diffusion":
            return _open_repaint(source, device, steps or _REPAINT_STEPS, latent=card.format == "latent-diffusion")
        case "pipeline":
            return _Pipeline(
                pipeline=_open_pipeline(source, device), stride=card.stride, steps=steps or _PIPELINE_STEPS
            )


def fingerprint(source: str | Path) -> str:
    """What names the weights at a source: sha256 of a file, of a folder's files taken together, or the hub id itself.

    Raises WeightsError if a file cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return resolve.sha256_of(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in _RECORDED)
        listed = [[file.relative_to(path).as_posix(), resolve.sha256_of(file)] for file in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return str(source)


# TorchScript -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _TorchScript:
    """One pass: (image, mask) → image."""

    network: Any
    stride: int
    device: str

    def __call__(self, pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        import torch

        image, hole = _padded(pixels, mask, self.stride)
        # Not every network hides what lies in the hole from itself.
        with torch.inference_mode():
            result = self.network((image * (1 - hole)).to(self.device), hole.to(self.device))
        if not isinstance(result, torch.Tensor) or result.shape != image.shape:
            came = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise DatasetError(f"the in-painter returned {came}; expected an image {tuple(image.shape)} in [0, 1]")
        return _to_pixels(result, pixels)


def _open_torchscript(source: str, device: str) -> Any:
    import torch

    from declip.synthesis import neural

    path, file = neural.locate(source)
    if file:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(path, file)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{source} cannot be fetched from the hub: {error}") from error
    if not Path(path).is_file():
        raise WeightsError(f"{source} is no TorchScript file; on the hub, name one: OWNER/NAME/FILE.pt")
    try:
        with warnings.catch_warnings():
            # TorchScript is on its way out of torch, but it is how these networks are handed around.
            warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")
            return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise WeightsError(f"{source} is no TorchScript file: {error}") from error


# RePaint -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _RePaint:
    """A diffusion model that in-paints, in pixels or in the latents of an autoencoder."""

    unet: Any
    scheduler: Any
    autoencoder: LatentAutoencoder | None
    device: str
    steps: int

    def __call__(self, pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        import torch

        coarse = 1 if self.autoencoder is None else self.autoencoder.stride
        image, hole = _padded(pixels, mask, coarse * 2 ** (len(self.unet.config.block_out_channels) - 1))
        with torch.inference_mode():
            known = image * 2 - 1  # (1, 3, H, W) in [-1, 1]
            if self.autoencoder is not None:
                known = self.autoencoder.encode(known)  # (1, C, H/stride, W/stride)
                # A latent that sees any of the hole is painted anew.
                hole = torch.nn.functional.max_pool2d(hole, coarse)
            result = self._paint(known.to(self.device), 1 - hole.to(self.device), rng)
            result = result if self.autoencoder is None else self.autoencoder.decode(result)
        return _to_pixels(result / 2 + 0.5, pixels)

    def _paint(self, known: Tensor, keep: Tensor, rng: np.random.Generator) -> Tensor:
        """known: (1, C, h, w); keep: (1, 1, h, w), 1 = known. Returns (1, C, h, w)."""
        import torch

        # Drawn on the CPU, so that the noise is the same everywhere.
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        self.scheduler.set_timesteps(self.steps, _JUMP, _JUMP, self.device)
        sample = torch.randn(known.shape, generator=generator).to(known)
        before = int(self.scheduler.timesteps[0]) + 1
        for step in self.scheduler.timesteps:
            if step < before:
                # A network that learnt its variance, too, returns it after the noise.
                noise = self.unet(sample, step).sample[:, : known.shape[1]]
                sample = self.scheduler.step(noise, step, sample, known, keep, generator).prev_sample
            else:
                sample = self.scheduler.undo_step(sample, before, generator)
            before = step
        return sample


def _open_repaint(source: str, device: str, steps: int, *, latent: bool) -> _RePaint:
    import diffusers

    unet, part = _unet_of(source)
    config = _schedule_of(source, "scheduler" if part else "")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise WeightsError(f"{source} predicts {config['prediction_type']}; RePaint needs a model that predicts noise")
    # Latents have no bounds to be clipped to.
    settings = {**config, "eta": 1.0, "clip_sample": not latent}
    scheduler = diffusers.RePaintScheduler.from_config(settings)  # type: ignore[no-untyped-call]
    autoencoder = _autoencoder_of(source, device) if latent else None
    unet = unet.requires_grad_(False).eval().to(device)
    return _RePaint(unet=unet, scheduler=scheduler, autoencoder=autoencoder, device=device, steps=steps)


def _unet_of(source: str) -> tuple[Any, str]:
    """The UNet, and the folder it lies in: "unet", or "" where an older repository has it at its root."""
    import diffusers

    from declip.synthesis import neural

    parts = ["unet", ""]
    if Path(source).is_dir():
        parts = [part for part in parts if (Path(source) / part / "config.json").is_file()] or ["unet"]
    reasons = []
    for part in parts:
        try:
            return neural.from_diffusers(diffusers.UNet2DModel, source, part), part
        except WeightsError as error:
            reasons.append(str(error))
    raise WeightsError("; ".join(reasons))


def _schedule_of(source: str, part: str) -> dict[str, Any]:
    """The settings of a model's schedule; empty, for RePaintScheduler's defaults, beside a UNet that lies alone.

    Those are the ones that most pixel models were trained with.
    """
    import diffusers

    from declip.synthesis import neural

    if not part and Path(source).is_dir() and not (Path(source) / "scheduler_config.json").is_file():
        return {}
    where, inside = neural.locate(source)
    folder = "/".join(name for name in (inside, part) if name)
    try:
        return dict(diffusers.RePaintScheduler.load_config(where, subfolder=folder or None))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{source}: its schedule (scheduler_config.json) cannot be read: {error}") from error


def _autoencoder_of(source: str, device: str) -> LatentAutoencoder:
    """The autoencoder that lies beside a UNet."""
    from declip.synthesis import neural

    here = [name for name in _AUTOENCODER_FOLDERS if (Path(source) / name).is_dir()]
    if Path(source).is_dir() and not here:
        raise WeightsError(f"{source} has no {' or '.join(_AUTOENCODER_FOLDERS)} folder; ldm needs an autoencoder")
    reasons = []
    for name in here or _AUTOENCODER_FOLDERS:
        try:
            found = neural.load(f"{source}/{name}", device)
        except WeightsError as error:
            reasons.append(str(error))
            continue
        if isinstance(found, neural.LatentAutoencoder):
            return found
        reasons.append(f"{source}/{name} is not one of diffusers' autoencoders")
    raise WeightsError("; ".join(reasons))


# Pipelines ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pipeline:
    """A text-guided in-painting pipeline with an empty text: it continues what is around the hole."""

    pipeline: Any
    stride: int
    steps: int

    def __call__(self, pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        import torch

        image, hole = _padded(pixels, mask, self.stride)
        result = self.pipeline(
            prompt="",
            image=image,
            mask_image=hole,
            height=image.shape[2],
            width=image.shape[3],
            num_inference_steps=self.steps,
            generator=torch.Generator().manual_seed(int(rng.integers(2**63))),
            output_type="pt",
        )
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise DatasetError("the pipeline's safety checker withheld the picture")
        return _to_pixels(result.images, pixels)


def _open_pipeline(source: str, device: str) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise WeightsError("sd-inpaint reads a text, if only an empty one: pip install transformers")
    import diffusers

    from declip.synthesis import neural

    where, inside = neural.locate(source)
    if inside:
        raise WeightsError(f"{source}: a pipeline is a whole repository; expected OWNER/NAME")
    try:
        pipeline: Any = diffusers.AutoPipelineForInpainting.from_pretrained(where)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{source} is no in-painting pipeline of diffusers: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


# Pixels ------------------------------------------------------------------------------------------------------------


def _padded(pixels: Pixels, mask: Mask, stride: int) -> tuple[Tensor, Tensor]:
    """Picture (1, 3, H', W') in [0, 1] and hole (1, 1, H', W'), 1 = to be painted; sides multiples of `stride`.

    Both are mirrored into the padding, so that the padding does not show what the hole hides.
    """
    import torch

    height, width = mask.shape
    border = ((0, -height % stride), (0, -width % stride))
    image = np.pad(pixels, (*border, (0, 0)), mode="symmetric")
    hole = np.pad(mask, border, mode="symmetric")
    return (
        torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255,
        torch.from_numpy(np.ascontiguousarray(hole))[None, None].float(),
    )


def _to_pixels(image: Tensor, like: Pixels) -> Pixels:
    """(1, 3, H', W') in [0, 1] → (H, W, 3) uint8 of the size of `like`."""
    cut = image[0, :, : like.shape[0], : like.shape[1]].float().cpu().clamp(0, 1) * 255
    return np.ascontiguousarray(cut.round().permute(1, 2, 0).numpy().astype(np.uint8))
