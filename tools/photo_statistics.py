"""Measure the embedded model with statistics of whole photos against those of single tiles. Prints Markdown.

    python tools/photo_statistics.py --work data/photo-statistics [--data ../shared/data] [--quick 4]

Both ways see the same pictures: forged/dev as is and after JPEG 90, and photos/valid, of large ones the first
1500 × 2000 px. Neither has its calibration: each has the threshold at which FLAGGED of the pixels of the untouched
photos are flagged, so that only its order counts. Seams: differences of scores across tiles' borders against those
inside, of the largest untouched photos. Crops: masks before and after CROP px are cut off above and on the left,
where there is one. --work keeps the maps: run it again after an interruption.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from card_cases import published
from numpy.typing import NDArray

from declip.engines import open_engine
from declip.evaluation import metrics
from declip.images.read import read_photo
from declip.localize.localizer import Localizer
from declip.models.respec import with_spec
from declip.regions import find_parts
from declip.spec import Calibration, Reference

ROOT = Path(__file__).resolve().parents[1]
CROP = 144  # px
FLAGGED = 0.005
LARGE = 16  # untouched photos for seams and crops, by the size of their files
STEP = 4  # px: maps are kept on the network's grid
WAYS: tuple[Reference, ...] = get_args(Reference)

Pixels = NDArray[np.uint8]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/photo-statistics")
    parser.add_argument("--model", type=Path, default=ROOT / "src/declip/assets/mini.onnx")
    parser.add_argument("--quick", type=int, help="only so many pictures of each set")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    ways = {way: localizer(given.model, way, given.work) for way in WAYS}
    rows: dict[Reference, dict[str, Row]] = {way: {} for way in WAYS}
    for name, pixels, mask, crop in pictures(given.data, given.quick):
        for way, predictor in ways.items():
            kept = given.work / f"{name.replace('/', '-')}.{way}.npz"
            if not kept.exists():
                np.savez_compressed(kept, **measured(predictor, pixels, mask, crop))
            with np.load(kept) as found:
                rows[way][name] = dict(found)
    print(table({way: figures(found) for way, found in rows.items()}))
    for condition in ("as is", "JPEG 90"):
        print(f"{condition}: {gained(rows, condition)}")
    largest = max((given.data / "photos/valid").iterdir(), key=lambda path: path.stat().st_size)
    for height, width in ((512, 512), (1000, 1000), (3000, 4000)):
        spent = {way: seconds(predictor, largest, height, width) for way, predictor in ways.items()}
        print(f"{height} × {width} px: {spent['tile']:.2f} and {spent['photo']:.2f} seconds of one core")


def seconds(predictor: Localizer, path: Path, height: int, width: int) -> float:
    """Return the processor time for a picture of this size, the best of two: a photo that is repeated and cut."""
    pixels = read_photo(path).pixels
    times = [-(-side // length) for side, length in zip((height, width), pixels.shape[:2], strict=True)]
    pixels = np.ascontiguousarray(np.tile(pixels, (*times, 1))[:height, :width])
    found = []
    for _ in range(2):
        start = time.process_time()
        predictor(pixels)
        found.append(time.process_time() - start)
    return min(found)


def localizer(model: Path, way: Reference, work: Path) -> Localizer:
    """Open the model measured against this, without its calibration."""
    engine = open_engine(model, threads=1)
    spec = dataclasses.replace(engine.spec, statistics=way, calibration=None)
    return Localizer(open_engine(with_spec(model, spec, work / f"{way}.onnx", force=True), threads=1))


def pictures(data: Path, quick: int | None) -> Iterator[tuple[str, Pixels, NDArray[np.bool_], bool]]:
    """Yield names, pixels, masks, and whether to crop; the name's first part is the condition, the second the set."""
    for number, case in enumerate(published(data / "forged/dev", "image", quick)):
        assert case.path is not None or case.jpeg
        condition = "JPEG 90" if case.jpeg else "as is"
        yield f"{condition}/{case.kind}/{number // 2}", case.pixels, case.mask, not case.jpeg
    photos = sorted((data / "photos/valid").iterdir(), key=lambda path: (path.stat().st_size, path.name))
    for path in photos[-quick if quick else 0 :]:
        pixels = read_photo(path).pixels[:1500, :2000]
        yield f"untouched/valid/{path.stem}", pixels, np.zeros(pixels.shape[:2], np.bool_), path in photos[-LARGE:]


def measured(predictor: Localizer, pixels: Pixels, mask: NDArray[np.bool_], crop: bool) -> Mapping[str, NDArray[Any]]:
    """Return what is kept of a picture: its map, its mask, AP above the mask's share, seams, the map after a crop."""
    scores = predictor(pixels).scores
    row = {"scores": scores[::STEP, ::STEP].astype(np.float16), "mask": mask[::STEP, ::STEP]}
    row["gain"] = np.array(metrics.average_precision(scores, mask) - mask.mean() if mask.any() else np.nan)
    row["seam"] = np.array(seam_ratio(scores))
    if crop and min(mask.shape) >= predictor.spec.input_size + CROP:
        cropped = predictor(np.ascontiguousarray(pixels[CROP:, CROP:])).scores
        row["cropped"] = cropped[::STEP, ::STEP].astype(np.float16)
    return row


