"""Check whether masks mark the part that was changed: against the untouched picture, or else by their shape."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from declip.datasets.audit.facts import Facts, thumb_of
from declip.datasets.audit.report import Finding, make_finding
from declip.evaluation import metrics
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample

__all__ = ["Verdict", "by_shape", "by_twin", "compare", "find_twins"]

# What a mask says of the difference between a fake and its untouched twin.
Verdict = Literal["fits", "inverted", "wrong", "undecided"]

# A real picture is the twin if the thumbnails differ by at most AGREE levels of 255 on average, where no pixel counts
# for more than CLIPPED: so about a third of the picture has to be the same.
AGREE, CLIPPED = 4, 6
# So many real pictures of a group are tried as the twin of a fake.
MAX_REALS = 100
# A change is where means of 9×9 px, which JPEG hardly alters, differ by more than 8 levels of 255.
WINDOW, LEVELS = 9, 8
# A change smaller than this share of the picture proves nothing.
CHANGED = 0.001
# A mask that holds less than this of the change is wrong; inverted, if all the rest of the picture holds that much.
HELD, HELD_INVERTED = 0.25, 0.9
# Larger pictures are compared on every second, third, … pixel.
COMPARED_PIXELS = 1_000_000
# A mask that marks this much of the outermost pixels, and over half of the picture, looks inverted.
FRAME = 0.95


def find_twins(samples: Sequence[Sample], facts: Sequence[Facts]) -> dict[int, int]:
    """Return {fake: its untouched twin}, as indices: a real sample of the same group and size that looks alike."""
    reals: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for i, (sample, one) in enumerate(zip(samples, facts, strict=True)):
        if sample.label == "real" and sample.group and one.picture is not None:
            reals[sample.group, one.picture.size].append(i)
    twins = {}
    for i, (sample, one) in enumerate(zip(samples, facts, strict=True)):
        if sample.label == "real" or one.picture is None or one.mask is None or one.mask.size != one.picture.size:
            continue
        near = reals.get((sample.group, one.picture.size), [])[:MAX_REALS]
        if near and 0 < one.mask.area < 1:
            differences = np.abs(np.stack([thumb_of(facts[k]) for k in near]) - thumb_of(one))
            distances = np.minimum(differences, CLIPPED).mean(axis=1)
            if distances.min() <= AGREE:
                twins[i] = near[int(distances.argmin())]
    return twins


def compare(pair: tuple[Sample, Path]) -> Verdict:
    """Say whether a fake's mask holds what differs from its twin. pair: the fake, and the path of the real picture."""
    sample, twin = pair
    mask = read_mask(sample)
    step = math.ceil(math.sqrt(mask.size / COMPARED_PIXELS))
    mask = mask[::step, ::step]
    fake, real = (
        read_photo(path).pixels[::step, ::step].mean(axis=2, dtype=np.float32) for path in (sample.image, twin)
    )
    shift = np.abs(ndimage.uniform_filter(fake - real, WINDOW))
    changed = shift > LEVELS
    if changed.mean() < CHANGED:
        return "undecided"
    # The window spreads a change by half its side.
    held = ndimage.maximum_filter(mask, WINDOW)[changed].mean()
    held_inverted = ndimage.maximum_filter(~mask, WINDOW)[changed].mean()
    if held >= held_inverted:
        return "fits"
    if shift[mask].mean() >= shift[~mask].mean():
        return "undecided"
    if held_inverted >= HELD_INVERTED and (mask.mean() >= 0.5 or metrics.iou(changed, ~mask) >= 0.5):
        return "inverted"
    return "wrong" if held < HELD else "undecided"


def by_twin(samples: Sequence[Sample], facts: Sequence[Facts], verdicts: Mapping[int, Verdict]) -> list[Finding]:
    """Report the masks that the comparison with a twin proves wrong."""
    findings = []
    for i, verdict in verdicts.items():
        mask = facts[i].mask
        if verdict == "inverted" and mask is not None:
            text = f"inverted: the mask marks {mask.area:.0%}, and what differs from the untouched twin is the rest"
            findings.append(make_finding("inverted-mask", "error", samples, (i,), text))
        elif verdict == "wrong":
            text = "most of what differs from the untouched twin lies outside the mask"
            findings.append(make_finding("wrong-mask", "error", samples, (i,), text))
    return findings


def by_shape(samples: Sequence[Sample], facts: Sequence[Facts], verdicts: Mapping[int, Verdict]) -> list[Finding]:
    """Report masks that look inverted where no twin settles it: one suspicion per source.

    It stays a suspicion, since a whole background may have been replaced.
    """
    unsettled: dict[str, int] = defaultdict(int)
    suspects: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        mask = facts[i].mask
        if sample.label == "real" or mask is None or verdicts.get(i, "undecided") != "undecided":
            continue
        unsettled[sample.source] += 1
        if 0.5 < mask.area < 1 and mask.frame >= FRAME:
            suspects[sample.source].append(i)
    findings = []
    for source, found in suspects.items():
        name = f"source {source!r}" if source else "fakes without a source"
        text = (
            f"perhaps inverted: {len(found)} of {unsettled[source]} masks ({name}) mark most of the picture and its "
            "whole frame; look at one, and change fake_is if its marked part is the untouched one"
        )
        findings.append(make_finding("inverted-mask", "warning", samples, found, text))
    return findings
