"""Make the embedded model, from photos to src/declip/assets/mini.onnx: data → training → calibration → export.

    python tools/make_mini.py --data ../shared/data --work data/mini

--data is a folder as photos/{train,valid,calibrate} and weights/ (the autoencoder); --work holds the data set, the run
and its checkpoints. Each step resumes: run it again after an interruption. Seeded throughout (recipes/mini.toml).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from declip import datasets, export, image, training
from declip.calibration import image_thresholds, mask_threshold
from declip.engines import open_engine
from declip.localizer import Localizer
from declip.nn import checkpoint
from declip.synthesis import synthesize
from declip.types import Calibration, Sample

sys.path.insert(0, str(Path(__file__).parent))
import model_card

ROOT = Path(__file__).resolve().parents[1]
RATES = (0.01, 0.05)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set to synthesize: from which photos, with what."""

    photos: Literal["train", "valid"]
    generators: tuple[str, ...] = ("all-classical", "regenerate-local")
    seed: int
    per_photo: int = 14
    jpeg_share: float = 0.5
    jpeg_quality: tuple[int, int] = (60, 95)
    smallest: int = 0  # px of a photo, height · width: smaller ones are left out


PARTS = {
    "train": Part(photos="train", seed=1),
    # More of the two kinds whose traces are faint, and milder compression, which hides them first.
    "faint": Part(
        photos="train",
        generators=("regenerate-local", "patchmatch"),
        seed=3,
        per_photo=4,
        jpeg_share=0.3,
        jpeg_quality=(75, 95),
    ),
    # Three quarters of the photos are of 299 px, soon seen; a crop of a large one is a picture of its own.
    "large": Part(photos="train", seed=4, per_photo=42, jpeg_quality=(70, 98), smallest=300_000),
    "valid": Part(photos="valid", seed=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/mini")
    parser.add_argument("--run", default="run", help="name of the run's folder in --work")
    parser.add_argument("--out", type=Path, default=ROOT / "src/declip/assets/mini.onnx")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")

    data = {name: make_data(arguments.data, arguments.work / name, part) for name, part in PARTS.items()}
    # The other half of the valid photos is the model card's to report on: it chooses nothing, epochs neither.
    choosing = {p.stem for p in (arguments.data / "photos/valid").iterdir() if model_card.half_of(p.name) == "choose"}
    valid = [sample for sample in data["valid"] if sample.group in choosing]
    config = training.TrainConfig.from_toml(ROOT / "recipes/mini.toml", arguments.set)
    out = arguments.work / arguments.run
    samples = data["train"] + data["faint"] + data["large"]
    cache = arguments.work / "features"
    run = training.train(config, train=samples, valid=valid, out=out, resume=True, cache=cache)
    print(f"best epoch {run.epoch}: IoU {run.iou:.3f}, AP {run.ap:.3f} on crops of the valid photos")
    calibrated = calibrate(run.best, arguments.data, out / "mini.safetensors")
    print(export.to_onnx(calibrated, arguments.out))


def make_data(data: Path, out: Path, part: Part) -> list[Sample]:
    """The manipulated pictures of one part and their untouched twins."""
    photos = pictures(data / "photos" / part.photos)
    # In another order than by source, so that an interrupted data set is a fair part of the whole.
    random.Random(0).shuffle(photos)
    photos = [path for path in photos if math.prod(Image.open(path).size) >= part.smallest]
    manifest = synthesize(
        photos,
        out,
        generators=part.generators,
        seed=part.seed,
        size=384,
        per_photo=part.per_photo,
        workers=2,
        autoencoder=data / "weights",
        jpeg_share=part.jpeg_share,
        jpeg_quality=part.jpeg_quality,
        split=part.photos,
        progress=sys.stderr.isatty(),
    )
    return datasets.read_manifest(manifest)


def calibrate(best: Path, data: Path, out: Path) -> Path:
    """Put the thresholds into the checkpoint.

    Mask threshold: on the model card's choosing half of photos/valid, its forgeries and its untouched photos. Image
    thresholds: on photos/calibrate, as the files are.
    """
    net, spec = checkpoint.load(best)
    localizer = Localizer(open_engine(export.to_onnx(best, best.with_suffix(".onnx"))))
    photos = [p for p in pictures(data / "photos/valid") if model_card.half_of(p.name) == "choose"]
    cases = model_card.forgeries(photos, model_card.KINDS, data / "weights")
    fakes = ((localizer(case.pixels).scores, case.mask) for case in cases if case is not None)
    reals = ((case.kind, localizer(case.pixels).scores) for case in model_card.untouched(photos))
    threshold = mask_threshold(fakes, reals, area=model_card.FLAGGED)
    scores = [localizer(path).score for path in pictures(data / "photos/calibrate")]
    calibration = Calibration(
        mask_threshold=threshold,
        image_thresholds=image_thresholds(scores, RATES),
        photos=len(scores),
        mode=localizer.mode,
        precision=localizer.precision,
    )
    print(f"mask threshold {threshold:.2f}; image thresholds {calibration.image_thresholds} on {len(scores)} photos")
    return checkpoint.save(net, dataclasses.replace(spec, calibration=calibration), out)


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in image.EXTENSIONS)


if __name__ == "__main__":
    main()
