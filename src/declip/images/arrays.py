"""Take arrays and torch tensors as pictures, and Pillow's images as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip.errors import ImageError
from declip.images.depth import depth_note, on_white
from declip.results import Tensor

__all__ = ["from_image", "from_tensor", "is_tensor", "shape_of", "strips", "to_rgb"]

_EXPECTED = (
    "expected (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) grey, or with the channels first, H and W > 0; "
    "uint8, uint16 (white = 65535) or floats in [0, 1]"
)


def is_tensor(source: object) -> TypeGuard[Tensor]:
    """Return whether this is a torch tensor; torch itself need not be imported."""
    return any(c.__name__ == "Tensor" and c.__module__.partition(".")[0] == "torch" for c in type(source).__mro__)


def from_tensor(source: Tensor) -> NDArray[Any]:
    """Return a torch tensor, on any device and with or without a gradient, as an array."""
    tensor = source.detach().cpu()
    return np.asarray(tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy())


def shape_of(array: NDArray[Any], name: str) -> tuple[int, int, int]:
    """Return (height, width, channels) of a picture; raise ImageError ("input") where that is not clear."""
    shape = array.shape
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) == 4:
        raise ImageError(name, "input", f"this is a batch, or a video; give one picture at a time: {_EXPECTED}")
    if len(shape) != 3 or 0 in shape:
        raise ImageError(name, "input", _EXPECTED)
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if shape[0] == 3 and last and array.ndim == 3:
        raise ImageError(
            name,
            "input",
            "this may be a picture of 3 rows or one of 3 channels; expected a shape that can be only one of them, "
            "as (H, W, 3) with H other than 3: give a PIL image, which says it",
        )
    if not first and not last:
        raise ImageError(name, "input", _EXPECTED)
    return shape if last else (shape[1], shape[2], shape[0])


def to_rgb(array: NDArray[Any], name: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return an array whose shape `shape_of` accepts as a picture of its own: ((H, W, 3) uint8, notes).

    Alpha is composited on white. Raises ImageError ("input") for other types and values.
    """
    size = shape_of(array, name)
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.shape != size:
        array = np.moveaxis(array, 0, 2)
    notes: tuple[str, ...] = ()
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        notes = depth_note(int(array.max()))
        array = (array >> 8).astype(np.uint8)
    elif array.dtype.kind == "f":
        array = _unit_floats(array, name)
    elif array.dtype != np.uint8:
        words = "this is a mask, not a picture; " if array.dtype == np.bool_ else ""
        raise ImageError(name, "input", words + _EXPECTED)
    match size[2]:
        case 1:
            return np.repeat(array, 3, axis=2), notes
        case 4:
            return np.array(on_white(Image.fromarray(np.ascontiguousarray(array)))), notes
    # Copied: a caller may reuse its buffer, for the next frame of a video say.
    return array.copy(order="C"), notes


def _unit_floats(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1 + 1e-6):  # not: also catches nan
        raise ImageError(
            name,
            "input",
            f"floats from {low:g} to {high:g}; expected floats in [0, 1]: divide by what is white, or convert to uint8 "
            "where white is 255 (and undo a network's normalisation)",
        )
    scaled = array.astype(np.float32) * np.float32(255)
    np.minimum(scaled, 255, out=scaled)
    return np.asarray(np.rint(scaled, out=scaled), np.uint8)


# Rows are worked on in strips of about this many pixels: no copy of a large picture is held twice.
STRIP = 1 << 20


def from_image(image: Image.Image) -> NDArray[Any]:
    """Return a writable array of an "RGB", "L" or "F" image. Pillow's own way would hold the pixels three times."""
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    array = np.empty(shape, dtype=np.float32 if image.mode == "F" else np.uint8)
    for rows in strips(height, width):
        array[rows] = np.asarray(image.crop((0, rows.start, width, rows.stop)))
    return array


def strips(height: int, width: int) -> Iterator[slice]:
    """Split the rows of a picture into strips of about STRIP pixels."""
    step = max(1, STRIP // max(1, width))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))
