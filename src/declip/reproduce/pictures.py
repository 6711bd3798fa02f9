"""The experiment on whole pictures: real or fake?"""

from __future__ import annotations

import dataclasses

import numpy as np

from declip.reproduce import paper
from declip.reproduce.cells import Measurement, Training, Workbench
from declip.reproduce.pairs import training_on
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import Backbones, Setup, model_name
from declip.reproduce.sources import Dolos, Sources, Split
from declip.spec import DecoderKind

__all__ = ["detection"]

_LEARNING: tuple[Split, Split] = ("train", "valid")


def detection(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Compare a model trained on masks with models trained on whole pictures, real or fake."""
    backbones = setup.single
    tests: dict[tuple[str, str, str], Measurement] = {}  # (model, tested on, trained on)
    for model, decoder, whole in (
        (f"masks, {setup.decoder}", setup.decoder, False),
        (f"whole pictures, {setup.decoder}", setup.decoder, True),
        ("whole pictures, linear", "linear", True),
    ):
        for column in sources.names:
            training = (
                _on_pictures(setup, sources, column, backbones, decoder)
                if whole
                else training_on(setup, sources, column, backbones, decoder)
            )
            for row in sources.names:
                samples = tuple(sources.samples(row, "test", reals=True))
                tests[model, row, column] = Measurement(training=training, name=f"{row} and reals", samples=samples)
    full: Measurement | None = None
    if isinstance(sources, Dolos):
        training = _on_pictures(setup, sources, "p2", backbones, "linear")
        samples = tuple(sources.samples("p2", "test", reals=True))
        full = Measurement(training=training, name="p2 and reals", samples=samples)
    bench.run([*tests.values(), *([full] if full is not None else [])])
    models = list(dict.fromkeys(model for model, _, _ in tests))
    rows: dict[str, tuple[float, ...]] = {}
    entries = []
    for model in models:
        known = [test for (m, row, column), test in tests.items() if m == model and row == column]
        unknown = [test for (m, row, column), test in tests.items() if m == model and row != column]
        for where, chosen in (("local edits", known), ("local edits, OOD", unknown)):
            for figure in ("detection_ap", "detection_auc"):
                mean = float(np.mean([bench.figure(test, figure)[0] for test in chosen]))
                rows[model] = (*rows.get(model, ()), mean)
                printed = f"{paper.VIT}, linear" if setup.is_tiny else model_name(backbones, "linear")
                number = paper.find(printed, where, figure=figure) if "linear" in model else None
                entries.append(Entry(row=where, column=model, figure=figure, value=mean, paper=number))
    if full is not None:
        for figure in ("detection_ap", "detection_auc"):
            value, low, high = bench.figure(full, figure)
            number = paper.find(model_name(backbones, "linear"), "full fakes", figure=figure)
            column = "whole pictures, linear, trained on p2"
            entries.append(
                Entry(row="full fakes", column=column, figure=figure, value=value, low=low, high=high, paper=number)
            )
    every = [*tests.values(), *([full] if full is not None else [])]
    return Outcome(
        name="detection",
        title=f"Detection of whole pictures, {model_name(backbones)}",
        entries=tuple(entries),
        grids=(
            Grid(
                title="Detection, %: local edits against real photos, by what the model was trained on",
                rows=tuple(rows),
                columns=("AP, ID", "AUC, ID", "AP, OOD", "AUC, OOD"),
                values=tuple(rows.values()),
            ),
        ),
        figures={},
        protocols=bench.protocols(every),
        notes=(
            f"Data: {sources.describe()}; real photos beside them.",
            "Trained on masks: the score of a picture is the mean of its scores. Trained on whole pictures: the "
            "sigmoid of its mean logit, which is what was trained.",
            *(() if full is not None else ("Pictures that are generated as a whole are part of the full scale only.",)),
        ),
        is_tiny=setup.is_tiny,
    )


def _on_pictures(setup: Setup, sources: Sources, name: str, backbones: Backbones, decoder: DecoderKind) -> Training:
    """Return a training on whole pictures, fakes against as many reals."""
    train, valid = (tuple(sources.samples(name, split, reals=True)) for split in _LEARNING)
    recipe = setup.config(backbones, decoder, pictures=len(train))
    model = dataclasses.replace(recipe.model, image_score="mean-logit")
    return Training(
        name=f"{name} and reals",
        config=dataclasses.replace(recipe, model=model, target="image", select="ap", reals=1.0),
        train=train,
        valid=valid,
    )
