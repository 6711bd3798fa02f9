"""Measure which small edits would have been found in untouched photos, as they are and saved again.

    python tools/detectability.py --data ../shared/data/photos/valid
    python tools/detectability.py --data … --alone    # one edit at a time, on photos of 3 to 4 MP

→ docs/detectability.json and the table of docs/detectability.md. `declip.detectability` puts up to eight edits of each
kind into every second photo of 0.15 to 0.9 MP, as its file is and saved as JPEG of quality 90 and 75 (4:2:0). `--alone`
compares photos with several edits at once with photos with one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

from scipy import stats

import declip
from declip.errors import ImageError
from declip.images.encode import encode_jpeg
from declip.localize.localizer import Localizer

ROOT = Path(__file__).resolve().parents[1]
MADE, PAGE = ROOT / "docs" / "detectability.json", ROOT / "docs" / "detectability.md"
FORMS = {"as they are": None, "saved as JPEG 90": 90, "saved as JPEG 75": 75}
SMALL, MEDIUM = (150_000, 900_000), (3_000_000, 4_200_000)  # px
STEP = 2


def measure(localizer: Localizer, photos: list[Path]) -> dict[str, Any]:
    """Return for each form how many edits of each kind were found and tried, and in how many photos none was."""
    rows: dict[str, Any] = {form: {"photos": 0, "none_found": 0, "kinds": {}} for form in FORMS}
    for path in of_size(localizer, photos, SMALL)[::STEP]:
        for form, quality in FORMS.items():
            photo = path if quality is None else encode_jpeg(localizer.read(path).pixels, quality)
            try:
                result = declip.detectability(localizer, photo)
            except ImageError as error:
                print(form, error, flush=True)
                continue
            row = rows[form]
            for share in result.shares:
                found, tried = row["kinds"].get(share.kind, (0, 0))
                row["kinds"][share.kind] = [found + share.found, tried + share.tried]
            row["photos"] += 1
            row["none_found"] += not any(trial.found for trial in result.trials)
            print(form, path.name, f"{result.seconds:.1f} s", result.rounds, row, flush=True)
    return rows


def compare(localizer: Localizer, photos: list[Path]) -> dict[str, Any]:
    """Return how often an edit is judged the same alone and together with others, and how many copies both take."""
    medium = of_size(localizer, photos, MEDIUM)
    same, edits, copies = 0, 0, [0, 0]
    for path in medium:
        together = declip.detectability(localizer, path)
        with mock.patch("declip.report.detectability.in_rounds", lambda edits, gap: [[edit] for edit in edits]):
            alone = declip.detectability(localizer, path)
        judged = {(trial.kind, trial.box): trial.found for trial in alone.trials}
        same += sum(judged[trial.kind, trial.box] == trial.found for trial in together.trials)
        edits += len(together.trials)
        copies = [copies[0] + together.rounds, copies[1] + alone.rounds]
        print(path.name, same, edits, copies, flush=True)
    return {
        "photos": len(medium),
        "edits": edits,
        "same": same,
        "copies_together": copies[0],
        "copies_alone": copies[1],
    }


def of_size(localizer: Localizer, photos: list[Path], pixels: tuple[int, int]) -> list[Path]:
    return [path for path in photos if pixels[0] <= localizer.read(path).pixels.size // 3 <= pixels[1]]


def table(rows: dict[str, Any]) -> str:
    """Return the rows as Markdown: how many were found, and the exact 95 % interval of their share."""
    kinds = list(rows["as they are"]["kinds"])
    lines = ["| photos | " + " | ".join(kinds) + " | no edit found in |", "|---" * (len(kinds) + 2) + "|"]
    for form, row in rows.items():
        cells = []
        for found, tried in row["kinds"].values():
            interval = stats.binomtest(found, tried).proportion_ci(0.95, method="exact")
            cells.append(f"{found} of {tried} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)")
        lines.append(f"| {form} | " + " | ".join(cells) + f" | {row['none_found']} of {row['photos']} photos |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--alone", action="store_true")
    asked = parser.parse_args()
    localizer, photos = declip.load(), sorted(asked.data.iterdir())
    made = json.loads(MADE.read_text()) if MADE.exists() else {}
    made |= {"alone": compare(localizer, photos)} if asked.alone else {"forms": measure(localizer, photos)}
    MADE.write_text(json.dumps(made, indent=1) + "\n")
    if "forms" in made:
        before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- measured -->\n")
        rest = rest[rest.index("<!-- /measured -->") :]
        PAGE.write_text(f"{before}{mark}{table(made['forms'])}\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
