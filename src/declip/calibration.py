"""What scores mean, measured on a user's own photos: verdicts at known false-alarm rates, temperature, mask threshold.

`calibrate` takes a model file and writes another with the `Calibration` inside; `measure` does the same for an open
localizer and writes nothing. The rest are the rules they follow, each of scores alone: `image_thresholds`,
`false_alarm_range`, `fit_temperature`, `mask_rule`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import ndimage, optimize, special

from declip import datasets, image
from declip.engines import Wrapped, check_target, open_engine, with_spec
from declip.errors import DatasetError, ImageError, SpecError
from declip.localizer import Localizer, model_file
from declip.types import Calibration, Engine, Mode, ModelSpec, Precision, Sample, check_several

__all__ = [
    "Outcome",
    "calibrate",
    "false_alarm_range",
    "fit_temperature",
    "image_thresholds",
    "mask_rule",
    "measure",
]

_log = logging.getLogger(__name__)

RATES = (0.01, 0.05)
STEPS = np.round(np.arange(0.02, 0.981, 0.01), 2)
# The thresholds that are tried with higher peaks than themselves: finding the parts at one takes time.
THRESHOLDS = STEPS[8:89:10]  # 0.1, 0.2, … 0.9

# Temperatures beyond these mean that the scores say nothing, or everything, about the masks.
COLDEST, HOTTEST = 0.05, 20.0
# Of a float32 score no larger logit can be read.
_LARGEST_LOGIT = 16.0
# With fewer photos the guarantee still holds on average, but a single calibration can be far off.
_FEW = 100

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A calibration, and what it stands on.

    scores: the image scores of the untouched photos, in [0, 1], made with the calibration's temperature. unreadable:
    photos left out. repeated: photos left out because their bytes were there already. fakes: manipulated pictures that
    temperature and mask threshold were refitted on; 0 = both are the model's own. lost: samples left out.
    """

    calibration: Calibration
    scores: tuple[float, ...]
    unreadable: int = 0
    repeated: int = 0
    fakes: int = 0
    lost: int = 0


