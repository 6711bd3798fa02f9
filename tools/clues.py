"""Measure the clues: their rates among untouched photos, and what they find of real forgeries.

    python tools/clues.py rates --data ../shared/data     writes src/declip/assets/clues.json
    python tools/clues.py table --data ../shared/data     writes the tables of the clues' pages in docs

The rates are those of photos/calibrate and photos/valid: each photo as it is and saved again as JPEG once, twice and so
on up to --saves times (`calibration.saved_again`). The strongest of these counts. The tables are of forged/dev, on
which nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from card_cases import Case, published
from model_page import ROOT, between
from numpy.typing import NDArray

from declip.calibration import saved_again
from declip.clues import Clue, CopyMove, ExemplarFill, ForeignGrid, RepeatedGrain, SavedOnce
from declip.clues.copies import find_copies
from declip.clues.exemplar_fill import find_fills
from declip.clues.findings import Kind, strongest_of_untouched
from declip.clues.jpeg_history import foreign_areas, saved_once_areas
from declip.clues.rigid import find_rigid_copies
from declip.images.encode import encode_jpeg
from declip.images.read import EXTENSIONS, read_photo
from declip.results import Photo

RATES = ROOT / "src/declip/assets/clues.json"
COPIES = ("cmh_copymove", "copymove_baheesa_rot_scale")
PAGES: dict[Kind, Path] = {
    "copy-move": ROOT / "docs/copy-move.md",
    "repeated-grain": ROOT / "docs/copy-move.md",
    "exemplar-fill": ROOT / "docs/exemplar-fill.md",
    "saved-once": ROOT / "docs/jpeg-history.md",
    "foreign-grid": ROOT / "docs/jpeg-history.md",
}
CLUES: dict[Kind, Clue] = {
    clue.kind: clue for clue in (CopyMove(), RepeatedGrain(), ExemplarFill(), SavedOnce(), ForeignGrid())
}
QUALITIES = (None, 90, 75)
PROMISE = 0.01  # of untouched photos
HIT = 0.5  # of what is marked is manipulated


def evidence(kind: Kind, photo: Photo) -> float:
    """Return the strongest evidence of a clue in a photo, however common; 0 if it finds nothing."""
    found: Iterable[float]
    match kind:
        case "copy-move":
            found = [copy.evidence for copy in find_copies(photo.pixels)]
        case "repeated-grain":
            found = [copy.evidence for copy in find_rigid_copies(photo.pixels)]
        case "exemplar-fill":
            found = [fill.evidence for fill in find_fills(photo.pixels)]
        case "saved-once":
            found = [area.evidence for _, area in saved_once_areas(photo)]
        case "foreign-grid":
            found = [area.evidence for _, area, _ in foreign_areas(photo)]
    return max(found, default=0.0)


def saved(pixels: NDArray[np.uint8], quality: int) -> Photo:
    """Return a picture as the JPEG file it becomes."""
    return read_photo(encode_jpeg(pixels, quality), max_pixels=pixels.size)


def strongest(path: Path, kinds: tuple[Kind, ...], saves: int) -> list[float]:
    """Return the strongest evidence of each clue in an untouched photo, as it is or saved again."""
    cv2.setNumThreads(1)
    photo = read_photo(path)
    versions = (saved_again(photo, times) for times in range(saves + 1))
    every = [[evidence(kind, photo) for kind in kinds] for photo in versions]
    return [max(values) for values in zip(*every, strict=True)]


def rates(data: Path, kinds: tuple[Kind, ...], every: int, saves: int, workers: int) -> None:
    """Write the strongest evidence of all untouched photos; of clues that are not measured, what is there stays."""
    folders = [data / "photos" / name for name in ("calibrate", "valid")]
    photos = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    photos = photos[::every]
    found = []
    with ProcessPoolExecutor(workers) as pool:
        for path, values in zip(photos, pool.map(partial(strongest, kinds=kinds, saves=saves), photos), strict=True):
            found.append(values)
            print(path.name, " ".join(f"{value:.1f}" for value in values), flush=True)
    facts = json.loads(RATES.read_text(encoding="utf-8"))
    for kind, values in zip(kinds, zip(*found, strict=True), strict=True):
        rising = sorted(round(float(value), 2) for value in values)
        facts[kind] = {"date": date.today().isoformat(), "saves": saves, "strongest": rising}
    RATES.write_text(json.dumps(facts) + "\n", encoding="utf-8")


def table(data: Path, kind: Kind, every: int) -> str:
    """Return the table of a clue: a row for each set and quality."""
    untouched = strongest_of_untouched(kind)
    least = untouched[-1 - int(PROMISE * len(untouched))]  # as many have more
    rows = ["| set | pictures | saved again | found at 1 % | in the right place | F1 |", "|---|---|---|---|---|---|"]
    for name in sorted(path.name for path in (data / "forged/dev").iterdir() if path.is_dir()):
        if kind in ("copy-move", "repeated-grain") and name not in COPIES:
            continue
        cases = [c for c in published(data / "forged/dev", "image") if c.kind == name and not c.jpeg][::every]
        for quality in QUALITIES:
            found = [marked(kind, case, quality, least) for case in cases]
            values = [f1(mask, case.mask) for mask, case in zip(found, cases, strict=True)]
            right = [
                mask.any() and (mask & case.mask).sum() >= HIT * mask.sum()
                for mask, case in zip(found, cases, strict=True)
            ]
            how = "no" if quality is None else f"JPEG {quality}"
            marks = sum(bool(mask.any()) for mask in found)
            rows.append(f"| `{name}` | {len(cases)} | {how} | {marks} | {sum(right)} | {np.mean(values):.2f} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def marked(kind: Kind, case: Case, quality: int | None, least: float) -> NDArray[np.bool_]:
    """Return what a clue marks in a picture, (H, W), with more evidence than `least`."""
    assert case.path is not None
    photo = read_photo(case.path) if quality is None else saved(case.pixels, quality)
    masks = [finding.mask for finding in CLUES[kind].examine(photo) if finding.evidence > least]
    return np.any([np.zeros(photo.size, bool), *masks], axis=0)


def f1(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the F1 of the pixels; 0 where nothing is marked."""
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "table"))
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--kinds", nargs="+", choices=tuple(PAGES), default=tuple(PAGES))
    parser.add_argument("--every", type=int, default=1, help="measure every so many pictures only")
    parser.add_argument("--saves", type=int, default=2, help="rates: how often photos are saved again")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "rates":
        rates(arguments.data, tuple(arguments.kinds), arguments.every, arguments.saves, arguments.workers)
        return
    for kind in arguments.kinds:
        text = table(arguments.data, kind, arguments.every)
        page = PAGES[kind]
        page.write_text(between(page.read_text(encoding="utf-8"), kind, text), encoding="utf-8")


if __name__ == "__main__":
    main()
