"""A manifest mended where the report proves what is right."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from declip.datasets.audit.repeats import components, quoted
from declip.datasets.audit.report import Report
from declip.results import Sample

__all__ = ["fix"]

# Which split keeps a photo that is in several: the one that is measured on stays whole.
KEEPS = ("test", "valid", "val", "validation")


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
    for found in components(len(samples), edges):
        present = [i for i in found if mended[i] is not None]
        counts = Counter(samples[i].split for i in present)
        if len(counts) < 2:
            continue
        kept = min(counts, key=lambda split: (KEEPS.index(split) if split in KEEPS else len(KEEPS), -counts[split]))
        out = [i for i in present if samples[i].split != kept]
        for i in out:
            mended[i] = None
        why = "what is measured on stays whole" if kept in KEEPS else "most of its samples are there"
        changes.append(
            f"The photo of {samples[found[0]].image} stays in the split {quoted([kept])}, as {why}; left out "
            f"elsewhere: {', '.join(str(samples[i].image) for i in out)}."
        )
    return changes
