"""Splices: content of another photo, pasted into a picture. Each is a generator as `classical` describes them."""

from __future__ import annotations

import cv2
import numpy as np

from declip.errors import DatasetError
from declip.synthesis import masks
from declip.synthesis.editing import paste, to_uint8, window_of
from declip.synthesis.steps import Chroma, Encoding, Mask, Pixels, apply

__all__ = ["splice_colour", "splice_feathered", "splice_hard", "splice_object", "splice_poisson"]

_LEAST_SCALE = 0.4  # of a thing that is pasted into another picture


def splice_hard(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Cut out and paste."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    return paste(pixels, foreign, mask), mask


def splice_feathered(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Paste, and blend into the surroundings over a few pixels."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    return paste(pixels, foreign, mask, feather=float(rng.uniform(2, 10))), mask


def splice_poisson(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Combine the gradients of the donor with the colours of the surroundings (Pérez et al. 2003)."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    mode = cv2.MIXED_CLONE if rng.random() < 0.25 else cv2.NORMAL_CLONE
    # The solver wants pixels around the mask on every side.
    border = ((2, 2), (2, 2), (0, 0))
    target, source = (np.pad(part, border, mode="reflect") for part in (pixels, foreign))
    inside = np.pad(mask.astype(np.uint8) * 255, 2)
    x, y, width, height = cv2.boundingRect(inside)
    filled = cv2.seamlessClone(source, target, inside, (x + width // 2, y + height // 2), mode)
    return paste(pixels, filled[2:-2, 2:-2], mask), mask


def splice_colour(pixels: Pixels, mask: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Shift the colours to those of the place (Reinhard et al. 2001), then paste, with or without a soft outline."""
    foreign, mask = _foreign(pixels, mask, rng, donor)
    window = window_of(mask, margin=0)
    inside = mask[window]
    wanted, lab = (
        cv2.cvtColor(np.ascontiguousarray(part[window]), cv2.COLOR_RGB2LAB).astype(np.float32)
        for part in (pixels, foreign)
    )
    had, got = lab[inside], wanted[inside]
    gain = np.clip((got.std(axis=0) + 1) / (had.std(axis=0) + 1), 0.4, 2.0)
    strength = float(rng.uniform(0.6, 1.0))
    matched = lab + strength * ((lab - had.mean(axis=0)) * gain + got.mean(axis=0) - lab)
    filled = foreign.copy()
    filled[window] = cv2.cvtColor(to_uint8(matched), cv2.COLOR_LAB2RGB)
    return paste(pixels, filled, mask, feather=float(rng.choice((0, 2, 5)))), mask


def splice_object(pixels: Pixels, cut: Mask, rng: np.random.Generator, donor: Pixels | None) -> tuple[Pixels, Mask]:
    """Paste a thing of the donor, cut out along its outline, somewhere into the picture.

    It is often made larger or smaller, sometimes mirrored, saved once more or matched in colour. Unlike in the other
    generators the mask `cut` is one of the donor, (h, w) bool; the mask that returns, (H, W) bool, is where it lies.

    Raises DatasetError if the thing is larger than the picture.
    """
    if donor is None:
        raise DatasetError("a splice needs a donor: another photo to take content from")
    window = window_of(cut, margin=2)
    patch, inside = np.ascontiguousarray(donor[window]), cut[window].astype(np.uint8)
    if rng.random() < 0.5:
        patch = _saved(patch, 60, rng)
    room = min(pixels.shape[0] / patch.shape[0], pixels.shape[1] / patch.shape[1])
    scale = min(float(rng.uniform(0.6, 1.4)) if rng.random() < 0.6 else 1.0, room)
    if scale < _LEAST_SCALE:
        raise DatasetError("the thing is too large for the picture; cut out a smaller one")
    if scale != 1.0:
        size = max(4, int(patch.shape[0] * scale)), max(4, int(patch.shape[1] * scale))
        patch = _resized(patch, size, rng, smaller=scale < 1)
        inside = np.asarray(cv2.resize(inside, size[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
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
    """Return the picture with the donor's content around the mask, and the mask of what shall be kept of it.

    Half of the time the outline moves to the donor's own edges, as when an object is cut out.
    """
    if donor is None:
        raise DatasetError("a splice needs a donor: another photo to take content from")
    # A margin lets the outline move outwards too.
    window = window_of(mask, margin=max(8, round(0.2 * float(np.sqrt(mask.sum())))))
    inside = mask[window]
    patch = _donor_patch(donor, (inside.shape[0], inside.shape[1]), rng)
    foreign = pixels.copy()
    foreign[window] = patch
    if rng.random() < 0.5:
        mask = np.zeros_like(mask)
        mask[window] = masks.snap(inside, patch, rng)
    return foreign, mask


def _donor_patch(donor: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Cut a random part of the donor at `size`: often of another JPEG history, sometimes resized or mirrored."""
    scale = float(rng.uniform(0.7, 1.4)) if rng.random() < 0.5 else 1.0
    scale = max(scale, size[0] / donor.shape[0], size[1] / donor.shape[1])
    height, width = (min(max(1, round(side / scale)), whole) for side, whole in zip(size, donor.shape[:2], strict=True))
    top = int(rng.integers(donor.shape[0] - height + 1))
    left = int(rng.integers(donor.shape[1] - width + 1))
    patch = np.ascontiguousarray(donor[top : top + height, left : left + width])
    if rng.random() < 0.7:
        patch = _saved(patch, 50, rng)
    if patch.shape[:2] != size:
        patch = _resized(patch, size, rng, smaller=scale < 1)
    return patch[:, ::-1] if rng.random() < 0.3 else patch


def _saved(patch: Pixels, lowest: int, rng: np.random.Generator) -> Pixels:
    """Save a patch as a JPEG of quality `lowest` to 98 and read it again."""
    chroma: Chroma = "4:2:0" if rng.random() < 0.6 else "4:4:4"
    return apply(patch, (Encoding(format="jpeg", quality=int(rng.integers(lowest, 99)), chroma=chroma),))


def _resized(patch: Pixels, size: tuple[int, int], rng: np.random.Generator, *, smaller: bool) -> Pixels:
    """Bring a patch to `size` (height, width) px: averaged if it gets smaller, else interpolated in one of two ways."""
    method = cv2.INTER_AREA if smaller else int(rng.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC)))
    return np.asarray(cv2.resize(patch, size[::-1], interpolation=method), dtype=np.uint8)
