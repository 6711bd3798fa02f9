"""All checks of a data set, in one go."""

from __future__ import annotations

from collections.abc import Sequence

from declip.datasets.audit.bias import baselines, find_bias
from declip.datasets.audit.facts import alone, inspect
from declip.datasets.audit.repeats import duplicates, label_conflicts, split_groups, swapped_labels
from declip.datasets.audit.report import Report, Severity
from declip.datasets.audit.stream import stream
from declip.datasets.audit.twins import against_twins, by_shape
from declip.errors import MissingExtraError
from declip.results import Sample, check_several

__all__ = ["check"]


def check(samples: Sequence[Sample], *, workers: int = 1, progress: bool = False) -> Report:
    """Examine a data set; `docs/data.md` lists the checks with their thresholds. Nothing is written.

    workers: processes that read pictures. progress: show bars on stderr. The findings come with the errors first.
    Raises MissingExtraError without the extra `data`. Files that cannot be read are findings, never raised.
    """
    check_several(samples, "check([…])")
    _require_extra()
    facts = list(stream(inspect, samples, workers, progress, "Reading"))
    findings = [finding for i in range(len(samples)) for finding in alone(i, samples, facts[i])]
    compared, by_twins = against_twins(samples, facts, workers, progress)
    labels = swapped_labels(samples, facts)
    # What a swap explains is no fault of its own.
    masks = {i for finding in by_twins if finding.kind == "swapped-masks" for i in finding.samples}
    swapped = {i for finding in labels for i in finding.samples}
    findings = [
        f
        for f in findings
        if not (f.kind == "size-mismatch" and f.samples[0] in masks)
        and not (f.kind in ("masked-real", "missing-mask", "empty-mask") and f.samples[0] in swapped)
    ]
    findings += by_twins
    findings += labels
    findings += by_shape(samples, facts, compared)
    findings += label_conflicts(samples, facts)
    findings += duplicates(samples, facts)
    findings += split_groups(samples)
    bias, biased = find_bias(samples, facts)
    findings += biased
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return Report(
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        samples=len(samples),
        fakes=sum(sample.label == "fake" for sample in samples),
        compared=len(compared),
        bias=bias,
        baselines=baselines(samples, facts),
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
