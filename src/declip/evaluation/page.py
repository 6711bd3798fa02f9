"""Show an evaluation on the console and as one HTML file, both from what summary.json holds.

Warnings come first, the protocol card always. The page loads nothing from anywhere: its pictures are data URIs.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from declip.evaluation.gallery import Case, CaseKind

__all__ = ["page", "render"]

# What is shown per source.
_SOURCE_FIGURES = ("iou", "f1", "ap", "auc", "false_alarm")
_HEADER = ("figure", "over", "value", "95 % interval", "defined", "undefined")
_SOURCE_HEADER = ("source", "fakes", "reals", *_SOURCE_FIGURES)
_TITLES: dict[CaseKind, str] = {
    "worst": "Worst fakes by IoU",
    "best": "Best fakes by IoU",
    "false alarm": "Untouched pictures with the largest flagged area",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: left; font-weight: bold; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.warning { border: 3px solid #b00020; background: #fdecee; padding: .6rem 1rem; margin: .6rem 0; font-weight: bold; }
.case { display: flex; flex-wrap: wrap; gap: .6rem; margin: .4rem 0 1.2rem; } figure { margin: 0; }
img { max-width: 256px; border: 1px solid #ccc; display: block; } figcaption { font-size: 13px; color: #444; }
"""


def render(data: Mapping[str, Any]) -> Group:
    """Return warnings, figures, figures per source and the protocol card, for a Rich console.

    data: `Evaluation.to_dict()`, or a summary.json that was read.
    """
    warnings = [Panel(Text(_printable(text)), title="WARNING", style="bold red") for text in data["warnings"]]
    figures = _rich(_printable(data["title"]), _HEADER, _figure_rows(data["overall"]))
    sources = [_rich("per source", _SOURCE_HEADER, _source_rows(data))] if len(data["sources"]) > 1 else []
    card = Table(title="protocol", show_header=False)
    for key, value in data["protocol"].items():
        card.add_row(key, Text(_printable(value)))
    return Group(*warnings, figures, *sources, card)


def page(data: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """Return the same as HTML, with errors and cases. data: as for `render`."""
    sections = [f'<p class="warning" role="alert">{html.escape(text)}</p>' for text in data["warnings"]]
    sections.append(_table("Figures", _HEADER, _figure_rows(data["overall"])))
    if len(data["sources"]) > 1:
        sections.append(_table("Per source", _SOURCE_HEADER, _source_rows(data)))
    sections.append(_table("Protocol", (), list(data["protocol"].items())))
    if data["errors"]:
        errors = [(row["image"], row["kind"], row["error"]) for row in data["errors"]]
        sections.append(_table("Failed, and in no figure", ("image", "kind", "error"), errors))
    for kind, title in _TITLES.items():
        shown = [_case(case) for case in cases if case.kind == kind]
        if shown:
            sections += [f"<h2>{title}</h2>", *shown]
    title = html.escape(data["title"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>declip: evaluation of {title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Evaluation: {title}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def _figure_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    counts = ("defined", "undefined")
    return [
        (about["title"], about["over"], _number(about), _interval(about), *(str(about[key]) for key in counts))
        for about in summary["figures"].values()
    ]


def _source_rows(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for source, summary in data["sources"].items():
        figures = [summary["figures"][name] for name in _SOURCE_FIGURES]
        values = [f"{_number(about)} {_interval(about)}".strip() for about in figures]
        rows.append((_printable(source) or "-", str(summary["fakes"]), str(summary["reals"]), *values))
    return rows


def _number(about: Mapping[str, Any]) -> str:
    return "nan" if about["mean"] is None else f"{about['mean']:.3f}"


def _interval(about: Mapping[str, Any]) -> str:
    return "" if about["low"] is None else f"[{about['low']:.3f}, {about['high']:.3f}]"


def _rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*header, title=Text(title))
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<caption>{html.escape(caption)}</caption>\n<tr>{head}</tr>\n{body}\n</table>"


def _case(case: Case) -> str:
    pictures = "".join(
        f'<figure><img src="{uri}" alt="{html.escape(name)}"><figcaption>{html.escape(name)}</figcaption></figure>'
        for name, uri in case.pictures
    )
    return f'<p>{html.escape(case.image)}: {html.escape(case.caption)}</p>\n<div class="case">{pictures}</div>'


def _printable(text: str) -> str:
    """Escape what a terminal or an encoder would trip over: names may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
