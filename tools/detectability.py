"""Measure which small edits would have been found in untouched photos, as they are and saved again.

    python tools/detectability.py --data ../shared/data/photos/valid
    python tools/detectability.py --data … --order

→ docs/detectability.json and the table of docs/detectability.md. `declip.detectability` puts up to eight edits of each
kind into photos of 0.15 to 0.9 MP, as their files are and saved as JPEG of quality 90 and 75 (4:2:0). `--order` asks
whether edits in a saved photo tell of edits that were made before: of the first four PNG among them, one copy gets its
edits and is saved, the other is saved, gets the same edits, and is saved again.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import declip
from declip.errors import ImageError
from declip.images.encode import encode_jpeg
from declip.localize.localizer import Localizer

ROOT = Path(__file__).resolve().parents[1]
MADE, PAGE = ROOT / "docs" / "detectability.json", ROOT / "docs" / "detectability.md"
FORMS = {"as they are": None, "saved as JPEG 90": 90, "saved as JPEG 75": 75}
SMALL = (150_000, 900_000)  # px
STEP, MOST = 2, 10  # every second of them, up to so many


def measure(localizer: Localizer, photos: list[Path]) -> dict[str, Any]:
    """Return for each form how many edits of each kind were found and tried, and in how many photos none was."""
    rows: dict[str, Any] = {form: {"photos": 0, "none_found": 0, "kinds": {}} for form in FORMS}
    for path in of_size(localizer, photos, SMALL)[::STEP][:MOST]:
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
    """Return how many edits are found that were made before a photo was saved for the first time, and after it."""
    probes, judge = import_module("declip.report.probes"), import_module("declip.report.trials").judge
    rows: dict[str, Any] = {}
    for path in [path for path in of_size(localizer, photos, SMALL) if path.suffix == ".png"][:4]:
        pixels = localizer.read(path).pixels
        for quality in (90, 75):
            after = localizer.read(encode_jpeg(pixels, quality)).pixels
            for order, base in (("before", pixels), ("after", after)):
                row = rows.setdefault(f"{order} JPEG {quality}", {kind: [0, 0] for kind in probes.KINDS})
                nowhere = np.zeros(base.shape[:2], dtype=bool)
                edits = probes.make_probes(base, nowhere, np.random.default_rng(0))
                for members in probes.in_rounds(edits, localizer.spec.input_size):
                    made = base.copy()
                    for edit in members:
                        x0, y0, x1, y1 = edit.box
                        made[y0:y1, x0:x1][edit.mask] = edit.patch[edit.mask]
                    mask = localizer(encode_jpeg(made, quality)).mask
                    for trial in judge(members, made, mask):
                        row[trial.kind] = [row[trial.kind][0] + trial.found, row[trial.kind][1] + 1]
        print(path.name, rows, flush=True)
    return rows


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
    parser.add_argument("--order", action="store_true")
    asked = parser.parse_args()
    localizer, photos = declip.load(), sorted(asked.data.iterdir())
    made = json.loads(MADE.read_text()) if MADE.exists() else {}
    made |= {"order": compare(localizer, photos)} if asked.order else {"forms": measure(localizer, photos)}
    MADE.write_text(json.dumps(made, indent=1) + "\n")
    if "forms" in made:
        before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- measured -->\n")
        rest = rest[rest.index("<!-- /measured -->") :]
        PAGE.write_text(f"{before}{mark}{table(made['forms'])}\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
