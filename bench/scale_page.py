"""What a million or a billion photos take: the section "What it costs" of docs/scale.md, from bench/results.json.

    python bench/scale_page.py --measure       measure the sizes of results on the example photos, then write
    python bench/scale_page.py                 write the section from what is in results.json

Seconds come from `bench/speed.py` (its section "pipeline"), sizes from here; the rest is multiplication. --price is
what a core costs in an hour: no measurement, put your own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- by bench/scale_page.py, from here -->", "<!-- to here -->"
PRICE = 0.04  # dollars a core and hour: what clouds ask for one that may not be taken back, roughly
PHOTO = "0.5 MP"


def main() -> None:
    """Parse, measure if asked to, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--price", type=float, default=PRICE)
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    if arguments.measure:
        found["storage"] = sizes(sorted((ROOT / "examples" / "photos").iterdir()))
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n\n" + section(found, arguments.price) + "\n\n" + END + after, encoding="utf-8")


def sizes(photos: list[Path]) -> dict[str, Any]:
    """Bytes for each megapixel of a photo's file, its scores and its mask; and of a row without its mask."""
    from declip import load
    from declip.batch.rows import encode_mask, to_parquet
    from declip.images.mapfiles import scores_png

    localizer = load()
    per_megapixel: dict[str, list[float]] = {"file": [], "scores": [], "mask": []}
    rows = []
    for path in photos:
        result = localizer(path)
        megapixels = result.scores.size / 1e6
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        row = result.to_dict() | {"bytes": path.stat().st_size, "content": digest, "error": None, "kind": None}
        rows.append(row | {"mask": encode_mask(result.mask)})
        per_megapixel["file"].append(path.stat().st_size / megapixels)
        per_megapixel["scores"].append(len(scores_png(result.scores)) / megapixels)
        per_megapixel["mask"].append(encode_mask(result.mask).nbytes / megapixels)
    # Without what each file has once.
    empty = len(to_parquet([]))
    bare = [row | {"mask": None} for row in rows]
    whole, without = ((len(to_parquet(some)) - empty) / len(some) for some in (rows, bare))
    return {
        "photos": len(photos),
        "bytes_per_megapixel": {name: round(statistics.fmean(values)) for name, values in per_megapixel.items()},
        "row_bytes": round(whole),
        "row_bytes_without_mask": round(without),
    }


def section(found: Mapping[str, Any], price: float) -> str:
    """The section's text."""
    cores = found["environment"]["threads"]
    lines = [
        f"One photo of half a megapixel, from its file to its mask, on {cores} cores",
        "(medians of [the bench](performance.md)); a core hour is taken to cost "
        f"${price:.2f}, which is no measurement (`--price`):",
        "",
        "| model | precision | s a photo | core hours, 10⁶ photos | days of 64 cores, 10⁹ photos | $, 10⁶ | $, 10⁹ |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["pipeline"]["rows"]:
        if row["photo"] == PHOTO:
            seconds = row["parts"]["whole"]["median"]
            hours = seconds * cores * 1e6 / 3600
            days = hours * 1000 / 64 / 24
            lines.append(
                f"| {row['model']} | {row['precision']} | {seconds:.3g} | {hours:,.0f} | {days:,.0f} | "
                f"{hours * price:,.0f} | {hours * 1000 * price:,.0f} |"
            )
    return "\n".join(lines) + "\n\n" + storage(found)


def storage(found: Mapping[str, Any]) -> str:
    """What is kept, and what has to be moved."""
    kept, half = found["storage"], 0.5
    per = kept["bytes_per_megapixel"]
    fastest = min(
        row["parts"]["whole"]["median"]
        for row in found["pipeline"]["rows"]
        if row["photo"] == PHOTO and row["model"] == "mini"
    )
    cores = found["environment"]["threads"]
    bits = per["file"] * half * 8 / fastest / cores  # a second and core
    rows = [
        ("the photos themselves", per["file"] * half),
        ("scores of every pixel, 16-bit PNG", per["scores"] * half),
        ("a row of Parquet with its mask", kept["row_bytes"]),
        ("a row without its mask", kept["row_bytes_without_mask"]),
    ]
    table = [f"| {name} | {size / 1000:,.2f} kB | {size / 1e3:,.2f} GB | {size / 1e3:,.2f} TB |" for name, size in rows]
    return "\n".join(
        [
            f"What is kept, by the {kept['photos']} example photos, scaled to half a megapixel:",
            "",
            "| | a photo | 10⁶ | 10⁹ |",
            "|---|---|---|---|",
            *table,
            "",
            f"With `mini`, the fastest of these, a core reads {bits / 1e6:.1f} Mbit/s of photos, a thousand cores "
            f"{bits / 1e6:.1f} Gbit/s.",
        ]
    )


if __name__ == "__main__":
    main()
