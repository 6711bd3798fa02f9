"""What can happen to a picture besides its manipulation: saving, resizing, noise and cropping.

A manipulated picture and its untouched twin go through the same steps, and the mask follows, so that no step tells
the two apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip.errors import DatasetError
from declip.images.encode import Chroma, encode_jpeg, encode_png, encode_webp
from declip.spec import check_choice

__all__ = [
    "PNG",
    "Chroma",
    "Cropping",
    "Encoding",
    "Mask",
    "Noise",
    "Pixels",
    "Resizing",
    "Step",
    "apply",
    "decode",
    "encode",
    "jpeg",
    "record",
    "resize_mask",
]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Format = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Save in a file format. A JPEG has a quality (1-100) and a chroma subsampling, a WebP has a quality."""

    format: Format
    quality: int | None = None
    chroma: Chroma | None = None

    def __post_init__(self) -> None:
        check_choice(self.format, Format, "format")
        if self.chroma is not None:
            check_choice(self.chroma, Chroma, "chroma")
        if (self.format != "png" and self.quality is None) or (self.format == "jpeg" and self.chroma is None):
            raise DatasetError(f"cannot save as {self}; a jpeg needs quality and chroma, a webp needs quality")

    @property
    def suffix(self) -> str:
        """Return the ending of the file's name, with the dot."""
        return ".jpg" if self.format == "jpeg" else f".{self.format}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resizing:
    """Change the size to (height, width) px: a smaller picture is averaged, a larger one interpolated by cubics.

    screen: interpolate linearly in both directions and do not average, as browsers and viewers do.
    """

    size: tuple[int, int]
    screen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Add Gaussian noise of the deviation `sigma` (levels of 255) to each value; the seed decides the noise."""

    sigma: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cropping:
    """Keep a part: corner (top, left) and size (height, width) in px."""

    corner: tuple[int, int]
    size: tuple[int, int]

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the part (height, width, …) of an array (H, W, …). Raises DatasetError if it reaches outside."""
        (top, left), (height, width) = self.corner, self.size
        part = array[top : top + height, left : left + width]
        if part.shape[:2] != self.size or min(self.size) < 1:
            whole = f"{array.shape[0]}×{array.shape[1]}"
            raise DatasetError(f"a picture of {whole} px has no part of {height}×{width} px at {top}, {left}")
        return np.ascontiguousarray(part)


Step: TypeAlias = Encoding | Resizing | Noise | Cropping
PNG = Encoding(format="png")


def jpeg(quality: tuple[int, int], rng: np.random.Generator, halved: float = 0.5) -> Encoding:
    """Draw a JPEG of a quality in the given range (both ends included).

    halved: the share of files whose chroma is halved (4:2:0); the others have 4:4:4.
    """
    drawn = int(rng.integers(quality[0], quality[1] + 1))
    return Encoding(format="jpeg", quality=drawn, chroma="4:2:0" if rng.random() < halved else "4:4:4")


def apply(pixels: Pixels, steps: Sequence[Step]) -> Pixels:
    """Take a picture (H, W, 3) uint8 RGB through the steps; an Encoding is written and read again."""
    for step in steps:
        match step:
            case Resizing(size=(height, width), screen=screen):
                smaller = height * width < pixels.shape[0] * pixels.shape[1]
                method = cv2.INTER_LINEAR if screen else cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
                pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.uint8)
            case Noise(sigma=sigma, seed=seed):
                drawn = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
                pixels = np.clip(np.rint(pixels + np.float32(sigma) * drawn), 0, 255).astype(np.uint8)
            case Cropping():
                pixels = step.of(pixels)
            case Encoding():
                pixels = decode(encode(pixels, step))
    return pixels


def resize_mask(mask: Mask, steps: Sequence[Step]) -> Mask:
    """Resize and crop a mask (H, W) bool as the steps do its picture; a pixel counts if half of it was manipulated.

    Raises DatasetError if nothing is left of the mask.
    """
    for step in steps:
        if isinstance(step, Resizing):
            height, width = step.size
            method = cv2.INTER_AREA if height * width < mask.size else cv2.INTER_LINEAR
            mask = cv2.resize(mask.astype(np.float32), (width, height), interpolation=method) >= 0.5
        elif isinstance(step, Cropping):
            mask = step.of(mask)
    if not mask.any():
        raise DatasetError("nothing is left of the mask when the picture is made smaller; resize less, or crop larger")
    return mask


def encode(pixels: Pixels, encoding: Encoding = PNG) -> bytes:
    """Return the bytes of a file with these pixels: (H, W, 3) uint8 RGB, or (H, W) uint8 grey as PNG."""
    match encoding:
        case Encoding(format="jpeg", quality=int(quality), chroma=str(chroma)):
            return encode_jpeg(pixels, quality, chroma)
        case Encoding(format="webp", quality=int(quality)):
            return encode_webp(pixels, quality)
    return encode_png(pixels)


def decode(data: bytes) -> Pixels:
    """Return the pixels (H, W, 3) uint8 RGB of a file that `encode` made."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def record(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return the steps as a sample's provenance names them."""
    found: list[dict[str, Any]] = []
    for step in steps:
        match step:
            case Encoding():
                found.append({key: value for key, value in asdict(step).items() if value is not None})
            case Resizing(size=size, screen=screen):
                found.append({"resized": list(size)} | ({"screen": True} if screen else {}))
            case Noise(sigma=sigma):
                found.append({"noise": sigma})
            case Cropping(corner=corner, size=size):
                found.append({"cropped": [*corner, *size]})
    return found
