"""Read one sample at a time: what is kept of its picture and mask, and what is wrong with the sample by itself."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from declip.datasets.audit.report import Finding, Kind, Severity, make_finding
from declip.errors import ImageError
from declip.evaluation import metrics
from declip.images.jpeg import libjpeg_tables
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample

__all__ = ["Facts", "Mask", "Picture", "alone", "inspect", "photo_of", "px", "thumb_of"]

# Values of a mask file between these are neither black nor white. Up to this share of the picture they are taken for
# the soft outline of a mask.
GREY = (32, 223)
GREY_SHARE = 0.05
# The sides of the perceptual hash, in bits, and of the thumbnail, in px. A picture of less contrast than FLAT (standard
# deviation, in levels of 255) has no useful hash.
HASH_SIDE, THUMB, FLAT = 16, 32, 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What is kept of a picture.

    size: (height, width) px. quality: 1-100, and chroma: Pillow's number of the subsampling; None unless it is a JPEG.
    digest: of pixels and size. hash: 32 bytes, None if the picture is flat. thumb: 32 × 32 grey values.
    """

    size: tuple[int, int]
    format: str
    quality: int | None
    chroma: int | None
    digest: bytes = field(repr=False)
    hash: bytes | None = field(repr=False)
    thumb: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask:
    """What is kept of a mask.

    size: (height, width) px. grey: share of values that are neither black nor white. highest: highest value, 0-255.
    area, frame: share of the picture, and of its outermost pixels, that is marked. f1: of a map that marks everything;
    nan where the mask is too thin for this F1.
    """

    size: tuple[int, int]
    grey: float
    highest: int
    area: float
    frame: float
    f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is kept of a sample. problem: why one of its files could not be read."""

    picture: Picture | None = None
    mask: Mask | None = None
    problem: str | None = None


def inspect(sample: Sample) -> Facts:
    """Read the files of a sample."""
    try:
        picture = _picture(sample.image)
    except ImageError as error:
        return Facts(problem=str(error))
    if sample.mask is None:
        return Facts(picture=picture)
    try:
        return Facts(picture=picture, mask=_mask(sample, sample.mask))
    except ImageError as error:
        return Facts(picture=picture, problem=f"the mask: {error}")


def _picture(path: Path) -> Picture:
    import imagehash

    photo = read_photo(path)
    file_type, quality, chroma = saved_as(photo.data)
    grey = Image.fromarray(photo.pixels).convert("L")
    flat = float(np.asarray(grey).std()) < FLAT
    digest = hashlib.blake2b(repr(photo.size).encode(), digest_size=16)
    digest.update(photo.pixels.data)
    return Picture(
        size=photo.size,
        format=file_type,
        quality=quality,
        chroma=chroma,
        digest=digest.digest(),
        hash=None if flat else np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes(),
        thumb=grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
    )


def _mask(sample: Sample, path: Path) -> Mask:
    grey = np.asarray(Image.fromarray(read_photo(path).pixels).convert("L"))
    marked = read_mask(sample)
    low, high = GREY
    return Mask(
        size=(marked.shape[0], marked.shape[1]),
        grey=float(((grey >= low) & (grey <= high)).mean()),
        highest=int(grey.max()),
        area=float(marked.mean()),
        frame=float(np.concatenate([marked[0], marked[-1], marked[1:-1, 0], marked[1:-1, -1]]).mean()),
        f1=metrics.f1(np.ones(marked.shape, dtype=np.float32), marked),
    )


def saved_as(data: bytes) -> tuple[str, int | None, int | None]:
    """Return how a file was saved: its type, of a JPEG its quality (1-100) and Pillow's number of the subsampling."""
    with warnings.catch_warnings():
        # The picture has been read, so it is within declip's limits; Pillow's are lower.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:  # HEIC: its plugin is not registered with Pillow
            return "other", None, None
    if not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return opened.format or "other", None, None
    table = opened.quantization.get(0)
    quality = None
    if table is not None:
        distances = np.abs(libjpeg_tables()[:, 0] - np.asarray(table, dtype=np.int64)).sum(axis=1)
        quality = int(np.argmin(distances)) + 1
    # MPO is the JPEG of phones that hold two pictures.
    return "JPEG", quality, JpegImagePlugin.get_sampling(opened)


def alone(i: int, samples: Sequence[Sample], facts: Facts) -> Iterator[Finding]:
    """Report what is wrong with one sample by itself."""
    sample, picture, mask = samples[i], facts.picture, facts.mask

    def finding(kind: Kind, severity: Severity, text: str) -> Finding:
        return make_finding(kind, severity, samples, (i,), text)

    if facts.problem is not None:
        yield finding("unreadable", "error", facts.problem)
    elif sample.label == "fake" and sample.mask is None:
        yield finding("missing-mask", "error", "a fake without a mask")
    if picture is None or mask is None:
        return
    if picture.size != mask.size:
        sizes = f"the image has {px(picture.size)}, its mask {px(mask.size)} pixels (height × width)"
        turned = "; one of them is turned" if picture.size == mask.size[::-1] else ""
        yield finding("size-mismatch", "error", sizes + turned)
    if mask.grey > GREY_SHARE:
        text = f"{mask.grey:.0%} of the mask is neither black nor white; what is above 127 counts as white"
        yield finding("grey-mask", "warning", text)
    elif mask.grey > 0:
        text = f"the mask has a soft outline ({mask.grey:.1%} of the picture); what is above 127 counts as white"
        yield finding("grey-mask", "note", text)
    if sample.label == "real":
        if mask.area > 0:
            yield finding("masked-real", "error", f"labelled real, but its mask marks {mask.area:.1%} of it")
    elif mask.area == 0:
        faint = f"; its highest value is {mask.highest}, and white is what is above 127" if mask.highest else ""
        yield finding("empty-mask", "error", f"a fake whose mask marks nothing{faint}")
    elif mask.area == 1:
        yield finding("full-mask", "note", "the mask is the whole picture: any map that says so is right")


def px(size: tuple[int, int]) -> str:
    """Write a size for people."""
    return f"{size[0]}×{size[1]}"


def photo_of(samples: Sequence[Sample], i: int) -> str | int:
    """Return the group of a sample; a sample without one stands for itself."""
    return samples[i].group or i


def thumb_of(facts: Facts) -> NDArray[np.int16]:
    """Return the (1024,) grey values, 0-255, of the thumbnail of a picture that was read."""
    assert facts.picture is not None
    return np.frombuffer(facts.picture.thumb, dtype=np.uint8).astype(np.int16)
