"""Experiments beyond the train–test pairs: whole pictures, unseen compression, perturbations, an unseen generator."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from declip import datasets
from declip.evaluation import plots
from declip.images.dose import Perturbation
from declip.reproduce import paper
from declip.reproduce.cells import Measurement, Training
from declip.reproduce.lab import Lab
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import Backbones, model_name
from declip.reproduce.sources import Dolos, Split
from declip.results import Sample
from declip.spec import DecoderKind

__all__ = ["autosplice", "detection", "leave_one_out", "robustness"]

# Of AutoSplice, and of what stands for it.
_QUALITIES: tuple[Literal[75, 90, 100], ...] = (75, 90, 100)
# From mild to strong: levels, their name, and whether they fall.
_LEVELS: dict[Perturbation, tuple[tuple[float, ...], str, bool]] = {
    "jpeg": ((100, 90, 75, 50, 30), "quality", True),
    "webp": ((100, 90, 75, 50, 30), "quality", True),
    "blur": ((0.5, 1, 2, 3), "sigma, px", False),
    "noise": ((1, 2, 4, 8, 16), "sigma, of 255 levels", False),
    "resize": ((0.9, 0.75, 0.5, 0.25), "factor", True),
}
# Samples of the unseen generator that a trained model is adapted to.
_SHOTS = (4, 16, 64)
# Adaptation: few steps from what was learnt, at a lower rate. The paper has none; this is this project's choice.
_ADAPT_EPOCHS, _ADAPT_RATE = 40, 3e-4


def leave_one_out(lab: Lab) -> Outcome:
    """Train on three generators and test on the unseen fourth; then adapt the model to a few of its pictures."""
    setup, bench = lab.setup, lab.bench
    decoder: DecoderKind = setup.decoder if setup.is_tiny else "conv-12"
    tests: dict[tuple[str, int], Measurement] = {}
    for held in lab.names:
        base = _on_others(lab, held, decoder)
        tests[held, 0] = lab.test(base, held)
        pool = lab.samples(held, "train")
        order = np.random.default_rng((setup.seed, 4)).permutation(len(pool))
        for count in _SHOTS:
            if count > len(pool):
                continue
            # All that is known of the fourth: it chooses the epoch, too.
            shots = tuple(pool[i] for i in order[:count])
            config = dataclasses.replace(base.config, epochs=_ADAPT_EPOCHS, lr=_ADAPT_RATE, schedule="cosine")
            name = f"{count} of {held} after {base.name}"
            tests[held, count] = lab.test(
                Training(name=name, config=config, train=shots, valid=shots, start=base), held
            )
    lab.run(tests.values())
    counts = sorted({count for _, count in tests})
    rows = {held: tuple(bench.figure(tests[held, k])[0] for k in counts) for held in lab.names}
    rows["mean"] = tuple(float(np.mean(column)) for column in zip(*rows.values(), strict=True))
    model = model_name(setup.fusion, decoder)
    number = paper.find(f"{paper.FUSION}, conv-12" if setup.is_tiny else model, "unseen fourth")
    places, labels = tuple(range(len(counts))), tuple(map(str, counts))
    panel = plots.Panel(
        title=model,
        x_label="pictures of the unseen generator",
        curves=tuple(plots.Curve(label=name, x=places, y=y, dashed=name == "mean") for name, y in rows.items()),
        ticks=places,
        tick_labels=labels,
    )
    title = "IoU, %, on the generator that was left out, by how many of its pictures were learnt afterwards"
    return Outcome(
        tests=list(tests.values()),
        title=f"Three generators → the unseen fourth, {model}",
        entries=[
            Entry(row="unseen fourth", column="mean", value=rows["mean"][0], paper=number),
            *(lab.entry(tests[held, k], f"{k} pictures", held) for held in lab.names for k in counts),
        ],
        grids=[Grid(title=title, rows=tuple(rows), columns=labels, values=list(rows.values()))],
        figures={"few-shot.png": plots.curves([panel])},
        notes=[
            "The three have together as many pictures as one has. Adaptation starts from that model; the same few "
            "pictures train and choose the epoch."
        ],
    )


def autosplice(lab: Lab) -> Outcome:
    """Train on one generator, test on AutoSplice at three JPEG qualities; tiny: on its own test set, saved so."""
    trainings = {name: lab.training(name, lab.setup.fusion) for name in lab.names}
    tests: dict[tuple[int, str], Measurement] = {}
    for quality in _QUALITIES:
        if isinstance(lab.sources, Dolos):
            found = tuple(datasets.autosplice(lab.sources.root / "AutoSplice", quality=quality, reals=False))
            for name, training in trainings.items():
                test = Measurement(training=training, name=f"AutoSplice JPEG {quality}", samples=found)
                tests[quality, name] = test
        else:
            for name, training in trainings.items():
                tests[quality, name] = dataclasses.replace(lab.test(training, name), kind="jpeg", level=quality)
    lab.run(tests.values())
    rows = tuple(f"JPEG {quality}" for quality in _QUALITIES)
    values = np.array([[lab.bench.figure(tests[quality, name])[0] for name in lab.names] for quality in _QUALITIES])
    model = model_name(lab.setup.fusion, lab.setup.decoder)
    title = "IoU, %: rows tested on, columns trained on"
    tiny = lab.setup.is_tiny
    told = "At tiny scale each model is tested on its own generator's test set, saved as JPEG."
    return Outcome(
        tests=list(tests.values()),
        title=f"{'Stand-in for AutoSplice' if tiny else 'AutoSplice'}, {model}",
        entries=[lab.entry(test, f"JPEG {quality}", name) for (quality, name), test in tests.items()],
        grids=[Grid(title=title, rows=rows, columns=lab.names, values=values.tolist())],
        figures={"autosplice.png": plots.matrix({model: values}, rows, lab.names)},
        notes=[told if tiny else "AutoSplice has no parts; all of its manipulated pictures are tested."],
    )


def robustness(lab: Lab) -> Outcome:
    """Measure the IoU of a model on its own generator's test set after JPEG, WebP, blur, noise and resizing."""
    name = lab.names[0]
    plain = lab.test(lab.training(name, lab.setup.fusion), name)
    tests = {
        (kind, level): dataclasses.replace(plain, kind=kind, level=level)
        for kind, (levels, _, _) in _LEVELS.items()
        for level in levels
    }
    every = [plain, *tests.values()]
    lab.run(every)
    untouched = lab.bench.figure(plain)[0]
    panels = []
    for kind, (levels, axis, falls) in _LEVELS.items():
        mean, low, high = zip(*(lab.bench.figure(tests[kind, level]) for level in levels), strict=True)
        after = plots.Curve(label="after it", x=levels, y=mean, low=low, high=high)
        before = plots.Curve(label="untouched", x=(levels[0], levels[-1]), y=(untouched, untouched), dashed=True)
        panels.append(plots.Panel(title=kind, x_label=axis, curves=(after, before), reversed=falls, ticks=levels))
    model = model_name(lab.setup.fusion, lab.setup.decoder)
    return Outcome(
        tests=every,
        title=f"Robustness, {model}, trained and tested on {name}",
        entries=[
            lab.entry(plain, "as it is", name),
            *(lab.entry(test, f"{kind} {level:g}", name) for (kind, level), test in tests.items()),
        ],
        figures={"robustness.png": plots.curves(panels)},
        notes=["The bands are 95 % intervals over photos. No augmentation in training."],
    )


