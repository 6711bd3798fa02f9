"""The demo: localize examples/photos, and compare with what is known about them.

    python examples/demo.py

It prints a table, writes scores, masks and overlays to demo-out/, and a sheet of all photos with them.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

import declip
from declip.evaluation import metrics
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.localize.folder import SUFFIXES, Row, find_pictures, localize_files
from declip.results import Sample

HERE = Path(__file__).resolve().parent
MASK, OVERLAY = SUFFIXES[1:]


def main() -> None:
    """Localize, compare, show."""
    parser = argparse.ArgumentParser(description="Localize the photos of the demo.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the maps")
    parser.add_argument("--sheet", type=Path, help="where to put the sheet (default: OUT/sheet.png)")
    parser.add_argument("--model", help="a catalogue name or a file (default: the embedded model)")
    arguments = parser.parse_args()
    try:
        localizer = declip.load(arguments.model)
        pairs, _ = find_pictures([HERE / "photos"])
        rows = list(localize_files(localizer, pairs, arguments.out, force=True))
    except declip.DeclipError as error:
        sys.exit(f"demo: {error}")

    table = Table("photo", "what was done", "verdict", "rank", "area", "IoU", "seconds", title=localizer.model)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*_cells(row, arguments.out))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(
        "rank: share of untouched photos of this size without a part as strong as the strongest of this one.\n"
        "area: share of the photo that is flagged. IoU: agreement of the mask with the known one."
    )
    failed = [row for row in rows if "error" in row]
    for row in failed:
        console.print(row["error"])
    if not failed:
        sheet = arguments.sheet or arguments.out / "sheet.png"
        _draw_sheet(rows, arguments.out, sheet)
        console.print(f"Look at {sheet}, and at each {arguments.out}/PHOTO{OVERLAY}")
    sys.exit(1 if failed else 0)


def _cells(row: Row, out: Path) -> tuple[str, ...]:
    """A line of the table."""
    path = Path(row["image"])
    if "error" in row:
        return path.name, _kind(path), f"failed: {row['kind']}", "", "", "", ""
    known = _known(path)
    agreement = "–" if known is None else f"{_iou(path, out):.2f}"
    # Rounded down: a score of 0.948 is not the 0.95 from which a part is flagged.
    score = "–" if row["score"] is None else f"{math.floor(1000 * row['score'] + 1e-9) / 1000:.3f}"
    numbers = score, f"{row['area']:.1%}", agreement, f"{row['seconds']:.2f}"
    return path.name, _kind(path), row["verdict"] or "–", *numbers


def _kind(path: Path) -> str:
    """coffee-splice-hard.jpg → splice-hard."""
    return path.stem.partition("-")[2]


def _known(path: Path) -> Path | None:
    """The known mask of a photo; None if it is untouched."""
    mask = HERE / "masks" / f"{path.stem}.png"
    return mask if mask.exists() else None


def _iou(path: Path, out: Path) -> float:
    """Of the mask that was written, with the known one."""
    found = Sample(image=path, mask=out / f"{path.name}{MASK}", label="fake")
    known = Sample(image=path, mask=_known(path), label="fake")
    return metrics.iou(read_mask(found), read_mask(known))


# The sheet: a column per photo, five side by side; the photo, its known mask, and what was found ---------------------

CELL, GAP, CAPTION, MARGIN = 150, 10, 44, 124  # px
ACROSS = 5
INK, PALE = (30, 30, 30), (110, 110, 110)


def _draw_sheet(rows: list[Row], out: Path, target: Path) -> None:
    rows = sorted(rows, key=lambda row: _known(Path(row["image"])) is None)  # the untouched ones last
    banks = [rows[start : start + ACROSS] for start in range(0, len(rows), ACROSS)]
    drawn = [_draw_bank(bank, out) for bank in banks]
    height = drawn[0].height
    sheet = Image.new("RGB", (max(bank.width for bank in drawn), len(drawn) * height), "white")
    for number, bank in enumerate(drawn):
        sheet.paste(bank, (0, number * height))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A palette makes it a third of the size.
    palette = sheet.quantize(256, kmeans=2)
    small_sheet = sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    small_sheet.putpalette([255 if value > 245 else value for value in small_sheet.getpalette() or []])  # white paper
    small_sheet.save(target, "PNG", optimize=True)


def _draw_bank(rows: list[Row], out: Path) -> Image.Image:
    columns = [_column(Path(row["image"]), out) for row in rows]
    width = MARGIN + sum(cells[0].width + GAP for cells in columns)
    bank = Image.new("RGB", (width, CAPTION + 3 * (CELL + GAP) + GAP), "white")
    draw = ImageDraw.Draw(bank)
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    for number, title in enumerate(("photo", "known mask", "found")):
        y = CAPTION + number * (CELL + GAP) + CELL // 2
        draw.text((MARGIN - 2 * GAP, y), title, fill=INK, font=large, anchor="rm")
    left = MARGIN
    for row, cells in zip(rows, columns, strict=True):
        path = Path(row["image"])
        draw.text((left, 2), _kind(path), fill=INK, font=large)
        found = f"{row['area']:.1%} flagged" if _known(path) is None else f"IoU {_iou(path, out):.2f}"
        draw.text((left, 22), found, fill=PALE, font=small)
        for number, cell in enumerate(cells):
            bank.paste(cell, (left, CAPTION + number * (CELL + GAP)))
        left += cells[0].width + GAP
    return bank


def _column(path: Path, out: Path) -> list[Image.Image]:
    photo = Image.fromarray(read_photo(path).pixels)
    size = (round(photo.width * CELL / photo.height), CELL)
    known = _known(path)
    mask = Image.new("RGB", photo.size) if known is None else Image.open(known).convert("RGB")
    overlay = Image.open(out / f"{path.name}{OVERLAY}").convert("RGB")
    return [picture.resize(size, Image.Resampling.LANCZOS) for picture in (photo, mask, overlay)]


if __name__ == "__main__":
    main()