def calibrate(
    model: str | Path | None,
    photos: Iterable[str | Path],
    out: str | Path,
    *,
    rates: Sequence[float] = RATES,
    samples: Sequence[Sample] | None = None,
    mode: Mode | None = None,
    precision: Precision = "exact",
    batch_size: int = 8,
    seed: int = 0,
    offline: bool = False,
    force: bool = False,
    progress: bool = False,
    max_pixels: int = image.MAX_PIXELS,
    max_bytes: int = image.MAX_BYTES,
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
        Localizer(engine, mode=mode, precision=precision, max_pixels=max_pixels, max_bytes=max_bytes),
        photos,
        rates=rates,
        samples=samples,
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
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Outcome:
    """Measure what a localizer's scores mean on photos known to be untouched.

    photos: paths; such that the photos to be judged later could as well have been among them. rates: one or two
    false-alarm rates in (0, 1): that of "manipulated", and that of "inconclusive". samples: None = temperature and mask
    threshold stay the model's; else the manipulated pictures with masks among them refit both (`fit_temperature`, then
    `mask_rule` on scores of the new temperature, with photos as the untouched ones). seed: of the pixels that the
    temperature is fitted on. progress: show bars on stderr.

    A photo, sample or mask that cannot be read is left out, named in the log and counted; so are photos whose bytes
    were there already, since a photo that counts twice voids the guarantee.
    Raises DatasetError where the photos are too few for a rate, saying how many it needs, or the samples hold no
    manipulated pictures; SpecError for other rates.
    """
    if len(rates) not in (1, 2):
        raise SpecError(f"got {len(rates)} false-alarm rates; expected one or two: a verdict has no further steps")
    check_several(photos, "photos=[…]")
    check_several(samples or (), "samples=[…]")
    paths = list(map(Path, photos))
    distinct = _distinct(paths)
    image_thresholds([0.0] * len(distinct), rates)  # refuses what it can before hours of computing
    temperature, rule = localizer.spec.temperature, (localizer.spec.mask_threshold, localizer.spec.mask_peak)
    scores: list[float] = []
    used: list[Sample] = []

    def untouched(localizer: Localizer) -> Iterator[tuple[str, NDArray[np.float32]]]:
        results = localizer.map(distinct, batch_size=batch_size)
        for result in _tracked(results, "photos", len(distinct), progress):
            if isinstance(result, ImageError):
                _log.warning("left out: %s", result)
                continue
            scores.append(result.score)
            yield "as they are", result.scores

    def manipulated() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        for sample, found, mask in _with_masks(localizer, fakes, batch_size, "temperature", progress):
            used.append(sample)
            yield found, mask

    fakes = [sample for sample in samples or () if sample.label == "fake"]
    datasets.warn_of_empty_masks(datasets.empty_masks(fakes), len(fakes))
    if samples is None:
        for _ in untouched(localizer):
            pass  # the scores are kept on the way
    else:
        temperature = fit_temperature(manipulated(), temperature, seed=seed)
        final = _at(localizer, temperature)
        pairs = _with_masks(final, used, batch_size, "mask threshold", progress)
        rule = mask_rule(((found, mask) for _, found, mask in pairs), untouched(final))
    thresholds = image_thresholds(scores, rates)
    if len(scores) < _FEW:
        _log.warning("only %d photos: the rates are kept on average, but a single calibration can be off", len(scores))
    for rate, limit in thresholds:
        if limit > 1:
            _log.warning(
                "no photo can reach the threshold at a false-alarm rate of %g: untouched ones score 1 already", rate
            )
    return Outcome(
        calibration=Calibration(
            temperature=temperature,
            mask_threshold=rule[0],
            mask_peak=rule[1],
            image_thresholds=thresholds,
            photos=len(scores),
            mode=localizer.mode,
            precision=localizer.precision,
        ),
        scores=tuple(scores),
        unreadable=len(distinct) - len(scores),
        repeated=len(paths) - len(distinct),
        fakes=len(used),
        lost=len(fakes) - len(used),
    )


def image_thresholds(scores: Sequence[float], rates: Sequence[float] = RATES) -> tuple[tuple[float, float], ...]:
    """Thresholds on the image score, one per false-alarm rate, from the scores of untouched photos.

    Split conformal: of n exchangeable untouched photos' scores the floor(rate · (n + 1))-th largest is taken, so that a
    further such photo reaches the threshold with a probability of at most `rate`, whatever the distribution.

    scores: image scores in [0, 1] of photos that took no part in the training.
    Returns (rate, threshold) with rates rising, as `Calibration.image_thresholds`.
    Raises DatasetError for a rate below 1 / (n + 1), saying how many photos it needs, and for scores that are not
    finite; SpecError for rates outside of (0, 1) or given twice.
    """
    if not all(0 < rate < 1 for rate in rates) or len(set(rates)) != len(rates):
        given = ", ".join(f"{rate:g}" for rate in rates)
        raise SpecError(f"false-alarm rates are {given}; expected distinct ones in (0, 1), as 0.01 for 1 %")
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    if not np.isfinite(ordered).all():
        raise DatasetError("some photos' image scores are not finite; expected floats in [0, 1]: the model is broken")
    pairs = []
    for rate in sorted(rates):
        rank = _rank(rate, len(ordered))
        # Just above the score itself, so that photos of equal score do not count against the guarantee.
        pairs.append((float(rate), float(np.nextafter(ordered[rank - 1], np.inf))))
    return tuple(pairs)


def false_alarm_range(rate: float, photos: int, *, confidence: float = 0.9) -> tuple[float, float]:
    """Within which the true false-alarm rate of one calibration lies, with this confidence: (low, high) in [0, 1].

    `image_thresholds` keeps its rate on average over calibrations. The rate of a single one is random, since its photos
    are: with rank k of n photos it follows Beta(k, n + 1 − k) (for a continuous score; with ties it is lower). These
    are that distribution's quantiles, as much left out below as above.
    Raises DatasetError for a rate below 1 / (photos + 1).
    """
    rank = _rank(rate, photos)
    low, high = special.betaincinv(rank, photos + 1 - rank, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def fit_temperature(
    fakes: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
    used: float = 1.0,
    *,
    pixels: int = 20_000,
    seed: int = 0,
) -> float:
    """The temperature at which scores are closest to how often pixels are manipulated.

    fakes: (scores (H, W) in [0, 1], mask (H, W) bool) of manipulated pictures. used: the temperature of these scores.
    Minimises the mean over pictures of the mean binary cross-entropy of sigmoid(logits / temperature), on at most
    `pixels` of each picture drawn by seed. Logits are read back from the scores, up to ±16 · used: where scores were
    blended or resized they are those that would have given the result.
    Returns a temperature in (0.05, 20). Raises DatasetError without fakes, or where none in there is best: where the
    scores say nothing about the masks, their opposite, or all.
    """
    generator = np.random.default_rng(seed)
    logits, truth, weights = [], [], []
    for scores, mask in fakes:
        chosen = generator.choice(mask.size, min(pixels, mask.size), replace=False, shuffle=False)
        found = special.logit(scores.ravel()[chosen].astype(np.float64))
        logits.append(used * np.clip(found, -_LARGEST_LOGIT, _LARGEST_LOGIT))
        truth.append(mask.ravel()[chosen])
        weights.append(np.full(len(chosen), 1 / len(chosen)))
    if not logits:
        raise DatasetError(
            "fitting a temperature needs manipulated pictures with masks; expected samples labelled fake"
        )
    all_logits, share = np.concatenate(logits), np.concatenate(weights) / len(logits)
    # The cross-entropy is log(1 + exp(z)) for untouched pixels and log(1 + exp(−z)) for manipulated ones.
    signed = np.where(np.concatenate(truth), -all_logits, all_logits)

    def loss(log_temperature: float) -> float:
        return float(share @ np.logaddexp(0, signed * math.exp(-log_temperature)))

    low, high = math.log(COLDEST), math.log(HOTTEST)
    best = float(optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4}).x)
    if not low + 1e-2 < best < high - 1e-2:
        raise DatasetError(
            f"no temperature in {COLDEST:g}–{HOTTEST:g} fits the scores of {len(logits)} manipulated pictures: they "
            "say nothing about the masks, their opposite, or all; are the masks inverted (`declip index --check`)?"
        )
    return math.exp(best)