def seam_ratio(scores: NDArray[np.float32], stride: int = 288, overlap: int = 32) -> float:
    """Return the mean difference of neighbours in the overlaps of tiles over that elsewhere, the worse direction."""
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(scores, axis=axis)).mean(axis=1 - axis)
        place = np.arange(len(steps)) % stride
        inside = (place >= overlap) | (np.arange(len(steps)) < overlap)
        if (~inside).any():
            ratios.append(float(steps[~inside].mean() / max(float(steps[inside].mean()), 1e-6)))
    return max(ratios, default=float("nan"))


def figures(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return all figures of one way."""
    untouched = {name: row for name, row in rows.items() if name.startswith("untouched/")}
    # As much of each photo counts, whatever its size.
    shares = [np.sort(row["scores"].ravel().astype(np.float32)) for row in untouched.values()]
    tried = np.arange(1, 1000) / 1000
    flagged = np.mean([1 - np.searchsorted(values, tried) / values.size for values in shares], axis=0)
    threshold = float(tried[np.argmax(flagged <= FLAGGED)])
    found = {"threshold": threshold}
    clean: dict[int, list[float]] = defaultdict(list)
    for row in untouched.values():
        size, evidence = _evidence(row, threshold)
        clean[size].append(evidence)
    found["untouched with more than 2 % flagged"] = float(
        np.mean([(row["scores"] >= threshold).mean() > 0.02 for row in untouched.values()])
    )
    for condition in ("as is", "JPEG 90"):
        found |= _of_forged(condition, {n: row for n, row in rows.items() if n.startswith(condition)}, threshold, clean)
    large = list(untouched.values())[-LARGE:]
    seams = [float(row["seam"]) for row in large]
    found |= {
        f"seam ratio, median of {len(large)}": float(np.median(seams)),
        f"seam ratio, worst of {len(large)}": max(seams),
    }
    return found | {
        "mask IoU after a crop, untouched": _after_crop(large, threshold),
        "mask IoU after a crop, forged": _after_crop(
            [row for name, row in rows.items() if name.startswith("as is")], threshold
        ),
    }


def _of_forged(condition: str, rows: Mapping[str, Row], threshold: float, clean: Mapping[int, list[float]]) -> Row:
    """Return the figures of real forgeries in one condition, means over the sets."""
    sets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    stronger = 0
    for name, row in rows.items():
        guess = row["scores"] >= threshold
        sets[name.split("/")[1]].append((float(row["gain"]), metrics.iou(guess, row["mask"])))
        size, evidence = _evidence(row, threshold)
        # Of the smallest photos there are many, of the others few: all are compared with those of their size.
        stronger += evidence > np.quantile(clean[size] or [np.inf], 0.95)
    means = {name: np.nanmean(pairs, axis=0) for name, pairs in sets.items()}
    gain, iou = np.mean(list(means.values()), axis=0)
    found = {f"{condition}: AP − share": float(gain), f"{condition}: IoU": float(iou)}
    found[f"{condition}: stronger than 95 % of the untouched"] = float(stronger)
    for name, (one, other) in sorted(means.items()) if condition == "as is" else ():
        found |= {f"{condition}, {name}: AP − share": float(one), f"{condition}, {name}: IoU": float(other)}
    return found


def gained(rows: Mapping[Reference, Mapping[str, Row]], condition: str) -> str:
    """Return what the IoU gains by the photo's statistics, with its 95 % interval over the sets (bootstrap)."""
    changes: dict[str, list[float]] = defaultdict(list)
    thresholds = {way: figures(found)["threshold"] for way, found in rows.items()}
    for name in rows["tile"]:
        if name.startswith(condition):
            tile, photo = (
                metrics.iou(rows[way][name]["scores"] >= thresholds[way], rows[way][name]["mask"]) for way in WAYS
            )
            changes[name.split("/")[1]].append(photo - tile)
    means = np.array([np.mean(values) for values in changes.values()])
    drawn = np.random.default_rng(0).choice(means, (10_000, len(means))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"IoU {means.mean():+.3f} ({low:+.3f} to {high:+.3f}), median of the sets {np.median(means):+.3f}"


def _evidence(row: Row, threshold: float) -> tuple[int, float]:
    """Return the size class of a picture and the evidence of its strongest part."""
    parts = find_parts(row["scores"].astype(np.float32), threshold).found
    return Calibration.size_class(row["scores"].size * STEP * STEP), parts[0].evidence if parts else 0.0


def _after_crop(rows: list[Row], threshold: float) -> float:
    """Return the mean IoU of the masks before and after a crop, of pictures with a mask."""
    kept = []
    for row in rows:
        if "cropped" in row:
            before, after = row["scores"][CROP // STEP :, CROP // STEP :] >= threshold, row["cropped"] >= threshold
            if before.any() or after.any():
                kept.append(metrics.iou(after, before))
    return float(np.mean(kept)) if kept else float("nan")


def table(found: Mapping[Reference, Mapping[str, float]]) -> str:
    """Return Markdown: a row for each figure."""
    lines = ["| | " + " | ".join(f"statistics of the {way}" for way in found) + " |", "|---|" + "---:|" * len(found)]
    for name in found[WAYS[0]]:
        lines.append(f"| {name} | " + " | ".join(f"{values[name]:.3f}" for values in found.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
