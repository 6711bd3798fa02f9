"""What an experiment leaves: table.csv, table.md, protocol.json, protocol.md and figures, in a folder of its name."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from declip.evaluation import plots
from declip.files import write_atomic
from declip.reproduce.paper import Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from declip.reproduce.cells import Measurement

__all__ = ["Entry", "Grid", "Outcome", "render", "write"]

_TITLES = {
    "iou": "IoU",
    "f1": "F1-fixed",
    "f1_best_oracle": "F1-best (oracle)",
    "ap": "AP",
    "detection_ap": "detection AP",
    "detection_auc": "detection AUC",
}
_HEADER = ("row", "column", "figure", "ours", "low", "high", "paper", "kind", "difference", "tolerance", "within")
TINY_NOTE = (
    "Tiny scale: other data, another backbone and a short training. The paper's numbers are shown for orientation, and "
    "no difference is judged."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A number beside the paper's.

    value, low, high: in [0, 1], nan where not defined. figure: of `Figures`.

    detail: for the files, not for the console, unless the paper has it, too.
    """

    row: str
    column: str = ""
    figure: str = "iou"
    value: float
    low: float = math.nan
    high: float = math.nan
    paper: Number | None = None
    detail: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Numbers in rows and columns, for reading. values: in [0, 1], as many rows and columns as there are names."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All that an experiment found. figures: by file name. notes: one line each.

    tests: what it rests on. protocols (the card of each test), is_tiny: known when it is run.
    """

    title: str
    tests: Sequence[Measurement] = ()
    entries: Sequence[Entry]
    grids: Sequence[Grid] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()
    protocols: Sequence[Mapping[str, str]] = ()
    is_tiny: bool = False


def write(outcome: Outcome, folder: Path) -> None:
    """Write the files, each whole or not at all, over those of an earlier run."""
    common, differing = _cards(outcome.protocols)
    card = {"common": common, "differing": differing, "tests": len(outcome.protocols)}
    write_atomic(folder / "table.csv", _csv(outcome))
    write_atomic(folder / "table.md", _markdown(outcome))
    write_atomic(folder / "protocol.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    lines = [f"# Protocol of {outcome.title}", "", f"Common to all {len(outcome.protocols)} tests:", ""]
    lines += [*_table(("", ""), list(common.items())), "", "What differs between them:", ""]
    for key, values in differing.items():
        lines += [f"- {key}: {len(values)} values", *(f"  - {value}" for value in values)]
    write_atomic(folder / "protocol.md", "\n".join(lines) + "\n")
    for name, figure in outcome.figures.items():
        plots.save(figure, folder / name)


def render(outcome: Outcome) -> Group:
    """Return tables and the common protocol, for a Rich console."""
    parts: list[Table | Text] = [Text(note, style="bold") for note in _notes(outcome)]
    shown = [entry for entry in outcome.entries if not entry.detail or entry.paper is not None]
    tables = [(grid.title, ("", *grid.columns), _grid(grid)) for grid in outcome.grids]
    tables.append((outcome.title, _header(outcome), [_line(outcome, entry) for entry in shown]))
    for title, header, body in tables:
        table = Table(*header, title=Text(title))
        for line in body:
            table.add_row(*map(Text, line))
        parts.append(table)
    common, differing = _cards(outcome.protocols)
    card = Table(title=f"protocol, common to all {len(outcome.protocols)} tests", show_header=False)
    for key, value in common.items():
        card.add_row(key, Text(value))
    card.add_row("differs, see protocol.md", ", ".join(differing) or "nothing")
    return Group(*parts, card)


def _notes(outcome: Outcome) -> list[str]:
    return [*([TINY_NOTE] if outcome.is_tiny else []), *outcome.notes]


def _grid(grid: Grid) -> list[tuple[str, ...]]:
    return [(name, *map(_percent, line)) for name, line in zip(grid.rows, grid.values, strict=True)]


def _header(outcome: Outcome) -> tuple[str, ...]:
    header = ("row", "column", "figure", "ours, %", "95 % interval", "paper, %", "source")
    return header if outcome.is_tiny else (*header, "difference", "tolerance", "within")


def _line(outcome: Outcome, entry: Entry) -> tuple[str, ...]:
    interval = "" if math.isnan(entry.low) else f"{100 * entry.low:.1f}–{100 * entry.high:.1f}"
    number = entry.paper
    shown = ("–", "") if number is None else (f"{number.value:g}", number.kind)
    title = _TITLES.get(entry.figure, entry.figure)
    line = (entry.row, entry.column, title, _percent(entry.value), interval, *shown)
    return line if outcome.is_tiny else (*line, *_judged(entry))


def _judged(entry: Entry) -> tuple[str, str, str]:
    """Return the difference from the paper, the tolerance, and whether the one is within the other."""
    if entry.paper is None or math.isnan(entry.value):
        return "", "", ""
    difference = 100 * entry.value - entry.paper.value
    within = abs(difference) <= entry.paper.tolerance
    return f"{difference:+.1f}", f"±{entry.paper.tolerance:g}", "yes" if within else "NO"


def _csv(outcome: Outcome) -> str:
    """Return percent; nothing where there is nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for entry in outcome.entries:
        ours = ["" if math.isnan(value) else f"{100 * value:.4f}" for value in (entry.value, entry.low, entry.high)]
        number = entry.paper
        paper = ["", ""] if number is None else [f"{number.value:g}", number.kind]
        judged = ("", "", "") if outcome.is_tiny else _judged(entry)
        writer.writerow([entry.row, entry.column, entry.figure, *ours, *paper, *judged])
    return text.getvalue()


def _markdown(outcome: Outcome) -> str:
    lines = [f"# {outcome.title}", "", *(f"{note}\n" for note in _notes(outcome))]
    for grid in outcome.grids:
        lines += [f"{grid.title}:", "", *_table(("", *grid.columns), _grid(grid)), ""]
    lines += ["Beside the paper:", "", *_table(_header(outcome), [_line(outcome, e) for e in outcome.entries]), ""]
    lines += [f"![{name.removesuffix('.png')}]({name})\n" for name in outcome.figures]
    return "\n".join(lines)


def _cards(protocols: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return what all cards agree in, and of the other keys their values, each once."""
    values = {key: list(dict.fromkeys(card.get(key, "") for card in protocols)) for card in protocols for key in card}
    common = {key: found[0] for key, found in values.items() if len(found) == 1}
    return common, {key: found for key, found in values.items() if len(found) > 1}


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _percent(value: float) -> str:
    return "nan" if math.isnan(value) else f"{100 * value:.1f}"
