"""Cells: a training, a test or a few maps, each a folder that is computed once.

A cell's folder is named by what it is and by a digest of everything that decides it: recipe, samples (the bytes of
their files), version. Its result.json appears, whole, when it is finished; from then on the cell is read, never
computed again, by whichever experiment asks for it. A training that was cut short goes on where it stopped, any other
cell starts again; so an interruption, a `kill -9` too, costs one epoch or one test.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from declip import evaluation
from declip._version import __version__
from declip.clues import BASELINES
from declip.errors import DatasetError, ImageError, WeightsError
from declip.files import encode, make_folder, sha256_of, write_atomic
from declip.images.dose import Perturbation, perturb
from declip.images.mapfiles import read_scores, write_scores
from declip.images.read import read_photo
from declip.localize.localizer import Localizer, load
from declip.reproduce.setup import model_name
from declip.results import Localization, PictureLike, Predictor, Sample

if TYPE_CHECKING:
    from declip.training import TrainConfig

__all__ = ["Cell", "Maps", "Measurement", "Training", "Untrained", "Workbench"]

log = logging.getLogger(__name__)

# Of the bootstrap behind the intervals.
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell(ABC):
    """One step of an experiment. name: of the data.

    Cells are compared by their digests, never by value: a digest is computed once, and ten thousand samples are many.
    """

    name: str

    what: ClassVar[str]

    @cached_property
    def digest(self) -> str:
        """Return a name for everything that decides the result."""
        content = {"cell": self.what, "declip": __version__, **self.content()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    @abstractmethod
    def label(self) -> str:
        """Return the name in logs and of the folder."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return all that decides the result, beside the version."""

    @abstractmethod
    def steps(self) -> list[Cell]:
        """Return the cells that this one needs, and then itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Training(Cell):
    """A model to train. start: the training whose decoder is the starting point, if any."""

    config: TrainConfig
    train: tuple[Sample, ...]
    valid: tuple[Sample, ...]
    start: Training | None = None

    what = "Training"

    @property
    def label(self) -> str:
        model = self.config.model
        aim = "" if model.image_score == "mean" else ", whole pictures"
        named = model.architecture if model.decoder is None else model_name(model.backbones, model.decoder.kind)
        return f"train {self.name}, {named}{aim}"

    def content(self) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(self.config),
            "train": _fingerprints(self.train),
            "valid": _fingerprints(self.valid),
            "start": None if self.start is None else self.start.digest,
        }

    def steps(self) -> list[Cell]:
        return [*(self.start.steps() if self.start is not None else ()), self]


@dataclass(frozen=True, kw_only=True, eq=False)
class Untrained:
    """A map of `clues.BASELINES`, by its name: it stands where a training does, and nothing is computed for it."""

    name: str

    @property
    def label(self) -> str:
        """Return the name in logs and of folders."""
        return f"{self.name}, not trained"

    @property
    def digest(self) -> str:
        """Return the name: a release has one map of it, and its version is in the digest of whatever asks."""
        return self.name

    def steps(self) -> list[Cell]:
        """Return the cells that this needs: none."""
        return []


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps(Cell):
    """Score maps of a few samples, for figures, by a trained model or a map without training."""

    training: Training | Untrained
    samples: tuple[Sample, ...]

    what = "Maps"

    @property
    def label(self) -> str:
        return f"maps {self.name}, {self.training.label}"

    def content(self) -> dict[str, Any]:
        return {"training": self.training.digest, "samples": _fingerprints(self.samples)}

    def steps(self) -> list[Cell]:
        return [*self.training.steps(), self]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement(Maps):
    """A test on samples. kind, level: what is done to each picture first, if anything (of trained models)."""

    kind: Perturbation | None = None
    level: float = 0.0

    what = "Test"

    @property
    def label(self) -> str:
        after = "" if self.kind is None else f" after {self.kind} {self.level:g}"
        return f"test {self.name}{after}, {self.training.label}"

    def content(self) -> dict[str, Any]:
        return {**super().content(), "perturbation": [self.kind, self.level]}


class Workbench:
    """Computes cells into out/cells, and reads them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._opened: tuple[Path, Localizer] | None = None

    def run(self, cells: Iterable[Cell]) -> None:
        """Compute what is missing of these and of the trainings they need, with one line of log per cell."""
        plan = list({self.folder(step): step for cell in cells for step in cell.steps()}.values())
        for number, cell in enumerate(plan, start=1):
            folder, place = self.folder(cell), f"{number}/{len(plan)} {cell.label}"
            if self.is_done(cell):
                log.info("%s … done before", place)
                continue
            if isinstance(cell, Training):
                log.info("%s …", place)
            make_folder(folder)
            start = time.perf_counter()
            result = self._compute(cell, folder)
            seconds = time.perf_counter() - start
            content = {"label": cell.label, **result, "seconds": round(seconds, 1)}
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomic(folder / "result.json", f"{text}\n")
            log.info("%s … %.0f s", place, seconds)

    @property
    def features(self) -> Path:
        """Return the folder of the frozen features, which all trainings share."""
        return self.out / "features"

    def is_done(self, cell: Cell) -> bool:
        """Return whether a cell is finished."""
        return (self.folder(cell) / "result.json").exists()

    def folder(self, cell: Cell) -> Path:
        """Return where a cell lies."""
        readable = re.sub(r"[^a-z0-9.]+", "-", cell.label.lower())[:72].strip("-")
        return self.out / "cells" / f"{readable}-{cell.digest}"

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return result.json of a finished cell."""
        return dict(json.loads((self.folder(cell) / "result.json").read_text(encoding="utf-8")))

    def figure(self, test: Measurement, name: str = "iou") -> tuple[float, float, float]:
        """(mean, low, high) of a figure of `evaluation.Figures`, in [0, 1]; nan where it is not defined."""
        about = self.result(test)["overall"]["figures"][name]
        mean, low, high = (math.nan if about[key] is None else about[key] for key in ("mean", "low", "high"))
        return mean, low, high

    def picture(self, test: Measurement, sample: Sample, name: str) -> float:
        """Return a figure of one picture of a finished test: a number of images.csv, nan where there is none."""
        with (self.folder(test) / "images.csv").open(encoding="utf-8", newline="") as stream:
            # By its place: the paths are those of the day when it was computed.
            row = list(csv.DictReader(stream))[test.samples.index(sample)]
        return float(row[name] or "nan")

    def maps(self, cell: Maps) -> list[NDArray[np.float32]]:
        """Return the score maps of a finished cell, each (H, W) float32 in [0, 1], as its picture."""
        return [read_scores(self.folder(cell) / f"{i}.png") for i in range(len(cell.samples))]

    def _compute(self, cell: Cell, folder: Path) -> dict[str, Any]:
        if isinstance(cell, Training):
            return self._train(cell, folder)
        assert isinstance(cell, Maps)
        predictor = self._predictor(cell)
        if not isinstance(cell, Measurement):
            for i, result in enumerate(predictor.map([sample.image for sample in cell.samples])):
                if isinstance(result, ImageError):
                    raise result
                write_scores(folder / f"{i}.png", result.scores)
            return {"images": [sample.image.name for sample in cell.samples]}
        found = evaluation.evaluate(predictor, cell.samples, resamples=_RESAMPLES, cases=3, title=cell.label)
        treatment = "none" if cell.kind is None else f"{cell.kind} {cell.level:g}"
        card = {"training set": cell.training.label, "perturbation": treatment}
        found = dataclasses.replace(found, protocol={**found.protocol, **card})
        if found.errors:
            log.warning("  %d pictures failed; the first: %s", len(found.errors), found.errors[0].error)
        found.save(folder, force=True)
        return found.to_dict()

    def _train(self, cell: Training, folder: Path) -> dict[str, Any]:
        from declip import training

        run = training.train(
            cell.config,
            train=cell.train,
            valid=cell.valid,
            out=folder / "run",
            resume=True,
            cache=self.features,
            start=None if cell.start is None else self._best(cell.start),
        )
        log.info("  best epoch %d: IoU %.3f, AP %.3f on the validation pictures", run.epoch, run.iou, run.ap)
        found = {name: None if math.isnan(value) else value for name, value in (("iou", run.iou), ("ap", run.ap))}
        return {"epoch": run.epoch, "validation": found, "train": len(cell.train), "valid": len(cell.valid)}

    def _predictor(self, cell: Maps) -> Predictor:
        """Return what a cell measures; the last model stays open, since its tests follow each other."""
        if isinstance(cell.training, Untrained):
            return BASELINES[cell.training.name]()
        best = self._best(cell.training)
        if self._opened is None or self._opened[0] != best:
            self._opened = best, load(best)
        localizer = self._opened[1]
        if isinstance(cell, Measurement) and cell.kind is not None:
            return _Perturbed(localizer, cell.kind, cell.level)
        return localizer

    def _best(self, cell: Training) -> Path:
        return self.folder(cell) / "run" / "best.safetensors"


class _Perturbed:
    """A predictor that sees every picture after one perturbation. Its noise depends on the picture's name alone."""

    def __init__(self, localizer: Localizer, kind: Perturbation, level: float) -> None:
        self.localizer, self.spec, self.mode = localizer, localizer.spec, localizer.mode
        self.kind, self.level = kind, level

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        return self.localizer.map((self._perturb(picture) for picture in images), batch_size)

    def _perturb(self, picture: PictureLike) -> PictureLike:
        try:
            photo = read_photo(picture)
        except ImageError:
            return picture  # the localizer says what is wrong with it
        seed = int.from_bytes(hashlib.sha256(encode(Path(photo.name).name)).digest()[:8], "little")
        return perturb(photo.pixels, self.kind, self.level, np.random.default_rng(seed))


def _fingerprints(samples: Sequence[Sample]) -> list[list[str]]:
    """Return what of samples decides results: names matter to groups and logs, bytes to everything."""
    return [
        [s.image.name, _sha256(s.image), "" if s.mask is None else _sha256(s.mask), s.fake_is, s.label, s.group]
        for s in samples
    ]


@cache
def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except WeightsError as error:  # what it calls every file
        raise DatasetError(f"{path} cannot be read: {error.__cause__}") from error
