"""Experiments on train–test pairs: each generator trained on, each tested. ID: the same; OOD: another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from declip.evaluation import plots
from declip.reproduce import paper
from declip.reproduce.cells import Maps, Measurement, Training, Workbench
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import Backbones, Setup, model_name
from declip.reproduce.sources import Sources, Split
from declip.reproduce.tiles import known_tiles, map_tile, typical
from declip.spec import DecoderKind

__all__ = ["Pairs", "backbones", "decoders", "dolos", "generators", "layers"]

_LEARNING: tuple[Split, Split] = ("train", "valid")
_DECODERS: tuple[DecoderKind, ...] = ("linear", "attention", "conv-4", "conv-12", "conv-20")
# What the curve of Fig. 3 is drawn through.
_LAYERS = {
    "vit_large_patch14_clip_quickgelu_224": (3, 7, 11, 15, 17, 20, 23),
    "resnet50_clip_gap": (1, 2, 3, 4),
    "tf_efficientnet_lite0": (0, 1, 2, 3, 4),
}
_GREY = "scores: black 0, white 1, not stretched; below each map its IoU, %; framed: trained on what is tested"
_TYPICAL = "The pictures shown are those of the median manipulated area of their test sets."


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The grid of one model: a training per source, a test of each on every source.

    printed: the model whose numbers stand beside; at tiny scale the one that the paper has in this place.
    """

    model: str
    printed: str
    names: tuple[str, ...]
    trainings: dict[str, Training]
    tests: dict[tuple[str, str], Measurement]  # (tested on, trained on)

    @classmethod
    def of(
        cls,
        setup: Setup,
        sources: Sources,
        backbones: Backbones,
        decoder: DecoderKind | None = None,
        *,
        tiny_printed: str = "",
    ) -> Pairs:
        """Return the cells; nothing is computed but missing data. tiny_printed: `printed` at tiny scale."""
        trainings = {name: training_on(setup, sources, name, backbones, decoder) for name in sources.names}
        model = model_name(backbones, decoder or setup.decoder)
        return cls.among(sources, trainings, model=model, printed=tiny_printed if setup.is_tiny else model)

    @classmethod
    def among(cls, sources: Sources, trainings: dict[str, Training], *, model: str, printed: str) -> Pairs:
        """Return the same for trainings that are there, one per source."""
        tests = {
            (row, column): Measurement(training=training, name=row, samples=tuple(sources.samples(row, "test")))
            for column, training in trainings.items()
            for row in sources.names
        }
        return cls(model=model, printed=printed, names=sources.names, trainings=trainings, tests=tests)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(tested on, trained on): whether both are the same."""
        return np.eye(len(self.names), dtype=bool)

    def values(self, bench: Workbench, figure: str = "iou") -> NDArray[np.float64]:
        """Return a figure of each pair (tested on, trained on), in [0, 1]."""
        return np.array([[bench.figure(self.tests[r, c], figure)[0] for c in self.names] for r in self.names])

    def means(self, bench: Workbench, figure: str = "iou") -> tuple[float, float]:
        """Mean of a figure, IoU by default, over the pairs ID and OOD, in [0, 1]."""
        values = self.values(bench, figure)
        return float(values[self.known].mean()), float(values[~self.known].mean())

    def entries(self, bench: Workbench) -> list[Entry]:
        """Return the means beside the paper's."""
        return [
            Entry(row=row, column=self.model, value=value, paper=paper.find(self.printed, row))
            for row, value in zip((paper.ID, paper.OOD), self.means(bench), strict=True)
        ]

    def grid(self, bench: Workbench) -> Grid:
        """IoU of all pairs, for reading."""
        values = tuple(tuple(float(value) for value in line) for line in self.values(bench))
        title = f"IoU, %, {self.model}: rows tested on, columns trained on"
        return Grid(title=title, rows=self.names, columns=self.names, values=values)

    def heat(self, bench: Workbench, title: str = "") -> plots.Matrix:
        """Return the IoU of all pairs as a panel of a figure."""
        return plots.Matrix(title=title or self.model, values=self.values(bench))


def training_on(
    setup: Setup, sources: Sources, name: str, backbones: Backbones, decoder: DecoderKind | None = None
) -> Training:
    """Return the training of a model on one source by the recipe of the scale."""
    train, valid = (tuple(sources.samples(name, split)) for split in _LEARNING)
    return Training(name=name, config=setup.config(backbones, decoder, pictures=len(train)), train=train, valid=valid)


