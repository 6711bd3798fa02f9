"""Measure `declip.images.scope`: how many graphics it refuses, and how many photographs. Prints Markdown.

    python tools/make_graphics.py GRAPHICS
    python tools/graphics_figures.py GRAPHICS --data ../shared/data

Every second graphic of each kind, by name, is of the half on which thresholds were chosen, as photos/train was; the
others and the other folders had no say. Each picture is read as it is, and saved anew.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip.images import scope
from declip.images.read import read_photo

GRAPHIC = ("as is", "JPEG 90", "JPEG 75", "WebP 80", "×0.5", "×1.5", "×0.5, JPEG 75", "×1.5, JPEG 75")
PHOTO = ("as is", "JPEG 90", "JPEG 75", "×0.5")
KINDS = ("screenshot", "plot", "scan", "drawing")
Pixels = NDArray[np.uint8]


def saved_anew(pixels: Pixels, condition: str) -> Pixels:
    """Return the pixels after what `condition` names: steps parted by a comma."""
    picture = Image.fromarray(pixels)
    for step in condition.split(", "):
        if step.startswith("×"):
            size = [max(1, round(side * float(step[1:]))) for side in picture.size]
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        elif step != "as is":
            kind, quality = step.split()
            stream = io.BytesIO()
            picture.save(stream, kind, quality=int(quality))
            picture = Image.open(stream).convert("RGB")
    return np.asarray(picture)


def refused(task: tuple[Path, tuple[str, ...]]) -> list[bool]:
    """Return for each condition whether the picture is refused."""
    path, conditions = task
    pixels = read_photo(path).pixels
    return [scope.why_not(saved_anew(pixels, condition)) is not None for condition in conditions]


def row(
    pool: ProcessPoolExecutor, name: str, paths: Sequence[Path], conditions: tuple[str, ...], listing: list[str]
) -> str:
    """Return a row of a table; add to `listing` what is not as it should be."""
    graphic = conditions == GRAPHIC
    answers = list(pool.map(refused, ((path, conditions) for path in paths), chunksize=4))
    for path, answer in zip(paths, answers, strict=True):
        wrong = [condition for condition, no in zip(conditions, answer, strict=True) if no is not graphic]
        if wrong:
            listing.append(f"{name}: {path.name}: {'; '.join(wrong)}")
    shares = [f"{sum(column)}" for column in zip(*answers, strict=True)]
    return f"| {name} | {len(paths)} | {' | '.join(shares)} |"


def table(head: str, conditions: Iterable[str]) -> str:
    names = [head, "pictures", *conditions]
    return f"| {' | '.join(names)} |\n|---|{'---:|' * (len(names) - 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphics", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of photos/ and forged/")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    listing: list[str] = []
    with ProcessPoolExecutor(arguments.workers) as pool:
        print("Refused of the graphics:\n")
        print(table("kind", GRAPHIC))
        for half, said in ((1, "other half"), (0, "chosen on")):
            for kind in KINDS:
                paths = sorted((arguments.graphics / kind).glob("*.png"))[half::2]
                print(row(pool, f"{kind}, {said}", paths, GRAPHIC, listing), flush=True)
        print("\nRefused of the photographs:\n")
        print(table("folder", PHOTO))
        for name, pattern in (
            ("photos/valid", "photos/valid/*"),
            ("photos/calibrate", "photos/calibrate/*"),
            ("forged/dev, forged", "forged/dev/*/image/*"),
            ("forged/dev, originals", "forged/dev/*/original/*"),
            ("photos/train, chosen on", "photos/train/*"),
        ):
            print(row(pool, name, sorted(arguments.data.glob(pattern)), PHOTO, listing), flush=True)
    print("\nNot as it should be:\n")
    print("\n".join(f"- {line}" for line in listing))


if __name__ == "__main__":
    main()
