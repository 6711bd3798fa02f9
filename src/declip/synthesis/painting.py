"""The networks behind `inpainters`: TorchScript files, RePaint with models of diffusers, pipelines of diffusers.

RePaint (Lugmayr et al. 2022) in-paints with a diffusion model that was never trained to: at every step, what is known
is put back, as noisy as the step wants it.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from declip.errors import DatasetError, WeightsError
from declip.synthesis import neural
from declip.synthesis.editing import Fill
from declip.synthesis.steps import Mask, Pixels

__all__ = ["open_pipeline", "open_repaint", "open_torchscript"]

Opened = TypeVar("Opened")

_REPAINT_STEPS = 250
_PIPELINE_STEPS = 50
_JUMP = 10  # RePaint goes ten steps back and forth, ten times: its own defaults


def open_torchscript(source: str, device: str, stride: int) -> Fill:
    """Open a file, of this disk or of the hub; it in-paints in one pass: (image, mask) → image."""
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
            network = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise WeightsError(f"{source} is no TorchScript file: {error}") from error

    def paint(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        image, hole = _padded(pixels, mask, stride)
        # Not every network hides what lies in the hole from itself.
        with torch.inference_mode():
            result = network((image * (1 - hole)).to(device), hole.to(device))
        if not isinstance(result, Tensor) or result.shape != image.shape:
            came = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise DatasetError(f"the in-painter returned {came}; expected an image {tuple(image.shape)} in [0, 1]")
        return _to_pixels(result, pixels)

    return paint


@dataclass(frozen=True, kw_only=True, slots=True)
class _RePaint:
    """In-paints with a diffusion model, in pixels or in the latents of an autoencoder."""

    unet: Any
    scheduler: Any
    autoencoder: neural.LatentAutoencoder | None
    device: str
    steps: int

    def __call__(self, pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
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
        """Paint (1, C, h, w) where `keep` (1, 1, h, w) is 0; return (1, C, h, w)."""
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


def open_repaint(source: str, device: str, steps: int | None, *, latent: bool) -> _RePaint:
    """Open a diffusion model with its schedule and, for one in latents, its autoencoder."""
    import diffusers

    unet, part = _first(source, ("unet", ""), partial(neural.from_diffusers, diffusers.UNet2DModel, source))
    config = _schedule_of(source, "scheduler" if part else "")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise WeightsError(f"{source} predicts {config['prediction_type']}; RePaint needs a model that predicts noise")
    # Latents have no bounds to be clipped to.
    settings = {**config, "eta": 1.0, "clip_sample": not latent}
    scheduler = diffusers.RePaintScheduler.from_config(settings)  # type: ignore[no-untyped-call]
    return _RePaint(
        unet=unet.requires_grad_(False).eval().to(device),
        scheduler=scheduler,
        autoencoder=_autoencoder_of(source, device) if latent else None,
        device=device,
        steps=steps or _REPAINT_STEPS,
    )


def _first(source: str, names: Sequence[str], open_one: Callable[[str], Opened]) -> tuple[Opened, str]:
    """Open the first of several folders of a model that is there; return it and its name, "" for the model's own."""
    reasons = []
    for name in names:
        if Path(source).is_dir() and not (Path(source) / name / "config.json").is_file():
            continue
        try:
            return open_one(name), name
        except WeightsError as error:
            reasons.append(str(error))
    folders = " or ".join(filter(None, names))
    raise WeightsError("; ".join(reasons) or f"{source} has no {folders} folder with a config.json")


def _schedule_of(source: str, part: str) -> dict[str, Any]:
    """Read the settings of a model's schedule; beside a UNet that lies alone there are none.

    RePaintScheduler's defaults, which are taken then, are the ones that most pixel models were trained with.
    """
    import diffusers

    if not part and Path(source).is_dir() and not (Path(source) / "scheduler_config.json").is_file():
        return {}
    where, folder = neural.locate(source, part)
    try:
        return dict(diffusers.RePaintScheduler.load_config(where, subfolder=folder or None))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{source}: its schedule (scheduler_config.json) cannot be read: {error}") from error


def _autoencoder_of(source: str, device: str) -> neural.LatentAutoencoder:
    """Open the autoencoder that lies beside a UNet."""

    def open_one(name: str) -> neural.LatentAutoencoder:
        found = neural.load(f"{source}/{name}", device)
        if not isinstance(found, neural.LatentAutoencoder):
            raise WeightsError(f"{source}/{name} is not one of diffusers' autoencoders")
        return found

    return _first(source, ("vqvae", "vae"), open_one)[0]


def open_pipeline(source: str, device: str, steps: int | None, stride: int) -> Fill:
    """Open a whole repository of diffusers; its empty text lets it continue what is around the hole."""
    if importlib.util.find_spec("transformers") is None:
        raise WeightsError("sd-inpaint reads a text, if only an empty one: pip install transformers")
    import diffusers

    where, inside = neural.locate(source)
    if inside:
        raise WeightsError(f"{source}: a pipeline is a whole repository; expected OWNER/NAME")
    try:
        pipeline: Any = diffusers.AutoPipelineForInpainting.from_pretrained(where)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{source} is no in-painting pipeline of diffusers: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)

    def paint(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> Pixels:
        image, hole = _padded(pixels, mask, stride)
        result = pipeline(
            prompt="",
            image=image,
            mask_image=hole,
            height=image.shape[2],
            width=image.shape[3],
            num_inference_steps=steps or _PIPELINE_STEPS,
            generator=torch.Generator().manual_seed(int(rng.integers(2**63))),
            output_type="pt",
        )
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise DatasetError("the pipeline's safety checker withheld the picture")
        return _to_pixels(result.images, pixels)

    return paint


def _padded(pixels: Pixels, mask: Mask, stride: int) -> tuple[Tensor, Tensor]:
    """Return picture (1, 3, H', W') in [0, 1] and hole (1, 1, H', W'), 1 = to be painted; sides multiples of `stride`.

    Both are mirrored into the padding, so that the padding does not show what the hole hides.
    """
    border = ((0, -mask.shape[0] % stride), (0, -mask.shape[1] % stride))
    image = np.pad(pixels, (*border, (0, 0)), mode="symmetric")
    hole = np.pad(mask, border, mode="symmetric")
    return (
        torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255,
        torch.from_numpy(np.ascontiguousarray(hole))[None, None].float(),
    )


def _to_pixels(image: Tensor, like: Pixels) -> Pixels:
    """Turn (1, 3, H', W') in [0, 1] into (H, W, 3) uint8 of the size of `like`."""
    part = image[0, :, : like.shape[0], : like.shape[1]].float().cpu().clamp(0, 1) * 255
    return np.ascontiguousarray(part.round().permute(1, 2, 0).numpy().astype(np.uint8))
