"""Manipulations that need no learnt weights: in-painting, splices, copy–move and local edits.

Every generator is a function

    (pixels (H, W, 3) uint8 RGB, mask (H, W) bool, rng, donor (h, w, 3) uint8 | None) -> (pixels, mask)

that returns a new picture and the mask of what really was manipulated: outside it the picture is bit-identical to
the input. Everything random comes from `rng`. A generator that cannot work with this mask raises DatasetError: draw
another one. `GENERATORS` is the table of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from declip.errors import DatasetError, MissingExtraError
from declip.spec import check_choice
from declip.synthesis import masks

try:
    import cv2
    import patchmatch as _patchmatch
    from skimage.restoration import inpaint_biharmonic
except ImportError as error:
    raise MissingExtraError("opencv-python-headless, scikit-image and pypatchmatch", "synthesis") from error

__all__ = [
    "GENERATORS",
    "Chroma",
    "Family",
    "Generator",
    "decode_jpeg",
    "encode_jpeg",
    "paste",
    "require_patchmatch",
    "splice_object",
]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Chroma = Literal["4:4:4", "4:2:0"]
Family = Literal["in-painting", "regeneration", "splice", "copy-move", "local-edit"]
Apply: TypeAlias = Callable[[Pixels, Mask, np.random.Generator, Pixels | None], tuple[Pixels, Mask]]

_LEAST_SCALE = 0.4  # of a thing that is pasted into another picture
_SUBSAMPLING: Mapping[Chroma, int] = MappingProxyType({"4:4:4": 0, "4:2:0": 2})


@dataclass(frozen=True, kw_only=True, slots=True)
class Generator:
    """A row of the table.

    needs_donor: whether `apply` takes content from another photo.
    max_area: largest share of the picture its masks should have (speed, or where it stops looking like anything).
    max_pixels: the same as an absolute number of pixels, where the time grows with it.
    """

    apply: Apply
    family: Family
    needs_donor: bool = False
    max_area: float = masks.AREA[1]
    max_pixels: int | None = None


def encode_jpeg(pixels: Pixels, quality: int, chroma: Chroma) -> bytes:
    """A JPEG file of (H, W, 3) uint8 RGB; quality 1-100. Raises SpecError for another chroma."""
    check_choice(chroma, Chroma, "chroma")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=_SUBSAMPLING[chroma])
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> Pixels:
    """What `encode_jpeg` made, as (H, W, 3) uint8 RGB."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def require_patchmatch() -> None:
    """Raise MissingExtraError where pypatchmatch came without its native library (no wheel for the platform)."""
    if not _patchmatch.patchmatch_available:
        raise MissingExtraError("pypatchmatch (with its native library)", "synthesis")


def paste(pixels: Pixels, filled: NDArray[Any], mask: Mask, feather: float = 0.0) -> Pixels:
    """`filled` inside the mask, `pixels` outside; both (H, W, 3), `filled` of any dtype, clipped to [0, 255].

    feather: px over which the two blend, inwards from the outline, so that nothing outside the mask changes.
    """
    if feather <= 0:
        return np.where(mask[..., None], _to_uint8(filled), pixels)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    # A thin mask still reaches full opacity along its middle.
    alpha = np.clip(depth / min(feather, max(float(depth.max()), 1.0)), 0, 1)[..., None]
    blended = pixels + (filled.astype(np.float32) - pixels) * alpha
    return np.where(mask[..., None], _to_uint8(blended), pixels)


def _to_uint8(values: NDArray[Any]) -> Pixels:
    return values if values.dtype == np.uint8 else np.rint(np.clip(values, 0, 255)).astype(np.uint8)


# In-painting -------------------------------------------------------------------------------------------------------


