"""Manipulations that need no learnt weights: in-painting, copy-move and local edits; `splices` has the splices.

Every generator is a function

    (pixels (H, W, 3) uint8 RGB, mask (H, W) bool, rng, donor (h, w, 3) uint8 | None) -> (pixels, mask)

that returns a new picture and the mask of what really was manipulated: outside it the picture is bit-identical to
the input. Everything random comes from `rng`. A generator that cannot work with this mask raises DatasetError: draw
another one. `GENERATORS` is the table of them. Most only fill the mask (`editing.filled`).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import patchmatch
from numpy.typing import NDArray
from skimage.restoration import inpaint_biharmonic

from declip.errors import DatasetError, MissingExtraError
from declip.synthesis import masks, splices
from declip.synthesis.editing import Apply, Generator, draw_feather, filled, paste, to_uint8, window_of
from declip.synthesis.steps import Mask, Pixels

__all__ = ["GENERATORS", "require_patchmatch"]


def require_patchmatch() -> None:
    """Raise MissingExtraError where pypatchmatch came without its native library (no wheel for the platform)."""
    if not patchmatch.patchmatch_available:
        raise MissingExtraError("pypatchmatch (with its native library)", "synthesis")


def _opencv(method: int) -> Apply:
    """In-paint by fast marching (Telea 2004), or continue the lines of equal brightness (Bertalmio et al. 2001)."""

    def fill(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
        hole, radius = mask.astype(np.uint8) * 255, float(rng.integers(3, 8))
        return np.asarray(cv2.inpaint(np.ascontiguousarray(pixels), hole, radius, method))

    return filled(fill)


def _patches(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
    """Fill the hole with patches of its surroundings, coarse to fine (PatchMatch, Barnes et al. 2009)."""
    require_patchmatch()
    window = window_of(mask, margin=max(32, round(0.5 * float(np.sqrt(mask.sum())))))
    hole = np.ascontiguousarray(mask[window])
    if hole.mean() > 0.7:
        raise DatasetError("too little is left around the mask to take patches from; draw a smaller mask")
    patchmatch.set_random_seed(int(rng.integers(2**31)))
    side = int(rng.integers(2, 4))  # px; its square is the time
    made = pixels.copy()
    made[window] = patchmatch.inpaint(
        np.ascontiguousarray(pixels[window]), hole.astype(np.uint8) * 255, patch_size=side
    )
    return made


def _biharmonic(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
    """Fill the hole with the smoothest surface through its surroundings."""
    window = window_of(mask, margin=8)
    made = pixels.copy()
    made[window] = to_uint8(inpaint_biharmonic(pixels[window], mask[window], channel_axis=-1) * 255)
    return made


def _copy_move(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Cut out the largest part of the mask, turn or scale it a little, and paste it elsewhere in the same picture.

    The mask that returns is where it was pasted.
    """
    height, width = mask.shape
    part = masks.largest_part(mask)
    rows, columns = window_of(part, margin=0)
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
    method = cv2.INTER_CUBIC if angle or scale != 1.0 else cv2.INTER_NEAREST
    moved = cv2.warpAffine(pixels, turn, (width, height), flags=method, borderMode=cv2.BORDER_REFLECT)
    pasted = cv2.warpAffine(part.astype(np.uint8), turn, (width, height), flags=cv2.INTER_NEAREST) > 0
    if not pasted.any():
        raise DatasetError("nothing was left of the mask after the move; draw a larger one")
    return paste(pixels, moved, pasted, draw_feather(rng, 6)), pasted


def _blur(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
    """Blur by a Gaussian or a median."""
    if rng.random() < 0.7:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(1.0, 4.0))))
    return np.asarray(cv2.medianBlur(np.ascontiguousarray(pixels), int(rng.choice((3, 5, 7)))))


def _noise(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
    """Add Gaussian noise, coloured or grey, fine or a little coarser."""
    grain = rng.standard_normal((*mask.shape, 3 if rng.random() < 0.5 else 1), dtype=np.float32)
    if rng.random() < 0.3:
        grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), 0.8), dtype=np.float32).reshape(grain.shape)
        grain /= grain.std()
    return pixels + float(rng.uniform(4, 20)) * grain


def _resample(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
    """Stretch or turn the content a little in place, or carry it to a lower resolution and back."""
    window = window_of(mask, margin=16)
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
    made = pixels.copy()
    made[window] = changed
    return made


def _relight(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> NDArray[Any]:
    """Make the content brighter, darker, warmer, colder or of another contrast; evenly or with a slope."""
    height, width = mask.shape
    exposure = float(np.exp(rng.choice((-1, 1)) * rng.uniform(0.12, 0.5)))
    tint = np.exp(rng.uniform(-0.15, 0.15, 3))
    gamma = float(np.exp(rng.uniform(-0.3, 0.3)))
    levels = np.arange(256) / 255
    curves = np.clip(exposure * tint * levels[:, None] ** gamma, 0, 1) * 255  # (256, 3)
    made = np.stack([np.rint(curves[:, c]).astype(np.uint8)[pixels[..., c]] for c in range(3)], axis=-1)
    if rng.random() >= 0.3:
        return made
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.ogrid[:height, :width]
    slope = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5)
    weight = np.clip(0.7 + 0.6 * slope, 0, 1)[..., None]
    return to_uint8(pixels + weight * (made.astype(np.float64) - pixels))


GENERATORS: dict[str, Generator] = {
    "telea": Generator(apply=_opencv(cv2.INPAINT_TELEA), family="in-painting"),
    "navier-stokes": Generator(apply=_opencv(cv2.INPAINT_NS), family="in-painting"),
    # The time of the next two grows with the hole.
    "patchmatch": Generator(apply=filled(_patches), family="in-painting", max_area=0.2, max_pixels=25_000),
    "biharmonic": Generator(apply=filled(_biharmonic), family="in-painting", max_area=0.1, max_pixels=6_000),
    "splice-hard": Generator(apply=splices.splice_hard, family="splice", needs_donor=True),
    "splice-feathered": Generator(apply=splices.splice_feathered, family="splice", needs_donor=True),
    "splice-poisson": Generator(apply=splices.splice_poisson, family="splice", needs_donor=True),
    "splice-colour": Generator(apply=splices.splice_colour, family="splice", needs_donor=True),
    "copy-move": Generator(apply=_copy_move, family="copy-move", max_area=0.2),
    "blur": Generator(apply=filled(_blur, feather=6), family="local-edit"),
    "noise": Generator(apply=filled(_noise, feather=6), family="local-edit"),
    "resample": Generator(apply=filled(_resample, feather=6), family="local-edit"),
    "relight": Generator(apply=filled(_relight, feather=6), family="local-edit"),
}
