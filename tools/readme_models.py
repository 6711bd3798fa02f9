"""The table of models in README.md, from the catalogue: prints it, or with --write puts it there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from declip.catalog import MODELS
from declip.types import ModelCard

README = Path(__file__).resolve().parents[1] / "README.md"
PLACE = re.compile(r"(?<=<!-- models -->\n).*?(?=<!-- /models -->)", re.DOTALL)


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


def main() -> None:
    """Print the table; --write replaces the one in README.md."""
    if sys.argv[1:] == ["--write"]:
        text = README.read_text(encoding="utf-8")
        README.write_text(PLACE.sub(lambda _: table(), text), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
