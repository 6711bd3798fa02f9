"""Measure `declip.compare`: what is found of edits, what is marked of untouched photos, and what is refused.

    python tools/compare_figures.py edits forged untouched different --data ../shared/data    writes docs/compare.md

edits: photos/valid, edited in one part by declip.synthesis, saved in other ways than the original. forged: the sets of
forged/dev that have originals. untouched: photos of photos/valid against changed copies of themselves. different: pairs
of photos of photos/valid. Nothing was chosen on these; thresholds were chosen on photos/train.
"""

from __future__ import annotations

import argparse
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from card_cases import resaved
from model_page import ROOT, between
from numpy.typing import NDArray
from PIL import Image

import declip
from declip.errors import DatasetError, DeclipError
from declip.evaluation import metrics
from declip.images.read import EXTENSIONS, read_photo
from declip.synthesis import forge

PAGE = ROOT / "docs/compare.md"
GENERATORS = ("splice-hard", "splice-feathered", "copy-move", "telea", "patchmatch")
EDITED, UNTOUCHED, PAIRS = 15, 6, 50
LARGEST = 800_000  # px; larger photos are scaled down to it

Pixels = NDArray[np.uint8]


def photos(data: Path) -> list[Path]:
    """The photos of photos/valid in an order that has nothing to do with what they show."""
    paths = [path for path in (data / "photos/valid").iterdir() if path.suffix.lower() in EXTENSIONS]
    return sorted(paths, key=lambda path: zlib.crc32(path.name.encode()))


def read(path: Path) -> Pixels:
    pixels = read_photo(path).pixels
    return scaled(pixels, min(1.0, (LARGEST / (pixels.size // 3)) ** 0.5))


def scaled(pixels: Pixels, factor: float) -> Pixels:
    size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
    same = size == pixels.shape[1::-1]
    return pixels if same else np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def toned(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    powers, gains = rng.uniform(0.75, 1.35) * rng.uniform(0.95, 1.05, 3), rng.uniform(0.93, 1.0, 3)
    return np.rint(255 * gains * (pixels / 255) ** powers).astype(np.uint8)


def edits(data: Path) -> Iterator[str]:
    yield "| edits | photo saved as | mean IoU | median IoU | IoU of 0.8 and more |\n|---|---|---|---|---|"
    paths, found = photos(data), defaultdict(list)
    for i, path in enumerate(paths[:EDITED]):
        rng, original = np.random.default_rng(i), read(path)
        try:
            made, mask = forge(original, GENERATORS[i % len(GENERATORS)], rng, read(paths[-1 - i]))
        except DatasetError as error:
            print(path.name, error)
            continue
        kept = resaved(original, int(rng.integers(75, 98)))
        small = scaled(made, 0.75)
        shrunk = cv2.resize(mask.astype(np.uint8), small.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        versions = {
            "JPEG 80": (made, mask, 80),
            "× 0.75, JPEG 80": (small, shrunk, 80),
            "other tones, × 0.75, JPEG 85": (toned(small, rng), shrunk, 85),
        }
        for name, (pixels, truth, quality) in versions.items():
            found[name].append(metrics.iou(declip.compare(resaved(pixels, quality), kept).mask, truth))
            print(path.name, GENERATORS[i % len(GENERATORS)], name, f"{found[name][-1]:.2f}", flush=True)
    for name, values in found.items():
        good = sum(value >= 0.8 for value in values)
        yield f"| {len(values)} | {name} | {np.mean(values):.2f} | {np.median(values):.2f} | {good} |"


def forged(data: Path) -> Iterator[str]:
    yield "| set | pictures | photo saved again | refused | mean IoU | median IoU |\n|---|---|---|---|---|---|"
    for folder in sorted(path.parent for path in (data / "forged/dev").glob("*/original")):
        for quality in (None, 80):
            values, refused = [], 0
            for original in sorted((folder / "original").iterdir()):
                (image,) = (folder / "image").glob(f"{original.stem}.*")
                pixels = read_photo(image).pixels
                truth = read_photo(folder / "mask" / f"{original.stem}.png").pixels[..., 0] >= 128
                try:
                    found = declip.compare(pixels if quality is None else resaved(pixels, quality), original)
                except DeclipError as error:
                    print(error)
                    refused += 1
                    continue
                values.append(metrics.iou(found.mask, truth))
                print(original.stem, quality, f"{values[-1]:.2f}", flush=True)
            again = "no" if quality is None else f"JPEG {quality}"
            count, means = len(values) + refused, f"{np.mean(values):.2f} | {np.median(values):.2f}"
            yield f"| `{folder.name}` | {count} | {again} | {refused} | {means} |"


def untouched(data: Path) -> Iterator[str]:
    yield "| photo saved as | photos | with a mark | mean share marked |\n|---|---|---|---|"
    shares = defaultdict(list)
    for i, path in enumerate(photos(data)[:UNTOUCHED]):
        rng, pixels = np.random.default_rng(i), read(path)
        kept = resaved(pixels, 90)
        versions = {f"JPEG {quality}": resaved(pixels, quality) for quality in (95, 75, 50)}
        versions |= {f"× {factor}, JPEG 80": resaved(scaled(pixels, factor), 80) for factor in (0.5, 0.75, 1.5)}
        versions["cut and mirrored, JPEG 80"] = resaved(np.ascontiguousarray(pixels[9:-30, 21:-4][:, ::-1]), 80)
        versions["other tones, × 0.75, JPEG 80"] = resaved(toned(scaled(pixels, 0.75), rng), 80)
        for name, version in versions.items():
            shares[name].append(float(declip.compare(version, kept).mask.mean()))
            print(path.name, name, f"{100 * shares[name][-1]:.3f} %", flush=True)
    for name, values in shares.items():
        yield f"| {name} | {len(values)} | {sum(v > 0 for v in values)} | {100 * np.mean(values):.3f} % |"


def different(data: Path) -> Iterator[str]:
    yield "| pairs of different photos | refused |\n|---|---|"
    paths, refused = photos(data), 0
    for one, other in zip(paths[:PAIRS], paths[PAIRS:], strict=False):
        try:
            print(one.name, other.name, declip.compare(read(one), read(other)).inliers, "not refused", flush=True)
        except DeclipError:
            refused += 1
    yield f"| {PAIRS} | {refused} |"


def main() -> None:
    sections = {function.__name__: function for function in (edits, forged, untouched, different)}
    parser = argparse.ArgumentParser(description="Measure `declip.compare` and write docs/compare.md.")
    parser.add_argument("sections", nargs="+", choices=sections)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for name in arguments.sections:
        table = "\n".join(sections[name](arguments.data))
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), name, table), encoding="utf-8")


if __name__ == "__main__":
    main()