def _telea(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Fast marching (Telea 2004)."""
    return _opencv(pixels, mask, rng, cv2.INPAINT_TELEA)


def _navier_stokes(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Continues the lines of equal brightness (Bertalmio et al. 2001)."""
    return _opencv(pixels, mask, rng, cv2.INPAINT_NS)


def _opencv(pixels: Pixels, mask: Mask, rng: np.random.Generator, method: int) -> tuple[Pixels, Mask]:
    radius = float(rng.integers(3, 8))
    filled = cv2.inpaint(np.ascontiguousarray(pixels), mask.astype(np.uint8) * 255, radius, method)
    return paste(pixels, filled, mask), mask


def _patches(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """PatchMatch (Barnes et al. 2009): the hole is filled with patches of its surroundings, coarse to fine."""
    require_patchmatch()
    window = _window(mask, margin=max(32, round(0.5 * float(np.sqrt(mask.sum())))))
    hole = mask[window]
    if hole.mean() > 0.7:
        raise DatasetError("too little is left around the mask to take patches from; draw a smaller mask")
    _patchmatch.set_random_seed(int(rng.integers(2**31)))
    patch = int(rng.integers(2, 4))  # px; its square is the time
    filled = pixels.copy()
    filled[window] = _patchmatch.inpaint(
        np.ascontiguousarray(pixels[window]), np.ascontiguousarray(hole).astype(np.uint8) * 255, patch_size=patch
    )
    return paste(pixels, filled, mask), mask


def _biharmonic(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """The smoothest surface through the surroundings."""
    window = _window(mask, margin=8)
    smooth = inpaint_biharmonic(pixels[window], mask[window], channel_axis=-1)
    filled = pixels.copy()
    filled[window] = _to_uint8(smooth * 255)
    return paste(pixels, filled, mask), mask


# Splices -----------------------------------------------------------------------------------------------------------


def _splice_hard(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Cut and pasted."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    return paste(pixels, foreign, mask), mask


def _splice_feathered(
    pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None
) -> tuple[Pixels, Mask]:
    """Blended into its surroundings over a few pixels."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    return paste(pixels, foreign, mask, feather=float(rng.uniform(2, 10))), mask


def _splice_poisson(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Gradients of the donor, colours of the surroundings (Pérez et al. 2003)."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    mode = cv2.MIXED_CLONE if rng.random() < 0.25 else cv2.NORMAL_CLONE
    # The solver wants pixels around the mask on every side.
    border = ((2, 2), (2, 2), (0, 0))
    target, source = (np.pad(part, border, mode="reflect") for part in (pixels, foreign))
    inside = np.pad(mask.astype(np.uint8) * 255, 2)
    x, y, width, height = cv2.boundingRect(inside)
    filled = cv2.seamlessClone(source, target, inside, (x + width // 2, y + height // 2), mode)
    return paste(pixels, filled[2:-2, 2:-2], mask), mask


def _splice_colour(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Colours shifted to those it lies among (Reinhard et al. 2001), then pasted or feathered."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    window = _window(mask, margin=0)
    inside = mask[window]
    wanted = cv2.cvtColor(np.ascontiguousarray(pixels[window]), cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = cv2.cvtColor(np.ascontiguousarray(foreign[window]), cv2.COLOR_RGB2LAB).astype(np.float32)
    had, got = lab[inside], wanted[inside]
    gain = np.clip((got.std(axis=0) + 1) / (had.std(axis=0) + 1), 0.4, 2.0)
    strength = float(rng.uniform(0.6, 1.0))
    matched = lab + strength * ((lab - had.mean(axis=0)) * gain + got.mean(axis=0) - lab)
    filled = foreign.copy()
    filled[window] = cv2.cvtColor(_to_uint8(matched), cv2.COLOR_LAB2RGB)
    return paste(pixels, filled, mask, feather=float(rng.choice((0, 2, 5)))), mask


def splice_object(pixels: Pixels, donor: Pixels, cut: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Paste a thing of the donor, cut out along its outline, somewhere into the picture.

    It is often made larger or smaller, sometimes mirrored, saved once more or matched in colour.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        donor: (h, w, 3) uint8 RGB.
        cut: (h, w) bool, the thing; not empty.

    Returns:
        pixels: (H, W, 3) uint8, bit-identical outside the mask. mask: (H, W) bool, where the thing lies.

    Raises:
        DatasetError: the thing is larger than the picture.
    """
    window = _window(cut, margin=2)
    patch, inside = np.ascontiguousarray(donor[window]), cut[window].astype(np.uint8)
    if rng.random() < 0.5:
        chroma: Chroma = "4:2:0" if rng.random() < 0.6 else "4:4:4"
        patch = decode_jpeg(encode_jpeg(patch, int(rng.integers(60, 99)), chroma))
    room = min(pixels.shape[0] / patch.shape[0], pixels.shape[1] / patch.shape[1])
    scale = min(float(rng.uniform(0.6, 1.4)) if rng.random() < 0.6 else 1.0, room)
    if scale < _LEAST_SCALE:
        raise DatasetError("the thing is too large for the picture; cut out a smaller one")
    if scale != 1.0:
        size = max(4, int(patch.shape[1] * scale)), max(4, int(patch.shape[0] * scale))
        method = cv2.INTER_AREA if scale < 1 else int(rng.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC)))
        patch = np.asarray(cv2.resize(patch, size, interpolation=method), dtype=np.uint8)
        inside = np.asarray(cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    if rng.random() < 0.4:
        patch, inside = patch[:, ::-1], inside[:, ::-1]
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip(pixels.shape[:2], inside.shape[:2], strict=True))
    place = slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1])
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[place] = inside > 0
    filled = pixels.astype(np.float32)
    filled[place] = patch
    if rng.random() < 0.4:  # brightness and colour shifted towards those of the place
        strength = float(rng.uniform(0.2, 0.7))
        filled[mask] += strength * (pixels[mask].mean(axis=0) - filled[mask].mean(axis=0))
    return paste(pixels, filled, mask, feather=float(rng.choice((0, 1.5, 3, 5)))), mask


