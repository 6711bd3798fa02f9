"""What an evaluation found, and its files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group

from declip.errors import DeclipError
from declip.evaluation import page
from declip.evaluation.figures import FIGURES, Figures, Row, Summary
from declip.evaluation.gallery import Case
from declip.files import write_atomic

__all__ = ["FILES", "Evaluation", "check_free"]

FILES = ("images.csv", "summary.json", "report.html")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything that was measured.

    rows: one per sample, in order. sources: the figures per `Sample.source`. protocol: the card, to be printed with any
    figure. warnings: what makes the figures doubtful; empty if nothing does.
    """

    title: str
    rows: tuple[Row, ...]
    overall: Summary
    sources: Mapping[str, Summary]
    protocol: Mapping[str, str]
    warnings: tuple[str, ...]
    cases: tuple[Case, ...] = ()

    @property
    def mean(self) -> Figures:
        """Return the figures over all pictures; low and high are the ends of their 95 % intervals."""
        return self.overall.mean

    @property
    def low(self) -> Figures:
        return self.overall.low

    @property
    def high(self) -> Figures:
        return self.overall.high

    @property
    def errors(self) -> tuple[Row, ...]:
        """Return the rows of the samples that failed."""
        return tuple(row for row in self.rows if row.error)

    def to_dict(self) -> dict[str, Any]:
        """Return what summary.json holds: plain types, None for nan."""
        return {
            "title": self.title,
            "warnings": list(self.warnings),
            "protocol": dict(self.protocol),
            "overall": _summary_dict(self.overall),
            "sources": {name: _summary_dict(summary) for name, summary in self.sources.items()},
            "errors": [{"image": row.image, "error": row.error, "kind": row.kind} for row in self.errors],
        }

    def save(self, out: str | Path, *, force: bool = False) -> None:
        """Write FILES into the folder out, each whole or not at all. Raises DeclipError if one exists, unless force."""
        check_free(out, force=force)
        data = self.to_dict()
        summary = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        html = page.page(data, self.cases)
        for name, text in zip(FILES, (_csv(self.rows), summary, html), strict=True):
            write_atomic(Path(out) / name, text)

    def render(self) -> Group:
        """Return warnings, figures, figures per source and the protocol card, for a Rich console."""
        return page.render(self.to_dict())


def check_free(out: str | Path, *, force: bool = False) -> None:
    """Raise DeclipError if one of FILES is in the folder out already, unless force: before hours of computing."""
    there = [name for name in FILES if (Path(out) / name).exists()]
    if there and not force:
        raise DeclipError(f"{Path(out) / there[0]} exists; --force (force=True) overwrites it")


def _summary_dict(summary: Summary) -> dict[str, Any]:
    pictures = {"fakes": summary.fakes, "reals": summary.reals, "all": summary.fakes + summary.reals}
    figures = {
        name: {
            "title": about["title"],
            "over": about["over"],
            "oracle": name.endswith("_oracle"),
            "mean": _plain(getattr(summary.mean, name)),
            "low": _plain(getattr(summary.low, name)),
            "high": _plain(getattr(summary.high, name)),
            "defined": pictures[about["over"]] - summary.undefined.get(name, 0),
            "undefined": summary.undefined.get(name, 0),
        }
        for name, about in FIGURES.items()
    }
    return {"fakes": summary.fakes, "reals": summary.reals, "groups": summary.groups, "figures": figures}


def _csv(rows: Sequence[Row]) -> str:
    """Return one line per sample; nan and None are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [column.name for column in dataclasses.fields(Row)]
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
