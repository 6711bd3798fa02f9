"""Measure what a model's scores mean, and write it into the model."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from declip.calibration.fitting import THRESHOLDS, fit_temperature, fit_threshold, rank_of
from declip.calibration.untouched import Place, Untouched, candidates, with_pieces
from declip.engines import Wrapped, open_engine
from declip.errors import DatasetError, ImageError
from declip.images.mapfiles import empty_masks, read_mask, warn_of_empty_masks
from declip.images.read import MAX_BYTES, MAX_PIXELS
from declip.images.tensors import resize_scores
from declip.localize.localizer import Localizer, model_file
from declip.models.respec import check_target, with_spec
from declip.regions import MaskRule
from declip.results import Sample, check_samples, check_several, check_type
from declip.spec import MODEL, SIZE_CLASSES, Calibration, Mode, Precision

__all__ = ["RATES", "Outcome", "calibrate", "measure"]

_log = logging.getLogger(__name__)

RATES = (0.01, 0.05)
# With fewer photos the guarantee still holds on average, but a single calibration can be far off.
_FEW = 100

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A calibration, and what it stands on.

    unreadable: photos left out. repeated: photos left out because their bytes were there already. unfit: photos left
    out because they are no photographs, too small, or empty. fakes: manipulated pictures that temperature and threshold
    were refitted on; 0 = both are the model's own. lost: samples left out.
    """

    calibration: Calibration
    unreadable: int = 0
    repeated: int = 0
    unfit: int = 0
    fakes: int = 0
    lost: int = 0