def _foreign(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """The picture with the donor's content around the mask, and the mask of what shall be kept of it.

    Half of the time the outline moves to the donor's own edges, as when an object is cut out.
    """
    if donor is None:
        raise DatasetError("a splice needs a donor: another photo to take content from")
    # A margin lets the outline move outwards too.
    window = _window(mask, margin=max(8, round(0.2 * float(np.sqrt(mask.sum())))))
    inside = mask[window]
    patch = _donor_patch(donor, (inside.shape[0], inside.shape[1]), rng)
    foreign = pixels.copy()
    foreign[window] = patch
    if rng.random() < 0.5:
        mask = np.zeros_like(mask)
        mask[window] = masks.snap(inside, patch, rng)
    return foreign, mask


def _donor_patch(donor: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A random part of the donor at `size`: often of another JPEG history, sometimes resized, sometimes mirrored."""
    scale = float(rng.uniform(0.7, 1.4)) if rng.random() < 0.5 else 1.0
    scale = max(scale, size[0] / donor.shape[0], size[1] / donor.shape[1])
    height, width = (min(max(1, round(side / scale)), whole) for side, whole in zip(size, donor.shape[:2], strict=True))
    top = int(rng.integers(donor.shape[0] - height + 1))
    left = int(rng.integers(donor.shape[1] - width + 1))
    patch = np.ascontiguousarray(donor[top : top + height, left : left + width])
    if rng.random() < 0.7:
        chroma: Chroma = "4:2:0" if rng.random() < 0.6 else "4:4:4"
        patch = decode_jpeg(encode_jpeg(patch, int(rng.integers(50, 99)), chroma))
    if patch.shape[:2] != size:
        method = cv2.INTER_AREA if scale < 1 else int(rng.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC)))
        patch = np.asarray(cv2.resize(patch, (size[1], size[0]), interpolation=method), dtype=np.uint8)
    return patch[:, ::-1] if rng.random() < 0.3 else patch


# Copy–move ---------------------------------------------------------------------------------------------------------


def _copy_move(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """The largest part of the mask is cut out, turned or scaled a little, and pasted elsewhere in the same picture.

    The mask that returns is where it was pasted.
    """
    height, width = mask.shape
    part = masks.largest_part(mask)
    rows, columns = _window(part, margin=0)
    y, x = (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2
    angle = float(rng.uniform(-30, 30)) if rng.random() < 0.4 else 0.0
    scale = float(rng.uniform(0.7, 1.4)) if rng.random() < 0.4 else 1.0
    turn = cv2.getRotationMatrix2D((x, y), angle, scale)
    if rng.random() < 0.3:  # mirrored
        turn = turn @ np.array([[-1, 0, 2 * x], [0, 1, 0], [0, 0, 1]])
    corners = np.array([(a, b, 1.0) for a in (columns.start, columns.stop) for b in (rows.start, rows.stop)]) @ turn.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    room = np.array((width, height)) - (high - low)
    if (room < 0).any():
        raise DatasetError("the mask is too large to be copied elsewhere in the picture; draw a smaller one")
    for _ in range(10):
        shift = np.round(rng.uniform(0, 1, 2) * room - low)
        if np.abs(shift).max() >= max(8.0, 0.4 * float((high - low).min())):
            break
    else:
        raise DatasetError("there is no room to move the mask's content to; draw a smaller mask")
    turn[:, 2] += shift
    smooth = bool(angle) or scale != 1.0
    moved = cv2.warpAffine(
        pixels,
        turn,
        (width, height),
        flags=cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REFLECT,
    )
    pasted = cv2.warpAffine(part.astype(np.uint8), turn, (width, height), flags=cv2.INTER_NEAREST) > 0
    if not pasted.any():
        raise DatasetError("nothing was left of the mask after the move; draw a larger one")
    feather = float(rng.uniform(1, 6)) if rng.random() < 0.5 else 0.0
    return paste(pixels, moved, pasted, feather), pasted


# Local edits -------------------------------------------------------------------------------------------------------


def _blur(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Gaussian or median."""
    if rng.random() < 0.7:
        filled: NDArray[Any] = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(1.0, 4.0)))
    else:
        filled = cv2.medianBlur(np.ascontiguousarray(pixels), int(rng.choice((3, 5, 7))))
    return paste(pixels, filled, mask, feather=_edge(rng)), mask


