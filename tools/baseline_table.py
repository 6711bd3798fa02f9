"""Measure the training-free maps on real forgeries: the table of docs/baselines.md.

    python tools/baseline_table.py --data FOLDER

FOLDER holds one folder per set, in each `image` and `mask` with files of the same name, 255 = manipulated. Every map is
measured by `declip.evaluate`; nothing is chosen on these sets. Needs `pip install 'declip[data]'`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import declip
from declip import baselines, datasets
from declip.evaluation import Figures, Summary
from declip.results import Sample

PAGE = Path(__file__).resolve().parents[1] / "docs" / "baselines.md"
PLACE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- /table -->)", re.DOTALL)


def samples(folder: Path) -> list[Sample]:
    """The forgeries of every set below folder; the set is the source."""
    sets = sorted(path for path in folder.iterdir() if (path / "mask").is_dir())
    return [sample for path in sets for sample in datasets.folder(path / "image", path / "mask", source=path.name)]


def table(found: Sequence[Sample]) -> str:
    """Markdown: a row per set, the share of the masks and the mean AP of each map."""
    columns = {
        name: declip.evaluate(kind(), found, resamples=200, progress=True) for name, kind in baselines.BASELINES.items()
    }
    failed = [row.error for column in columns.values() for row in column.errors]
    if failed:
        raise SystemExit(f"{len(failed)} pictures failed, the first: {failed[0]}")
    first, *_ = columns.values()
    lines = [
        f"| set | photos | share of the masks | {' | '.join(f'`{name}`' for name in columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for source, summary in first.sources.items():
        figures = [column.sources[source].mean for column in columns.values()]
        lines.append(row(f"`{source}`", summary, figures))
    means = [column.mean for column in columns.values()]
    lines.append(row("all photos", first.overall, means))
    of_sets = list(mean_of_sets([list(column.sources.values()) for column in columns.values()]))
    share = sum(summary.mean.manipulated for summary in first.sources.values()) / len(first.sources)
    lines.append(f"| mean of the sets | | {share:.3f} | {' | '.join(f'{value:.3f}' for value in of_sets)} |")
    return "\n".join(lines) + "\n"


def row(name: str, summary: Summary, figures: Sequence[Figures]) -> str:
    """One line of the table."""
    values = " | ".join(f"{figure.ap:.3f}" for figure in figures)
    return f"| {name} | {summary.fakes} | {summary.mean.manipulated:.3f} | {values} |"


def mean_of_sets(columns: Sequence[Sequence[Summary]]) -> Iterator[float]:
    """Of each map: its AP, each set counted once."""
    for column in columns:
        yield sum(summary.mean.ap for summary in column) / len(column)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    arguments = parser.parse_args()
    text = table(samples(arguments.data))
    page = PAGE.read_text(encoding="utf-8")
    if not PLACE.search(page):
        raise SystemExit(f"{PAGE} has no place for the table")
    PAGE.write_text(PLACE.sub(lambda _: text, page), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
