"""What a check found, and how it is printed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from declip.results import Sample

__all__ = ["Baseline", "Bias", "Finding", "Kind", "Report", "Severity", "make_finding", "render"]

Severity = Literal["error", "warning", "note"]
Kind = Literal[
    "unreadable",
    "missing-mask",
    "size-mismatch",
    "grey-mask",
    "empty-mask",
    "full-mask",
    "masked-real",
    "inverted-mask",
    "wrong-mask",
    "label-conflict",
    "duplicate",
    "near-duplicate",
    "split-group",
    "format-bias",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fault. samples: indices into the list that was checked. images: the paths of their pictures."""

    kind: Kind
    severity: Severity
    message: str
    samples: tuple[int, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bias:
    """How well real and fake can be told apart without looking at a pixel.

    auc: area under the ROC curve, in [0, 1], mean over folds that share no group; 0.5 is chance. by: the same of each
    trait alone. real, fake: how many samples of each.
    """

    auc: float
    by: tuple[tuple[str, float], ...]
    real: int
    fake: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What one answer for all pictures reaches, in [0, 1]; nan where there is nothing to average.

    iou, f1: means over the fakes. iou_all, f1_all: means over all samples. Untouched pictures count there as in
    `metrics`: the IoU is 0 or 1, the F1 undefined. f1_undefined: how many fakes have no F1, since their mask is too
    thin.
    """

    answer: Literal["all fake", "all real"]
    iou: float
    f1: float
    iou_all: float
    f1_all: float
    f1_undefined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `check` found.

    compared: how many fakes could be compared with an untouched twin. bias: None where there are too few samples to
    measure it: fewer than 5 groups, or fewer than 10 real or 10 fake ones.
    """

    findings: tuple[Finding, ...]
    samples: int
    fakes: int
    compared: int
    bias: Bias | None
    baselines: tuple[Baseline, ...]

    @property
    def errors(self) -> int:
        """Count the findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> str:
        """Return one JSON object on one line: the fields and `errors`. What is undefined is null."""
        return json.dumps(_plain(dataclasses.asdict(self) | {"errors": self.errors}), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def make_finding(
    kind: Kind, severity: Severity, samples: Sequence[Sample], concerned: Iterable[int], text: str
) -> Finding:
    """Make a finding about the samples of these indices."""
    indices = tuple(concerned)
    images = tuple(str(samples[i].image) for i in indices)
    return Finding(kind=kind, severity=severity, message=text, samples=indices, images=images)


_COLOURS: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


def render(report: Report, console: Console) -> None:
    """Print a report: one row per severity and kind with its first example, then bias and baselines."""
    rows: dict[tuple[Severity, Kind], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        rows[finding.severity, finding.kind].append(finding)
    counts = Counter(finding.severity for finding in report.findings)
    summary = ", ".join(_plural(counts[severity], severity) for severity in _COLOURS) if counts else "nothing found"
    compared = f"{report.compared} compared with an untouched twin"
    console.print(f"{_plural(report.samples, 'sample')}, {report.fakes} fake ({compared}): {summary}", highlight=False)
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