def _noise(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Gaussian, coloured or grey, fine or a little coarser."""
    height, width = mask.shape
    grain = rng.standard_normal((height, width, 3 if rng.random() < 0.5 else 1), dtype=np.float32)
    if rng.random() < 0.3:
        grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), 0.8), dtype=np.float32).reshape(grain.shape)
        grain /= grain.std()
    noisy = pixels + float(rng.uniform(4, 20)) * grain
    return paste(pixels, noisy, mask, feather=_edge(rng)), mask


def _resample(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Content stretched or turned a little in place, or carried to a lower resolution and back."""
    window = _window(mask, margin=16)
    part = np.ascontiguousarray(pixels[window])
    height, width = part.shape[:2]
    method = int(rng.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)))
    if rng.random() < 0.6:
        factor = float(rng.choice((rng.uniform(0.75, 0.95), rng.uniform(1.05, 1.5))))
        angle = float(rng.uniform(-15, 15)) if rng.random() < 0.5 else 0.0
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, factor)
        changed = cv2.warpAffine(part, turn, (width, height), flags=method, borderMode=cv2.BORDER_REFLECT)
    else:
        factor = float(rng.uniform(0.3, 0.7))
        smaller = (max(1, round(width * factor)), max(1, round(height * factor)))
        small = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
        changed = cv2.resize(small, (width, height), interpolation=method)
    filled = pixels.copy()
    filled[window] = changed
    return paste(pixels, filled, mask, feather=_edge(rng)), mask


def _relight(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Brighter, darker, warmer, colder, of another contrast; evenly or with a slope."""
    height, width = mask.shape
    levels = np.arange(256) / 255
    exposure = float(np.exp(rng.choice((-1, 1)) * rng.uniform(0.12, 0.5)))
    tint = np.exp(rng.uniform(-0.15, 0.15, 3))
    gamma = float(np.exp(rng.uniform(-0.3, 0.3)))
    curves = np.clip(exposure * tint * levels[:, None] ** gamma, 0, 1) * 255  # (256, 3)
    filled = np.stack([np.rint(curves[:, c]).astype(np.uint8)[pixels[..., c]] for c in range(3)], axis=-1)
    if rng.random() < 0.3:
        angle = rng.uniform(0, 2 * np.pi)
        rows, columns = np.ogrid[:height, :width]
        slope = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5)
        weight = np.clip(0.7 + 0.6 * slope, 0, 1)[..., None]
        filled = _to_uint8(pixels + weight * (filled.astype(np.float64) - pixels))
    return paste(pixels, filled, mask, feather=_edge(rng)), mask


def _edge(rng: np.random.Generator) -> float:
    """Width of a soft outline: none, or a few pixels."""
    return float(rng.uniform(1, 6)) if rng.random() < 0.5 else 0.0


def _window(mask: Mask, margin: int) -> tuple[slice, slice]:
    """The bounding box of a mask that is not empty, with a margin, inside the picture."""
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    height, width = mask.shape
    return (
        slice(max(0, rows.start - margin), min(height, rows.stop + margin)),
        slice(max(0, columns.start - margin), min(width, columns.stop + margin)),
    )


GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "telea": Generator(apply=_telea, family="in-painting"),
        "navier-stokes": Generator(apply=_navier_stokes, family="in-painting"),
        # The time of the next two grows with the hole.
        "patchmatch": Generator(apply=_patches, family="in-painting", max_area=0.2, max_pixels=25_000),
        "biharmonic": Generator(apply=_biharmonic, family="in-painting", max_area=0.1, max_pixels=6_000),
        "splice-hard": Generator(apply=_splice_hard, family="splice", needs_donor=True),
        "splice-feathered": Generator(apply=_splice_feathered, family="splice", needs_donor=True),
        "splice-poisson": Generator(apply=_splice_poisson, family="splice", needs_donor=True),
        "splice-colour": Generator(apply=_splice_colour, family="splice", needs_donor=True),
        "copy-move": Generator(apply=_copy_move, family="copy-move", max_area=0.2),
        "blur": Generator(apply=_blur, family="local-edit"),
        "noise": Generator(apply=_noise, family="local-edit"),
        "resample": Generator(apply=_resample, family="local-edit"),
        "relight": Generator(apply=_relight, family="local-edit"),
    }
)
