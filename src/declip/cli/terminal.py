"""What the command prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from declip.calibration import Outcome
    from declip.evaluation import Evaluation
    from declip.files import Skipped

__all__ = ["console", "line", "note", "print_calibration", "print_evaluation", "print_row", "with_bar"]

# Show a progress bar from this many images on.
_MANY = 4


def console() -> Console:
    """Return what tables are printed with: as wide as the terminal, or 120 characters in a file or pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def line(text: str) -> None:
    """Print a line of results to stdout."""
    print(_printable(text), flush=True)


def note(text: str) -> None:
    """Print a line for people to stderr."""
    print(f"declip: {_printable(text)}", file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    """File names may hold anything: control characters must not reach a terminal, nor lone surrogates an encoder."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_row(row: dict[str, Any], as_json: bool) -> bool:
    """Print the row of one image; True if it failed."""
    failed = "error" in row
    if as_json:
        line(json.dumps(row))
    elif failed:
        note(f"{row['kind']}: {row['error']}")
    else:
        # Rounded down: a score of 0.9499 is not the 0.95 from which a part is flagged.
        score = "  -  " if row["score"] is None else f"{math.floor(1000 * row['score'] + 1e-9) / 1000:.3f}"
        name = "rank " if row["verdict"] else "score"
        line(f"{row['verdict'] or 'no verdict':<15}  {name} {score}  area {row['area']:6.2%}  {row['image']}")
        if row["provenance"] and row["provenance"]["headline"]:
            line(f"{'':<15}  {row['provenance']['headline']}")
        for reason in dict.fromkeys(region["reason"] for region in row["regions"] if region["reason"]):
            line(f"{'':<15}  {reason}")
        for said in (row["not_examined"], *row["notes"]):
            if said is not None:
                note(f"{row['image']}: {said}")
    return failed


def with_bar(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """Yield the rows, under a progress bar on stderr where that is a terminal and there are more than a few."""
    if total < _MANY or not sys.stderr.isatty():
        yield from rows
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("localizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On one screen the lines have to go above the bar; into a file or pipe they must not pass through it.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(rows, total=total)


def print_evaluation(evaluation: Evaluation) -> int:
    """Print the tables to stdout and what failed to stderr; the exit code."""

    console().print(evaluation.render())
    for row in evaluation.errors:
        note(f"{row.kind}: {row.error}")
    return 1 if evaluation.errors else 0


def print_calibration(result: Outcome, out: Path, skipped: Skipped) -> None:
    """Print what was measured and what it promises to stdout."""
    from rich.table import Table

    from declip.calibration import false_alarm_range
    from declip.spec import SIZE_CLASSES

    calibration = result.calibration
    table = Table("photos", "untouched", "verdict", "false alarms", "likely range", box=None, pad_edge=False)
    for i, size in enumerate(SIZE_CLASSES):
        count, photos = len(calibration.untouched[i]), calibration.photos[i]
        compared = f"{photos}" if count == photos else f"{photos}, {count} with pieces"
        steps = calibration.steps(i)
        for step in steps:
            low, high = false_alarm_range(step.rate, photos)
            likely = f"{100 * low:.2g} to {100 * high:.2g} %" if count == photos else "-"
            table.add_row(size, compared, step.word, f"at most {100 * step.rate:.2g} %", likely)
        if not steps:
            table.add_row(size, compared, "none: too few photos", "-", "-")
    console().print(table)
    line("Of untouched photos like these at most that share gets the verdict, averaged over calibrations with as many.")
    line("The rate of this very calibration lies within the likely range nine times in ten.")
    fitted = f"refitted on {result.fakes} manipulated pictures" if result.fakes else "kept"
    dropped = f"{result.unreadable} unreadable, {result.repeated} repeated, {result.unfit} that are no photographs"
    line(f"left out        {dropped}, {skipped} skipped")
    line(f"temperature     {calibration.temperature:.4g}, {fitted}")
    line(f"threshold       {calibration.threshold:g}, {fitted}")
    line(f"verdicts in     {calibration.mode} mode only")
    line(f"written         {out}")
    if result.lost:
        note(f"{result.lost} samples of --data were left out")
