"""Check a data set: what is wrong with it, before hours are spent on it.

    report = audit.check(datasets.read_manifest("data/samples.jsonl"))
    audit.render(report, rich.console.Console())
    broken = audit.broken(report)  # {index of a sample: why it should be left out}

`check` reads every file once, and compares every fake with the untouched picture it was made from, if the data set has
it: a real sample of the same group and size. Nothing is trained except one small classifier, which sees only how the
files were saved. Pictures are streamed; about 2 kB are kept of each.

Needs `pip install 'declip[data]'`.
"""

from declip.datasets.audit.check import broken, check
from declip.datasets.audit.report import Baseline, Bias, Finding, Report, render

__all__ = ["Baseline", "Bias", "Finding", "Report", "broken", "check", "render"]
