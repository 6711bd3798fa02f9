"""Experiments beyond the train–test pairs: unseen compression, perturbations, an unseen generator."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from declip import datasets
from declip.evaluation import plots
from declip.images.dose import Perturbation
from declip.reproduce import paper
from declip.reproduce.cells import Measurement, Training, Workbench
from declip.reproduce.pairs import training_on
from declip.reproduce.report import Entry, Grid, Outcome
from declip.reproduce.setup import Setup, model_name
from declip.reproduce.sources import Dolos, Sources, Split
from declip.results import Sample
from declip.spec import DecoderKind

__all__ = ["autosplice", "leave_one_out", "robustness"]

_LEARNING: tuple[Split, Split] = ("train", "valid")
# Of AutoSplice, and of what stands for it.
_QUALITIES: tuple[Literal[75, 90, 100], ...] = (75, 90, 100)
# From mild to strong.
_LEVELS: dict[Perturbation, tuple[float, ...]] = {
    "jpeg": (100, 90, 75, 50, 30),
    "webp": (100, 90, 75, 50, 30),
    "blur": (0.5, 1, 2, 3),
    "noise": (1, 2, 4, 8, 16),
    "resize": (0.9, 0.75, 0.5, 0.25),
}
_AXES: dict[Perturbation, str] = {
    "jpeg": "quality",
    "webp": "quality",
    "blur": "sigma, px",
    "noise": "sigma, of 255 levels",
    "resize": "factor",
}
_FALLING: tuple[Perturbation, ...] = ("jpeg", "webp", "resize")
# Samples of the unseen generator that a trained model is adapted to.
_SHOTS = (0, 4, 16, 64)
# Adaptation: few steps from what was learnt, at a lower rate. The paper has none; this is this project's choice.
_ADAPT_EPOCHS, _ADAPT_RATE = 40, 3e-4


def leave_one_out(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Train on three generators and test on the unseen fourth; then adapt the model to a few of its pictures."""
    decoder: DecoderKind = setup.decoder if setup.is_tiny else "conv-12"
    bases = {held: _on_others(setup, sources, held, decoder) for held in sources.names}
    tests: dict[tuple[str, int], Measurement] = {}
    for held, base in bases.items():
        tested = tuple(sources.samples(held, "test"))
        tests[held, 0] = Measurement(training=base, name=held, samples=tested)
        pool = sources.samples(held, "train")
        order = np.random.default_rng((setup.seed, 4)).permutation(len(pool))
        for count in _SHOTS[1:]:
            if count > len(pool):
                continue
            # All that is known of the fourth: it chooses the epoch, too.
            shots = tuple(pool[i] for i in order[:count])
            adapted = Training(
                name=f"{count} of {held} after {base.name}",
                config=dataclasses.replace(base.config, epochs=_ADAPT_EPOCHS, lr=_ADAPT_RATE, schedule="cosine"),
                train=shots,
                valid=shots,
                start=base,
            )
            tests[held, count] = Measurement(training=adapted, name=held, samples=tested)
    bench.run(list(tests.values()))
    counts = sorted({count for _, count in tests})
    values = {place: bench.figure(test)[0] for place, test in tests.items()}
    means = {k: float(np.mean([values[held, k] for held in bases])) for k in counts}
    model = model_name(setup.fusion, decoder)
    number = paper.find(f"{paper.FUSION}, conv-12" if setup.is_tiny else model, "unseen fourth")
    lines = [
        plots.Curve(label=held, x=tuple(range(len(counts))), y=tuple(values[held, k] for k in counts)) for held in bases
    ]
    lines.append(plots.Curve(label="mean", x=tuple(range(len(counts))), y=tuple(means.values()), dashed=True))
    panel = plots.Panel(
        title=model,
        x_label="pictures of the unseen generator",
        curves=tuple(lines),
        ticks=tuple(range(len(counts))),
        tick_labels=tuple(str(k) for k in counts),
    )
    return Outcome(
        name="leave-one-out",
        title=f"Three generators → the unseen fourth, {model}",
        entries=(
            Entry(row="unseen fourth", column="mean", value=means[0], paper=number),
            *(_iou(bench, tests[held, k], f"{k} pictures", held) for held in bases for k in counts),
        ),
        grids=(
            Grid(
                title="IoU, %, on the generator that was left out, by how many of its pictures were learnt afterwards",
                rows=(*bases, "mean"),
                columns=tuple(str(k) for k in counts),
                values=(*(tuple(values[held, k] for k in counts) for held in bases), tuple(means.values())),
            ),
        ),
        figures={"few-shot.png": plots.curves([panel])},
        protocols=bench.protocols(tests.values()),
        notes=(
            f"Data: {sources.describe()}.",
            "The three have together as many pictures as one has. Adaptation starts from that model; the same few "
            "pictures train and choose the epoch.",
        ),
        is_tiny=setup.is_tiny,
    )


