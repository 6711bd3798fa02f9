"""The tables of README.md, from the catalogue and docs/models.json: prints them, or with --write puts them there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from declip.models.catalog import MODELS, ModelCard

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PLACE = re.compile(r"(?<=<!-- models -->\n).*?(?=<!-- /models -->)", re.DOTALL)
MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", re.DOTALL)


def table() -> str:
    """Markdown, one row per model; the IoUs are means over the Dolos sets that the card has numbers for."""
    lines = ["| name | what it is | licence | download | IoU, own set | IoU, other sets |", "|---|---|---|---|---|---|"]
    for card in MODELS:
        if card.urls:
            size = f"about {(card.size_bytes or 0) / 1e6:.0f} MB"
        else:
            size = f"[by hand]({card.by_hand})" if card.by_hand else "none, comes with declip"
        own, others = _ious(card)
        lines.append(f"| `{card.name}` | {card.summary} | {card.license} | {size} | {own} | {others} |")
    return "\n".join(lines) + "\n"


def _ious(card: ModelCard) -> tuple[str, str]:
    """Mean IoU in percent on the Dolos set a model was trained on, and on the others; dashes where there is none."""
    ious = {name.removesuffix(" iou"): value for name, value in card.numbers if name.endswith(" iou")}
    own = ious.pop(f"dolos-{card.name.rpartition('-')[2]}", None)
    if own is None or not ious:
        return "–", "–"
    return f"{100 * own:.1f}", f"{100 * sum(ious.values()) / len(ious):.1f}"


def measured() -> str:
    """Markdown: what the embedded model makes of real forgeries and untouched photos, as they are and saved again."""
    record = json.loads((ROOT / "docs" / "models.json").read_text(encoding="utf-8"))
    sets = record["forged"].values()
    lines = ["| | as they are | saved again as JPEG |", "|---|---|---|"]
    pictures = sum(found["as they are"]["pictures"] for found in sets)
    cells = []
    for saved in ("as they are", "JPEG 90"):
        ious = [found[saved]["iou"]["mean"] for found in sets]
        said = [
            sum(found[saved]["verdicts"].get(word, 0) for found in sets) for word in ("manipulated", "inconclusive")
        ]
        quality = "" if saved == "as they are" else " (quality 90)"
        cells.append((f"{sum(ious) / len(ious):.2f}{quality}", f"{said[0]} and {said[1]} of {pictures}"))
    lines.append(
        f"| forgeries of {len(sets)} sets made by others: mean IoU of the sets | {cells[0][0]} | {cells[1][0]} |"
    )
    lines.append(f"| … called manipulated and inconclusive | {cells[0][1]} | {cells[1][1]} |")
    for first, again in zip(record["sizes"]["as they are"], record["sizes"]["JPEG 75"], strict=True):
        found = (f"{row['manipulated']} and {row['inconclusive']} of {row['pictures']}" for row in (first, again))
        lines.append(f"| untouched photos {first['size']}, the same | {' | '.join(found)} (quality 75) |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables; --write replaces those in README.md."""
    if sys.argv[1:] == ["--write"]:
        text = PLACE.sub(lambda _: table(), README.read_text(encoding="utf-8"))
        README.write_text(MEASURED.sub(lambda _: measured(), text), encoding="utf-8")
    else:
        print(table(), measured(), sep="\n", end="")


if __name__ == "__main__":
    main()