def detection(lab: Lab) -> Outcome:
    """Compare a model trained on masks with models trained on whole pictures, real or fake."""
    setup, backbones = lab.setup, lab.setup.single
    linear = model_name(backbones, "linear")
    models: dict[str, dict[str, Training]] = {
        f"masks, {setup.decoder}": {name: lab.training(name, backbones) for name in lab.names},
        f"whole pictures, {setup.decoder}": {name: _on_pictures(lab, name, backbones) for name in lab.names},
        "whole pictures, linear": {name: _on_pictures(lab, name, backbones, "linear") for name in lab.names},
    }

    def test(training: Training, row: str) -> Measurement:
        return Measurement(training=training, name=f"{row} and reals", samples=lab.samples(row, "test", reals=True))

    # (model, tested on, trained on)
    tests = {
        (model, row, column): test(training, row)
        for model, trainings in models.items()
        for column, training in trainings.items()
        for row in lab.names
    }
    full = [test(_on_pictures(lab, "p2", backbones, "linear"), "p2")] if isinstance(lab.sources, Dolos) else []
    every = [*tests.values(), *full]
    lab.run(every)
    figures = ("detection_ap", "detection_auc")
    means: dict[str, list[float]] = {model: [] for model in models}
    entries = []
    for model, found in means.items():
        printed = (f"{paper.VIT}, linear" if setup.is_tiny else linear) if "linear" in model else ""
        for where, known in (("local edits", True), ("local edits, OOD", False)):
            chosen = [one for (m, row, column), one in tests.items() if m == model and (row == column) == known]
            for figure in figures:
                found.append(lab.mean(chosen, figure))
                number = paper.find(printed, where, figure=figure)
                entries.append(Entry(row=where, column=model, figure=figure, value=found[-1], paper=number))
    for one in full:
        for figure in figures:
            entry = lab.entry(one, "full fakes", "whole pictures, linear, trained on p2", figure)
            entries.append(dataclasses.replace(entry, paper=paper.find(linear, "full fakes", figure=figure)))
    return Outcome(
        tests=every,
        title=f"Detection of whole pictures, {model_name(backbones)}",
        entries=entries,
        grids=[
            Grid(
                title="Detection, %: local edits against real photos, by what the model was trained on",
                rows=tuple(means),
                columns=("AP, ID", "AUC, ID", "AP, OOD", "AUC, OOD"),
                values=list(means.values()),
            )
        ],
        notes=[
            "Real photos stand beside the manipulated ones.",
            "Trained on masks: the score of a picture is the mean of its scores. Trained on whole pictures: the "
            "sigmoid of its mean logit, which is what was trained.",
            *([] if full else ["Pictures that are generated as a whole are part of the full scale only."]),
        ],
    )


