"""Measure the training-free maps on real forgeries: the table of docs/baselines.md.

    python tools/baseline_table.py --data FOLDER

FOLDER holds one folder per set, in each `image` and `mask` with files of the same name, 255 = manipulated. Every map is
measured by `declip.evaluate`; nothing is chosen on these sets. Needs `pip install 'declip[all]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from model_page import ROOT, between

import declip
from declip import clues, datasets

PAGE = ROOT / "docs" / "baselines.md"


def table(folder: Path) -> Iterator[str]:
    """Markdown: a row per set, the share of the masks and the mean AP of each map."""
    sets = sorted(path for path in folder.iterdir() if (path / "mask").is_dir())
    samples = [one for path in sets for one in datasets.folder(path / "image", path / "mask", source=path.name)]
    columns = {
        name: declip.evaluate(kind(), samples, resamples=200, progress=True) for name, kind in clues.BASELINES.items()
    }
    failed = [row.error for column in columns.values() for row in column.errors]
    if failed:
        raise SystemExit(f"{len(failed)} pictures failed, the first: {failed[0]}")
    found = list(columns.values())
    yield f"| set | photos | share of the masks | {' | '.join(f'`{name}`' for name in columns)} |"
    yield f"|---|---|---|{'---|' * len(columns)}"
    shares, aps = [], []
    for source, summary in found[0].sources.items():
        shares.append(summary.mean.manipulated)
        aps.append([column.sources[source].mean.ap for column in found])
        yield row(f"`{source}`", summary.fakes, shares[-1], aps[-1])
    overall = found[0].overall
    yield row("all photos", overall.fakes, overall.mean.manipulated, [column.mean.ap for column in found])
    yield row("mean of the sets", "", fmean(shares), [fmean(column) for column in zip(*aps, strict=True)])


def row(name: str, photos: object, share: float, aps: list[float]) -> str:
    """One line of the table."""
    return f"| {name} | {photos} | {share:.3f} | {' | '.join(f'{ap:.3f}' for ap in aps)} |"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    text = "\n".join(table(parser.parse_args().data))
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "table", text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