def mask_rule(
    fakes: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
    reals: Iterable[tuple[str, NDArray[np.float32]]],
    *,
    area: float = 0.02,
    share: float = 0.05,
) -> tuple[float, float]:
    """(threshold, peak) of the mask (`types.flagged`) with the highest mean IoU that leave untouched photos alone.

    fakes: (scores (H, W) in [0, 1], mask (H, W) bool) of manipulated pictures. reals: (kind, scores) of untouched
    ones, kinds such as "as they are" and "re-saved". At most `share` of each kind may have more than `area` of their
    pixels in the mask.
    Returns two of 0.02, 0.03, … 0.98, the peak at or above the threshold, which is at most 0.9 unless they are equal;
    the highest of both where none keeps the condition. Raises DatasetError without fakes.
    """
    total = np.zeros((len(STEPS), len(STEPS)))
    count = 0
    for scores, mask in fakes:
        inside, outside = _flagged_pixels(scores, mask)
        total += inside / np.maximum(mask.sum() + outside, 1)
        count += 1
    if not count:
        raise DatasetError("choosing a rule for the mask needs manipulated pictures with masks")
    alarms: dict[str, list[NDArray[np.bool_]]] = {}
    for kind, scores in reals:
        _, flagged = _flagged_pixels(scores, np.zeros(scores.shape, bool))
        alarms.setdefault(kind, []).append(flagged / scores.size > area)
    tried = np.isin(STEPS, THRESHOLDS)[:, None] | np.eye(len(STEPS), dtype=bool)
    allowed = tried & np.tri(len(STEPS), dtype=bool).T  # the peak is at or above the threshold
    for rows in alarms.values():
        allowed &= np.mean(rows, axis=0) <= share
    if not allowed.any():
        return float(STEPS[-1]), float(STEPS[-1])
    threshold, peak = np.unravel_index(np.argmax(np.where(allowed, total, -1.0)), total.shape)
    return float(STEPS[threshold]), float(STEPS[peak])


