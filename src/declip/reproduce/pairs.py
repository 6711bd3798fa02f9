"""Experiments on train–test pairs: each generator trained on, each tested. ID: the same; OOD: another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from declip.evaluation import plots
from declip.reproduce import paper
from declip.reproduce.cells import Measurement, Training
from declip.reproduce.lab import TYPICAL, Lab
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import Backbones, model_name
from declip.spec import DecoderKind

__all__ = ["Pairs", "backbones", "decoders", "dolos", "generators", "layers"]

_DECODERS: tuple[DecoderKind, ...] = ("linear", "attention", "conv-4", "conv-12", "conv-20")
# What the curve of Fig. 3 is drawn through.
_LAYERS = {
    "vit_large_patch14_clip_quickgelu_224": (3, 7, 11, 15, 17, 20, 23),
    "resnet50_clip_gap": (1, 2, 3, 4),
    "tf_efficientnet_lite0": (0, 1, 2, 3, 4),
}
_MEANS = (paper.ID, paper.OOD)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The grid of one model: a training per generator, a test of each on every generator.

    printed: the model whose numbers stand beside; at tiny scale the one that the paper has in this place.
    """

    lab: Lab
    model: str
    printed: str
    trainings: dict[str, Training]

    @classmethod
    def of(cls, lab: Lab, backbones: Backbones, decoder: DecoderKind | None = None, *, tiny_printed: str = "") -> Pairs:
        """Return the grid of a decoder; nothing is computed but missing data. tiny_printed: `printed` at tiny scale."""
        trainings = {name: lab.training(name, backbones, decoder) for name in lab.names}
        model = model_name(backbones, decoder or lab.setup.decoder)
        printed = tiny_printed if lab.setup.is_tiny else model
        return cls(lab=lab, model=model, printed=printed, trainings=trainings)

    @cached_property
    def tests(self) -> dict[tuple[str, str], Measurement]:
        """Return the tests by (tested on, trained on)."""
        return {(row, name): self.lab.test(one, row) for name, one in self.trainings.items() for row in self.lab.names}

    @property
    def known(self) -> NDArray[np.bool_]:
        """Return (tested on, trained on): whether both are the same."""
        return np.eye(len(self.trainings), dtype=bool)

    def values(self, figure: str = "iou") -> NDArray[np.float64]:
        """Return a figure of each pair (tested on, trained on), in [0, 1]."""
        names = self.lab.names
        return np.array([[self.lab.bench.figure(self.tests[r, c], figure)[0] for c in names] for r in names])

    def means(self, figure: str = "iou") -> tuple[float, float]:
        """Return the means of a figure over the pairs ID and OOD, in [0, 1]."""
        values = self.values(figure)
        return float(values[self.known].mean()), float(values[~self.known].mean())

    def entries(self) -> list[Entry]:
        """Return the mean IoUs beside the paper's."""
        return [
            Entry(row=row, column=self.model, value=value, paper=paper.find(self.printed, row))
            for row, value in zip(_MEANS, self.means(), strict=True)
        ]

    def grid(self) -> Grid:
        """Return the IoU of all pairs, for reading."""
        title = f"IoU, %, {self.model}: rows tested on, columns trained on"
        return Grid(title=title, rows=self.lab.names, columns=self.lab.names, values=self.values().tolist())


def dolos(lab: Lab) -> Outcome:
    """Compute the 4×4 matrix (Fig. 5) and show the masks of its 16 pairs (Fig. 2)."""
    pairs = Pairs.of(lab, lab.setup.fusion, tiny_printed=f"{paper.FUSION}, conv-20")
    tests, names, shown = pairs.tests, lab.names, lab.typical()
    lab.run(tests.values(), shown)
    worst = float(pairs.values().min())
    lowest = Entry(row=paper.WORST, column=pairs.model, value=worst, paper=paper.find(pairs.printed, paper.WORST))
    figures = ("iou", "f1", "f1_best_oracle", "ap")
    details = []
    for figure, row, column in itertools.product(figures, names, names):
        entry = lab.entry(tests[row, column], row, column, figure, detail=True)
        details.append(dataclasses.replace(entry, paper=paper.find(pairs.printed, row, column, figure)))
    masks = lab.gallery(
        [[tests[row, column] for column in names] for row in names],
        [f"tested on\n{name}" for name in names],
        [f"trained on\n{name}" for name in names],
        shown,
    )
    return Outcome(
        tests=list(tests.values()),
        title=f"4×4 train–test pairs, {pairs.model}",
        entries=[*pairs.entries(), lowest, *details],
        grids=[pairs.grid()],
        figures={
            "figure5-matrix.png": plots.matrix({pairs.model: pairs.values()}, names, names),
            "figure2-masks.png": masks,
        },
        notes=[TYPICAL],
    )


