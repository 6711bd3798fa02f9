"""Measure the clue copy–move: its rates among untouched photos, and what it finds of real forgeries.

    python tools/clues.py rates --data ../shared/data     writes src/declip/assets/clues.json
    python tools/clues.py table --data ../shared/data     writes the table of docs/copy-move.md

The rates are those of photos/calibrate and photos/valid, each as it is and saved again as JPEG (quality 75 to 95, one
to seven pixels cropped off, drawn by its name); the stronger of the two counts. The table is of forged/dev, on which
nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import cv2
import numpy as np
from card_cases import published, resaved
from model_page import ROOT, between
from numpy.typing import NDArray

from declip.clues import CopyMove
from declip.clues.copies import find_copies
from declip.clues.findings import strongest_of_untouched
from declip.images.read import EXTENSIONS, read_photo
from declip.results import Photo

RATES = ROOT / "src/declip/assets/clues.json"
PAGE = ROOT / "docs/copy-move.md"
SETS = ("cmh_copymove", "copymove_baheesa_rot_scale")
QUALITIES = (None, 90, 75)
PROMISE = 0.01  # of untouched photos


def strongest(path: Path) -> float:
    """Return the strongest evidence in an untouched photo, as it is or saved again."""
    cv2.setNumThreads(1)
    pixels = read_photo(path).pixels
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    y, x = rng.integers(1, 8, 2)
    again = resaved(np.ascontiguousarray(pixels[y:, x:]), int(rng.integers(75, 96)))
    return max((copy.evidence for version in (pixels, again) for copy in find_copies(version)), default=0.0)


def rates(data: Path, workers: int) -> None:
    """Write the strongest evidence of all untouched photos."""
    folders = [data / "photos" / name for name in ("calibrate", "valid")]
    photos = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    with ProcessPoolExecutor(workers) as pool:
        found = dict(zip([path.name for path in photos], pool.map(strongest, photos), strict=True))
    for name in sorted(found, key=found.__getitem__)[:-11:-1]:
        print(f"{found[name]:8.1f}  {name}")
    values = sorted(round(value, 2) for value in found.values())
    text = json.dumps({"copy-move": {"date": date.today().isoformat(), "strongest": values}})
    RATES.write_text(text + "\n", encoding="utf-8")


def table(data: Path) -> str:
    """Return the table: a row for each set and quality."""
    untouched = strongest_of_untouched("copy-move")
    least = untouched[-1 - int(PROMISE * len(untouched))]  # as many have more
    rows = ["| set | pictures | saved again | found at 1 % | F1 of what is found | F1 |", "|---|---|---|---|---|---|"]
    for name in SETS:
        cases = [c for c in published(data / "forged/dev", "image") if c.kind == name and not c.jpeg]
        for quality in QUALITIES:
            values = []
            for case in cases:
                pixels = case.pixels if quality is None else resaved(case.pixels, quality)
                findings = [f for f in CopyMove().examine(Photo(pixels=pixels, name=name)) if f.evidence > least]
                values.append(f1([finding.mask for finding in findings], case.mask))
            hits = [value for value in values if value is not None]
            f1_found = f"{np.mean(hits):.2f}" if hits else "–"
            saved = "no" if quality is None else f"JPEG {quality}"
            everything = sum(hits) / len(values)
            rows.append(f"| `{name}` | {len(cases)} | {saved} | {len(hits)} | {f1_found} | {everything:.2f} |")
    return "\n".join(rows)


def f1(masks: list[NDArray[np.bool_]], truth: NDArray[np.bool_]) -> float | None:
    """Return the F1 of all findings together; None where there is none."""
    if not masks:
        return None
    mask = np.any(masks, axis=0)
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "table"))
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "rates":
        rates(arguments.data, arguments.workers)
    else:
        text = table(arguments.data)
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "table", text), encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
