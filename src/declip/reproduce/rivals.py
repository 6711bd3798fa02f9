"""The paper's comparison: rivals and DeCLIP on the same pairs, by the same code on the same files."""

from __future__ import annotations

import itertools

from declip.clues import BASELINES
from declip.evaluation import plots
from declip.reproduce import paper
from declip.reproduce.cells import Training, Untrained
from declip.reproduce.lab import TYPICAL, Lab
from declip.reproduce.pairs import Pairs
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import RIVALS, Rival

__all__ = ["rivals"]

_MEASURES = ("iou", "ap")
_TINY = (
    "The rivals are small here, too, start at random and learn for a few hundred steps only, fewer than DeCLIP "
    "on its pretrained features: this is no comparison of methods."
)
_FULL = (
    "Each rival learns by its own published recipe; CAT-Net starts at random, not from its authors' weights, and "
    "reads pictures that are no JPEG as saved once at quality 100. The paper has no number of it here."
)


def rivals(lab: Lab) -> Outcome:
    """Patch Forensics, PSCC-Net, CLIP-linear, CAT-Net and DeCLIP: a training on each set, a test on all of them, and
    the maps of all pairs (Fig. 2); and, as a floor, the maps of `clues`, which learn nothing."""
    methods, names, shown = _methods(lab), lab.names, lab.typical()
    floors = {kind: [lab.test(Untrained(name=kind), name) for name in names] for kind in BASELINES}
    learnt = [test for pairs in methods.values() for test in pairs.tests.values()]
    untrained = [test for tests in floors.values() for test in tests]
    lab.run(learnt, shown)
    lab.run(untrained)
    means = {title: {figure: pairs.means(figure) for figure in _MEASURES} for title, pairs in methods.items()}
    floor = {kind: {figure: lab.mean(tests, figure) for figure in _MEASURES} for kind, tests in floors.items()}
    # Of each test set: the model that knows it, and the one of the next set.
    some = [(row, column) for i, row in enumerate(names) for column in (row, names[(i + 1) % len(names)])]
    galleries = {
        name: lab.gallery(
            [[pairs.tests[place] for pairs in methods.values()] for place in places],
            [f"tested on {row}\ntrained on {column}" for row, column in places],
            list(methods),
            shown,
        )
        for name, places in (
            ("figure2-rivals.png", some),
            ("figure2-rivals-all-pairs.png", list(itertools.product(names, names))),
        )
    }
    heats = {title: pairs.values() for title, pairs in methods.items()}
    return Outcome(
        tests=[*learnt, *untrained],
        title="Rivals and DeCLIP under one protocol",
        entries=[
            *(entry for pairs in methods.values() for entry in pairs.entries()),
            *(
                Entry(row=row, column=methods[title].model, figure="ap", value=value)
                for title, found in means.items()
                for row, value in zip((paper.ID, paper.OOD), found["ap"], strict=True)
            ),
            *(
                Entry(row="mean of test sets", column=kind, figure=figure, value=value)
                for kind, found in floor.items()
                for figure, value in found.items()
            ),
            *(
                lab.entry(test, test.name, f"{pairs.model}, trained on {column}", figure, detail=True)
                for pairs in methods.values()
                for (_, column), test in pairs.tests.items()
                for figure in _MEASURES
            ),
            *(
                lab.entry(test, test.name, test.training.name, figure, detail=True)
                for test in untrained
                for figure in _MEASURES
            ),
        ],
        grids=[
            Grid(
                title="Means, %; maps that learn nothing know no domain, and have one mean over all test sets",
                rows=(*methods, *floors),
                columns=("IoU, ID", "IoU, OOD", "AP, ID", "AP, OOD"),
                values=[
                    *([*found["iou"], *found["ap"]] for found in means.values()),
                    *([found["iou"]] * 2 + [found["ap"]] * 2 for found in floor.values()),
                ],
            )
        ],
        figures={**galleries, "matrices.png": plots.matrix(heats, names, names)},
        notes=[TYPICAL, _TINY if lab.setup.is_tiny else _FULL],
    )


def _methods(lab: Lab) -> dict[str, Pairs]:
    """Return the grids by title, in the paper's order."""
    single = lab.setup.single
    # Only on CLIP is it CLIP-linear.
    linear = "CLIP-linear" if all("clip" in backbone.name for backbone in single) else "linear"
    return {
        RIVALS["patch-forensics"].title: _rival(lab, "patch-forensics"),
        RIVALS["pscc-net"].title: _rival(lab, "pscc-net"),
        linear: Pairs.of(lab, single, "linear", tiny_printed=f"{paper.VIT}, linear"),
        RIVALS["cat-net"].title: _rival(lab, "cat-net"),
        "DeCLIP": Pairs.of(lab, lab.setup.fusion, tiny_printed=f"{paper.FUSION}, conv-20"),
    }


def _rival(lab: Lab, rival: Rival) -> Pairs:
    trainings = {}
    for name in lab.names:
        config = lab.setup.rival_config(rival, pictures=len(lab.samples(name, "train")))
        train = lab.samples(name, "train", reals=config.reals > 0)
        trainings[name] = Training(name=name, config=config, train=train, valid=lab.samples(name, "valid"))
    title = RIVALS[rival].title
    return Pairs(lab=lab, model=title, printed=title, trainings=trainings)
