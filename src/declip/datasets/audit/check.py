"""Run all checks on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from declip.datasets.audit.bias import baselines, find_bias
from declip.datasets.audit.duplicates import duplicates, label_conflicts, split_groups
from declip.datasets.audit.facts import alone, inspect
from declip.datasets.audit.polarity import by_shape, by_twin, compare, find_twins
from declip.datasets.audit.report import Report, Severity
from declip.errors import naming_extras
from declip.results import Sample, check_samples

__all__ = ["broken", "check"]

# Errors of single samples that nothing can be learnt from or measured on.
_BROKEN = ("unreadable", "missing-mask", "size-mismatch", "empty-mask", "masked-real", "wrong-mask", "label-conflict")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def check(samples: Sequence[Sample], *, workers: int = 1, progress: bool = False) -> Report:
    """Check a data set. docs/data.md lists the checks and their thresholds. Nothing is written.

    workers: how many processes read pictures. progress: show bars on stderr. Errors come first among the findings.
    Raises MissingExtraError without the extra `data`. Files that cannot be read are findings and never raised.
    """
    check_samples(samples, "check([…])")
    with naming_extras():
        import imagehash  # noqa: F401
        import sklearn  # noqa: F401
    facts = list(_stream(inspect, samples, workers, progress, "Reading"))
    twins = find_twins(samples, facts)
    tasks = [(samples[fake], samples[real].image) for fake, real in twins.items()]
    verdicts = dict(zip(twins, _stream(compare, tasks, workers, progress, "Comparing"), strict=True))
    bias, biased = find_bias(samples, facts)
    findings = [
        *(finding for i in range(len(samples)) for finding in alone(i, samples, facts[i])),
        *by_twin(samples, facts, verdicts),
        *by_shape(samples, facts, verdicts),
        *label_conflicts(samples, facts),
        *duplicates(samples, facts),
        *split_groups(samples),
        *biased,
    ]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return Report(
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
        samples=len(samples),
        fakes=sum(sample.label == "fake" for sample in samples),
        compared=len(verdicts),
        bias=bias,
        baselines=baselines(samples, facts),
    )


def broken(report: Report) -> dict[int, str]:
    """Return the index of every sample that should be left out, and why.

    Those are samples with an error of their own that no setting corrects. A wrong `fake_is`, a photo in two splits and
    a format bias concern samples that are fine by themselves: decide yourself what to do about them.
    """
    return {
        i: finding.message
        for finding in reversed(report.findings)
        if finding.severity == "error" and finding.kind in _BROKEN
        for i in finding.samples
    }


def _stream(
    function: Callable[[_In], _Out], tasks: Sequence[_In], workers: int, progress: bool, title: str
) -> Iterator[_Out]:
    """Yield the function of each task, in order, computed by so many processes."""
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
