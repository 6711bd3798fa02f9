"""The report on one photo."""

from declip.report.examination import Change, Opinion, Report, Stability, Variant, examine

__all__ = ["Change", "Opinion", "Report", "Stability", "Variant", "examine"]
