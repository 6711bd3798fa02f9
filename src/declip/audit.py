"""The doctor: what is wrong with a data set, before hours are spent on it.

    report = audit.check(datasets.read_manifest("data/samples.jsonl"))
    audit.render(report, rich.console.Console())
    mended, changes = audit.fix(samples, report)

`check` looks at every file once, and compares every fake with the untouched picture it was made from, where the data
set holds that: a real sample of the same group and size. What was changed must lie inside the mask, which settles
whether a mask is inverted or another sample's. Nothing is learnt but one small classifier, which sees only how the
files were saved, never a pixel. Pictures are streamed; what is kept of each is about 2 kB.

Needs `pip install 'declip[data]'`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy import ndimage, sparse

from declip import image, metrics
from declip.errors import ImageError, MissingExtraError
from declip.types import Sample

__all__ = ["Baseline", "Bias", "Finding", "Report", "check", "fix", "render"]

Severity = Literal["error", "warning", "note"]
Kind = Literal[
    "unreadable",
    "missing-mask",
    "mixed-up",
    "size-mismatch",
    "grey-mask",
    "empty-mask",
    "full-mask",
    "masked-real",
    "inverted-mask",
    "swapped-masks",
    "swapped-labels",
    "swapped-images",
    "wrong-mask",
    "label-conflict",
    "duplicate",
    "near-duplicate",
    "split-group",
    "format-bias",
]

# Masks. Values of a mask file between these are neither black nor white; up to this share of the picture they are taken
# for the antialiased outline. A picture of which this share is black or white is a mask.
GREY = (32, 223)
GREY_SHARE = 0.05
TWO_VALUED = 0.98

# Polarity by its shape alone: more than half of the picture, this share of the frame, and the rest mostly in one piece.
FRAME_SHARE = 0.95
ONE_PIECE = 0.5

# Fake against twin. Levels are of 255. Where this share of the textured pixels is the very same (those of a local
# standard deviation above TEXTURED; the mean difference of 5 × 5 px is below half a level), the two went one way, and
# any difference counts from EXACT levels on. Else one was compressed by itself: then the means of 9 × 9 px are
# compared, which compression keeps, and must differ by LOSSY levels.
SAME_SHARE, TEXTURED = 0.3, 3
EXACT_LEVELS, LOSSY_LEVELS = 4, 8
# A change smaller than this share of the picture, or this many pixels, proves nothing.
CHANGED_SHARE, CHANGED_PIXELS = 0.0005, 64
# A mask fits if the difference is this much larger inside than outside, and if, within MARGIN px, it holds half of what
# changed; it is wrong if it holds less, or, of what may be compression, less than a quarter. It is inverted if it is
# most of the picture and the difference outside is at least twice that inside.
LIFT, MARGIN = 1.5, 8
HELD_EXACT, HELD_LOSSY, HELD_WHOLLY = 0.5, 0.25, 0.95
# Another sample's mask must overlap the change by this (IoU on a grid of 32 × 32) to be taken for the right one.
OVERLAP = 0.3
# Two pictures are versions of one if this share of their 8 × 8 blocks agrees to AGREE levels, and if in those the
# detail, whatever deviates from the block's mean, correlates.
AGREE, AGREE_SHARE, DETAIL = 6, 0.3, 0.6
# A group with more real pictures than this is no photo with its variants: twins are not searched in there.
MAX_REALS = 1000
# Among more misfits than this a partner is not searched: then something is wrong that no exchange mends.
MAX_MISFITS = 2000
# Of the other fakes of one real picture so many are tried in its place.
MAX_SIBLINGS = 20
# Larger pictures are compared on every second, third, … pixel.
COMPARED_PIXELS = 1_000_000

# Duplicates. 256-bit perceptual hashes that differ in at most 15 bits agree in one of 16 bands of 16 bits. Thumbnails
# of 32 × 32 must agree to this many levels on average. A picture of less contrast (standard deviation, in levels) has
# no hash worth the name.
HASH_SIDE, HASH_BITS, BAND_BYTES = 16, 15, 2
THUMB, THUMB_LEVELS, FLAT = 32, 8.0, 4.0

# Bias. A classifier that sees only how files were saved should do no better than chance.
BIAS_WARNING, BIAS_ERROR = 0.60, 0.75
FOLDS = 5
TRAITS = ("file type", "JPEG quality", "chroma subsampling", "size")

# Which split keeps a photo that is in several: the one that is measured on stays whole.
_KEEPS = ("test", "valid", "val", "validation")

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fault. samples: indices into what was checked; images: the paths of their pictures."""

    kind: Kind
    severity: Severity
    message: str
    samples: tuple[int, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bias:
    """How well real and fake are told apart without looking at a pixel.

    auc: area under the ROC curve in [0, 1], mean over folds that share no group; 0.5 = chance. by: the same for each
    trait alone. real, fake: how many samples of each.
    """

    auc: float
    by: tuple[tuple[str, float], ...]
    real: int
    fake: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What an answer that looks at nothing reaches, in [0, 1]; nan where there is nothing to average.

    iou, f1: means over the fakes. iou_all, f1_all: means over all samples, in which untouched pictures count as they
    do in `metrics`: IoU 0 or 1, F1 undefined. f1_undefined: so many fakes have none, as their mask is too thin.
    """

    answer: Literal["all fake", "all real"]
    iou: float
    f1: float
    iou_all: float
    f1_all: float
    f1_undefined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `check` found. compared: so many of the fakes could be compared with an untouched twin.

    bias is None where it cannot be measured: fewer than 5 groups, or than 10 real or fake samples.
    """

    findings: tuple[Finding, ...]
    samples: int
    fakes: int
    compared: int
    bias: Bias | None
    baselines: tuple[Baseline, ...]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> str:
        """One JSON object on one line: the fields and `errors`; what is undefined is null."""
        return json.dumps(_plain(dataclasses.asdict(self) | {"errors": self.errors}), allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if math.isnan(value):
            return None
    return value


def check(samples: Sequence[Sample], *, workers: int = 1, progress: bool = False) -> Report:
    """Examine a data set; `docs/data.md` lists the checks with their thresholds. Nothing is written.

    workers: processes that read pictures. progress: show bars on stderr. The findings come with the errors first.
    Raises MissingExtraError without the extra `data`. Files that cannot be read are findings, never raised.
    """
    _require_extra()
    facts = list(_map(_inspect, samples, workers, progress, "Reading"))
    findings = [finding for i in range(len(samples)) for finding in _alone(i, samples, facts[i])]
    compared, against_twins = _against_twins(samples, facts, workers, progress)
    labels = _swapped_labels(samples, facts)
    # What a swap explains is no fault of its own.
    masks = {i for finding in against_twins if finding.kind == "swapped-masks" for i in finding.samples}
    swapped = {i for finding in labels for i in finding.samples}
    findings = [
        f
        for f in findings
        if not (f.kind == "size-mismatch" and f.samples[0] in masks)
        and not (f.kind in ("masked-real", "missing-mask", "empty-mask") and f.samples[0] in swapped)
    ]
    findings += against_twins
    findings += labels
    findings += _by_shape(samples, facts, compared)
    findings += _label_conflicts(samples, facts)
    findings += _duplicates(samples, facts)
    findings += _split_groups(samples)
    bias, biased = _bias(samples, facts)
    findings += biased
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return Report(
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        samples=len(samples),
        fakes=sum(sample.label == "fake" for sample in samples),
        compared=len(compared),
        bias=bias,
        baselines=_baselines(samples, facts),
    )


def _require_extra() -> None:
    try:
        import imagehash
        import sklearn
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            raise missing from error
        raise
    del imagehash, sklearn


def _finding(kind: Kind, severity: Severity, samples: Sequence[Sample], concerned: Iterable[int], text: str) -> Finding:
    indices = tuple(concerned)
    images = tuple(str(samples[i].image) for i in indices)
    return Finding(kind=kind, severity=severity, message=text, samples=indices, images=images)


# One sample at a time ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Picture:
    """What is kept of a picture. size: (height, width). quality, chroma: of a JPEG, else None.

    digest: of the pixels and the size. hash: 32 bytes, None if the picture is flat. thumb: 32 × 32 grey values.
    """

    size: tuple[int, int]
    format: str
    quality: int | None
    chroma: int | None
    digest: bytes
    hash: bytes | None
    thumb: bytes
    two_valued: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _MaskFacts:
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
class _Facts:
    picture: _Picture | None = None
    mask: _MaskFacts | None = None
    problem: str | None = None


def _inspect(sample: Sample) -> _Facts:
    try:
        picture = _picture(sample.image)
    except ImageError as error:
        return _Facts(problem=str(error))
    if sample.mask is None:
        return _Facts(picture=picture)
    try:
        return _Facts(picture=picture, mask=_mask_facts(sample))
    except ImageError as error:
        return _Facts(picture=picture, problem=f"the mask: {error}")


def _picture(path: Path) -> _Picture:
    import imagehash

    photo = image.read(path)
    file_type, quality, chroma = _saved(photo.data)
    grey = Image.fromarray(photo.pixels).convert("L")
    values = np.asarray(grey)
    low, high = GREY
    mixed = (values >= low) & (values <= high)
    flat = float(values.std()) < FLAT
    bits = None if flat else np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes()
    digest = hashlib.blake2b(repr(photo.size).encode(), digest_size=16)
    digest.update(photo.pixels.data)
    return _Picture(
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


def _saved(data: bytes) -> tuple[str, int | None, int | None]:
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
        distances = np.abs(_tables() - np.asarray(table, dtype=np.int64)).sum(axis=1)
        quality = int(np.argmin(distances)) + 1
    # MPO is the JPEG of phones that hold two pictures.
    return "JPEG", quality, JpegImagePlugin.get_sampling(opened)


@functools.cache
def _tables() -> NDArray[np.int64]:
    """(100, 64): the luminance tables of libjpeg's qualities 1-100."""
    tables = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        buffer.seek(0)
        tables.append(JpegImagePlugin.JpegImageFile(buffer).quantization[0])
    return np.array(tables, dtype=np.int64)


def _mask_facts(sample: Sample) -> _MaskFacts:
    if sample.mask is None:
        raise ValueError(f"{sample.image} has no mask")
    grey = np.asarray(Image.fromarray(image.read(sample.mask).pixels).convert("L"))
    marked = image.read_mask(sample)
    area = float(marked.mean())
    frame = float(np.concatenate([marked[0], marked[-1], marked[1:-1, 0], marked[1:-1, -1]]).mean())
    one_piece = math.nan
    if area < 1 and frame >= FRAME_SHARE:
        parts, _ = ndimage.label(~marked, structure=np.ones((3, 3), dtype=bool))
        one_piece = float(np.bincount(parts.ravel())[1:].max() / np.count_nonzero(~marked))
    low, high = GREY
    return _MaskFacts(
        size=(marked.shape[0], marked.shape[1]),
        grey=float(((grey >= low) & (grey <= high)).mean()),
        highest=int(grey.max()),
        area=area,
        frame=frame,
        one_piece=one_piece,
        trivial=_trivial(marked),
    )


def _trivial(marked: Mask) -> tuple[float, float, float, float]:
    everything = np.ones(marked.shape, dtype=np.float32)
    nothing = np.zeros(marked.shape, dtype=np.float32)
    return (
        metrics.iou(everything > 0.5, marked),
        metrics.f1(everything, marked),
        metrics.iou(nothing > 0.5, marked),
        metrics.f1(nothing, marked),
    )


def _alone(i: int, samples: Sequence[Sample], facts: _Facts) -> Iterator[Finding]:
    """What a sample shows by itself."""
    sample, picture, mask = samples[i], facts.picture, facts.mask

    def finding(kind: Kind, severity: Severity, text: str) -> Finding:
        return _finding(kind, severity, samples, (i,), text)

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
        sizes = f"the image has {_px(picture.size)}, its mask {_px(mask.size)} pixels (height × width)"
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


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


# Fakes against their twins -----------------------------------------------------------------------------------------

_Verdict = Literal["fits", "inverted", "misfit", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """A fake, and the real samples that may be its twin, the likeliest first, with their pictures.

    with_mask: whether the fake's mask has the picture's size, so that it can be compared.
    """

    sample: Sample
    candidates: tuple[int, ...]
    twins: tuple[Path, ...]
    with_mask: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evidence:
    """held: the share of what changed that the mask holds, nan where that is undecided. twin: which of the candidates.

    changed, mask: shares on a grid of 32 × 32, 255 = all; only kept where the mask does not fit.
    """

    verdict: _Verdict
    held: float = math.nan
    twin: int = 0
    changed: bytes = b""
    mask: bytes = b""


def _against_twins(
    samples: Sequence[Sample], facts: Sequence[_Facts], workers: int, progress: bool
) -> tuple[dict[int, _Verdict], list[Finding]]:
    """The verdicts on all fakes that have a twin, and what follows from them."""
    pairs = dict(_pairs(samples, facts))
    found = _map(_compare, list(pairs.values()), workers, progress, "Comparing")
    evidence = {i: one for i, one in zip(pairs, found, strict=True) if one is not None}
    misfits = [i for i, one in evidence.items() if one.verdict in ("inverted", "misfit")]
    partner = _partners(misfits, evidence, facts) if len(misfits) <= MAX_MISFITS else {}
    posing = _posing_as_real([i for i in misfits if i not in partner], evidence, pairs)
    findings = []
    for i, real in dict(posing.values()).items():
        text = "the second, labelled real, is what the first one's mask belongs to: the two pictures are swapped"
        findings.append(_finding("swapped-images", "error", samples, (i, real), text))
    for i in misfits:
        mask = facts[i].mask
        if mask is None or i in posing:
            continue
        if i in partner:
            if i < partner[i]:
                text = "what was changed in each of the two lies inside the other's mask: they are swapped"
                findings.append(_finding("swapped-masks", "error", samples, (i, partner[i]), text))
        elif evidence[i].verdict == "inverted":
            text = f"inverted: the mask marks {mask.area:.0%}, and what differs from the untouched twin is the rest"
            findings.append(_finding("inverted-mask", "error", samples, (i,), text))
        elif pairs[i].with_mask:
            text = "most of what differs from the untouched twin lies outside the mask"
            findings.append(_finding("wrong-mask", "error", samples, (i,), text))
    return {i: one.verdict for i, one in evidence.items()}, findings


def _pairs(samples: Sequence[Sample], facts: Sequence[_Facts]) -> Iterator[tuple[int, _Pair]]:
    reals: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        picture = facts[i].picture
        if sample.label == "real" and sample.group and picture is not None:
            reals[sample.group, picture.size].append(i)
    thumbs: dict[tuple[str, tuple[int, int]], NDArray[np.int16]] = {}
    for i, sample in enumerate(samples):
        picture, mask = facts[i].picture, facts[i].mask
        if sample.label != "fake" or picture is None or mask is None or mask.area == 0 or picture.two_valued:
            continue
        key = (sample.group, picture.size)
        near = reals.get(key, [])
        if not 0 < len(near) <= MAX_REALS:
            continue
        if key not in thumbs:
            thumbs = {key: np.array([_thumb(facts[k]) for k in near])}  # samples of a group mostly follow each other
        difference = np.abs(thumbs[key] - _thumb(facts[i]))
        agree = (difference <= AGREE).mean(axis=1)
        # Of several files of one crop the likeliest is the one with the same traces of compression: the nearest, where
        # what was changed does not count for more than the rest.
        nearest = np.argsort(np.minimum(difference, AGREE).mean(axis=1), kind="stable")
        best = [k for k in nearest[:3] if agree[k] >= AGREE_SHARE / 2]
        if best:
            found = tuple(near[k] for k in best)
            twins = tuple(samples[k].image for k in found)
            yield i, _Pair(sample=sample, candidates=found, twins=twins, with_mask=mask.size == picture.size)


def _thumb(facts: _Facts) -> NDArray[np.int16]:
    if facts.picture is None:
        raise ValueError("a picture that was not read has no thumbnail")
    return np.frombuffer(facts.picture.thumb, dtype=np.uint8).astype(np.int16)


def _compare(pair: _Pair) -> _Evidence | None:
    """Whether the mask holds what differs from the twin; None if none of the pictures is its twin."""
    fake = image.read(pair.sample.image).pixels
    step = math.ceil(math.sqrt(fake.shape[0] * fake.shape[1] / COMPARED_PIXELS))
    fake = fake[::step, ::step]
    for twin, path in enumerate(pair.twins):
        real = image.read(path).pixels[::step, ::step]
        if _versions_of_one(fake, real):
            mask = image.read_mask(pair.sample)
            evidence = _judge(fake, real, mask[::step, ::step] if pair.with_mask else None, mask, MARGIN / step)
            return dataclasses.replace(evidence, twin=twin)
    return None


def _versions_of_one(one: Pixels, other: Pixels) -> bool:
    """Whether two pictures of the same size show the same, but for what was changed in one of them."""
    height, width = (side - side % 8 for side in one.shape[:2])
    if 0 in (height, width):
        return False
    blocks = [
        pixels[:height, :width].mean(axis=2, dtype=np.float32).reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)
        for pixels in (one, other)
    ]
    means = [block.mean(axis=(2, 3), keepdims=True) for block in blocks]
    agree = np.abs(means[0] - means[1])[:, :, 0, 0] <= AGREE
    if agree.mean() < AGREE_SHARE:
        return False
    first, second = (
        (block - mean)[agree].ravel().astype(np.float64) for block, mean in zip(blocks, means, strict=True)
    )
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return norm > 0 and float(first @ second) / norm >= DETAIL


def _judge(fake: Pixels, real: Pixels, mask: Mask | None, whole: Mask, margin: float) -> _Evidence:
    """mask: of the pictures' size, or None if it has another; whole: as it is in the file. margin: px."""
    difference, least = _difference(fake, real)
    exact = least == EXACT_LEVELS
    changed = ndimage.uniform_filter(difference, 5) > least if exact else difference > least
    count = np.count_nonzero(changed)
    if count < max(CHANGED_PIXELS, CHANGED_SHARE * changed.size):
        return _Evidence(verdict="undecided")
    if mask is None:
        return _Evidence(verdict="misfit", changed=_grid(changed), mask=_grid(whole))
    if mask.all():
        return _Evidence(verdict="fits", held=1.0)
    inside, outside = float(difference[mask].mean()), float(difference[~mask].mean())
    near = ndimage.maximum_filter(mask, 2 * max(1, round(margin)) + 1)
    held = np.count_nonzero(changed & near) / count
    if inside >= LIFT * outside and (held >= HELD_EXACT or not exact):
        return _Evidence(verdict="fits", held=held)
    verdict: _Verdict = "undecided"
    if (mask.mean() >= 0.5 and outside >= 2 * inside) or metrics.iou(changed, ~mask) >= 0.5:
        verdict = "inverted"
    elif held < (HELD_EXACT if exact else HELD_LOSSY):
        verdict = "misfit"
    if verdict == "undecided":
        return _Evidence(verdict=verdict)
    return _Evidence(verdict=verdict, changed=_grid(changed), mask=_grid(whole))


def _difference(fake: Pixels, real: Pixels) -> tuple[NDArray[np.float32], int]:
    """How much each pixel differs, in levels, and from how many levels on that is a change. See SAME_SHARE."""
    difference = np.abs(fake.astype(np.int16) - real).max(axis=2).astype(np.float32)
    grey = real.mean(axis=2, dtype=np.float32)
    variance = ndimage.uniform_filter(grey**2, 5) - ndimage.uniform_filter(grey, 5) ** 2
    textured = variance > TEXTURED**2
    same = ndimage.uniform_filter(difference, 5) < 0.5
    if np.count_nonzero(textured) and same[textured].mean() >= SAME_SHARE:
        return difference, EXACT_LEVELS
    return np.abs(ndimage.uniform_filter(fake.mean(axis=2, dtype=np.float32) - grey, 9)), LOSSY_LEVELS


def _grid(mask: Mask) -> bytes:
    """(H, W) bool → 32 × 32 shares, 255 = all, as bytes."""
    picture = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    return picture.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def _partners(misfits: Sequence[int], evidence: dict[int, _Evidence], facts: Sequence[_Facts]) -> dict[int, int]:
    """Of the misfits, those whose masks fit each other's pictures, and only these: i → j and j → i."""
    if len(misfits) < 2:
        return {}
    masks = _grids(evidence[i].mask for i in misfits)
    best = {}
    for row, i in enumerate(misfits):
        changed = _grids([evidence[i].changed])
        overlap = np.minimum(changed, masks).sum(axis=1) / np.maximum(changed, masks).sum(axis=1)
        inverted = np.minimum(changed[0], 255 - masks[row]).sum() / np.maximum(changed[0], 255 - masks[row]).sum()
        overlap[row] = 0
        for column, j in enumerate(misfits):
            picture, mask = facts[i].picture, facts[j].mask
            if picture is None or mask is None or mask.size != picture.size:
                overlap[column] = 0
        column = int(np.argmax(overlap))
        if overlap[column] >= max(OVERLAP, inverted):
            best[i] = misfits[column]
    return {i: j for i, j in best.items() if best.get(j) == i}


def _grids(grids: Iterable[bytes]) -> NDArray[np.float32]:
    return np.array([np.frombuffer(grid, dtype=np.uint8) for grid in grids], dtype=np.float32)


def _posing_as_real(
    misfits: Sequence[int], evidence: dict[int, _Evidence], pairs: dict[int, _Pair]
) -> dict[int, tuple[int, int]]:
    """Misfits that are explained by another fake of their photo being the untouched picture: → (that fake, its twin).

    Fake and real picture of one pair cannot be told apart by their difference. Where several fakes share the real
    picture, all but the swapped one differ from it by two manipulations, and from the swapped one by their own.
    """
    siblings: dict[int, list[int]] = defaultdict(list)
    for i, one in evidence.items():
        if one.verdict == "fits":
            siblings[pairs[i].candidates[one.twin]].append(i)
    found = {}
    for i in misfits:
        real = pairs[i].candidates[evidence[i].twin]
        for other in siblings.get(real, ())[:MAX_SIBLINGS] if pairs[i].with_mask else ():
            twins = (pairs[other].sample.image,)
            again = _compare(_Pair(sample=pairs[i].sample, candidates=(other,), twins=twins, with_mask=True))
            if again is not None and again.verdict == "fits" and again.held >= HELD_WHOLLY:
                found[i] = (other, real)
                break
    return found


def _by_shape(samples: Sequence[Sample], facts: Sequence[_Facts], compared: dict[int, _Verdict]) -> list[Finding]:
    """Polarity where no twin settles it: a suspicion only, as a background may well have been replaced."""
    unsettled: dict[str, list[int]] = defaultdict(list)
    suspects: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        mask = facts[i].mask
        if sample.label == "real" or mask is None or compared.get(i, "undecided") != "undecided":
            continue
        unsettled[sample.source].append(i)
        if 0.5 < mask.area < 1 and mask.frame >= FRAME_SHARE and mask.one_piece >= ONE_PIECE:
            suspects[sample.source].append(i)
    findings = []
    for source, found in suspects.items():
        name = f"source {source!r}" if source else "fakes without a source"
        share = len(found) / len(unsettled[source])
        text = (
            f"perhaps inverted: {len(found)} of {len(unsettled[source])} masks ({name}) mark most of the picture and "
            f"its whole frame; look at one, and change fake_is if its marked part is the untouched one"
        )
        if share < 0.5 and len(found) > 1:
            text += " (most masks of the source do not)"
        findings.append(_finding("inverted-mask", "warning", samples, found, text))
    return findings


# Labels ------------------------------------------------------------------------------------------------------------


def _swapped_labels(samples: Sequence[Sample], facts: Sequence[_Facts]) -> list[Finding]:
    """A real sample with a mask and a fake without, the only ones of their group and size: their labels are swapped."""
    masked: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    bare: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for i, (sample, one) in enumerate(zip(samples, facts, strict=True)):
        if not sample.group or one.picture is None or one.problem is not None:
            continue
        marks = one.mask is not None and one.mask.area > 0
        if marks == (sample.label == "real"):
            (masked if marks else bare)[sample.group, one.picture.size].append(i)
    text = "the first is labelled real and has a mask, the second fake and has none: their labels are swapped"
    return [
        _finding("swapped-labels", "error", samples, (found[0], bare[key][0]), text)
        for key, found in masked.items()
        if len(found) == 1 and len(bare.get(key, ())) == 1
    ]


def _label_conflicts(samples: Sequence[Sample], facts: Sequence[_Facts]) -> list[Finding]:
    same: dict[bytes, list[int]] = defaultdict(list)
    for i, one in enumerate(facts):
        if one.picture is not None:
            same[one.picture.digest].append(i)
    text = "the same pixels, once labelled real and once fake"
    return [
        _finding("label-conflict", "error", samples, found, text)
        for found in same.values()
        if len({samples[i].label for i in found}) > 1
    ]


# Duplicates --------------------------------------------------------------------------------------------------------


def _duplicates(samples: Sequence[Sample], facts: Sequence[_Facts]) -> list[Finding]:
    """One finding for every set of pictures that are the same, or nearly, and do not all belong to one group."""
    exact: dict[bytes, list[int]] = defaultdict(list)
    hashed: dict[bytes, list[int]] = defaultdict(list)
    for i, one in enumerate(facts):
        if one.picture is not None:
            exact[one.picture.digest].append(i)
            if one.picture.hash is not None:
                hashed[one.picture.hash].append(i)
    edges = [(found[0], i) for found in exact.values() for i in found[1:]]
    links = [(found[0], i) for found in hashed.values() for i in found[1:]]
    firsts = [found[0] for found in hashed.values()]
    codes = np.array([np.frombuffer(code, dtype=np.uint8) for code in hashed]).reshape(-1, HASH_SIDE**2 // 8)
    links += [(firsts[a], firsts[b]) for a, b in _close(codes)]
    edges += [(a, b) for a, b in links if np.abs(_thumb(facts[a]) - _thumb(facts[b])).mean() <= THUMB_LEVELS]
    findings = []
    for found in _components(len(samples), edges):
        if len({_photo(samples, i) for i in found}) == 1:
            continue
        kind: Kind = "duplicate" if _shared_by_groups(samples, facts, found) else "near-duplicate"
        what = "the same picture" if kind == "duplicate" else "nearly the same picture"
        splits = sorted({samples[i].split for i in found})
        if len(splits) > 1:
            text = f"{what} {len(found)} times, across the splits {_names(splits)}"
            findings.append(_finding(kind, "error", samples, found, text))
        else:
            text = f"{what} {len(found)} times in one split, not in one group"
            findings.append(_finding(kind, "warning", samples, found, text))
    return findings


def _shared_by_groups(samples: Sequence[Sample], facts: Sequence[_Facts], found: Sequence[int]) -> bool:
    """Whether the very same pixels are in more than one group."""
    groups: dict[bytes, set[str | int]] = defaultdict(set)
    for i in found:
        picture = facts[i].picture
        if picture is not None:
            groups[picture.digest].add(_photo(samples, i))
    return any(len(owners) > 1 for owners in groups.values())


def _photo(samples: Sequence[Sample], i: int) -> str | int:
    """The group; a sample without one stands for itself."""
    return samples[i].group or i


def _names(splits: Sequence[str]) -> str:
    return " and ".join(split or "(none)" for split in splits)


def _close(codes: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of rows (hashes of 32 bytes, all different) that differ in at most HASH_BITS bits.

    Fewer differing bits than bands: at least one band is the same, so only rows that share one are compared.
    """
    pairs: list[NDArray[np.int64]] = []
    if len(codes) < 2:
        return []
    bits = codes.shape[1] * 8
    for start in range(0, codes.shape[1], BAND_BYTES):
        band = codes[:, start : start + BAND_BYTES].astype(np.int64) @ (256 ** np.arange(BAND_BYTES))
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order], append=-1)) + 1
        for begin, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            if end - begin < 2:
                continue
            rows = order[begin:end]
            signs = np.unpackbits(codes[rows], axis=1).astype(np.float32) * 2 - 1
            for top in range(0, len(rows), 1024):  # a band that all share must not fill the memory
                agreement = signs[top : top + 1024] @ signs.T  # bits − 2 × the bits that differ
                first, second = np.nonzero(agreement >= bits - 2 * HASH_BITS)
                upper = first + top < second
                pairs.append(np.stack([rows[first[upper] + top], rows[second[upper]]], axis=1))
    if not pairs:
        return []
    unique = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return [(int(a), int(b)) for a, b in unique]


def _components(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The sets of more than one node that the edges connect, each in order."""
    if not edges:
        return []
    rows, columns = np.array(edges).T
    graph = sparse.coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    nodes: dict[int, list[int]] = defaultdict(list)
    for node in sorted({node for edge in edges for node in edge}):
        nodes[int(labels[node])].append(node)
    return list(nodes.values())


def _split_groups(samples: Sequence[Sample]) -> list[Finding]:
    members: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        if sample.group:
            members[sample.group].append(i)
    findings = []
    for group, found in members.items():
        splits = sorted({samples[i].split for i in found})
        if len(splits) > 1:
            text = f"the group {group!r} is in the splits {_names(splits)}"
            findings.append(_finding("split-group", "error", samples, found, text))
    return findings


# Bias --------------------------------------------------------------------------------------------------------------


def _bias(samples: Sequence[Sample], facts: Sequence[_Facts]) -> tuple[Bias | None, list[Finding]]:
    readable = [i for i, one in enumerate(facts) if one.picture is not None]
    pictures = [one.picture for one in facts if one.picture is not None]
    fake = np.array([samples[i].label == "fake" for i in readable], dtype=bool)
    names = {name: number for number, name in enumerate(dict.fromkeys(_photo(samples, i) for i in readable))}
    groups = np.array([names[_photo(samples, i)] for i in readable])
    fakes, reals = int(fake.sum()), int((~fake).sum())
    if min(fakes, reals) < 10 or len(names) < FOLDS:
        return None, []
    table = _traits(pictures)
    folds = _folds(fake, groups)
    by = tuple((name, _auc(table[:, columns], fake, folds)) for name, columns in _columns())
    auc = _auc(table, fake, folds)
    bias = Bias(auc=auc, by=by, real=reals, fake=fakes)
    # Two standard errors of the AUC of a classifier that guesses: in a small set, chance reaches far.
    chance = 2 * math.sqrt((fakes + reals + 1) / (12 * fakes * reals))
    if not auc > max(BIAS_WARNING, 0.5 + chance):
        return bias, []
    strongest = max(by, key=lambda row: row[1])[0]
    usual = {
        label: Counter(
            _show(picture, strongest) for picture, is_fake in zip(pictures, fake, strict=True) if is_fake == of
        )
        for label, of in (("real", False), ("fake", True))
    }
    mostly = ", ".join(
        f"{label} mostly {name} ({count / counts.total():.0%})"
        for label, counts in usual.items()
        for name, count in counts.most_common(1)
    )
    text = (
        f"how the files were saved tells real from fake: AUC {auc:.2f}, the {strongest} above all ({mostly}); "
        "save both in the same way"
    )
    severity: Severity = "error" if auc > BIAS_ERROR else "warning"
    return bias, [_finding("format-bias", severity, samples, (), text)]


def _traits(pictures: Sequence[_Picture]) -> NDArray[np.float64]:
    """(N, 5): file type, JPEG quality, chroma subsampling, height, width; nan where a file has none."""
    types = sorted({picture.format for picture in pictures})
    rows = [
        (
            types.index(p.format),
            math.nan if p.quality is None else p.quality,
            math.nan if p.chroma is None else p.chroma,
        )
        for p in pictures
    ]
    return np.hstack([np.array(rows, dtype=np.float64), np.array([p.size for p in pictures], dtype=np.float64)])


def _columns() -> tuple[tuple[str, slice], ...]:
    return tuple(zip(TRAITS, (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 5)), strict=True))


def _show(picture: _Picture, trait: str) -> str:
    match trait:
        case "JPEG quality":
            return "none" if picture.quality is None else str(picture.quality)
        case "chroma subsampling":
            return {0: "4:4:4", 1: "4:2:2", 2: "4:2:0", None: "none"}.get(picture.chroma, "another")
        case "size":
            return _px(picture.size)
    return picture.format


_Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _folds(fake: Mask, groups: NDArray[np.int64]) -> _Folds:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=0)
    return list(splitter.split(np.zeros((len(fake), 1)), fake, groups))


def _auc(table: NDArray[np.float64], fake: Mask, folds: _Folds) -> float:
    """Mean over the folds that hold both labels; nan if none does."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    areas = []
    for train, test in folds:
        if len(set(fake[test])) < 2 or len(set(fake[train])) < 2:
            continue
        classifier = HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=5, random_state=0)
        classifier.fit(table[train], fake[train])
        areas.append(float(roc_auc_score(fake[test], classifier.predict_proba(table[test])[:, 1])))
    return float(np.mean(areas)) if areas else math.nan


# Baselines ---------------------------------------------------------------------------------------------------------


def _baselines(samples: Sequence[Sample], facts: Sequence[_Facts]) -> tuple[Baseline, ...]:
    fakes = []
    reals = []
    untouched = _trivial(np.zeros((1, 1), dtype=np.bool_))
    for sample, one in zip(samples, facts, strict=True):
        if sample.label == "real":
            reals.append(untouched)
        elif one.mask is not None:
            fakes.append(one.mask.trivial)
    on_fakes = np.array(fakes, dtype=np.float64).reshape(-1, 4)
    on_all = np.array(fakes + reals, dtype=np.float64).reshape(-1, 4)
    answers: tuple[tuple[Literal["all fake", "all real"], int], ...] = (("all fake", 0), ("all real", 2))
    return tuple(
        Baseline(
            answer=answer,
            iou=_mean(on_fakes[:, at]),
            f1=_mean(on_fakes[:, at + 1]),
            iou_all=_mean(on_all[:, at]),
            f1_all=_mean(on_all[:, at + 1]),
            f1_undefined=int(np.isnan(on_fakes[:, at + 1]).sum()),
        )
        for answer, at in answers
    )


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


# Workers -----------------------------------------------------------------------------------------------------------


def _map(
    function: Callable[[_In], _Out], tasks: Sequence[_In], workers: int, progress: bool, title: str
) -> Iterator[_Out]:
    """function of each task, in order, by so many processes."""
    console = Console(stderr=True)
    if workers == 1 or len(tasks) < 2:
        yield from track(map(function, tasks), title, len(tasks), console=console, disable=not progress)
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        results = executor.map(function, tasks, chunksize=8)
        yield from track(results, title, len(tasks), console=console, disable=not progress)
    finally:
        executor.shutdown(cancel_futures=True)


# Mending -----------------------------------------------------------------------------------------------------------


def fix(samples: Sequence[Sample], report: Report) -> tuple[list[Sample | None], list[str]]:
    """Mend the manifest where the report proves what is right; pictures and masks are never touched.

    Returns one entry per sample, None for one that is to be left out, and one sentence per change. What a manifest
    cannot mend (a format bias), and what is only suspected (warnings), stays. Check again afterwards.
    """
    mended: list[Sample | None] = list(samples)
    changes: list[str] = []

    def leave_out(i: int, why: str) -> None:
        if mended[i] is not None:
            mended[i] = None
            changes.append(f"{samples[i].image} is left out: {why}.")

    def change(i: int, **fields: Any) -> None:
        sample = mended[i]
        if sample is not None:  # another finding may have left it out
            mended[i] = dataclasses.replace(sample, **fields)

    for finding in report.findings:
        if finding.severity != "error":
            continue
        match finding.kind:
            case "unreadable" | "missing-mask" | "size-mismatch" | "empty-mask" | "masked-real" | "wrong-mask":
                leave_out(finding.samples[0], finding.message)
            case "label-conflict":
                for i in finding.samples:
                    leave_out(i, finding.message)
            case "mixed-up":
                (i,) = finding.samples
                mask = samples[i].mask
                if mask is not None:
                    change(i, image=mask, mask=samples[i].image)
                    changes.append(f"{samples[i].image} and {mask} change places: the first is the mask.")
            case "inverted-mask":
                (i,) = finding.samples
                polarity: Literal["white", "black"] = "black" if samples[i].fake_is == "white" else "white"
                change(i, fake_is=polarity)
                changes.append(f"{samples[i].image}: fake_is becomes {polarity!r}, its mask was inverted.")
            case "swapped-masks":
                i, j = finding.samples
                for one, other in ((i, j), (j, i)):
                    change(one, mask=samples[other].mask, fake_is=samples[other].fake_is)
                changes.append(f"{samples[i].image} and {samples[j].image} exchange their masks.")
            case "swapped-labels":
                i, j = finding.samples
                for one, other in ((i, j), (j, i)):
                    change(one, label=samples[other].label)
                changes.append(f"{samples[i].image} and {samples[j].image} exchange their labels.")
            case "swapped-images":
                i, j = finding.samples
                for one, other in ((i, j), (j, i)):
                    change(one, image=samples[other].image)
                changes.append(f"{samples[i].image} and {samples[j].image} change places: the first is the fake.")
            case _:
                pass
    changes += _keep_in_one_split(samples, report, mended)
    return mended, changes


def _keep_in_one_split(samples: Sequence[Sample], report: Report, mended: list[Sample | None]) -> list[str]:
    """Leave photos that are in several splits out of all but one; groups and duplicates are one photo."""
    if not any(
        f.severity == "error" and f.kind in ("duplicate", "near-duplicate", "split-group") for f in report.findings
    ):
        return []
    edges = [
        (finding.samples[0], i)
        for finding in report.findings
        if finding.kind in ("duplicate", "near-duplicate")
        for i in finding.samples[1:]
    ]
    first: dict[str, int] = {}
    for i, sample in enumerate(samples):
        if sample.group:
            edges.append((first.setdefault(sample.group, i), i))
    changes = []
    for found in _components(len(samples), edges):
        present = [i for i in found if mended[i] is not None]
        counts = Counter(samples[i].split for i in present)
        if len(counts) < 2:
            continue
        kept = min(counts, key=lambda split: (_KEEPS.index(split) if split in _KEEPS else len(_KEEPS), -counts[split]))
        out = [i for i in present if samples[i].split != kept]
        for i in out:
            mended[i] = None
        why = "what is measured on stays whole" if kept in _KEEPS else "most of its samples are there"
        changes.append(
            f"The photo of {samples[found[0]].image} stays in the split {_names([kept])}, as {why}; left out "
            f"elsewhere: {', '.join(str(samples[i].image) for i in out)}."
        )
    return changes


# For people --------------------------------------------------------------------------------------------------------

_COLOURS: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


def render(report: Report, console: Console) -> None:
    """Print a report: one row per severity and kind with its first example, then bias and baselines."""
    rows: dict[tuple[Severity, Kind], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        rows[finding.severity, finding.kind].append(finding)
    counts = Counter(finding.severity for finding in report.findings)
    summary = ", ".join(_plural(counts[severity], severity) for severity in _COLOURS) if counts else "nothing found"
    console.print(
        f"{_plural(report.samples, 'sample')}, {report.fakes} fake ({report.compared} compared with an untouched "
        f"twin): {summary}",
        highlight=False,
    )
    if rows:
        table = Table("", "what", "times", "the first", box=None, pad_edge=False)
        for (severity, kind), findings in rows.items():
            example = findings[0]
            names = ", ".join(Path(name).name for name in example.images[:2])
            more = f" and {len(example.images) - 2} more" if len(example.images) > 2 else ""
            where = f"{names}{more}: " if names else ""
            mark = Text(severity, style=_COLOURS[severity])
            table.add_row(mark, kind, str(len(findings)), Text(where + example.message))
        console.print(table)
    _render_numbers(report, console)


def _render_numbers(report: Report, console: Console) -> None:
    if report.bias is None:
        bias = "Bias of the files: not measured (it takes 5 groups, 10 real and 10 fake samples)"
    else:
        by = ", ".join(f"{name} {auc:.2f}" for name, auc in report.bias.by)
        bias = f"Bias of the files: AUC {report.bias.auc:.2f}; 0.50 is none ({by})"
    console.print(bias, highlight=False)
    for line in report.baselines:
        console.print(
            f"Answering “{line.answer}”: IoU {100 * line.iou:.1f} %, F1 {line.f1:.3f} on fakes; "
            f"on all samples IoU {100 * line.iou_all:.1f} %",
            highlight=False,
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
