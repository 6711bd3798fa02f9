"""Measure today's embedded model with statistics of whole photos instead of tiles (declip.localize.photo_statistics).

    python tools/photo_statistics.py --data ../shared/data [--quick 4]

Both on the same pictures, by the same rule for masks: forged/dev as is and after JPEG 90 (AP above the masks' share,
IoU), the share of untouched photos with more than 2 % flagged, seams (differences of scores across tiles' borders
against those inside) and what is left of a mask when 144 px are cropped off.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declip.engines import Wrapped, open_engine
from declip.evaluation import metrics
from declip.images.read import read_photo
from declip.localize.localizer import Localizer
from declip.localize.photo_statistics import PhotoStatistics
from declip.results import Localization

sys.path.insert(0, str(Path(__file__).parent))
import card_cases

ROOT = Path(__file__).resolve().parents[1]
CROP = 144  # px
FLAGGED = 0.02


class TwoPasses(Wrapped):
    """An engine that is asked twice for each photo: first it only measures, then it computes with what it measured."""

    def __init__(self, engine: Any, statistics: PhotoStatistics) -> None:
        super().__init__(engine)
        self.statistics = statistics
        self.found: list[tuple[NDArray[np.float32], ...]] | None = None
        self.means: list[NDArray[np.float32]] = []

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Zeros while it measures, then logits."""
        if self.found is None:
            return self.statistics.logits(inputs, self.means)
        self.found.append(self.statistics.means(inputs))
        size = self.spec.output_size
        return np.zeros((len(inputs["image"]), size, size), np.float32)


class Whole:
    """A localizer with statistics of whole photos."""

    def __init__(self, path: Path) -> None:
        self.engine = TwoPasses(open_engine(path), PhotoStatistics(path))
        self.localizer = Localizer(self.engine)

    def __call__(self, pixels: NDArray[np.uint8]) -> Localization:
        self.engine.found = []
        self.localizer(pixels)
        found, self.engine.found = self.engine.found, None
        parts = zip(*found, strict=True)
        self.engine.means = [np.concatenate(part).mean(axis=0, dtype=np.float64).astype(np.float32) for part in parts]
        return self.localizer(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--model", type=Path, default=ROOT / "src/declip/assets/mini.onnx")
    parser.add_argument("--quick", type=int, help="only so many pictures of each set")
    parser.add_argument("--large", type=int, default=16, help="large untouched photos for seams and crops")
    arguments = parser.parse_args()
    both = {"tile": Localizer(open_engine(arguments.model)), "photo": Whole(arguments.model)}
    for name, predict in both.items():
        for key, value in measured(predict, arguments).items():
            print(f"{name:6} {key:34} {value:.3f}", flush=True)


def measured(predict: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Return all figures of one predictor."""
    found: dict[str, float] = {}
    for label, quality in (("as is", None), ("JPEG 90", 90)):
        ap, iou = defaultdict(list), defaultdict(list)
        for case in card_cases.forged_sets(arguments.data / "forged/dev", arguments.quick):
            pixels = case.pixels if quality is None else card_cases.resaved(case.pixels, quality)
            result = predict(pixels)
            ap[case.kind].append(metrics.average_precision(result.scores, case.mask) - float(case.mask.mean()))
            iou[case.kind].append(metrics.iou(result.mask, case.mask))
        for kind in ap:
            found[f"{label}, {kind}, AP - share"] = float(np.nanmean(ap[kind]))
            found[f"{label}, {kind}, IoU"] = float(np.nanmean(iou[kind]))
        found[f"{label}, AP - share"] = float(np.mean([np.nanmean(values) for values in ap.values()]))
        found[f"{label}, IoU"] = float(np.mean([np.nanmean(values) for values in iou.values()]))
    photos = sorted((arguments.data / "photos/valid").iterdir(), key=lambda path: path.stat().st_size)
    areas = [float(predict(read_photo(path).pixels).area) for path in photos[: arguments.quick]]
    found["untouched with more than 2 % flagged"] = float(np.mean(np.array(areas) > FLAGGED))
    seams, kept = [], []
    for path in photos[-arguments.large :]:
        pixels = read_photo(path).pixels[:1500, :2000]
        result = predict(pixels)
        seams.append(seam_ratio(result.scores))
        cropped = predict(np.ascontiguousarray(pixels[CROP:, CROP:]))
        if result.mask[CROP:, CROP:].any() or cropped.mask.any():
            kept.append(metrics.iou(cropped.mask, result.mask[CROP:, CROP:]))
    found["seam ratio, median"], found["seam ratio, worst"] = float(np.median(seams)), float(np.max(seams))
    found["mask IoU after a crop"] = float(np.mean(kept)) if kept else float("nan")
    return found


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


if __name__ == "__main__":
    main()