def layers(lab: Lab) -> Outcome:
    """Compare the layers that a backbone is cut at by IoU, ID and OOD (Fig. 3); each backbone for itself."""
    grids: dict[str, dict[int, Pairs]] = {}
    for backbone in lab.setup.fusion:
        # The layer that was asked for is always one of those shown.
        chosen = sorted({*_LAYERS.get(backbone.name, ()), backbone.layer})
        grids[backbone.name] = {n: Pairs.of(lab, (dataclasses.replace(backbone, layer=n),)) for n in chosen}
    every = [pairs for found in grids.values() for pairs in found.values()]
    tests = [test for pairs in every for test in pairs.tests.values()]
    for found in grids.values():
        for name in lab.names:
            lab.fill([pairs.trainings[name] for pairs in found.values()])
    lab.run(tests)
    panels, best = [], []
    for name, found in grids.items():
        means = {layer: pairs.means() for layer, pairs in found.items()}
        places = tuple(map(float, means))
        lines = tuple(
            plots.Curve(label=label, x=places, y=tuple(mean[i] for mean in means.values()), dashed=bool(i))
            for i, label in enumerate(("ID (trained on it)", "OOD (on another)"))
        )
        panels.append(plots.Panel(title=name, x_label="layer, from 0", curves=lines, ticks=places))
        best.append(f"Best layer of {name}: {_best(means, 0)} (ID), {_best(means, 1)} (OOD).")
    told = "Layers are counted from 0: block 20 is the paper's layer 21. The paper: middle layers beat the last."
    return Outcome(
        tests=tests,
        title="IoU against the layer",
        entries=[entry for pairs in every for entry in pairs.entries()],
        figures={"figure3-layers.png": plots.curves(panels)},
        notes=[told, *best],
    )


def decoders(lab: Lab) -> Outcome:
    """Compare the five decoders on one backbone: IoU, and masks of each (Fig. 4)."""
    # At tiny scale the shown decoder stands for the paper's of the same name; that has numbers for two of them.
    grids = {kind: Pairs.of(lab, lab.setup.single, kind, tiny_printed=f"{paper.VIT}, {kind}") for kind in _DECODERS}
    tests, shown = [test for pairs in grids.values() for test in pairs.tests.values()], lab.typical()
    drawn = [[pairs.tests[name, name] for pairs in grids.values()] for name in lab.names]
    lab.run(tests)
    lab.run([test for line in drawn for test in line], shown)
    means = {kind: pairs.means() for kind, pairs in grids.items()}
    return Outcome(
        tests=tests,
        title=f"Decoders, {model_name(lab.setup.single)}",
        entries=[entry for pairs in grids.values() for entry in pairs.entries()],
        grids=[Grid(title="IoU, %", rows=_DECODERS, columns=_MEANS, values=list(means.values()))],
        figures={"figure4-decoders.png": lab.gallery(drawn, lab.names, _DECODERS, shown, framed=False)},
        notes=[
            TYPICAL,
            "Each map is of a model that was trained on what is tested.",
            "The paper: linear is poor, and conv-4 < conv-12 < conv-20. "
            f"Here, by ID mean: {_order(means, 0)}; by OOD mean: {_order(means, 1)}.",
        ],
    )


def backbones(lab: Lab) -> Outcome:
    """Compute the matrix of each backbone and of their fusion (Fig. 5): do they complement each other?"""
    several, printed = lab.setup.several, (paper.VIT, paper.RN50, paper.FUSION)
    grids = [
        Pairs.of(lab, chosen, tiny_printed=f"{printed[i]}, conv-20" if i < len(printed) else "")
        for i, chosen in enumerate(several)
    ]
    tests = [test for pairs in grids for test in pairs.tests.values()]
    lab.run(tests)
    heats = {pairs.model.replace("+", "\n+ "): pairs.values() for pairs in grids}
    return Outcome(
        tests=tests,
        title="Backbones, and their fusion",
        entries=[entry for pairs in grids for entry in pairs.entries()],
        grids=[pairs.grid() for pairs in grids],
        figures={"figure5-matrices.png": plots.matrix(heats, lab.names, lab.names)},
    )


def generators(lab: Lab) -> Outcome:
    """Find the generator that is the best to train on: the columns of the matrix of `dolos`, whose cells it shares."""
    pairs = Pairs.of(lab, lab.setup.fusion, tiny_printed=f"{paper.FUSION}, conv-20")
    lab.run(pairs.tests.values())
    values, names = pairs.values(), lab.names
    # By what was trained on: the IoU on the same, and the mean of those on others.
    shown = np.array(
        [[values[known[:, i], i].mean() for i in range(len(names))] for known in (pairs.known, ~pairs.known)]
    )
    hardest, best = names[int(shown[0].argmin())], names[int(shown[1].argmax())]
    return Outcome(
        tests=list(pairs.tests.values()),
        title=f"Which generator to train on, {pairs.model}",
        entries=[
            Entry(row=row, column=name, value=float(value), paper=paper.find(pairs.printed, row, name))
            for row, means in zip(_MEANS, shown, strict=True)
            for name, value in zip(names, means, strict=True)
        ],
        grids=[Grid(title="Mean IoU, %, by what was trained on", rows=names, columns=_MEANS, values=shown.T.tolist())],
        figures={"generators.png": plots.matrix({pairs.model: shown}, _MEANS, names)},
        notes=[f"Best to train on (OOD): {best}. Hardest in its own domain: {hardest}. The paper has LDM for both."],
    )


def _best(means: Mapping[int, tuple[float, float]], place: int) -> int:
    """Return the layer of the highest mean; place: 0 = ID, 1 = OOD."""
    return max(means, key=lambda layer: means[layer][place])


def _order(means: Mapping[DecoderKind, tuple[float, float]], place: int) -> str:
    """Return "linear < conv-4 < …", by one of the means."""
    ranked = sorted(means.items(), key=lambda item: item[1][place])
    return " < ".join(kind for kind, _ in ranked)
