"""Read and write the files of masks and score maps, and find masks that mark nothing.

Scores are kept as 16-bit grey PNGs, 65535 = 1.0; masks as 8-bit grey PNGs, 255 = manipulated.
"""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip.errors import DatasetError, ImageError
from declip.files import write_atomic
from declip.images.arrays import from_image, strips
from declip.images.damage import fault
from declip.images.decode import check_pixels, decoding, file_of, open_header, read_header
from declip.images.depth import transparent_share
from declip.images.encode import encode_png
from declip.images.read import MAX_BYTES, MAX_PIXELS, file_bytes, read_photo, upright_size
from declip.results import SAMPLE, Sample, check_type

__all__ = [
    "empty_masks",
    "mask_png",
    "read_mask",
    "read_scores",
    "scores16",
    "scores_png",
    "warn_of_empty_masks",
    "write_mask",
    "write_scores",
]

_READERS = 4  # threads that look for empty masks

_log = logging.getLogger(__name__)


def read_mask(sample: Sample, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Return the mask of a sample: (H, W) bool at the mask file's own size, True = manipulated, for either polarity.

    Values above half of the range count as white. A real sample without a mask file gives all False at the size of its
    upright image. Raises ImageError for a file that cannot be read or has transparent parts, since some tools make the
    manipulated part transparent and others the rest, and DatasetError for a fake without a mask.
    """
    check_type(sample, Sample, SAMPLE)
    if sample.mask is None:
        if sample.label == "fake":
            raise DatasetError(f"{sample.image}: a fake sample without a mask; give it one, or label it real")
        return np.zeros(upright_size(sample.image, max_pixels), dtype=bool)
    photo = read_photo(sample.mask, max_pixels=max_pixels)
    if transparent_share(read_header(photo.data, photo.name)):
        expected = "save it without transparency, in black and white, and say in fake_is which is manipulated"
        raise ImageError(photo.name, "input", f"the mask has transparent parts; {expected}")
    grey = from_image(Image.fromarray(photo.pixels).convert("L"))
    return np.asarray(grey > 127 if sample.fake_is == "white" else grey <= 127)


def scores16(scores: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round (H, W) scores in [0, 1] to (H, W) uint16, 65535 = 1.0, which keeps them to 1/131070.

    Raises ValueError for another shape and for values outside [0, 1].
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores have shape {scores.shape}; expected (H, W), H and W > 0")
    grey = np.empty(scores.shape, dtype=np.uint16)
    for rows in strips(*scores.shape):
        strip = scores[rows]
        if not (strip.min() >= 0 and strip.max() <= 1):
            raise ValueError("scores are outside [0, 1] or not finite; expected the scores of a Localization")
        grey[rows] = np.rint(strip * np.float32(65535))
    return grey


def scores_png(scores: NDArray[np.float32]) -> bytes:
    """Return (H, W) scores in [0, 1] as the bytes of a 16-bit grey PNG, 65535 = 1.0."""
    return encode_png(scores16(scores))


def write_scores(path: str | Path, scores: NDArray[np.float32]) -> None:
    """Keep (H, W) scores in [0, 1] as a 16-bit grey PNG, 65535 = 1.0; `read_scores` gives them back to 1/131070."""
    write_atomic(path, scores_png(scores))


def read_scores(path: str | Path) -> NDArray[np.float32]:
    """Read scores, (H, W) float32, that were kept by `write_scores` or made elsewhere.

    PNG or TIFF, grey of 8 or 16 bits: 1.0 = its full scale. TIFF of floats: in [0, 1]. .npy, or the array "map" of a
    .npz (as TruFor writes it): floats in [0, 1] (not logits), bool, or uint8 or uint16 of full scale; (H, W), or with
    axes of length 1. Raises ImageError for anything else.
    """
    name = str(path)
    data = file_bytes(path, MAX_BYTES)
    suffix = Path(path).suffix.lower()
    if suffix in (".npy", ".npz"):
        return _score_array(_load_npz(data, name) if suffix == ".npz" else _load_npy(data, name), name)
    file = file_of(data, name)
    kind = file.kind
    if kind not in ("PNG", "TIFF"):
        raise ImageError(name, "format", "not a PNG, a TIFF, a .npy or a .npz; expected grey scores in one of these")
    image = open_header(file)
    check_pixels(image.height, image.width, name, MAX_PIXELS)
    if (found := fault(data, kind, image)) is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {found}")
    if image.mode not in ("L", "I;16", "I", *(("F", "I;16B") if kind == "TIFF" else ())):
        expected = "grey of 8 or 16 bits" + (" or of floats" if kind == "TIFF" else "")
        raise ImageError(name, "format", f"a {kind} of mode {image.mode}; expected {expected}")
    mode = image.mode
    with decoding(image.width * image.height, name, "the picture is truncated or damaged"):
        image.load()
    if mode == "F":
        return _score_array(np.asarray(image), name)
    scores = np.asarray(image).astype(np.float32)
    scores /= np.float32(255 if mode == "L" else 65535)
    return scores


def _load_npy(data: bytes, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(name, "corrupt", f"this .npy cannot be read as one array of numbers: {error}") from error
    return array


def _load_npz(data: bytes, name: str) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            if "map" not in names:
                raise ImageError(
                    name, "input", f'this .npz holds the arrays {names[:20]}; expected scores under the name "map"'
                )
            if archive.getinfo("map.npy").file_size > 8 * MAX_PIXELS + 4096:
                raise ImageError(name, "too-large", f'its array "map" is larger than {MAX_PIXELS} values')
            body = archive.read("map.npy")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ImageError(name, "corrupt", f"this .npz cannot be read: {str(error) or type(error).__name__}") from error
    return _load_npy(body, name)


def _score_array(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    scores = array.squeeze()
    if scores.ndim != 2 or 0 in scores.shape:
        raise ImageError(name, "input", f"an array of shape {array.shape}; expected scores (H, W)")
    if scores.dtype in (np.uint8, np.uint16):
        return np.asarray(scores / np.float32(np.iinfo(scores.dtype).max), np.float32)
    if scores.dtype != np.bool_ and not np.issubdtype(scores.dtype, np.floating):
        raise ImageError(name, "input", f"an array of {scores.dtype}; expected floats in [0, 1], bool, uint8 or uint16")
    scores = np.array(scores, np.float32, order="C")
    if not (scores.min() >= 0 and scores.max() <= 1):  # not: also catches nan
        raise ImageError(
            name, "input", f"values from {scores.min():g} to {scores.max():g}; expected scores in [0, 1], not logits"
        )
    return scores


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """Return a (H, W) bool mask as the bytes of an 8-bit grey PNG, 255 = manipulated."""
    if mask.ndim != 2 or 0 in mask.shape or mask.dtype != np.bool_:
        raise ValueError(f"the mask is {mask.dtype} {mask.shape}; expected bool (H, W), H and W > 0")
    return encode_png(mask.view(np.uint8) * np.uint8(255))


def write_mask(path: str | Path, mask: NDArray[np.bool_]) -> None:
    """Keep a (H, W) bool mask as an 8-bit grey PNG, 255 = manipulated."""
    write_atomic(path, mask_png(mask))


# --- masks that mark nothing: most often files that mean something else by their values, as 0 and 1 -------------------


def empty_masks(samples: Iterable[Sample]) -> list[Sample]:
    """Return the fakes among samples whose mask marks nothing, in order.

    Reads every mask. Those that cannot be read are not among them: whoever needs them says why.
    """
    fakes = [sample for sample in samples if sample.label == "fake"]
    with ThreadPoolExecutor(_READERS) as pool:
        return [sample for sample, empty in zip(fakes, pool.map(_is_empty, fakes), strict=True) if empty]


def warn_of_empty_masks(empty: Sequence[Sample], fakes: int) -> str | None:
    """Log, and return, how many of so many fakes have a mask that marks nothing, and what their files hold instead.

    empty: as of `empty_masks`; where there are none, nothing is logged and None returned.
    """
    if not empty:
        return None
    count = f"all {fakes} fakes" if len(empty) == fakes > 1 else f"{len(empty)} of {fakes} fakes"
    text = (
        f"{count} have a mask that marks nothing, of which nothing can be learnt or measured; the first is "
        f"{_told(empty[0])}. `declip index SAMPLES.jsonl --check` examines every mask"
    )
    _log.warning("%s", text)
    return text


def _is_empty(sample: Sample) -> bool:
    try:
        return not read_mask(sample).any()
    except (ImageError, DatasetError):
        return False


def _told(sample: Sample) -> str:
    """Tell a mask's file and the value in it nearest to being manipulated, as stored and as it is read."""
    assert sample.mask is not None
    opened = read_header(sample.mask.read_bytes(), str(sample.mask))
    stored = np.asarray(opened)  # of a palette its indices
    grey = np.asarray(Image.fromarray(read_photo(sample.mask).pixels).convert("L"))
    if sample.fake_is == "white":
        which, values, rule = "highest", (stored.max(), grey.max()), "more than 127 is manipulated"
    else:
        which, values, rule = "lowest", (stored.min(), grey.min()), "at most 127 is manipulated"
    found = f"{which} value is {values[0]} (mode {opened.mode}), read as {values[1]} of 255"
    return f"{sample.mask}, whose {found}, where {rule}"