def dolos(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Compute the 4×4 matrix (Fig. 5) and show the masks of its 16 pairs (Fig. 2)."""
    pairs = Pairs.of(setup, sources, setup.fusion, tiny_printed=f"{paper.FUSION}, conv-20")
    shown = {name: typical(sources.samples(name, "test")) for name in pairs.names}
    maps = {
        (row, column): Maps(training=pairs.trainings[column], name=row, samples=(shown[row],))
        for row, column in pairs.tests
    }
    bench.run([cell for place in pairs.tests for cell in (pairs.tests[place], maps[place])])
    worst = float(pairs.values(bench).min())
    entries = [
        _entry(bench, pairs.tests[row, column], row, column, figure, pairs.printed)
        for figure in ("iou", "f1", "f1_best_oracle", "ap")
        for row in pairs.names
        for column in pairs.names
    ]
    lowest = Entry(row=paper.WORST, column=pairs.model, value=worst, paper=paper.find(pairs.printed, paper.WORST))
    tiles = [
        [
            *known_tiles(shown[row]),
            *(
                map_tile(bench, maps[row, column], pairs.tests[row, column], framed=row == column)
                for column in pairs.names
            ),
        ]
        for row in pairs.names
    ]
    return Outcome(
        name="dolos",
        title=f"4×4 train–test pairs, {pairs.model}",
        entries=(*pairs.entries(bench), lowest, *entries),
        grids=(pairs.grid(bench),),
        figures={
            "figure5-matrix.png": plots.matrix([pairs.heat(bench)], pairs.names, pairs.names),
            "figure2-masks.png": plots.gallery(
                tiles,
                [f"tested on\n{name}" for name in pairs.names],
                ["photo", "known mask", *(f"trained on\n{name}" for name in pairs.names)],
                gap=2,
                note=_GREY,
            ),
        },
        protocols=bench.protocols(pairs.tests.values()),
        notes=(f"Data: {sources.describe()}.", _TYPICAL),
        is_tiny=setup.is_tiny,
    )


def layers(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Compare the layers that a backbone is cut at by IoU, ID and OOD (Fig. 3); each backbone for itself."""
    grids: dict[str, dict[int, Pairs]] = {}
    for backbone in setup.fusion:
        # The layer that was asked for is always one of those shown.
        chosen = sorted({*_LAYERS.get(backbone.name, ()), backbone.layer})
        cut = [dataclasses.replace(backbone, layer=layer) for layer in chosen]
        grids[backbone.name] = {b.layer: Pairs.of(setup, sources, (b,)) for b in cut}
    every = [pairs for found in grids.values() for pairs in found.values()]
    bench.run([test for pairs in every for test in pairs.tests.values()])
    panels = []
    for name, found in grids.items():
        means = [pairs.means(bench) for pairs in found.values()]
        places = tuple(float(layer) for layer in found)
        lines = tuple(
            plots.Curve(label=label, x=places, y=tuple(mean[i] for mean in means), dashed=bool(i))
            for i, label in enumerate(("ID (trained on it)", "OOD (on another)"))
        )
        panels.append(plots.Panel(title=name, x_label="layer, from 0", curves=lines, ticks=places))
    return Outcome(
        name="layers",
        title="IoU against the layer",
        entries=tuple(entry for pairs in every for entry in pairs.entries(bench)),
        figures={"figure3-layers.png": plots.curves(panels)},
        protocols=bench.protocols(test for pairs in every for test in pairs.tests.values()),
        notes=(
            f"Data: {sources.describe()}.",
            "Layers are counted from 0: block 20 is the paper's layer 21. The paper: middle layers beat the last.",
            *(
                f"Best layer of {name}: {_best(bench, found, 0)} (ID), {_best(bench, found, 1)} (OOD)."
                for name, found in grids.items()
            ),
        ),
        is_tiny=setup.is_tiny,
    )


def decoders(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Compare the five decoders on one backbone: IoU, and masks of each (Fig. 4)."""
    printed = {kind: f"{paper.VIT}, {kind}" for kind in _DECODERS}
    # At tiny scale the shown decoder stands for the paper's of the same name; that has numbers for two of them.
    grids = {kind: Pairs.of(setup, sources, setup.single, kind, tiny_printed=printed[kind]) for kind in _DECODERS}
    shown = {name: typical(sources.samples(name, "test")) for name in sources.names}
    maps = {
        (kind, name): Maps(training=pairs.trainings[name], name=name, samples=(shown[name],))
        for kind, pairs in grids.items()
        for name in pairs.names
    }
    tests = [test for pairs in grids.values() for test in pairs.tests.values()]
    bench.run([*tests, *maps.values()])
    tiles = [
        [
            *known_tiles(shown[name]),
            *(map_tile(bench, maps[kind, name], pairs.tests[name, name]) for kind, pairs in grids.items()),
        ]
        for name in sources.names
    ]
    means = {kind: pairs.means(bench) for kind, pairs in grids.items()}
    return Outcome(
        name="decoders",
        title=f"Decoders, {model_name(setup.single)}",
        entries=tuple(entry for pairs in grids.values() for entry in pairs.entries(bench)),
        grids=(Grid(title="IoU, %", rows=tuple(means), columns=(paper.ID, paper.OOD), values=tuple(means.values())),),
        figures={
            "figure4-decoders.png": plots.gallery(
                tiles, list(sources.names), ["photo", "known mask", *_DECODERS], gap=2, note=_GREY
            )
        },
        protocols=bench.protocols(tests),
        notes=(
            f"Data: {sources.describe()}.",
            _TYPICAL,
            "Each map is of a model that was trained on what is tested.",
            "The paper: linear is poor, and conv-4 < conv-12 < conv-20. "
            f"Here, by ID mean: {_order(means, 0)}; by OOD mean: {_order(means, 1)}.",
        ),
        is_tiny=setup.is_tiny,
    )


def backbones(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Compute the matrix of each backbone and of their fusion (Fig. 5): do they complement each other?"""
    printed = (paper.VIT, paper.RN50, paper.FUSION)
    grids = [
        Pairs.of(setup, sources, chosen, tiny_printed=f"{known}, conv-20")
        for chosen, known in zip(setup.several, _padded(printed, len(setup.several)), strict=True)
    ]
    tests = [test for pairs in grids for test in pairs.tests.values()]
    bench.run(tests)
    names = sources.names
    heats = [pairs.heat(bench, pairs.model.replace("+", "\n+ ")) for pairs in grids]
    return Outcome(
        name="backbones",
        title="Backbones, and their fusion",
        entries=tuple(entry for pairs in grids for entry in pairs.entries(bench)),
        grids=tuple(pairs.grid(bench) for pairs in grids),
        figures={"figure5-matrices.png": plots.matrix(heats, names, names)},
        protocols=bench.protocols(tests),
        notes=(f"Data: {sources.describe()}.",),
        is_tiny=setup.is_tiny,
    )


def generators(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Find the generator that is the best to train on: the columns of the matrix of `dolos`, whose cells it shares."""
    pairs = Pairs.of(setup, sources, setup.fusion, tiny_printed=f"{paper.FUSION}, conv-20")
    bench.run(list(pairs.tests.values()))
    values, known = pairs.values(bench), pairs.known
    seen = {name: float(values[known[:, i], i].mean()) for i, name in enumerate(pairs.names)}
    unseen = {name: float(values[~known[:, i], i].mean()) for i, name in enumerate(pairs.names)}
    best, hardest = max(unseen, key=unseen.__getitem__), min(seen, key=seen.__getitem__)
    rows = (paper.ID, paper.OOD)
    shown = np.array([[means[name] for name in pairs.names] for means in (seen, unseen)])
    return Outcome(
        name="generators",
        title=f"Which generator to train on, {pairs.model}",
        entries=(
            *(
                Entry(row=row, column=name, value=means[name], paper=paper.find(pairs.printed, row, name))
                for row, means in ((paper.ID, seen), (paper.OOD, unseen))
                for name in pairs.names
            ),
        ),
        grids=(
            Grid(
                title="Mean IoU, %, by what was trained on",
                rows=pairs.names,
                columns=(paper.ID, paper.OOD),
                values=tuple((seen[name], unseen[name]) for name in pairs.names),
            ),
        ),
        figures={"generators.png": plots.matrix([plots.Matrix(title=pairs.model, values=shown)], rows, pairs.names)},
        protocols=bench.protocols(pairs.tests.values()),
        notes=(
            f"Data: {sources.describe()}.",
            f"Best to train on (OOD): {best}. Hardest in its own domain: {hardest}. The paper has LDM for both.",
        ),
        is_tiny=setup.is_tiny,
    )


def _best(bench: Workbench, found: Mapping[int, Pairs], place: int) -> int:
    """Return the layer of the highest mean; place: 0 = ID, 1 = OOD."""
    return max(found, key=lambda layer: found[layer].means(bench)[place])


def _order(means: dict[DecoderKind, tuple[float, float]], place: int) -> str:
    """Return "linear < conv-4 < …", by one of the means."""
    ranked = sorted(means.items(), key=lambda item: item[1][place])
    return " < ".join(kind for kind, _ in ranked)


def _padded(names: Sequence[str], count: int) -> list[str]:
    return [*names, *[""] * count][:count]


def _entry(bench: Workbench, test: Measurement, row: str, column: str, figure: str, printed: str) -> Entry:
    value, low, high = bench.figure(test, figure)
    number = paper.find(printed, row, column, figure)
    return Entry(row=row, column=column, figure=figure, value=value, low=low, high=high, paper=number, detail=True)