def _flagged_pixels(
    scores: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels inside and outside of the true mask that are flagged, by threshold (rows) and peak (columns) of STEPS.

    Rows of other thresholds than THRESHOLDS hold, at equal threshold and peak only, what the threshold alone flags.
    """
    inside, outside = (np.zeros((len(STEPS), len(STEPS)), np.int64) for _ in range(2))
    np.fill_diagonal(inside, _counts(scores[mask]))
    np.fill_diagonal(outside, _counts(scores[~mask]))
    for threshold in THRESHOLDS:
        row = int(np.searchsorted(STEPS, threshold))
        labels, count = ndimage.label(scores >= np.float32(threshold), structure=np.ones((3, 3), dtype=bool))
        if not count:
            continue
        above = labels > 0
        parts, manipulated = labels[above], mask[above]
        peaks = np.zeros(count + 1, np.float32)
        np.maximum.at(peaks, parts, scores[above])
        # A part is flagged by every peak up to its own.
        last = np.searchsorted(STEPS.astype(np.float32), peaks, side="right")
        for target, chosen in ((inside, parts[manipulated]), (outside, parts[~manipulated])):
            by_peak = np.bincount(last, weights=np.bincount(chosen, minlength=count + 1), minlength=len(STEPS) + 1)
            target[row, row:] = by_peak[::-1].cumsum()[::-1][1:][row:]
    return inside, outside


def _rank(rate: float, photos: int) -> int:
    """Which of the largest scores is taken, from 1. Raises DatasetError where there are too few photos for any."""
    rank = math.floor(rate * (photos + 1) + 1e-9)
    if rank < 1:
        raise DatasetError(
            f"a false-alarm rate of {rate:g} cannot be guaranteed by {photos} photos; "
            f"it needs at least {math.ceil(1 / rate) - 1}"
        )
    return rank


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths without those whose bytes are there already. What cannot be read stays: the localizer says why."""
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
    results = localizer.map((sample.image for sample in samples), batch_size=batch_size)
    for sample, result in _tracked(zip(samples, results, strict=True), what, len(samples), progress):
        try:
            if isinstance(result, ImageError):
                raise result
            mask = image.read_mask(sample, max_pixels=max(image.MAX_PIXELS, result.scores.size))
        except (ImageError, DatasetError) as error:
            _log.warning("left out: %s", error)
            continue
        scores = result.scores
        if scores.shape != mask.shape:
            scores = image.resize_scores(scores, (mask.shape[0], mask.shape[1]))
        yield sample, scores, mask


def _tracked(items: Iterable[T], what: str, total: int, progress: bool) -> Iterable[T]:
    return track(items, what, total, console=Console(stderr=True), disable=not progress)


class _Retold(Wrapped):
    """An engine under another description."""

    def __init__(self, engine: Engine, spec: ModelSpec) -> None:
        super().__init__(engine)
        self._spec = spec

    @property
    def spec(self) -> ModelSpec:
        return self._spec


def _at(localizer: Localizer, temperature: float) -> Localizer:
    """The same localizer, its scores made at another temperature."""
    calibration = dataclasses.replace(localizer.spec.calibration or Calibration(), temperature=temperature)
    engine = _Retold(localizer.engine, dataclasses.replace(localizer.spec, calibration=calibration))
    limits = (localizer.max_pixels, localizer.max_bytes)
    return Localizer(
        engine, mode=localizer.mode, precision=localizer.precision, max_pixels=limits[0], max_bytes=limits[1]
    )


def _counts(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values are at or above each of STEPS."""
    ordered = np.sort(values)
    return np.asarray(len(ordered) - np.searchsorted(ordered, STEPS.astype(np.float32), side="left"), np.int64)