def autosplice(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Train on one generator, test on AutoSplice at three JPEG qualities; tiny: on its own test set, saved so."""
    trainings = {name: training_on(setup, sources, name, setup.fusion) for name in sources.names}
    tests: dict[tuple[int, str], Measurement] = {}
    for quality in _QUALITIES:
        published: tuple[Sample, ...] = ()
        if isinstance(sources, Dolos):
            published = tuple(datasets.autosplice(sources.root / "AutoSplice", quality=quality, reals=False))
        for name, training in trainings.items():
            if published:
                tests[quality, name] = Measurement(
                    training=training, name=f"AutoSplice JPEG {quality}", samples=published
                )
            else:
                samples = tuple(sources.samples(name, "test"))
                tests[quality, name] = Measurement(
                    training=training, name=name, samples=samples, kind="jpeg", level=quality
                )
    bench.run(list(tests.values()))
    rows = tuple(f"JPEG {quality}" for quality in _QUALITIES)
    values = np.array([[bench.figure(tests[quality, name])[0] for name in trainings] for quality in _QUALITIES])
    model = model_name(setup.fusion, setup.decoder)
    told = (
        "At tiny scale each model is tested on its own generator's test set, saved as JPEG."
        if setup.is_tiny
        else "AutoSplice has no parts; all of its manipulated pictures are tested."
    )
    return Outcome(
        name="autosplice",
        title=f"{'Stand-in for AutoSplice' if setup.is_tiny else 'AutoSplice'}, {model}",
        entries=tuple(
            _iou(bench, tests[quality, name], f"JPEG {quality}", name) for quality in _QUALITIES for name in trainings
        ),
        grids=(
            Grid(
                title="IoU, %: rows tested on, columns trained on",
                rows=rows,
                columns=tuple(trainings),
                values=tuple(tuple(float(value) for value in line) for line in values),
            ),
        ),
        figures={"autosplice.png": plots.matrix([plots.Matrix(title=model, values=values)], rows, tuple(trainings))},
        protocols=bench.protocols(tests.values()),
        notes=(f"Data: {sources.describe()}.", told),
        is_tiny=setup.is_tiny,
    )


def robustness(setup: Setup, sources: Sources, bench: Workbench) -> Outcome:
    """Measure the IoU of a model on its own generator's test set after JPEG, WebP, blur, noise and resizing."""
    name = sources.names[0]
    training, samples = training_on(setup, sources, name, setup.fusion), tuple(sources.samples(name, "test"))
    plain = Measurement(training=training, name=name, samples=samples)
    tests: dict[tuple[Perturbation, float], Measurement] = {
        (kind, level): Measurement(training=training, name=name, samples=samples, kind=kind, level=level)
        for kind, levels in _LEVELS.items()
        for level in levels
    }
    bench.run([plain, *tests.values()])
    untouched = bench.figure(plain)[0]
    panels = []
    for kind, levels in _LEVELS.items():
        found = [bench.figure(tests[kind, level]) for level in levels]
        mean, low, high = zip(*found, strict=True)
        panels.append(
            plots.Panel(
                title=kind,
                x_label=_AXES[kind],
                curves=(
                    plots.Curve(label="after it", x=levels, y=mean, low=low, high=high),
                    plots.Curve(label="untouched", x=(levels[0], levels[-1]), y=(untouched, untouched), dashed=True),
                ),
                reversed=kind in _FALLING,
                ticks=levels,
            )
        )
    model = model_name(setup.fusion, setup.decoder)
    return Outcome(
        name="robustness",
        title=f"Robustness, {model}, trained and tested on {name}",
        entries=(
            _iou(bench, plain, "as it is", name),
            *(_iou(bench, test, f"{kind} {level:g}", name) for (kind, level), test in tests.items()),
        ),
        figures={"robustness.png": plots.curves(panels)},
        protocols=bench.protocols([plain, *tests.values()]),
        notes=(
            f"Data: {sources.describe()}.",
            "The bands are 95 % intervals over photos. No augmentation in training.",
        ),
        is_tiny=setup.is_tiny,
    )


def _on_others(setup: Setup, sources: Sources, held: str, decoder: DecoderKind) -> Training:
    """Return a training on all sources but one, with the number of pictures that a single one has."""
    others = [name for name in sources.names if name != held]

    def mixed(split: Split) -> tuple[Sample, ...]:
        chosen = []
        for i, name in enumerate(others):
            pool = sources.samples(name, split)
            order = np.random.default_rng((setup.seed, 3)).permutation(len(pool))
            # Every source gives other places of the same order, so that hardly a photo comes twice.
            chosen += [pool[place] for place in np.sort(order[i :: len(others)])]
        return tuple(chosen)

    train, valid = mixed("train"), mixed("valid")
    config = setup.config(setup.fusion, decoder, pictures=len(train))
    return Training(name=f"all but {held}", config=config, train=train, valid=valid)


def _iou(bench: Workbench, test: Measurement, row: str, column: str) -> Entry:
    value, low, high = bench.figure(test)
    return Entry(row=row, column=column, value=value, low=low, high=high)
