"""What users rely on, as it was: rows, facts of a report, options of the command, the API, the columns of a table.

`python -m tests.contracts.test_snapshots` writes the snapshots anew. What then differs belongs into the changelog.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

import declip

HERE = Path(__file__).resolve().parent
SNAPSHOTS = HERE / "snapshots"
PHOTOS = HERE.parents[1] / "examples" / "photos"
NAMES = ("astronaut-navier-stokes.jpg", "coffee-untouched.jpg")


def rounded(value: Any) -> Any:
    """Return a value whose numbers have four digits: other processors round otherwise."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: rounded(one) for key, one in value.items() if key not in ("seconds", "declip", "calibration")}
        case list() | tuple():
            return [rounded(one) for one in value]
    return value


def rows() -> Any:
    """Return the rows of two photos, with the mean and the largest of their scores."""
    found = [declip.load()(PHOTOS / name) for name in NAMES]
    return [
        {
            **one.to_dict(),
            "image": Path(one.name).name,
            "mean": float(one.scores.mean()),
            "max": float(one.scores.max()),
        }
        for one in found
    ]


def report() -> Any:
    """Return the facts of the report on a photo."""
    found = declip.report.examine(PHOTOS / NAMES[0], declip.load(), date=datetime(2026, 1, 1, tzinfo=UTC))
    facts = found.to_dict()
    return {**facts, "image": NAMES[0]} if "image" in facts else facts


def options() -> Any:
    """Return the options and arguments of every verb."""
    from declip.cli.main import app

    command = typer.main.get_command(app)
    verbs = command.commands  # type: ignore[attr-defined]
    return {
        name: sorted(option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts))
        for name, verb in sorted(verbs.items())
    }


def api() -> Any:
    """Return the paths of the service: parameters, bodies, answers."""
    from declip.serve import create_app

    found = create_app(declip.load()).openapi()
    return {"paths": {path: sorted(verbs) for path, verbs in found["paths"].items()}, "row": _row(found)}


def _row(found: dict[str, Any]) -> list[str]:
    schemas = found["components"]["schemas"]
    (row,) = (one for one in schemas.values() if {"verdict", "regions", "sha256"} <= set(one.get("properties", ())))
    return sorted(row["properties"])


def columns() -> Any:
    """Return the columns of a batch job's files."""
    from declip.batch import rows as table

    return [f"{field.name}: {field.type}" for field in table.schema()]


@pytest.mark.parametrize("make", [rows, report, options, api, columns], ids=lambda make: make.__name__)
def test_as_it_was(make: Any) -> None:
    expected = json.loads((SNAPSHOTS / f"{make.__name__}.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(rounded(make()))) == expected


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for make in (rows, report, options, api, columns):
        text = json.dumps(rounded(make()), indent=1, sort_keys=True, ensure_ascii=False)
        (SNAPSHOTS / f"{make.__name__}.json").write_text(text + "\n", encoding="utf-8")
