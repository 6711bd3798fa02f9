"""Make examples/photos and examples/masks, manipulated photos whose manipulation is known, and assets/donors.

    python tools/make_examples.py --autoencoder FOLDER        (default: ../shared/data/weights)

The photos are those that scikit-image and scikit-learn carry in their wheels and whose terms are clear: public domain,
CC0 and CC BY (examples/README.md). Every manipulation is one of `declip.synthesis`, at a place chosen by hand, with a
fixed seed: another run gives the same files. FOLDER holds the weights of the autoencoder (TAEF2, see
`declip.synthesis.neural`). Its round trip is computed in bfloat16 where the processor can: there, a pixel may differ by
a level from one machine to another.

Needs `pip install 'declip[all]'`.
"""

from __future__ import annotations

import argparse
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from declip.images.mapfiles import write_mask
from declip.images.read import read_photo
from declip.synthesis import classical, masks, neural

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = tuple[tuple[int, int], ...]

ROOT = Path(__file__).resolve().parents[1]
JPEG_QUALITY = 90
# What `declip detectability` takes foreign parts from.
DONORS = ("astronaut", "coffee", "rocket")
# Seeds, chosen by eye: the flower as it was cut out; its copy beside it rather than on top.
PASTED = 0
COPIED = 27

# Outlines as (x, y) px.
TOWER: Points = (
    (441, 119), (452, 119), (454, 187), (460, 190), (462, 230), (468, 290), (475, 345), (479, 388),
    (436, 388), (436, 300), (437, 195), (442, 188),
)  # fmt: skip
SHUTTLE: Points = (
    (394, 0), (434, 0), (446, 25), (460, 60), (462, 260), (482, 266), (486, 288), (362, 292),
    (364, 258), (350, 234), (350, 205), (372, 180), (374, 90), (384, 34), (391, 20),
)  # fmt: skip
SPOON: Points = ((418, 40), (436, 40), (452, 70), (440, 100), (424, 110), (408, 80))
# Corners of the boxes around ellipses.
EYE: Points = ((115, 60), (265, 190))
NAME: Points = ((262, 328), (342, 392))
BLOOM: Points = ((163, 76), (451, 362))

# PHOTO-GENERATOR → where its content is filled or blurred.
FILLED = {
    "rocket-telea": TOWER,
    "astronaut-navier-stokes": SHUTTLE,
    "astronaut-patchmatch": SHUTTLE,
    "astronaut-blur": NAME,
    "coffee-biharmonic": SPOON,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, default=ROOT / "../shared/data/weights")
    parser.add_argument("--out", type=Path, default=ROOT / "examples", help="the examples folder")
    arguments = parser.parse_args()
    photos, known = arguments.out / "photos", arguments.out / "masks"
    for folder in (photos, known):
        folder.mkdir(parents=True, exist_ok=True)
    made = {f"{name}.jpg": filled(*name.split("-", 1), outline) for name, outline in FILLED.items()}
    made |= {
        "chelsea-regenerate-local.png": eye_regenerated(arguments.autoencoder),
        "coffee-splice-hard.jpg": flower_pasted(),
        "flower-copy-move.png": flower_copied(),
    }
    for name, (pixels, mask) in made.items():
        _save(photos / name, pixels)
        write_mask(known / f"{Path(name).stem}.png", mask)
    shutil.copyfile(_source("china"), photos / "china-untouched.jpg")
    _save(photos / "coffee-untouched.jpg", _read("coffee"), quality=80)
    for name in DONORS:
        _save(ROOT / "src" / "declip" / "assets" / "donors" / f"{name}.jpg", _read(name))


def filled(photo: str, generator: str, outline: Points) -> tuple[Pixels, Mask]:
    """A photo with the content of an outline filled or blurred."""
    return applied(generator, pixels := _read(photo), _shape(pixels, outline))


def applied(
    generator: str, pixels: Pixels, mask: Mask, seed: int = 0, donor: Pixels | None = None
) -> tuple[Pixels, Mask]:
    apply = classical.GENERATORS[generator].apply
    assert apply is not None
    return apply(pixels, mask, np.random.default_rng(seed), donor)


def eye_regenerated(autoencoder: Path) -> tuple[Pixels, Mask]:
    """The cat's face around its left eye, sent through a latent generator's autoencoder."""
    pixels = _read("chelsea")
    regenerate = neural.regenerate_local(neural.load(autoencoder))
    return regenerate(pixels, _shape(pixels, EYE), np.random.default_rng(0), None)


def flower_pasted() -> tuple[Pixels, Mask]:
    """A dahlia of another photo on the table, beside the cup."""
    pixels, flower = _read("coffee"), _read("flower")
    size = (round(flower.shape[1] * 0.48), round(flower.shape[0] * 0.48))
    bloom = np.asarray(Image.fromarray(_bloom(flower)).resize(size)) > 0
    flower = np.asarray(Image.fromarray(flower).resize(size, Image.Resampling.LANCZOS))
    rows, columns = ndimage.find_objects(bloom.astype(np.uint8))[0]
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[238 : 238 + rows.stop - rows.start, 434 : 434 + columns.stop - columns.start] = bloom[rows, columns]
    # A donor as large as the window around the mask is taken as it is, in place.
    margin = max(8, round(0.2 * float(np.sqrt(mask.sum()))))
    donor = flower[rows.start - margin : rows.stop + margin, columns.start - margin : columns.stop + margin]
    return applied("splice-hard", pixels, mask, PASTED, donor)


def flower_copied() -> tuple[Pixels, Mask]:
    """The dahlia a second time, smaller, to the right."""
    pixels = _read("flower")
    return applied("copy-move", pixels, _bloom(pixels), COPIED)


def _bloom(flower: Pixels) -> Mask:
    """The dahlia in the middle of its photo: what is warm there, without holes and without the blossom below it."""
    warm = flower[..., 0].astype(int) - flower[..., 2] > 40
    warm &= _shape(flower, BLOOM)
    return np.asarray(ndimage.binary_fill_holes(masks.largest_part(ndimage.binary_opening(warm, iterations=3))))


def _shape(pixels: Pixels, points: Points) -> Mask:
    """Return the inside of an outline, or of an ellipse where two corners of its box are given."""
    canvas = Image.new("L", (pixels.shape[1], pixels.shape[0]))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse(points, fill=255) if len(points) == 2 else draw.polygon(points, fill=255)
    return np.asarray(canvas) > 0


def _source(name: str) -> Path:
    """The file of a photo inside its package."""
    if name in ("china", "flower"):
        return Path(str(files("sklearn.datasets") / "images" / f"{name}.jpg"))
    suffix = ".jpg" if name == "rocket" else ".png"
    return Path(str(files("skimage") / "data" / f"{name}{suffix}"))


def _read(name: str) -> Pixels:
    return read_photo(_source(name)).pixels


def _save(path: Path, pixels: Pixels, quality: int = JPEG_QUALITY) -> None:
    Image.fromarray(pixels).save(path, optimize=True, **({} if path.suffix == ".png" else {"quality": quality}))


if __name__ == "__main__":
    main()
