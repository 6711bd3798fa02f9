"""In-painting by learnt generators: `INPAINTERS` lists them, `load` opens one.

Weights are never part of declip. Each row has a default source where there is a well-known one on the model hub; any
other comes by a local path or hub id. Formats (`painting` reads them):

    torchscript       a file of torch.jit: (image (1, 3, H, W) in [0, 1], mask (1, 1, H, W), 1 = hole) → image
    pixel-diffusion   a folder of diffusers with unet/ (UNet2DModel) and scheduler/, or with both at its root: RePaint
    latent-diffusion  a folder of diffusers with unet/, vqvae/ or vae/, scheduler/: RePaint between encoder and decoder
    pipeline          a folder of diffusers that AutoPipelineForInpainting opens; needs transformers
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from declip.errors import WeightsError
from declip.synthesis.editing import Fill

__all__ = ["INPAINTERS", "InpainterCard", "load"]

Format = Literal["torchscript", "pixel-diffusion", "latent-diffusion", "pipeline"]


class InpainterCard(NamedTuple):
    """A row of the catalogue.

    source: hub id of the default weights, or "" where a path must be given; licence: of those weights.
    stride: px; pictures are padded by reflection to multiples of it. 0: the network says.
    whole: the whole picture passes the autoencoder, so that outside the mask it changes too, by a trace.
    """

    format: Format
    licence: str
    source: str = ""
    stride: int = 0
    whole: bool = False


INPAINTERS: dict[str, InpainterCard] = {
    "lama": InpainterCard("torchscript", "Apache-2.0", stride=8),
    "pluralistic": InpainterCard("torchscript", "research", stride=32),
    "torchscript": InpainterCard("torchscript", "your own", stride=32),
    "repaint": InpainterCard("pixel-diffusion", "Apache-2.0", "google/ddpm-ema-celebahq-256"),
    "ldm": InpainterCard("latent-diffusion", "Apache-2.0", "CompVis/ldm-celebahq-256", whole=True),
    "sd-inpaint": InpainterCard(
        "pipeline", "CreativeML OpenRAIL-M", "stable-diffusion-v1-5/stable-diffusion-inpainting", stride=64
    ),
}


@lru_cache(maxsize=4)
def load(name: str, source: str = "", device: str = "cpu", steps: int | None = None) -> Fill:
    """Open the in-painter of a row; it is loaded once per process.

    It returns the whole picture (H, W, 3) uint8 as the network gives it, and raises DatasetError if that refuses one.

    source: a local path or a hub id; "" takes the row's own. On the hub, a TorchScript file is OWNER/NAME/FILE.pt.
    device: where it computes, as torch names it. steps: of the diffusion; None: 250 for RePaint, 50 for a pipeline.

    Raises WeightsError for no source, or one that is missing, damaged or of another format; SpecError if torch cannot
    use the device; ModuleNotFoundError if a package is not installed.
    """
    card = INPAINTERS[name]
    source = source or card.source
    if not source:
        raise WeightsError(f"{name} has no weights of its own: set networks.weights.{name} to a local path or hub id")
    from declip.nn import devices
    from declip.synthesis import painting

    devices.usable(device)
    match card.format:
        case "torchscript":
            return painting.open_torchscript(source, device, card.stride)
        case "pipeline":
            return painting.open_pipeline(source, device, steps, card.stride)
    return painting.open_repaint(source, device, steps, latent=card.format == "latent-diffusion")
