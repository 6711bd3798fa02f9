"""The paper's comparison: rivals and DeCLIP on the same pairs, by the same code on the same files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from declip.baselines import BASELINES
from declip.evaluation import plots
from declip.reproduce import paper
from declip.reproduce.cells import Maps, Measurement, Training, Untrained, Workbench
from declip.reproduce.pairs import Pairs
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import Rival, Setup
from declip.reproduce.sources import Sources
from declip.reproduce.tiles import known_tiles, map_tile, typical

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["rivals"]

# As `paper.NUMBERS` names them.
_TITLES: dict[Rival, str] = {"patch-forensics": "Patch Forensics", "pscc-net": "PSCC-Net", "cat-net": "CAT-Net"}
_FLOOR = "mean of test sets"
_GREY = "scores: black 0, white 1, not stretched; below each map its IoU, %; framed: trained on what is tested"


def rivals(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Patch Forensics, PSCC-Net, CLIP-linear, CAT-Net and DeCLIP: a training on each set, a test on all of them, and
    the maps of all pairs (Fig. 2); and, as a floor, the maps of `baselines`, which learn nothing."""
    methods = _methods(setup, sources)
    floors = {
        kind: {
            name: Measurement(training=Untrained(name=kind), name=name, samples=tuple(sources.samples(name, "test")))
            for name in sources.names
        }
        for kind in BASELINES
    }
    shown = {name: typical(sources.samples(name, "test")) for name in sources.names}
    maps = {
        (title, row, column): Maps(training=pairs.trainings[column], name=row, samples=(shown[row],))
        for title, pairs in methods.items()
        for row, column in pairs.tests
    }
    tests = [
        *(test for pairs in methods.values() for test in pairs.tests.values()),
        *(test for found in floors.values() for test in found.values()),
    ]
    # The maps of a training right behind its tests, while it is open.
    drawn: list[Measurement | Maps] = [
        cell
        for title, pairs in methods.items()
        for place in pairs.tests
        for cell in (pairs.tests[place], maps[(title, *place)])
    ]
    bench.run([*drawn, *tests])
    means = {kind: {figure: _mean(bench, found, figure) for figure in ("iou", "ap")} for kind, found in floors.items()}
    names = sources.names

    def figure(places: Sequence[tuple[str, str]]) -> Figure:
        tiles = [
            [
                *known_tiles(shown[row]),
                *(
                    map_tile(bench, maps[title, row, column], pairs.tests[row, column], framed=row == column)
                    for title, pairs in methods.items()
                ),
            ]
            for row, column in places
        ]
        labels = [f"tested on {row}\ntrained on {column}" for row, column in places]
        return plots.gallery(tiles, labels, ["photo", "known mask", *methods], gap=2, note=_GREY)

    # Of each test set: the model that knows it, and the one of the next set.
    some = [(row, column) for i, row in enumerate(names) for column in (row, names[(i + 1) % len(names)])]
    heats = [pairs.heat(bench, title) for title, pairs in methods.items()]
    return Outcome(
        name="rivals",
        title="Rivals and DeCLIP under one protocol",
        entries=(
            *(entry for pairs in methods.values() for entry in pairs.entries(bench)),
            *(
                Entry(row=row, column=pairs.model, figure="ap", value=value)
                for pairs in methods.values()
                for row, value in zip((paper.ID, paper.OOD), pairs.means(bench, "ap"), strict=True)
            ),
            *(
                Entry(row=_FLOOR, column=kind, figure=figure, value=value)
                for kind, found in means.items()
                for figure, value in found.items()
            ),
            *(
                _detail(bench, test, f"{pairs.model}, trained on {column}", measure)
                for pairs in methods.values()
                for (_, column), test in pairs.tests.items()
                for measure in ("iou", "ap")
            ),
            *(
                _detail(bench, test, kind, measure)
                for kind, found in floors.items()
                for test in found.values()
                for measure in ("iou", "ap")
            ),
        ),
        grids=(
            Grid(
                title="Means, %; maps that learn nothing know no domain, and have one mean over all test sets",
                rows=(*methods, *means),
                columns=("IoU, ID", "IoU, OOD", "AP, ID", "AP, OOD"),
                values=(
                    *((*pairs.means(bench), *pairs.means(bench, "ap")) for pairs in methods.values()),
                    *((found["iou"],) * 2 + (found["ap"],) * 2 for found in means.values()),
                ),
            ),
        ),
        figures={
            "figure2-rivals.png": figure(some),
            "figure2-rivals-all-pairs.png": figure([(row, column) for row in names for column in names]),
            "matrices.png": plots.matrix(heats, names, names),
        },
        protocols=bench.protocols(tests),
        notes=(
            f"Data: {sources.describe()}.",
            "The pictures shown are those of the median manipulated area of their test sets.",
            *_told(setup),
        ),
        is_tiny=setup.is_tiny,
    )


def _methods(setup: Setup, sources: Sources) -> dict[str, Pairs]:
    """By title, in the paper's order."""
    linear = Pairs.of(setup, sources, setup.single, "linear", tiny_printed=f"{paper.VIT}, linear")
    fusion = Pairs.of(setup, sources, setup.fusion, tiny_printed=f"{paper.FUSION}, conv-20")
    known = {rival: _rival(setup, sources, rival) for rival in _TITLES}
    # Only on CLIP is it CLIP-linear.
    clip = all("clip" in backbone.name for backbone in setup.single)
    return {
        "Patch Forensics": known["patch-forensics"],
        "PSCC-Net": known["pscc-net"],
        "CLIP-linear" if clip else "linear": linear,
        "CAT-Net": known["cat-net"],
        "DeCLIP": fusion,
    }


def _rival(setup: Setup, sources: Sources, rival: Rival) -> Pairs:
    trainings = {}
    for name in sources.names:
        fakes = sources.samples(name, "train")
        config = setup.rival_config(rival, pictures=len(fakes))
        train = sources.samples(name, "train", reals=True) if config.reals else fakes
        valid = sources.samples(name, "valid")
        trainings[name] = Training(name=name, config=config, train=tuple(train), valid=tuple(valid))
    return Pairs.among(sources, trainings, model=_TITLES[rival], printed=_TITLES[rival])


def _mean(bench: Workbench, tests: dict[str, Measurement], figure: str) -> float:
    return float(np.mean([bench.figure(test, figure)[0] for test in tests.values()]))


def _detail(bench: Workbench, test: Measurement, column: str, figure: str) -> Entry:
    value, low, high = bench.figure(test, figure)
    return Entry(row=test.name, column=column, figure=figure, value=value, low=low, high=high, detail=True)


def _told(setup: Setup) -> tuple[str, ...]:
    if setup.is_tiny:
        return (
            "The rivals are small here, too, start at random and learn for a few hundred steps only, fewer than DeCLIP "
            "on its pretrained features: this is no comparison of methods.",
        )
    return (
        "Each rival learns by its own published recipe; CAT-Net starts at random, not from its authors' weights, and "
        "reads pictures that are no JPEG as saved once at quality 100. The paper has no number of it here.",
    )
