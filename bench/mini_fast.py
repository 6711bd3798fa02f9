"""What `precision="fast"` costs the embedded model in exactness, on the forgeries of its card.

    python bench/mini_fast.py --data ../shared/data

Every forgery of the reporting half of photos/valid (tools/card_cases.py makes them) is localized twice. Writes into
bench/results.json: mean IoU of the model's own mask by both, which `bench/speed.py` judges; mean |Δscore|, and the
share of pixels on the same side of 0.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from declip.evaluation import metrics
from declip.images.read import EXTENSIONS
from declip.localize.localizer import Localizer, load

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import card_cases  # noqa: E402 (lies beside)

RESULTS = ROOT / "bench" / "results.json"


def main() -> None:
    """Parse, measure, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--photos", type=int, help="only the first so many")
    arguments = parser.parse_args()
    paths = sorted(p for p in (arguments.data / "photos/valid").iterdir() if p.suffix.lower() in EXTENSIONS)
    photos = [path for path in paths if card_cases.half_of(path.name) == "report"][: arguments.photos]
    found = measure(load(), load(precision="fast"), photos, arguments.data / "weights")
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    kept |= {"mini_exact_iou": found["exact_iou"], "mini_fast_iou": found["fast_iou"], "mini_fast": found}
    arguments.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def measure(exact: Localizer, fast: Localizer, photos: Sequence[Path], autoencoder: Path) -> dict[str, Any]:
    """Both on every forgery of these photos."""
    ious: dict[str, list[float]] = {"exact": [], "fast": []}
    apart: list[float] = []
    agreeing: list[float] = []
    for case in card_cases.forgeries(photos, card_cases.KINDS, autoencoder):
        if case is None:
            continue
        first, second = exact(case.pixels), fast(case.pixels)
        ious["exact"].append(metrics.iou(first.mask, case.mask))
        ious["fast"].append(metrics.iou(second.mask, case.mask))
        apart.append(float(np.abs(first.scores - second.scores).mean()))
        agreeing.append(float(((first.scores >= 0.5) == (second.scores >= 0.5)).mean()))
    return {
        "sha256": exact.sha256,
        "pictures": len(apart),
        "exact_iou": statistics.fmean(ious["exact"]),
        "fast_iou": statistics.fmean(ious["fast"]),
        "mean_score_difference": statistics.fmean(apart),
        "pixels_agreeing": statistics.fmean(agreeing),
    }


if __name__ == "__main__":
    main()