def _on_others(lab: Lab, held: str, decoder: DecoderKind) -> Training:
    """Return a training on all generators but one, with the number of pictures that a single one has."""
    others = [name for name in lab.names if name != held]

    def mixed(split: Split) -> tuple[Sample, ...]:
        chosen = []
        for i, name in enumerate(others):
            pool = lab.samples(name, split)
            order = np.random.default_rng((lab.setup.seed, 3)).permutation(len(pool))
            # Every generator gives other places of the same order, so that hardly a photo comes twice.
            chosen += [pool[place] for place in np.sort(order[i :: len(others)])]
        return tuple(chosen)

    train, valid = mixed("train"), mixed("valid")
    config = lab.setup.config(lab.setup.fusion, decoder, pictures=len(train))
    return Training(name=f"all but {held}", config=config, train=train, valid=valid)


def _on_pictures(lab: Lab, name: str, backbones: Backbones, decoder: DecoderKind | None = None) -> Training:
    """Return a training on whole pictures, fakes against as many reals."""
    train, valid = (lab.samples(name, split, reals=True) for split in ("train", "valid"))
    recipe = lab.setup.config(backbones, decoder, pictures=len(train))
    model = dataclasses.replace(recipe.model, image_score="mean-logit")
    config = dataclasses.replace(recipe, model=model, target="image", select="ap", reals=1.0)
    return Training(name=f"{name} and reals", config=config, train=train, valid=valid)
