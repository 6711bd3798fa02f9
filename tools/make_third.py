"""Make what the third embedded model learns from: the zoo of autoencoders, then data sets with histories.

    python tools/make_third.py --data ../shared/data --work data/third

One command does all of it and resumes where it was interrupted: WORK/zoo (tools/make_zoo.py), WORK/saliency (maps of
what stands out, one per photo), WORK/data/NAME (data sets, see PARTS). Seeded throughout. It takes a day or so on one
core. It needs the extra `generators`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from declip.images.read import EXTENSIONS
from declip.synthesis import classical, lived
from declip.synthesis.forging import MaskKind

sys.path.insert(0, str(Path(__file__).parent))
import make_zoo

ROOT = Path(__file__).resolve().parents[1]
MASKS: tuple[MaskKind, ...] = ("random", "object", "grabcut", "salient", "beside")
CLASSICAL = (*classical.GENERATORS, "splice-object", "splice-object")
LEARNT = (
    *("regenerate-local",) * 2,
    *("upscale-video",) * 2,
    *("upscale-waifu2x",) * 2,
    "upscale-realesrgan",
    "upscale-anime",
)
ZOO = ("zoo-local",) * 5
BLOCKS = 16
BLOCK = 1500  # pairs

log = logging.getLogger("make_third")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A data set: its recipe, the photos it is made from, and which autoencoders of the zoo it may use, if any."""

    recipe: lived.Recipe
    photos: Literal["train", "valid"]
    zoo: Literal["train", "unseen"] | None


def parts() -> dict[str, Part]:
    """Return all data sets by name, in the order in which they are made.

    The first needs no zoo, so that there is something to try before the zoo is trained. valid-unseen has the
    autoencoders that no training data were made with.
    """

    def train(seed: int, generators: tuple[str, ...]) -> lived.Recipe:
        return lived.Recipe(generators=generators, masks=MASKS, seed=seed, count=BLOCK)

    def valid(seed: int, generators: tuple[str, ...], count: int) -> lived.Recipe:
        return lived.Recipe(generators=generators, masks=MASKS, seed=seed, count=count, split="valid")

    everything = (*CLASSICAL, *LEARNT, *ZOO)
    found = {
        "train-00": Part(recipe=train(300, (*CLASSICAL, *LEARNT)), photos="train", zoo=None),
        "valid": Part(recipe=valid(290, everything, 1040), photos="valid", zoo="train"),
        "valid-unseen": Part(recipe=valid(291, ("zoo-local",), 300), photos="valid", zoo="unseen"),
    }
    for block in range(1, BLOCKS):
        found[f"train-{block:02d}"] = Part(recipe=train(300 + block, everything), photos="train", zoo="train")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/third")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of data sets; default: all of them")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    for name, part in parts().items():
        if arguments.only and name not in arguments.only:
            continue
        if part.zoo is not None:
            make_zoo.make(arguments.data / "photos/train", arguments.work / "zoo", [*make_zoo.LEARNT, *make_zoo.UNSEEN])
        make_part(arguments.data, arguments.work, name, part, arguments.workers)


def make_part(data: Path, work: Path, name: str, part: Part, workers: int) -> Path:
    """Make a data set, or what is missing of it; return its manifest."""
    manifest = work / "data" / name / "samples.jsonl"
    if manifest.exists():  # it is written when all is made
        return manifest
    log.info("%s: %d pairs", name, part.recipe.count)
    photos = [path for path in (data / "photos" / part.photos).iterdir() if path.suffix.lower() in EXTENSIONS]
    places = lived.Places(
        out=manifest.parent,
        autoencoder=data / "weights",
        zoo=None if part.zoo is None else work / "zoo" / part.zoo,
        saliency=work / "saliency",
    )
    lived.make(photos, part.recipe, places, workers=workers)
    log.info("%s is there", name)
    return manifest


if __name__ == "__main__":
    main()
