"""Read the quantised luma coefficients of a JPEG and their table, as the file stores them.

Networks for traces of compression (CAT-Net) and statistics of double compression need them.
"""

from __future__ import annotations

import functools
import io
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from declip.errors import ImageError, naming_extras
from declip.images.encode import encode_jpeg
from declip.images.orientation import to_stored, to_upright
from declip.images.read import read_photo
from declip.process import PerProcess
from declip.results import Photo, PictureLike

__all__ = ["JpegCoefficients", "libjpeg_tables", "read_coefficients", "save_again"]

# Colour spaces whose first component is luma.
WITH_LUMA = ("JCS_YCbCr", "JCS_GRAYSCALE")

# Pillow's numbers of the usual ways to sample colour.
_SAMPLED = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}

# jpeglib gathers a file's markers in variables of its whole library: two threads that read at once corrupt its memory.
_ONE_AT_A_TIME = PerProcess(threading.Lock)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JpegCoefficients:
    """The luma of a JPEG, as it is stored.

    coefficients: (H8, W8) int16, quantised; each 8×8 block at its place in the picture, row = vertical frequency. H8
        and W8 are the stored picture's sides, rounded up to multiples of 8.
    table: (8, 8) int32, the steps: coefficient × step is the DCT (orthonormal) of the grey levels minus 128.
    was_jpeg: False where the picture was none, and was saved once at quality 100, 4:4:4, for these numbers; of its
        past they then tell no more than its pixels do.
    orientation: the EXIF value that still turns this grid into the upright photo's; 1 where both are the same.
    """

    coefficients: NDArray[np.int16] = field(repr=False)
    table: NDArray[np.int32] = field(repr=False)
    was_jpeg: bool
    orientation: int

    def plane(self, height: int, width: int) -> NDArray[np.float32]:
        """Return the coefficients as (height, width) float32, cut, or filled with zeros below and to the right."""
        h, w = self.coefficients.shape
        padded = np.zeros((max(h, height), max(w, width)), np.float32)
        padded[:h, :w] = self.coefficients
        return padded[:height, :width]

    def __post_init__(self) -> None:
        h, w = self.coefficients.shape
        if h % 8 or w % 8 or self.coefficients.dtype != np.int16 or self.table.shape != (8, 8):
            raise ImageError(
                "<coefficients>",
                "input",
                f"got {self.coefficients.dtype} {(h, w)} and a table {self.table.shape}; "
                "expected int16 with sides that are multiples of 8, and (8, 8)",
            )


def read_coefficients(source: PictureLike) -> JpegCoefficients:
    """Read the luma coefficients of a JPEG (baseline or progressive); what is no JPEG is saved as one first.

    source: as for `read_photo`. Arrays, PIL images and photos without their file's bytes are no JPEG, and neither
    is, for want of luma, a JPEG in RGB or CMYK.
    Raises ImageError as `read_photo` does, and of kind "format" for a JPEG that libjpeg does not decode
    (arithmetic coding); MissingExtraError without the extra `data`.
    """
    photo = read_photo(source)  # refuses damaged files
    stored = _decode(photo.data, photo.name) if photo.data.startswith(b"\xff\xd8\xff") else None
    was_jpeg = stored is not None
    if stored is None:
        stored = _decode(encode_jpeg(photo.pixels, 100, "4:4:4"), photo.name)
        assert stored is not None  # an RGB picture is saved in YCbCr
    coefficients, table = stored
    orientation = photo.orientation if was_jpeg else 1
    return JpegCoefficients(coefficients=coefficients, table=table, was_jpeg=was_jpeg, orientation=orientation)


@functools.cache
def libjpeg_tables() -> NDArray[np.int64]:
    """Return (100, 2, 64): for each quality from 1, libjpeg's steps of luma and of chroma."""
    rows = []
    for quality in range(1, 101):
        stream = io.BytesIO(encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality))
        steps = JpegImagePlugin.JpegImageFile(stream).quantization
        rows.append([steps[0], steps[1]])
    return np.array(rows, dtype=np.int64)


def save_again(photo: Photo, pixels: NDArray[np.uint8]) -> tuple[Photo, str]:
    """Save other pixels as a photo's file is saved; return them as they are read again, and one sentence that says how.

    pixels: (H, W, 3) uint8, upright, of the photo's size. A JPEG keeps its quantization tables, the sampling of its
    colour and its grid of 8×8 px, but no metadata; where the sampling is an unusual one, it becomes 4:2:0. Anything
    else is kept without loss.
    """
    if not photo.data.startswith(b"\xff\xd8\xff"):
        return Photo(pixels=pixels, name=photo.name), "The copies were kept without loss, as the photo is no JPEG file."
    file = JpegImagePlugin.JpegImageFile(io.BytesIO(photo.data))
    tables = [list(steps) for _, steps in sorted(file.quantization.items())]
    image = Image.fromarray(np.ascontiguousarray(to_stored(pixels, photo.orientation)))
    stream, grey = io.BytesIO(), file.mode == "L"
    chroma = _SAMPLED.get(JpegImagePlugin.get_sampling(file), "4:2:0")
    image = image.convert("L") if grey else image
    image.save(stream, "JPEG", qtables=tables, subsampling=chroma)
    saved = read_photo(stream.getvalue(), max_pixels=pixels.size)
    upright = np.ascontiguousarray(to_upright(saved.pixels, photo.orientation))
    colour = "in grey" if grey else f"colour {chroma}"
    how = f"The copies were saved as the file is: as JPEG with its own quantization tables, {colour}."
    return Photo(pixels=upright, name=photo.name, data=saved.data, orientation=photo.orientation), how


def _decode(data: bytes, name: str) -> tuple[NDArray[np.int16], NDArray[np.int32]] | None:
    """Return (coefficients, table) of the luma; None where the file has none."""
    with naming_extras():
        import jpeglib
    with tempfile.TemporaryDirectory() as folder:  # jpeglib reads files only
        path = Path(folder) / "photo.jpg"
        path.write_bytes(data)
        try:
            with _ONE_AT_A_TIME():
                file: Any = jpeglib.read_dct(str(path))
                if file.jpeg_color_space.name not in WITH_LUMA:
                    return None
                blocks = file.Y  # (rows, columns, 8, 8)
                table = file.qt[file.quant_tbl_no[0]]
        except OSError as error:
            raise ImageError(
                name,
                "format",
                "libjpeg does not decode this kind of JPEG (arithmetic coding, say); save it as a baseline JPEG",
            ) from error
    rows, columns = blocks.shape[:2]
    plane = blocks.transpose(0, 2, 1, 3).reshape(8 * rows, 8 * columns)
    return np.ascontiguousarray(plane, dtype=np.int16), table.astype(np.int32)
