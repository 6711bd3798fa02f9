"""Fakes against the untouched pictures that they were made from; and masks by their shape, where there is none."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from declip.datasets.audit.facts import FRAME_SHARE, THUMB, Facts, thumb_of
from declip.datasets.audit.report import Finding, make_finding
from declip.datasets.audit.stream import stream
from declip.evaluation import metrics
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample

__all__ = ["Verdict", "against_twins", "by_shape"]

# Polarity by its shape alone: more than half of the picture, its frame, and the rest mostly in one piece.
ONE_PIECE = 0.5

# Fake against twin. Levels are of 255. Where this share of the textured pixels is the very same (those of a local
# standard deviation above TEXTURED; the mean difference of 5 × 5 px is below half a level), the two went one way, and
# any difference counts from EXACT levels on. Else one was compressed by itself: then the means of 9 × 9 px are
# compared, which compression keeps, and must differ by LOSSY levels.
SAME_SHARE, TEXTURED = 0.3, 3
EXACT_LEVELS, LOSSY_LEVELS = 4, 8
# A change smaller than this share of the picture, or this many pixels, proves nothing.
CHANGED_SHARE, CHANGED_PIXELS = 0.0005, 64
# A mask fits if inside the difference is LIFT times that outside, and if, within MARGIN px, it holds HELD_EXACT of
# what changed; it is wrong if it holds less. Where compression is in play, it must hold less than HELD_LOSSY and fail
# LIFT. It is inverted if it is most of the picture and the difference outside is at least twice that inside.
LIFT, MARGIN = 1.5, 8
HELD_EXACT, HELD_LOSSY, HELD_WHOLLY = 0.7, 0.25, 0.95
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


Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


Verdict = Literal["fits", "inverted", "misfit", "undecided"]


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
    """held: the share of what changed that the mask holds, nan where nothing visible did. twin: which candidate.

    changed, mask: shares on a grid of 32 × 32, 255 = all; only kept where the mask does not fit.
    """

    verdict: Verdict
    held: float = math.nan
    twin: int = 0
    changed: bytes = field(default=b"", repr=False)
    mask: bytes = field(default=b"", repr=False)


def against_twins(
    samples: Sequence[Sample], facts: Sequence[Facts], workers: int, progress: bool
) -> tuple[dict[int, Verdict], list[Finding]]:
    """The verdicts on all fakes that have a twin, and what follows from them."""
    pairs = dict(_pairs(samples, facts))
    found = stream(_compare, list(pairs.values()), workers, progress, "Comparing")
    evidence = {i: one for i, one in zip(pairs, found, strict=True) if one is not None}
    misfits = [i for i, one in evidence.items() if one.verdict in ("inverted", "misfit")]
    partner: dict[int, int] = {}
    posing: dict[int, tuple[int, int]] = {}
    if len(misfits) <= MAX_MISFITS:
        partner = _partners(misfits, evidence, facts)
        alone = [i for i in misfits if i not in partner and evidence[i].verdict == "misfit"]
        posing = _posing_as_real(alone, evidence, pairs)
    findings = []
    for i, real in dict(posing.values()).items():
        text = "the second, labelled real, is what the first one's mask belongs to: the two pictures are swapped"
        findings.append(make_finding("swapped-images", "error", samples, (i, real), text))
    for i in misfits:
        mask = facts[i].mask
        if mask is None or i in posing:
            continue
        if i in partner:
            if i < partner[i]:
                text = "what was changed in each of the two lies inside the other's mask: they are swapped"
                findings.append(make_finding("swapped-masks", "error", samples, (i, partner[i]), text))
        elif evidence[i].verdict == "inverted":
            text = f"inverted: the mask marks {mask.area:.0%}, and what differs from the untouched twin is the rest"
            findings.append(make_finding("inverted-mask", "error", samples, (i,), text))
        elif pairs[i].with_mask:
            text = "most of what differs from the untouched twin lies outside the mask"
            findings.append(make_finding("wrong-mask", "error", samples, (i,), text))
    return {i: one.verdict for i, one in evidence.items()}, findings


def _pairs(samples: Sequence[Sample], facts: Sequence[Facts]) -> Iterator[tuple[int, _Pair]]:
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
            thumbs = {key: np.array([thumb_of(facts[k]) for k in near])}  # samples of a group mostly follow each other
        difference = np.abs(thumbs[key] - thumb_of(facts[i]))
        agree = (difference <= AGREE).mean(axis=1)
        # Of several files of one crop the likeliest is the one with the same traces of compression: the nearest, where
        # what was changed does not count for more than the rest.
        nearest = np.argsort(np.minimum(difference, AGREE).mean(axis=1), kind="stable")
        best = [k for k in nearest[:3] if agree[k] >= AGREE_SHARE / 2]
        if best:
            found = tuple(near[k] for k in best)
            twins = tuple(samples[k].image for k in found)
            yield i, _Pair(sample=sample, candidates=found, twins=twins, with_mask=mask.size == picture.size)


def _compare(pair: _Pair) -> _Evidence | None:
    """Whether the mask holds what differs from the twin; None if none of the pictures is its twin."""
    fake = read_photo(pair.sample.image).pixels
    step = math.ceil(math.sqrt(fake.shape[0] * fake.shape[1] / COMPARED_PIXELS))
    fake = fake[::step, ::step]
    for twin, path in enumerate(pair.twins):
        real = read_photo(path).pixels[::step, ::step]
        if _versions_of_one(fake, real):
            mask = read_mask(pair.sample)
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
    grey = real.mean(axis=2, dtype=np.float32)
    difference = np.abs(fake.astype(np.int16) - real).max(axis=2).astype(np.float32)
    smooth = ndimage.uniform_filter(difference, 5)
    variance = ndimage.uniform_filter(grey**2, 5) - ndimage.uniform_filter(grey, 5) ** 2
    textured = variance > TEXTURED**2
    near = None if mask is None else ndimage.maximum_filter(mask, 2 * max(1, round(margin)) + 1)
    shift = np.abs(ndimage.uniform_filter(fake.mean(axis=2, dtype=np.float32) - grey, 9))
    lossy = _weigh(shift, shift > LOSSY_LEVELS, mask, whole, near, exact=False)
    if not textured.any() or (smooth[textured] < 0.5).mean() < SAME_SHARE:
        return lossy
    exact = _weigh(difference, smooth > EXACT_LEVELS, mask, whole, near, exact=True)
    if exact.verdict != "fits" and lossy.verdict == "fits" and lossy.held >= HELD_EXACT:
        # A cartoon, or a burnt-out picture: compression leaves much of it alone, and shows all the more in the rest.
        return lossy
    return exact


def _weigh(
    difference: NDArray[np.float32], changed: Mask, mask: Mask | None, whole: Mask, near: Mask | None, *, exact: bool
) -> _Evidence:
    """difference: of each pixel, in levels; changed: where that is a change. near: the mask with its margin.

    exact: any difference is a change, so that a mask that leaves most of it out is wrong, however much it holds.
    """
    count = np.count_nonzero(changed)
    if count < max(CHANGED_PIXELS, CHANGED_SHARE * changed.size):
        return _Evidence(verdict="undecided")
    if mask is None or near is None:
        return _Evidence(verdict="misfit", changed=_grid(changed), mask=_grid(whole))
    if mask.all():
        return _Evidence(verdict="fits", held=1.0)
    inside, outside = float(difference[mask].mean()), float(difference[~mask].mean())
    held = np.count_nonzero(changed & near) / count
    verdict: Verdict = "undecided"
    if inside >= LIFT * outside and (held >= HELD_EXACT or not exact):
        verdict = "fits"
    elif (mask.mean() >= 0.5 and outside >= 2 * inside) or metrics.iou(changed, ~mask) >= 0.5:
        verdict = "inverted"
    elif held < (HELD_EXACT if exact else HELD_LOSSY):
        verdict = "misfit"
    if verdict in ("fits", "undecided"):
        return _Evidence(verdict=verdict, held=held)
    return _Evidence(verdict=verdict, held=held, changed=_grid(changed), mask=_grid(whole))


def _grid(mask: Mask) -> bytes:
    """(H, W) bool → 32 × 32 shares, 255 = all, as bytes."""
    picture = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    return picture.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def _partners(misfits: Sequence[int], evidence: dict[int, _Evidence], facts: Sequence[Facts]) -> dict[int, int]:
    """Of the misfits, those whose masks fit each other's pictures, and only these: i → j and j → i."""
    if len(misfits) < 2:
        return {}
    masks = _grids(evidence[i].mask for i in misfits)
    best = {}
    for row, i in enumerate(misfits):
        changed = _grids([evidence[i].changed])
        overlap = _overlap(changed, masks)
        inverted = float(_overlap(changed, 255 - masks[row : row + 1])[0])
        overlap[row] = 0
        for column, j in enumerate(misfits):
            picture, mask = facts[i].picture, facts[j].mask
            if picture is None or mask is None or mask.size != picture.size:
                overlap[column] = 0
        column = int(np.argmax(overlap))
        if overlap[column] >= max(OVERLAP, inverted):
            best[i] = misfits[column]
    return {i: j for i, j in best.items() if best.get(j) == i}


def _overlap(grid: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soft IoU of one grid, (1, 1024), with each of the others, (N, 1024); 0 where both are empty."""
    union = np.maximum(grid, others).sum(axis=1)
    return np.asarray(np.minimum(grid, others).sum(axis=1) / np.maximum(union, 1))


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


def by_shape(samples: Sequence[Sample], facts: Sequence[Facts], compared: dict[int, Verdict]) -> list[Finding]:
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
        findings.append(make_finding("inverted-mask", "warning", samples, found, text))
    return findings
