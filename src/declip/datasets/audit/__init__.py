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

from declip.datasets.audit.doctor import check
from declip.datasets.audit.mending import fix
from declip.datasets.audit.report import Baseline, Bias, Finding, Report, render

__all__ = ["Baseline", "Bias", "Finding", "Report", "check", "fix", "render"]
