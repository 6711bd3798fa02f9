"""Make docs/images/generators.png: every generator that needs no weights of one's own, original | manipulated | mask.

    python tools/make_grid.py --autoencoder FOLDER        (default: ../shared/data/weights)

The photos are those of scikit-image that are in the public domain or CC0. Crops and seeds are fixed: another run gives
the same picture. FOLDER holds the weights of the autoencoder (TAEF2, see `declip.synthesis.neural`).

Needs `pip install 'declip[all]'`.
"""

from __future__ import annotations

import argparse
import io
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from declip.images.read import read_photo
from declip.synthesis import Recipe, forge
from declip.synthesis.networks import Networks

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

ROOT = Path(__file__).resolve().parents[1]
CROP = 256  # px of the photo
SHOWN = 160  # px in the grid
COLUMNS = 3
GAP = 4
LABEL = 18
COLOURS = 256  # a palette keeps the file small

# Photo and corner (x, y) of the crop.
PLACES: dict[str, tuple[str, int, int]] = {
    "astronaut": ("astronaut.png", 130, 0),
    "coffee": ("coffee.png", 150, 40),
    "cat": ("chelsea.png", 90, 20),
    "rocket": ("rocket.jpg", 230, 120),
}
# Generator → what is manipulated, where, and with which seed, chosen by eye; a splice takes from the last photo named.
ROWS: dict[str, tuple[str, str, int, str]] = {
    "telea": ("rocket", "random", 5, ""),
    "navier-stokes": ("cat", "random", 7, ""),
    "patchmatch": ("rocket", "random", 7, ""),
    "biharmonic": ("coffee", "random", 6, ""),
    "splice-hard": ("coffee", "object", 5, "cat"),
    "splice-feathered": ("rocket", "object", 5, "astronaut"),
    "splice-poisson": ("cat", "object", 5, "astronaut"),
    "splice-colour": ("coffee", "random", 7, "cat"),
    "copy-move": ("coffee", "object", 5, ""),
    "blur": ("coffee", "grabcut", 0, ""),
    "noise": ("rocket", "random", 1, ""),
    "resample": ("rocket", "random", 8, ""),
    "relight": ("cat", "random", 7, ""),
    "regenerate-local": ("astronaut", "face", 2, ""),
    "regenerate-global": ("cat", "random", 0, ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, default=ROOT / "../shared/data/weights")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/generators.png")
    arguments = parser.parse_args()
    cells = {name: manipulated(name, arguments.autoencoder) for name in ROWS}
    buffer = io.BytesIO()
    grid(cells).quantize(COLOURS, method=Image.Quantize.MEDIANCUT).save(buffer, "PNG", optimize=True)
    arguments.out.write_bytes(buffer.getvalue())
    print(f"{arguments.out}: {len(buffer.getvalue()) / 1000:.0f} kB")


def manipulated(generator: str, autoencoder: Path) -> tuple[Pixels, Pixels, Mask]:
    """Original and manipulated crop (256, 256, 3) uint8, and mask (256, 256) bool."""
    photo, kind, seed, giver = ROWS[generator]
    pixels, donor = crop(photo), crop(giver) if giver else None
    recipe = Recipe(masks=(kind,), networks=Networks(autoencoder=autoencoder))
    return pixels, *forge(pixels, generator, np.random.default_rng(seed), donor, recipe)


def crop(photo: str) -> Pixels:
    name, x, y = PLACES[photo]
    pixels = read_photo(Path(str(files("skimage") / "data" / name))).pixels
    return np.ascontiguousarray(pixels[y : y + CROP, x : x + CROP])


def grid(cells: dict[str, tuple[Pixels, Pixels, Mask]]) -> Image.Image:
    """All cells on a white page, each under its name."""
    width, height = 3 * SHOWN + 2 * GAP, LABEL + SHOWN
    rows = -(-len(cells) // COLUMNS)
    size = (COLUMNS * (width + 5 * GAP) - GAP, rows * (height + 2 * GAP) + GAP)
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    for index, (name, (before, after, mask)) in enumerate(cells.items()):
        left = 2 * GAP + index % COLUMNS * (width + 5 * GAP)
        top = GAP + index // COLUMNS * (height + 2 * GAP)
        draw.text((left, top), name, fill="black", font=font)
        white = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        for place, part in enumerate((before, after, white)):
            small = Image.fromarray(part).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            x, y = left + place * (SHOWN + GAP), top + LABEL
            page.paste(small, (x, y))
            draw.rectangle((x, y, x + SHOWN - 1, y + SHOWN - 1), outline=(170, 170, 170))
    return page


if __name__ == "__main__":
    main()
