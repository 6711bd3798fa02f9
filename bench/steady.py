"""Whether memory and rate stay what they are over thousands of photos.

    python bench/steady.py                       2,000 photos of 0.5 megapixels; adds "steady" to bench/results.json
    python bench/steady.py --photos 200 --out F

Seeded crops of the example photos, resized to 612×816 and saved as JPEGs in a folder that is removed afterwards, go
through `declip.load().map`. Memory is looked at after the first --mark photos and at the end; the rate is that of the
first and of the last --mark, and beside it what the machine gives just then, in matrix products. Ends with 1 if it is
not steady. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from acceptance import checks
from linux import processor, resident_megabytes
from PIL import Image

import declip
from declip.localize.localizer import Localizer

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "examples" / "photos"
RESULTS = ROOT / "bench" / "results.json"
SIZE = (612, 816)  # (height, width)
PIECE = 10  # photos between two looks at the machine, which are so many products of matrices of this side
PRODUCTS, SIDE = 20, 1024


def main() -> int:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--mark", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of the engine; its own choice unless given")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON; what else is in it stays")
    arguments = parser.parse_args()
    if arguments.photos < 2 * arguments.mark:
        parser.error(f"--photos is {arguments.photos}; expected at least twice --mark, {2 * arguments.mark}")
    localizer = declip.load(threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), arguments.photos)
        found = measure(localizer, photos, arguments.mark, arguments.batch_size)
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    kept["steady"] = found
    arguments.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    mine = [check for check in checks(kept) if check[0].startswith(f"{found['photos']:,} photos")]
    for asked, text, good in mine:
        print(f"{'yes' if good else 'NO ':3}  {asked}: {text}")
    return 0 if all(good for _, _, good in mine) else 1


def make_photos(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """JPEGs of SIZE, crops of the example photos of 60 to 100 % of a side."""
    rng = np.random.default_rng(seed)
    sources = []
    for file in sorted(PHOTOS.iterdir()):
        with Image.open(file) as photo:
            sources.append(photo.convert("RGB"))
    made = []
    for number in range(count):
        photo = sources[number % len(sources)]
        width, height = (round(side * rng.uniform(0.6, 1)) for side in photo.size)
        left, top = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - height + 1)
        path = folder / f"{number:05}.jpg"
        cut = photo.resize(SIZE[::-1], box=(left, top, left + width, top + height))
        cut.save(path, quality=int(rng.integers(75, 96)))
        made.append(path)
    return made


def measure(localizer: Localizer, photos: Sequence[Path], mark: int, batch_size: int) -> dict[str, Any]:
    """Memory after the first `mark` photos and at the end, rates of the first and last `mark`."""
    localizer(photos[0])  # the first one takes longer
    first = rates(localizer, photos[:mark], batch_size)
    mb_first = resident_megabytes()
    between = through(localizer, photos[mark:-mark], batch_size)
    last = rates(localizer, photos[-mark:], batch_size)
    mb_last = resident_megabytes()
    return {
        "cpu": processor(),
        "photos": len(photos),
        "mark": mark,
        "seconds": round(first.seconds + between + last.seconds, 1),
        "mb_first": mb_first,
        "mb_last": mb_last,
        "mb_highest": resident_megabytes("VmHWM"),
        "growth": round(mb_last / mb_first, 3),
        "rate_first": round(mark / first.seconds, 3),
        "rate_last": round(mark / last.seconds, 3),
        "gflops_first": round(first.gflops, 1),
        "gflops_last": round(last.gflops, 1),
    }


class Rates(NamedTuple):
    """Of some photos: what they took, and what the machine gave meanwhile."""

    seconds: float
    gflops: float


def rates(localizer: Localizer, photos: Sequence[Path], batch_size: int) -> Rates:
    """PIECE photos at a time, and matrix products between: who else uses the machine slows down both."""
    matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    seconds = products = 0.0
    for i in range(0, len(photos), PIECE):
        seconds += through(localizer, photos[i : i + PIECE], batch_size)
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            matrix @ matrix
        products += time.perf_counter() - start
    count = PRODUCTS * -(-len(photos) // PIECE)
    return Rates(seconds, count * 2e-9 * SIDE**3 / products)


def through(localizer: Localizer, photos: Sequence[Path], batch_size: int) -> float:
    """Localize all; the seconds it took. Raises the error of a bad one."""
    start = time.perf_counter()
    for result in localizer.map(photos, batch_size=batch_size):
        if isinstance(result, Exception):
            raise result
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
