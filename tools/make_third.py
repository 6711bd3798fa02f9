"""Make what the third embedded model learns from: the zoo of autoencoders, then data sets whose pictures have lived.

    python tools/make_third.py --data ../shared/data --work data/third

One command does all of it and resumes where it was interrupted: WORK/zoo (tools/make_zoo.py), WORK/saliency (maps of
what stands out, one per photo), WORK/data/NAME (data sets, see `parts`). Seeded throughout. It takes a day or so on one
core. It needs the extra `generators`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from declip.images.read import EXTENSIONS
from declip.synthesis import Recipe, synthesize
from declip.synthesis.networks import Networks

sys.path.insert(0, str(Path(__file__).parent))
import make_zoo

ROOT = Path(__file__).resolve().parents[1]
LEARNT = ("regenerate-local", "upscale-video", "upscale-waifu2x") * 2 + ("upscale-realesrgan", "upscale-anime")
FIRST = ("all-classical", "splice-object", "splice-object", *LEARNT)
BLOCKS = 16  # of as many pairs as the recipe has
FIRST_WITH_ZOO = 3


def parts(data: Path, work: Path) -> dict[str, Recipe]:
    """Return all data sets by name, in the order in which they are made; "valid…" are made of other photos.

    The first blocks need no zoo, so that there is something to try before it is trained. valid-unseen has the
    autoencoders that no training data were made with.
    """
    networks, unseen = (
        Networks(autoencoder=data / "weights", weights={"zoo": work / "zoo" / half}) for half in ("train", "unseen")
    )
    change = dataclasses.replace
    lived = change(Recipe.read("lived"), generators=(*FIRST, *("zoo-local",) * 5), networks=networks)
    blocks = {f"train-{block:02d}": change(lived, seed=300 + block) for block in range(BLOCKS)}
    names = list(blocks)
    return {
        **{name: change(blocks[name], generators=FIRST) for name in names[:FIRST_WITH_ZOO]},
        "valid": change(lived, seed=290, count=1040, split="valid"),
        "valid-unseen": change(lived, seed=291, count=300, split="valid", generators=("zoo-local",), networks=unseen),
        **{name: blocks[name] for name in names[FIRST_WITH_ZOO:]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/third")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of data sets; default: all of them")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    for name, recipe in parts(arguments.data, arguments.work).items():
        if arguments.only and name not in arguments.only:
            continue
        if "zoo-local" in recipe.generators:
            make_zoo.make(arguments.data / "photos/train", arguments.work / "zoo")
        out = arguments.work / "data" / name
        if not (out / "samples.jsonl").exists():  # it is written when all is made
            logging.info("%s: %d pairs", name, recipe.count)
            folder = arguments.data / "photos" / ("valid" if name.startswith("valid") else "train")
            photos = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]
            synthesize(photos, recipe, out, workers=arguments.workers, maps=arguments.work / "saliency")


if __name__ == "__main__":
    main()
