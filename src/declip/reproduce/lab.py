"""What all experiments do: name trainings and tests, read their figures, and draw their maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from declip.evaluation import plots
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.reproduce.cells import Maps, Measurement, Training, Untrained, Workbench
from declip.reproduce.report import Entry
from declip.reproduce.setup import Backbones, Setup
from declip.reproduce.sources import Sources, Split
from declip.results import Sample
from declip.spec import DecoderKind, DecoderSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TYPICAL", "Lab"]

_GREY = "scores: black 0, white 1, not stretched; below each map its IoU, %; framed: trained on what is tested"
TYPICAL = "The pictures shown are those of the median manipulated area of their test sets."


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """What an experiment works with: what was asked for, where samples come from, and who computes cells."""

    setup: Setup
    sources: Sources
    bench: Workbench

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the generators."""
        return self.sources.names

    def samples(self, name: str, split: Split, *, reals: bool = False) -> tuple[Sample, ...]:
        """Return the samples of one generator and part."""
        return tuple(self.sources.samples(name, split, reals=reals))

    def training(self, name: str, backbones: Backbones, decoder: DecoderKind | None = None) -> Training:
        """Return the training of a model on one generator by the recipe of the scale."""
        train, valid = self.samples(name, "train"), self.samples(name, "valid")
        config = self.setup.config(backbones, decoder, pictures=len(train))
        return Training(name=name, config=config, train=train, valid=valid)

    def test(self, training: Training | Untrained, name: str) -> Measurement:
        """Return the test of a model on the test set of one generator."""
        return Measurement(training=training, name=name, samples=self.samples(name, "test"))

    def run(self, tests: Iterable[Measurement], shown: Mapping[str, Sample] | None = None) -> None:
        """Compute tests; where pictures are shown, each test's map of its own one right behind it."""
        cells = [(test,) if shown is None else (test, _map(test, shown)) for test in tests]
        self.bench.run(cell for pair in cells for cell in pair)

    def fill(self, trainings: Sequence[Training]) -> None:
        """Compute what is missing of the features of trainings that differ in their backbone's layer alone.

        The backbone runs once for all layers. Where all trainings are finished, nothing is computed.
        """
        config = trainings[0].config
        rows = {row.layer: row for training in trainings for row in training.config.model.backbones}
        if len(rows) == 1 or not config.kept_views() or all(map(self.bench.is_done, trainings)):
            return
        from declip import training as learning

        # The decoder plays no part; one on all of these layers would be large.
        layers = tuple(rows[layer] for layer in sorted(rows))
        model = dataclasses.replace(config.model, backbones=layers, decoder=DecoderSpec(kind="linear"))
        every, data = dataclasses.replace(config, model=model), trainings[0]
        learning.fill_features(every, train=data.train, valid=data.valid, cache=self.bench.features)

    def mean(self, tests: Iterable[Measurement], figure: str = "iou") -> float:
        """Return the mean of a figure over tests, in [0, 1]."""
        return float(np.mean([self.bench.figure(test, figure)[0] for test in tests]))

    def entry(self, test: Measurement, row: str, column: str, figure: str = "iou", *, detail: bool = False) -> Entry:
        """Return a figure of a test with its interval."""
        value, low, high = self.bench.figure(test, figure)
        return Entry(row=row, column=column, figure=figure, value=value, low=low, high=high, detail=detail)

    def typical(self) -> dict[str, Sample]:
        """Return of each test set the sample of the median manipulated area: chosen without a look at any result."""
        found = {}
        for name in self.names:
            samples = self.samples(name, "test")
            areas = [float(read_mask(sample).mean()) for sample in samples]
            found[name] = samples[int(np.argsort(areas, kind="stable")[len(areas) // 2])]
        return found

    def gallery(
        self,
        tests: Sequence[Sequence[Measurement]],
        rows: Sequence[str],
        columns: Sequence[str],
        shown: Mapping[str, Sample],
        *,
        framed: bool = True,
    ) -> Figure:
        """Draw a row for each row of tests of one set: photo, known mask, and each test's map with the IoU there."""
        tiles = []
        for line in tests:
            sample = shown[line[0].name]
            tiles.append([plots.Tile(pixels=read_photo(sample.image).pixels), plots.Tile(pixels=read_mask(sample))])
            for test in line:
                (scores,) = self.bench.maps(_map(test, shown))
                caption = f"{100 * self.bench.picture(test, sample, 'iou'):.0f}"
                known = framed and test.training.name == test.name
                tiles[-1].append(plots.Tile(pixels=scores, caption=caption, framed=known))
        return plots.gallery(tiles, rows, ["photo", "known mask", *columns], gap=2, note=_GREY)


def _map(test: Measurement, shown: Mapping[str, Sample]) -> Maps:
    return Maps(training=test.training, name=test.name, samples=(shown[test.name],))
