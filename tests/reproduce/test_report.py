"""What an experiment writes: differences are judged at full scale only, and oracles are called so."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console

from declip.evaluation import plots
from declip.reproduce import report
from declip.reproduce.paper import Number
from declip.reproduce.report import Entry, Grid, Outcome

PAPER = Number(model="m", row="ldm", value=50.0, kind="notebook", tolerance=4.0)
CARDS = ({"threshold": "0.5", "model": "a"}, {"threshold": "0.5", "model": "b"}, {"threshold": "0.5", "model": "a"})


def outcome(**changes: object) -> Outcome:
    made = Outcome(
        title="a | title",
        entries=(
            Entry(row="ldm", column="ldm", value=0.535, low=0.5, high=0.6, paper=PAPER),
            Entry(row="lama", column="ldm", value=0.449, paper=PAPER),
            Entry(row="lama", column="ldm", figure="f1_best_oracle", value=0.7, detail=True),
            Entry(row="nothing", value=math.nan, paper=PAPER),
        ),
        grids=(Grid(title="IoU", rows=("x",), columns=("a|b", "c"), values=((0.1, math.nan),)),),
        figures={"figure.png": plots.matrix({"": np.eye(1)}, ("x",), ("x",))},
        protocols=CARDS,
        notes=("a note",),
        is_tiny=False,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def shown(found: Outcome) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.render(found))
    return console.export_text()


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_differences_are_judged_by_their_tolerance(tmp_path: Path) -> None:
    report.write(outcome(), tmp_path)
    rows = read(tmp_path / "table.csv")
    assert [row["difference"] for row in rows] == ["+3.5", "-5.1", "", ""]
    assert [row["within"] for row in rows] == ["yes", "NO", "", ""]
    assert rows[0] | {"ours": "53.5000", "low": "50.0000", "paper": "50", "kind": "notebook"} == rows[0]
    assert rows[3]["ours"] == ""
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| ldm | ldm | IoU | 53.5 | 50.0–60.0 | 50 | notebook | +3.5 | ±4 | yes |" in text
    assert "| lama | ldm | F1-best (oracle) | 70.0 |" in text
    assert "| x | 10.0 | nan |" in text and "a\\|b" in text and "![figure](figure.png)" in text


def test_tiny_judges_nothing_and_says_so_first(tmp_path: Path) -> None:
    report.write(outcome(is_tiny=True), tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text.splitlines()[2].startswith("Tiny scale: other data")
    assert "50 | notebook |" in text and "within" not in text and "NO" not in text
    rows = read(tmp_path / "table.csv")
    assert {row["paper"] for row in rows[:2]} == {"50"}
    assert {(row["difference"], row["tolerance"], row["within"]) for row in rows} == {("", "", "")}
    assert "difference" in shown(outcome()) and "tolerance" not in shown(outcome(is_tiny=True))


def test_the_protocol_tells_what_differs(tmp_path: Path) -> None:
    report.write(outcome(), tmp_path)
    card = json.loads((tmp_path / "protocol.json").read_text(encoding="utf-8"))
    assert card == {"common": {"threshold": "0.5"}, "differing": {"model": ["a", "b"]}, "tests": 3}
    text = (tmp_path / "protocol.md").read_text(encoding="utf-8")
    assert "| threshold | 0.5 |" in text and "- model: 2 values\n  - a\n  - b\n" in text


def test_the_console_leaves_details_to_the_files() -> None:
    text = shown(outcome())
    assert "F1-best" not in text and "a note" in text and "53.5" in text
    assert "common to all 3 tests" in text and "model" in text


def test_files_are_written_over_those_of_an_earlier_run(tmp_path: Path) -> None:
    report.write(outcome(), tmp_path)
    report.write(outcome(title="another"), tmp_path)
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("# another\n")
    names = {"table.csv", "table.md", "protocol.json", "protocol.md", "figure.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
