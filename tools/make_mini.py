"""Make the embedded model, from photos to src/declip/assets/mini.onnx: data → training → calibration → export.

    python tools/make_mini.py --data ../shared/data --work data/mini

--data is a folder as photos/{train,valid,calibrate} and weights/ (the autoencoder); --work holds the data set, the run
and its checkpoints. `--calibrate-only --statistics photo` keeps the weights, has tiles measured against the whole
photo, and calibrates anew. Each step resumes: run it again after an interruption. Seeded throughout
(recipes/mini.toml, recipes/mini-fresh.toml).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from declip import datasets, training
from declip.calibration import RATES, THRESHOLDS, Place, Untouched, candidates, fit_threshold, with_pieces
from declip.engines import open_engine
from declip.errors import ImageError
from declip.images.read import EXTENSIONS
from declip.localize.localizer import Localizer
from declip.models import checkpoint, export
from declip.models.respec import with_spec
from declip.results import Sample
from declip.spec import SIZE_CLASSES, Calibration, Reference
from declip.synthesis import Recipe, synthesize
from declip.synthesis.history import Saving
from declip.synthesis.networks import Networks

sys.path.insert(0, str(Path(__file__).parent))
import card_cases

ROOT = Path(__file__).resolve().parents[1]
# Into at most so many pieces a large photo is cut for the verdicts, for each size: there are few of them.
PIECES = 12
HISTORY = ROOT / "docs/mini-training.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set to synthesize.

    photos: folder of the photos. recipe: what is made of them. smallest: px of a photo, height · width; smaller photos
    are left out.
    """

    photos: Literal["train", "valid"]
    recipe: Recipe
    smallest: int = 0


PLAIN = Recipe(generators=("all-classical", "regenerate-local"), seed=1, size=384, per_photo=14)
# What most doubtful pictures have behind them: photo and donor were JPEG files before, and the net has resized them,
# captured them from screens and saved them again.
TRAVELLED = dataclasses.replace(
    PLAIN,
    seed=11,
    per_photo=2,
    masks=("random", "object", "grabcut", "face"),
    saving=Saving(
        jpeg=0.6,
        jpeg_quality=(60, 100),
        webp=0.08,
        resize=0.2,
        resize_range=(0.5, 1.5),
        noise=0.1,
        screenshot=0.06,
        social=0.1,
        social_side=2000,
        before=0.7,
        donor=0.7,
    ),
)
# More of the two kinds whose traces are faint, and milder compression, which hides them first.
FAINT = dataclasses.replace(
    PLAIN,
    generators=("regenerate-local", "patchmatch"),
    seed=3,
    per_photo=4,
    saving=Saving(jpeg=0.3, jpeg_quality=(75, 95)),
)
# Three quarters of the photos are of 299 px, soon seen; a crop of a large one is a picture of its own.
LARGE = dataclasses.replace(PLAIN, seed=4, per_photo=42, saving=Saving(jpeg_quality=(70, 98)))

PARTS = {
    "train": Part(photos="train", recipe=PLAIN),
    "faint": Part(photos="train", recipe=FAINT),
    "large": Part(photos="train", recipe=LARGE, smallest=300_000),
    "travelled": Part(photos="train", recipe=TRAVELLED),
    "travelled-large": Part(
        photos="train", recipe=dataclasses.replace(TRAVELLED, seed=14, per_photo=14), smallest=300_000
    ),
    "valid": Part(photos="valid", recipe=dataclasses.replace(PLAIN, seed=2, split="valid")),
}