def calibrate(
    model: str | Path | None,
    photos: Iterable[str | Path],
    out: str | Path,
    *,
    rates: Sequence[float] = RATES,
    samples: Sequence[Sample] | None = None,
    pieces: int = 0,
    saves: int = 0,
    clues: bool = True,
    mode: Mode | None = None,
    precision: Precision = "exact",
    batch_size: int = 8,
    seed: int = 0,
    offline: bool = False,
    force: bool = False,
    progress: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Outcome:
    """Calibrate a model on untouched photos and write it, weights unchanged, with the calibration inside.

    model: as for `declip.load`. out: the file to write, of the same suffix as the model's (.onnx for mini). mode,
    precision: to localize in (None = the model's own mode); a verdict is given only in these. max_pixels, max_bytes: of
    a picture, as for `declip.load`. The rest as for `measure`.
    Raises DeclipError where out exists, unless force; WeightsError for another suffix; and as `load` and `measure` do.
    """
    source = model_file(model, offline=offline)
    check_target(source, out, force=force)
    engine = open_engine(source, precision=precision, offline=offline)
    outcome = measure(
        Localizer(engine, mode=mode, max_pixels=max_pixels, max_bytes=max_bytes).look_for("all" if clues else "none"),
        photos,
        rates=rates,
        samples=samples,
        pieces=pieces,
        saves=saves,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    with_spec(source, dataclasses.replace(engine.spec, calibration=outcome.calibration), out, force=force)
    return outcome


def measure(
    localizer: Localizer,
    photos: Iterable[str | Path],
    *,
    rates: Sequence[float] = RATES,
    samples: Sequence[Sample] | None = None,
    pieces: int = 0,
    saves: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Outcome:
    """Measure what a localizer's scores mean on photos known to be untouched.

    photos: paths; such that the photos to be judged later could as well have been among them. A photo is judged by
    those of its own size (`types.SIZE_CLASSES`). rates: one or two false-alarm rates in (0, 1): that of "manipulated",
    and that of "inconclusive". samples: None = temperature and threshold stay the model's; else the manipulated
    pictures with masks among them refit both (`fit_temperature`, then `fit_threshold`). pieces: into at most how many
    pieces a photo of 0.5 MP and more is cut besides, for each of the larger sizes (`cut`), where such photos are few.
    saves: each photo counts with the strongest of itself and of so many copies, each saved as JPEG once more than the
    one before (`saved_again`), for photos that may come through messengers.
    Clues take part in the verdict unless the localizer leaves them out: all that there are are looked for.
    seed: of the pixels that the temperature is fitted on. progress: show bars on stderr.

    What cannot be read is left out, named in the log and counted; so are photos that would get no verdict ("not
    examined"), and photos whose bytes were there already, since a photo that counts twice voids the guarantee.
    Raises DatasetError where no size has photos enough for the larger rate, saying how many it needs, or the samples
    hold no manipulated pictures; SpecError for other rates.
    """
    check_type(localizer, Localizer, "declip.load('mini')")
    check_several(photos, "photos=[…]")
    fakes = [sample for sample in check_samples(samples or (), "samples=[…]") if sample.label == "fake"]
    before = localizer.spec.calibration
    known = () if before is None or samples is not None else before.scales
    kept = tuple(scale for scale in known if scale.clue == MODEL)
    base = Calibration(rates=tuple(sorted(rates)), mode=localizer.mode, precision=localizer.precision)
    base = dataclasses.replace(base, scales=kept, saves=saves)
    paths = list(map(Path, photos))
    distinct = _distinct(paths)
    rank_of(max(rates), len(distinct))  # refuses too few before hours of computing
    temperature, threshold = localizer.spec.temperature, MaskRule.of(localizer.spec).threshold
    warn_of_empty_masks(empty_masks(fakes), len(fakes))
    used: list[Sample] = []
    tried: tuple[float, ...] = (threshold,)
    if samples is not None:

        def manipulated() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
            for sample, found, mask in _with_masks(localizer, fakes, batch_size, "temperature", progress):
                used.append(sample)
                yield found, mask

        temperature, tried = fit_temperature(manipulated(), temperature, seed=seed), THRESHOLDS
    calibrated = dataclasses.replace(localizer.spec.calibration or Calibration(), temperature=temperature)
    final = localizer.variant(
        engine=Wrapped(localizer.engine, dataclasses.replace(localizer.spec, calibration=calibrated)),
        clues=None if localizer.asked == "none" else "all",
    )
    left_out: dict[str, int] = {"unreadable": 0, "unfit": 0}
    clean: list[Untouched] = []
    places: list[Place] = []
    pictures = with_pieces(final, distinct, places, pieces=pieces, saves=saves)
    total = None if pieces else (saves + 1) * len(distinct)
    for i, result in enumerate(_tracked(final.map(pictures, batch_size=batch_size), "photos", total, progress)):
        if isinstance(result, ImageError):
            left_out["unreadable"] += 1
            _log.warning("left out: %s", result)
        elif result.out_of_scope is not None:
            left_out["unfit"] += 1
            _log.warning("left out: %s: %s", result.name, result.out_of_scope)
        else:
            clean.append(Untouched.of(places[i], result.scores, tried, result.findings))
    calibrations = candidates(clean, tried, dataclasses.replace(base, temperature=temperature), final.scales)
    rank_of(max(rates), max(calibrations[0].photos))
    if samples is None:
        (calibration,) = calibrations
    else:
        pairs = _with_masks(final, used, batch_size, "threshold", progress)
        calibration = fit_threshold(((found, mask) for _, found, mask in pairs), calibrations)
    _warn_few(calibration)
    return Outcome(
        calibration=calibration,
        repeated=len(paths) - len(distinct),
        fakes=len(used),
        lost=len(fakes) - len(used),
        **left_out,
    )


def _warn_few(calibration: Calibration) -> None:
    """Say in the log which sizes of photos have no verdict, or not all of them."""
    for i, (name, count) in enumerate(zip(SIZE_CLASSES, calibration.photos, strict=True)):
        steps = calibration.steps(i)
        shown = f"{count} untouched photo{'' if count == 1 else 's'}"
        if not steps:
            _log.warning("photos %s get no verdict: there are only %s", name, shown)
        elif len(steps) < len(calibration.rates):
            rate = 100 / (count + 1)
            _log.warning("photos %s are never called manipulated: %s support no rate below %.2g %%", name, shown, rate)
        elif count < _FEW:
            _log.warning("only %s %s: a single calibration can be off", shown, name)


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Return the paths without repeated bytes. What cannot be read stays: the localizer says why."""
    first: dict[str, Path] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                key = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            key = str(path)
        first.setdefault(key, path)
    return list(first.values())


def _with_masks(
    localizer: Localizer, samples: Sequence[Sample], batch_size: int, what: str, progress: bool
) -> Iterator[tuple[Sample, NDArray[np.float32], NDArray[np.bool_]]]:
    """(sample, scores, mask) at the mask's size; what cannot be read is left out and named in the log."""
    plain = localizer.variant(clues="none")
    results = plain.map((sample.image for sample in samples), batch_size=batch_size)
    for sample, result in _tracked(zip(samples, results, strict=True), what, len(samples), progress):
        try:
            if isinstance(result, ImageError):
                raise result
            mask = read_mask(sample, max_pixels=max(MAX_PIXELS, result.scores.size))
        except (ImageError, DatasetError) as error:
            _log.warning("left out: %s", error)
            continue
        scores = result.scores
        if scores.shape != mask.shape:
            scores = resize_scores(scores, (mask.shape[0], mask.shape[1]))
        yield sample, scores, mask


def _tracked(items: Iterable[T], what: str, total: int | None, progress: bool) -> Iterable[T]:
    return track(items, what, total, console=Console(stderr=True), disable=not progress)
