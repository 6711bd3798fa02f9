"""Train the zoo: small autoencoders of random architectures, whose round trips are manipulations to learn from.

    python tools/make_zoo.py --data ../shared/data --out data/third/zoo

--data is a folder with photos/train. Numbers 0-27 are trained for OUT/train, 28-34 for OUT/unseen, which no training
data may use. Each takes some minutes on one thread. Seeded; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from declip.files import write_atomic
from declip.images.read import EXTENSIONS, read_photo
from declip.synthesis import zoo
from declip.synthesis.sources import allot

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = range(35)
FIRST_UNSEEN = 28
CROPS = 4096
SIDE = 96  # px
STEPS = {4: 2000, 8: 3000, 16: 5000}  # by stride: the more a network has to leave out, the longer it learns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--out", type=Path, default=ROOT / "data/third/zoo")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    make(arguments.data / "photos/train", arguments.out)


def make(photos: Path, out: Path) -> None:
    """Train the architectures that are not there yet, on one thread."""
    torch.set_num_threads(1)
    for number in NUMBERS:
        path = out / ("train" if number < FIRST_UNSEEN else "unseen") / f"{number:03d}.json"
        if not path.exists():
            plan = zoo.draw_architecture(number)
            net, about = zoo.fit(plan, crop_bank(photos, out / "crops.bin"), steps=STEPS[plan.stride])
            zoo.save(net, about, path)
            logging.info("%s: %.1f dB", plan, about.psnr)


def crop_bank(photos: Path, path: Path) -> NDArray[np.uint8]:
    """Return (CROPS, SIDE, SIDE, 3) uint8 crops of the photos, a half of them at half size or less; kept in a file."""
    if not path.exists():
        rng = np.random.default_rng(0)
        places = sorted(allot([file for file in photos.iterdir() if file.suffix.lower() in EXTENSIONS], CROPS))
        crops = np.empty((CROPS, SIDE, SIDE, 3), np.uint8)
        for index, photo in enumerate(places):
            if index == 0 or photo != places[index - 1]:  # each photo is read once
                pixels = read_photo(photo).pixels
            crops[index] = crop(pixels, rng)
        rng.shuffle(crops)
        write_atomic(path, lambda partial: partial.write_bytes(crops.tobytes()))
    return np.fromfile(path, np.uint8).reshape(-1, SIDE, SIDE, 3)


def crop(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random square of the photo, brought to SIDE px: of that size, or of twice to eight times as much."""
    shortest = min(pixels.shape[:2])
    largest = min(shortest, SIDE * 8)
    side = SIDE
    if rng.random() >= 0.5:
        side = round(float(np.exp(rng.uniform(np.log(min(2 * SIDE, largest)), np.log(largest)))))
    side = min(side, shortest)
    y, x = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
    method = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels[y : y + side, x : x + side], (SIDE, SIDE), interpolation=method))


if __name__ == "__main__":
    main()