# The trainings, one after the other: recipe, and what of PARTS it learns from.
STAGES = {
    "mini.toml": ("train", "faint", "large"),
    "mini-fresh.toml": ("train", "faint", "large", "travelled", "travelled-large"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/mini")
    parser.add_argument("--run", default="run", help="name of the run's folder in --work")
    parser.add_argument("--out", type=Path, default=ROOT / "src/declip/assets/mini.onnx")
    parser.add_argument("--calibrate-only", action="store_true", help="keep the weights of --out, calibrate them anew")
    parser.add_argument(
        "--statistics", choices=get_args(Reference), help="with --calibrate-only: measure against the tile or the photo"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change both recipes")
    arguments = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    if arguments.calibrate_only:
        calibrate_only(arguments.out, arguments.data, arguments.statistics)
        return

    data = {name: make_data(arguments.data, arguments.work / name, part) for name, part in PARTS.items()}
    # The other half of the valid photos is the model card's to report on: it chooses nothing, epochs neither.
    choosing = {p.stem for p in (arguments.data / "photos/valid").iterdir() if card_cases.half_of(p.name) == "choose"}
    valid = [sample for sample in data["valid"] if sample.group in choosing]
    out = arguments.work / arguments.run
    start = None
    for recipe, parts in STAGES.items():
        run = training.train(
            training.TrainConfig.from_toml(ROOT / "recipes" / recipe, arguments.set),
            train=[sample for part in parts for sample in data[part]],
            valid=valid,
            out=out / recipe,
            resume=True,
            cache=arguments.work / "features",
            start=start,
        )
        print(f"{recipe}: epoch {run.epoch}, IoU {run.iou:.3f}, AP {run.ap:.3f} on crops of the valid photos")
        start = run.best
    pairs = {name: sum(sample.label == "fake" for sample in samples) for name, samples in data.items()}
    record = {"pairs": pairs, "stages": [history(out, recipe) for recipe in STAGES]}
    HISTORY.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ready = calibrate(run.best, arguments.data, out / "mini.safetensors")
    print(export.to_onnx(ready, arguments.out))


def calibrate_only(out: Path, data: Path, statistics: Reference | None) -> None:
    """Calibrate the model of a file anew, and write it back whole; statistics: None = as they are."""
    spec = open_engine(out).spec
    bare = dataclasses.replace(spec, statistics=statistics or spec.statistics, calibration=None)
    with tempfile.TemporaryDirectory() as folder:
        measured = with_spec(out, bare, Path(folder) / out.name)
        found = calibrated(Localizer(open_engine(measured)), data)
        with_spec(measured, dataclasses.replace(bare, calibration=found), out, force=True)


def history(out: Path, recipe: str) -> dict[str, Any]:
    """What a stage's training took: epochs, the one that was kept, and hours without those of the frozen features."""
    lines = (out / recipe / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        "recipe": recipe,
        "parts": STAGES[recipe],
        "planned": training.TrainConfig.from_toml(ROOT / "recipes" / recipe).epochs,
        "epochs": len(rows),
        "kept": max(row["epoch"] for row in rows if row["best"]),
        "hours": round(sum(row["seconds"] for row in rows) / 3600, 2),
    }


def make_data(data: Path, out: Path, part: Part) -> list[Sample]:
    """The manipulated pictures of one part and their untouched twins."""
    photos = pictures(data / "photos" / part.photos)
    # In another order than by source, so that an interrupted data set is a fair part of the whole.
    random.Random(0).shuffle(photos)
    photos = [path for path in photos if math.prod(Image.open(path).size) >= part.smallest]
    recipe = dataclasses.replace(part.recipe, networks=Networks(autoencoder=data / "weights"))
    manifest = synthesize(photos, recipe, out, workers=2, progress=sys.stderr.isatty())
    return datasets.read_manifest(manifest)


def calibrate(best: Path, data: Path, out: Path) -> Path:
    """Put the calibration into the checkpoint.

    The untouched photos that verdicts compare with: photos/calibrate, as the files are, and pieces of the large ones.
    The threshold: of those tried, the one whose masks fit best on the forgeries of the model card's choosing half.
    """
    net, spec = checkpoint.load(best)
    localizer = Localizer(open_engine(export.to_onnx(best, best.with_suffix(".onnx"))))
    calibration = calibrated(localizer, data)
    return checkpoint.save(net, dataclasses.replace(spec, calibration=calibration), out)


def calibrated(localizer: Localizer, data: Path) -> Calibration:
    """Return the calibration of a localizer at temperature 1."""
    paths, places = pictures(data / "photos/calibrate"), list[Place]()
    untouched = []
    for number, result in enumerate(localizer.map(with_pieces(localizer, paths, places, pieces=PIECES))):
        if isinstance(result, ImageError):
            raise result
        if result.out_of_scope is None:
            untouched.append(Untouched.of(places[number], result.scores, THRESHOLDS))
        else:
            print(f"left out: {result.name}: {result.out_of_scope}")
    base = Calibration(rates=RATES, mode=localizer.mode, precision=localizer.precision)
    photos = [p for p in pictures(data / "photos/valid") if card_cases.half_of(p.name) == "choose"]
    cases = card_cases.forgeries(photos, card_cases.KINDS, data / "weights")
    fakes = ((localizer(case.pixels).scores, case.mask) for case in cases if case is not None)
    found = fit_threshold(fakes, candidates(untouched, THRESHOLDS, base))
    for i, size in enumerate(SIZE_CLASSES):
        steps = ", ".join(f"{step.word} at most {step.rate:.1%}" for step in found.steps(i)) or "no verdict"
        print(f"{size}: {len(found.untouched[i])} pictures of {found.photos[i]} photos: {steps}")
    print(f"threshold {found.threshold:g}")
    return found


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)


if __name__ == "__main__":
    main()
