"""What happens to a picture after it was manipulated: JPEG, WebP, other sizes, noise, screens, social networks.

`Saving` holds how often each happens, `draw` chooses the steps of one sample, and `apply` takes a picture through
them. A fake and its real twin go through the same steps, and the mask is resized along, so that nothing of this tells
fake from real.
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
from declip.spec import check_choice
from declip.synthesis import classical

__all__ = [
    "Cropping",
    "Encoding",
    "Format",
    "Noise",
    "Resizing",
    "Saving",
    "Step",
    "apply",
    "decode",
    "encode",
    "record",
    "resize_mask",
]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Format = Literal["png", "jpeg", "webp"]

_WEBP_QUALITY = (60, 95)
_SCREEN = (0.6, 1.6)  # factors of the sides, of what is shown on a screen
_NOISE = (0.5, 3.0)  # levels of 255
_SOCIAL_QUALITY = (70, 85)  # of the network's own JPEG, after that of the camera or editor


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Into a file's format. quality 1-100 and chroma are None where the format has no such thing."""

    format: Format
    quality: int | None = None
    chroma: classical.Chroma | None = None

    def __post_init__(self) -> None:
        check_choice(self.format, Format, "format")
        if self.chroma is not None:
            check_choice(self.chroma, classical.Chroma, "chroma")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resizing:
    """To another size (height, width) in px: smaller by averaging, larger by cubic interpolation.

    screen: linear interpolation both ways, without averaging, as browsers and viewers scale what they show.
    """

    size: tuple[int, int]
    screen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Gaussian noise of this deviation, in levels of 255, independent in each value; the seed decides it."""

    sigma: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cropping:
    """To a part: corner (top, left) and size (height, width) in px."""

    corner: tuple[int, int]
    size: tuple[int, int]

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """(H, W, …) → (height, width, …). Raises DatasetError if the array does not reach so far."""
        (top, left), (height, width) = self.corner, self.size
        if not (top >= 0 and left >= 0 and 0 < height <= array.shape[0] - top and 0 < width <= array.shape[1] - left):
            raise DatasetError(
                f"a picture of {array.shape[0]}×{array.shape[1]} px has no part of {height}×{width} px at {top}, {left}"
            )
        return np.ascontiguousarray(array[top : top + height, left : left + width])


Step: TypeAlias = Encoding | Resizing | Noise | Cropping


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """How often which step is taken. Shares are in [0, 1].

    jpeg_share, webp_share: of the pairs saved so; the others are PNG.
    jpeg_quality: lowest and highest, 1-100.
    resize_share: of the pairs brought to another size before they are saved, by a factor in resize_range.
    noise_share: of the pairs with Gaussian noise of 0.5-3 levels on top.
    screenshot_share: of the pairs shown on a screen, at 0.6 to 1.6 times their size, and captured as PNG; nothing else
        of this list happens to those.
    social_share: of the pairs that go the way of a social network: a JPEG of jpeg_quality, then at most social_side px
        a side, then a JPEG of quality 70-85 and halved chroma, whatever else was drawn as the format.
    """

    jpeg_share: float = 0.5
    jpeg_quality: tuple[int, int] = (60, 95)
    webp_share: float = 0.0
    resize_share: float = 0.0
    resize_range: tuple[float, float] = (0.5, 0.95)
    noise_share: float = 0.0
    screenshot_share: float = 0.0
    social_share: float = 0.0
    social_side: int = 384

    def __post_init__(self) -> None:
        low, high = self.jpeg_quality
        if not (0 <= self.jpeg_share <= 1 and 1 <= low <= high <= 100):
            raise DatasetError(
                f"jpeg_share is {self.jpeg_share} and jpeg_quality {self.jpeg_quality}; expected a share in [0, 1] and "
                "1 <= lowest <= highest <= 100"
            )
        for name in ("webp_share", "resize_share", "noise_share", "screenshot_share", "social_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DatasetError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")
        if self.jpeg_share + self.webp_share > 1:
            raise DatasetError(
                f"jpeg_share is {self.jpeg_share} and webp_share {self.webp_share}; expected at most 1 together"
            )
        least, most = self.resize_range
        if not 0 < least <= most <= 4:
            raise DatasetError(f"resize_range is {self.resize_range}; expected 0 < lowest <= highest <= 4")
        if self.social_side < 32:
            raise DatasetError(f"social_side is {self.social_side}; expected at least 32 px")

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[tuple[Step, ...], Encoding]:
        """What happens to one sample of `size` (height, width) before it is saved, and how it is saved.

        What has a share of 0 draws nothing, so that data sets made before it existed stay as they are.
        """
        steps: list[Step] = []
        chosen = float(rng.random())
        if chosen < self.jpeg_share:
            last = self._jpeg(rng)
        elif chosen < self.jpeg_share + self.webp_share:
            last = Encoding(format="webp", quality=_between(_WEBP_QUALITY, rng))
        else:
            last = Encoding(format="png")
        if self.screenshot_share and rng.random() < self.screenshot_share:
            shown = Resizing(size=_scaled(size, float(rng.uniform(*_SCREEN))), screen=True)
            return (shown,), Encoding(format="png")
        if self.resize_share and rng.random() < self.resize_share:
            size = _scaled(size, float(rng.uniform(*self.resize_range)))
            steps.append(Resizing(size=size))
        if self.noise_share and rng.random() < self.noise_share:
            steps.append(Noise(sigma=round(float(rng.uniform(*_NOISE)), 2), seed=int(rng.integers(2**31))))
        if self.social_share and rng.random() < self.social_share:
            steps.append(last if last.format == "jpeg" else self._jpeg(rng))
            if max(size) > self.social_side:
                steps.append(Resizing(size=_scaled(size, self.social_side / max(size))))
            last = Encoding(format="jpeg", quality=_between(_SOCIAL_QUALITY, rng), chroma="4:2:0")
        return tuple(steps), last

    def _jpeg(self, rng: np.random.Generator) -> Encoding:
        quality = _between(self.jpeg_quality, rng)
        return Encoding(format="jpeg", quality=quality, chroma="4:2:0" if rng.random() < 0.5 else "4:4:4")


def apply(pixels: Pixels, steps: Sequence[Step]) -> Pixels:
    """(H, W, 3) uint8 RGB after the steps; an Encoding is written and read again."""
    for step in steps:
        match step:
            case Resizing(size=(height, width), screen=screen):
                smaller = height * width < pixels.shape[0] * pixels.shape[1]
                way = cv2.INTER_LINEAR if screen else cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
                pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=way), dtype=np.uint8)
            case Noise(sigma=sigma, seed=seed):
                drawn = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
                pixels = np.clip(np.rint(pixels + np.float32(sigma) * drawn), 0, 255).astype(np.uint8)
            case Cropping():
                pixels = step.of(pixels)
            case Encoding():
                pixels = decode(encode(pixels, step))
    return pixels


def resize_mask(mask: Mask, steps: Sequence[Step]) -> Mask:
    """(H, W) bool resized and cropped as the steps do its picture: a pixel counts that was manipulated by half or more.

    Raises DatasetError if nothing is left of it.
    """
    for step in steps:
        if isinstance(step, Resizing):
            height, width = step.size
            smaller = height * width < mask.size
            way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=way)
            mask = np.asarray(share >= 0.5, dtype=bool)
        elif isinstance(step, Cropping):
            mask = step.of(mask)
    if not mask.any():
        raise DatasetError("nothing is left of the mask when the picture is made smaller; resize less, or crop larger")
    return mask


def encode(pixels: Pixels, encoding: Encoding) -> bytes:
    """The bytes of a file; pixels (H, W, 3) uint8 RGB, or (H, W) uint8 grey as PNG."""
    match encoding:
        case Encoding(format="jpeg", quality=int(quality), chroma=str(chroma)):
            return classical.encode_jpeg(pixels, quality, chroma)
        case Encoding(format="webp", quality=int(quality)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=4)
            return buffer.getvalue()
        case Encoding(format="png"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()
    raise DatasetError(f"cannot save as {encoding}; a jpeg needs quality and chroma, a webp quality")


def decode(data: bytes) -> Pixels:
    """What `encode` made, as (H, W, 3) uint8 RGB."""
    return classical.decode_jpeg(data)


def record(step: Step) -> dict[str, Any]:
    """A step as it stands in a sample's provenance."""
    match step:
        case Encoding():
            return {key: value for key, value in asdict(step).items() if value is not None}
        case Resizing(size=(height, width), screen=screen):
            return {"resized": [height, width]} | ({"screen": True} if screen else {})
        case Noise():
            return {"noise": step.sigma}
        case Cropping():
            return {"cropped": [*step.corner, *step.size]}


def _between(limits: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
