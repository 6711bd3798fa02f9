"""Train the zoo: small autoencoders of random architectures, whose round trips are manipulations to learn from.

    python tools/make_zoo.py --data ../shared/data --out data/third/zoo

--data is a folder with photos/train. Numbers 0-27 are trained for OUT/train, 28-34 for OUT/unseen, which no training
data may use (`declip.synthesis.zoo`). Each takes some minutes on one thread. Seeded; what is there already is kept, so
that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from declip.images.read import EXTENSIONS, read_photo
from declip.synthesis import zoo
from declip.synthesis.sources import allot

ROOT = Path(__file__).resolve().parents[1]
LEARNT = range(28)
UNSEEN = range(28, 35)
CROPS = 4096
SIDE = 96  # px
STEPS = {4: 2000, 8: 3000, 16: 5000}  # by stride: the more a network has to leave out, the longer it learns

log = logging.getLogger("make_zoo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--out", type=Path, default=ROOT / "data/third/zoo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--numbers", type=int, nargs="*", default=[*LEARNT, *UNSEEN], help="which architectures")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    make(arguments.data / "photos/train", arguments.out, arguments.numbers)


def make(photos: Path, out: Path, numbers: list[int]) -> None:
    """Train the architectures that are not there yet."""
    missing = [number for number in numbers if not path_of(out, number).exists()]
    if not missing:
        return
    crops = crop_bank(photos, out / "crops.npy")
    for number in missing:
        began = time.monotonic()
        plan = zoo.draw_architecture(number)
        net, about = zoo.fit(plan, crops, steps=STEPS[plan.stride])
        zoo.save(net, about, path_of(out, number))
        log.info("%s: %.1f dB, %.1f min", plan, about.psnr, (time.monotonic() - began) / 60)


def path_of(out: Path, number: int) -> Path:
    return out / ("unseen" if number in UNSEEN else "train") / f"{number:03d}.json"


def crop_bank(photos: Path, path: Path, count: int = CROPS) -> NDArray[np.uint8]:
    """Return (count, SIDE, SIDE, 3) uint8 crops of the photos, a half of them at half size or less; kept in a file."""
    if path.exists():
        return np.load(path)
    rng = np.random.default_rng(0)
    places = allot([file for file in photos.iterdir() if file.suffix.lower() in EXTENSIONS], count)
    crops = np.empty((count, SIDE, SIDE, 3), np.uint8)
    order = sorted(range(count), key=lambda index: places[index])  # each photo is read once
    photo, pixels = None, np.empty(0, np.uint8)
    for index in order:
        if places[index] != photo:
            photo = places[index]
            pixels = read_photo(photo).pixels
        crops[index] = crop(pixels, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp.npy")
    np.save(partial, crops)
    partial.replace(path)
    return crops


def crop(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random square of the photo, brought to SIDE px."""
    shortest = min(pixels.shape[:2])
    largest = min(shortest, SIDE * 8)
    side = (
        SIDE
        if rng.random() < 0.5
        else round(float(np.exp(rng.uniform(np.log(min(2 * SIDE, largest)), np.log(largest)))))
    )
    side = min(side, shortest)
    y, x = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
    part = pixels[y : y + side, x : x + side]
    return np.asarray(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC))


if __name__ == "__main__":
    main()
