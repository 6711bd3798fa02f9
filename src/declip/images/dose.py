"""What happens to a photo after it was made, in measured doses: saved again, blurred, noisy, made smaller.

    perturb(pixels, "jpeg", 75)                     how well does a model stand it?
    augment(pixels, ("blur", "jpeg"), rng)          while training

Pixels are (H, W, 3) uint8 RGB, in and out, of the same size; what was given stays as it was. Only "noise", `jitter` and
`augment` draw random numbers, and only from the generator they are given: the same one gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy import ndimage

from declip.errors import DeclipError, ImageError
from declip.images.encode import encode_jpeg, encode_webp
from declip.images.read import read_photo
from declip.results import check_several

__all__ = ["LEVELS", "Augmentation", "Perturbation", "augment", "jitter", "perturb"]

Pixels = NDArray[np.uint8]
Perturbation = Literal["jpeg", "webp", "blur", "noise", "resize"]
Augmentation = Literal["blur", "jitter", "jpeg", "webp", "resize", "noise"]

# Of each kind: the weakest level there is, and the strongest.
LEVELS: dict[Perturbation, tuple[float, float]] = {
    "jpeg": (100, 1),  # quality, a whole number
    "webp": (100, 1),
    "blur": (0, 10),  # sigma, px; 5×5 of it, so that beyond 3 little changes
    "noise": (0, 128),  # sigma, of 255 levels
    "resize": (1, 0.1),  # factor of the sides
}
# The range that `augment` draws from. Blur and JPEG as the paper has them; the others are this project's choice.
_DRAWN: dict[Perturbation, tuple[float, float]] = {
    "blur": (0.4, 2.0),
    "jpeg": (30, 100),
    "webp": (30, 100),
    "resize": (0.5, 1.0),
    "noise": (1.0, 8.0),
}
_QUALITIES = ("jpeg", "webp")
_WEBP_SIDE = 16383  # px, the format's limit


def perturb(pixels: Pixels, kind: Perturbation, level: float, rng: np.random.Generator | None = None) -> Pixels:
    """Return (H, W, 3) uint8 RGB after one perturbation: a new array of the same size.

    kind, and its level within LEVELS:
    - "jpeg", "webp": saved and read again; quality, a whole number. JPEG with halved chroma (4:2:0), as most software
      does.
    - "blur": Gaussian, sigma in px, on 5×5 px, mirrored at the border: torchvision's GaussianBlur(5).
    - "noise": Gaussian, independent in each pixel and channel, sigma in levels of 255; needs rng.
    - "resize": made smaller by this factor and brought back to its size, bilinear, antialiased on the way down.

    Raises DeclipError for an unknown kind, a level out of range, or noise without rng; ImageError for pixels that are
    not (H, W, 3) uint8, or too large for WebP.
    """
    _check_pixels(pixels)
    _check_level(kind, level)
    match kind:
        case "jpeg" | "webp":
            if kind == "webp" and max(pixels.shape) > _WEBP_SIDE:
                words = f"a side of a WebP has at most {_WEBP_SIDE} px; make it smaller first"
                raise ImageError(_name(pixels), "too-large", words)
            encode = encode_jpeg if kind == "jpeg" else encode_webp
            return read_photo(encode(pixels, int(level)), max_pixels=pixels.size).pixels
        case "blur":
            if level == 0:
                return pixels.copy()
            # In float: SciPy would round after each axis.
            blurred = ndimage.gaussian_filter(pixels.astype(np.float32), level, mode="mirror", radius=2, axes=(0, 1))
            return _to_uint8(blurred)
        case "noise":
            if rng is None:
                raise DeclipError("noise is drawn at random; give an rng, numpy.random.default_rng(0) for example")
            return _to_uint8(pixels + np.float32(level) * rng.standard_normal(pixels.shape, dtype=np.float32))
        case "resize":
            height, width = pixels.shape[:2]
            small = (max(1, round(width * level)), max(1, round(height * level)))
            if small == (width, height):
                return pixels.copy()
            smaller = Image.fromarray(pixels).resize(small, Image.Resampling.BILINEAR)
            return np.array(smaller.resize((width, height), Image.Resampling.BILINEAR))


def jitter(pixels: Pixels, rng: np.random.Generator, strength: float = 0.3) -> Pixels:
    """Return (H, W, 3) uint8 RGB with brightness, contrast, saturation and hue changed a little, in random order.

    Factors of 1 ± strength for the first three, a turn of the colour circle by up to ± strength for the hue: what
    torchvision's ColorJitter does when all four are `strength`, in [0, 0.5]. The paper says only "ColorJitter 0.3";
    that it means all four is an assumption.

    Raises DeclipError for another strength, ImageError for pixels that are not (H, W, 3) uint8.
    """
    _check_pixels(pixels)
    if not 0 <= strength <= 0.5:
        raise DeclipError(f"the strength of the jitter is {strength}; expected a number from 0 to 0.5")
    order = rng.permutation(4)
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    turn = int(float(rng.uniform(-strength, strength)) * 255)
    picture = Image.fromarray(pixels)
    for step in order:
        if step == 3:
            hue, saturation, value = picture.convert("HSV").split()
            hue = hue.point([(level + turn) % 256 for level in range(256)])
            picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
            picture = enhance(picture).enhance(float(factors[step]))
    return np.array(picture)


def augment(pixels: Pixels, kinds: Collection[Augmentation], rng: np.random.Generator, share: float = 1.0) -> Pixels:
    """Return (H, W, 3) uint8 RGB for training: each of `kinds` applied with probability `share`, at a random level.

    Always in this order, whatever that of `kinds`: blur (sigma 0.4-2 px), jitter (0.3), JPEG (quality 30-100), WebP
    (30-100), resize (factor 0.5-1), noise (sigma 1-8 of 255). Levels are drawn uniformly. Blur, jitter and JPEG are the
    paper's options.

    Raises DeclipError for an unknown kind or a share outside [0, 1], ImageError as `perturb`.
    """
    _check_pixels(pixels)
    check_several(kinds, "augment(pixels, […], rng)")
    known = get_args(Augmentation)
    if unknown := sorted(set(kinds) - set(known)):
        raise DeclipError(f"there is no augmentation {unknown[0]!r}; expected {', '.join(map(repr, known))}")
    if not 0 <= share <= 1:
        raise DeclipError(f"the share of augmented pictures is {share}; expected a number from 0 to 1")
    pixels = pixels.copy()
    for kind in known:
        if kind not in kinds or rng.random() >= share:
            continue
        if kind == "jitter":
            pixels = jitter(pixels, rng)
        else:
            low, high = _DRAWN[kind]
            level = rng.integers(int(low), int(high) + 1) if kind in _QUALITIES else rng.uniform(low, high)
            pixels = perturb(pixels, kind, float(level), rng)
    return pixels


def _check_level(kind: Perturbation, level: float) -> None:
    if kind not in LEVELS:
        raise DeclipError(f"there is no perturbation {kind!r}; expected {', '.join(map(repr, LEVELS))}")
    low, high = sorted(LEVELS[kind])
    whole = "whole " if kind in _QUALITIES else ""
    if not low <= level <= high or (whole and level != int(level)):
        raise DeclipError(f"the level of {kind} is {level}; expected a {whole}number from {low:g} to {high:g}")


def _check_pixels(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ImageError(_name(pixels), "input", "expected uint8 (H, W, 3) RGB, values 0-255, H and W > 0")


def _name(pixels: Pixels) -> str:
    return f"<array, {pixels.dtype} {pixels.shape}>"


def _to_uint8(values: NDArray[np.float32]) -> Pixels:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
