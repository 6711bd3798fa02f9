"""One sample at a time: what is kept of a picture and its mask, and what is wrong with them by themselves."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from scipy import ndimage

from declip.datasets.audit.report import Finding, Kind, Severity, make_finding
from declip.errors import ImageError
from declip.evaluation import metrics
from declip.images.jpeg import libjpeg_tables
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample

__all__ = ["Facts", "MaskFacts", "Picture", "alone", "inspect", "photo_of", "px", "thumb_of", "trivial"]

# Masks. Values of a mask file between these are neither black nor white; up to this share of the picture they are taken
# for the antialiased outline. A picture of which this share is black or white is a mask.
GREY = (32, 223)
GREY_SHARE = 0.05
TWO_VALUED = 0.98

# The frame counts as marked from this share of its pixels on.
FRAME_SHARE = 0.95

# Perceptual hashes of 16 × 16 bits, and thumbnails. A picture of less contrast (standard deviation, in levels) has no
# hash worth the name.
HASH_SIDE, THUMB, FLAT = 16, 32, 4.0


Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What is kept of a picture. size: (height, width). quality, chroma: of a JPEG, else None.

    digest: of the pixels and the size. hash: 32 bytes, None if the picture is flat. thumb: 32 × 32 grey values.
    """

    size: tuple[int, int]
    format: str
    quality: int | None
    chroma: int | None
    digest: bytes = field(repr=False)
    hash: bytes | None = field(repr=False)
    thumb: bytes = field(repr=False)
    two_valued: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFacts:
    """What is kept of a mask. grey: share of values that are neither black nor white; highest: the file's.

    area, frame: share of the picture and of its outermost pixels that is marked. one_piece: the largest part of the
    rest, as a share of it. trivial: IoU and F1 of all fake, then of all real.
    """

    size: tuple[int, int]
    grey: float
    highest: int
    area: float
    frame: float
    one_piece: float
    trivial: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is kept of a sample; problem: why a file of it could not be read."""

    picture: Picture | None = None
    mask: MaskFacts | None = None
    problem: str | None = None


def inspect(sample: Sample) -> Facts:
    """Read a sample's files once."""
    try:
        picture = _picture(sample.image)
    except ImageError as error:
        return Facts(problem=str(error))
    if sample.mask is None:
        return Facts(picture=picture)
    try:
        return Facts(picture=picture, mask=_mask_facts(sample))
    except ImageError as error:
        return Facts(picture=picture, problem=f"the mask: {error}")


def _picture(path: Path) -> Picture:
    import imagehash

    photo = read_photo(path)
    file_type, quality, chroma = saved_as(photo.data)
    grey = Image.fromarray(photo.pixels).convert("L")
    values = np.asarray(grey)
    low, high = GREY
    mixed = (values >= low) & (values <= high)
    flat = float(values.std()) < FLAT
    bits = None if flat else np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes()
    digest = hashlib.blake2b(repr(photo.size).encode(), digest_size=16)
    digest.update(photo.pixels.data)
    return Picture(
        size=photo.size,
        format=file_type,
        quality=quality,
        chroma=chroma,
        digest=digest.digest(),
        hash=bits,
        thumb=grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
        two_valued=not flat and mixed.mean() <= 1 - TWO_VALUED and _is_grey(photo.pixels),
    )


def _is_grey(pixels: Pixels) -> bool:
    return bool((pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 1] == pixels[:, :, 2]).all())


def saved_as(data: bytes) -> tuple[str, int | None, int | None]:
    """How a file was saved: its type; of a JPEG the quality in 1-100 and Pillow's number for the subsampling."""
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


def _mask_facts(sample: Sample) -> MaskFacts:
    if sample.mask is None:
        raise ValueError(f"{sample.image} has no mask")
    grey = np.asarray(Image.fromarray(read_photo(sample.mask).pixels).convert("L"))
    marked = read_mask(sample)
    area = float(marked.mean())
    frame = float(np.concatenate([marked[0], marked[-1], marked[1:-1, 0], marked[1:-1, -1]]).mean())
    one_piece = math.nan
    if area < 1 and frame >= FRAME_SHARE:
        parts, _ = ndimage.label(~marked, structure=np.ones((3, 3), dtype=bool))
        one_piece = float(np.bincount(parts.ravel())[1:].max() / np.count_nonzero(~marked))
    low, high = GREY
    return MaskFacts(
        size=(marked.shape[0], marked.shape[1]),
        grey=float(((grey >= low) & (grey <= high)).mean()),
        highest=int(grey.max()),
        area=area,
        frame=frame,
        one_piece=one_piece,
        trivial=trivial(marked),
    )


def trivial(marked: Mask) -> tuple[float, float, float, float]:
    """IoU and F1 of all fake, then of all real, against a mask (H, W)."""
    everything = np.ones(marked.shape, dtype=np.float32)
    nothing = np.zeros(marked.shape, dtype=np.float32)
    return (
        metrics.iou(everything > 0.5, marked),
        metrics.f1(everything, marked),
        metrics.iou(nothing > 0.5, marked),
        metrics.f1(nothing, marked),
    )


def alone(i: int, samples: Sequence[Sample], facts: Facts) -> Iterator[Finding]:
    """What a sample shows by itself."""
    sample, picture, mask = samples[i], facts.picture, facts.mask

    def finding(kind: Kind, severity: Severity, text: str) -> Finding:
        return make_finding(kind, severity, samples, (i,), text)

    if facts.problem is not None:
        yield finding("unreadable", "error", facts.problem)
    elif sample.label == "fake" and sample.mask is None:
        yield finding("missing-mask", "error", "a fake without a mask")
    if picture is None or mask is None:
        return
    if picture.two_valued and mask.grey > 2 * GREY_SHARE:
        yield finding("mixed-up", "error", f"the image is black and white, its mask {sample.mask} is a photo")
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
    """(height, width) as people write it."""
    return f"{size[0]}×{size[1]}"


def photo_of(samples: Sequence[Sample], i: int) -> str | int:
    """The group; a sample without one stands for itself."""
    return samples[i].group or i


def thumb_of(facts: Facts) -> NDArray[np.int16]:
    """(1024,) grey values 0-255 of the thumbnail."""
    if facts.picture is None:
        raise ValueError("a picture that was not read has no thumbnail")
    return np.frombuffer(facts.picture.thumb, dtype=np.uint8).astype(np.int16)
