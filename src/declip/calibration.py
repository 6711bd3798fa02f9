"""What scores mean, measured on a user's own photos: verdicts at known false-alarm rates, temperature, threshold.

`calibrate` takes a model file and writes another with the `Calibration` inside; `measure` does the same for an open
localizer and writes nothing. `false_alarm_range`, `fit_temperature` and `fit_threshold` are the rules they follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import optimize, special

from declip.engines import Wrapped, open_engine
from declip.errors import DatasetError, ImageError
from declip.images.mapfiles import empty_masks, read_mask, warn_of_empty_masks
from declip.images.read import MAX_BYTES, MAX_PIXELS
from declip.images.tensors import resize_scores
from declip.localize.localizer import Localizer, model_file
from declip.models.respec import check_target, with_spec
from declip.regions import MaskRule, find_parts
from declip.results import Engine, Photo, Sample, check_several
from declip.spec import SIZE_CLASSES, Calibration, Mode, ModelSpec, Precision

__all__ = [
    "THRESHOLDS",
    "Outcome",
    "Retold",
    "Untouched",
    "calibrate",
    "candidates",
    "cut",
    "false_alarm_range",
    "fit_temperature",
    "fit_threshold",
    "measure",
    "with_pieces",
]

_log = logging.getLogger(__name__)

RATES = (0.01, 0.05)
# Thresholds that `fit_threshold` tries.
THRESHOLDS = tuple(i / 10 for i in range(1, 10))

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
        Localizer(engine, mode=mode, max_pixels=max_pixels, max_bytes=max_bytes),
        photos,
        rates=rates,
        samples=samples,
        pieces=pieces,
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
    seed: of the pixels that the temperature is fitted on. progress: show bars on stderr.

    A photo, sample or mask that cannot be read is left out, named in the log and counted; so are photos that would get
    no verdict ("not examined"), and photos whose bytes were there already, since a photo that counts twice voids the
    guarantee.
    Raises DatasetError where no size has photos enough for the larger rate, saying how many it needs, or the samples
    hold no manipulated pictures; SpecError for other rates.
    """
    Calibration(rates=tuple(sorted(rates)))  # refuses rates that are none before hours of computing
    check_several(photos, "photos=[…]")
    check_several(samples or (), "samples=[…]")
    paths = list(map(Path, photos))
    distinct = _distinct(paths)
    _check_enough(len(distinct), max(rates))
    temperature, threshold = localizer.spec.temperature, MaskRule.of(localizer.spec).threshold
    fakes = [sample for sample in samples or () if sample.label == "fake"]
    warn_of_empty_masks(empty_masks(fakes), len(fakes))
    used: list[Sample] = []
    tried: tuple[float, ...] = (threshold,)
    if samples is not None:

        def manipulated() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
            for sample, found, mask in _with_masks(localizer, fakes, batch_size, "temperature", progress):
                used.append(sample)
                yield found, mask

        temperature, tried = fit_temperature(manipulated(), temperature, seed=seed), THRESHOLDS
    final = _at(localizer, temperature)
    left_out: dict[str, int] = {"unreadable": 0, "unfit": 0}
    clean: list[Untouched] = []
    owners: list[int] = []
    results = final.map(with_pieces(final, distinct, pieces, owners), batch_size=batch_size)
    for i, result in enumerate(_tracked(results, "photos", None if pieces else len(distinct), progress)):
        if isinstance(result, ImageError):
            left_out["unreadable"] += 1
            _log.warning("left out: %s", result)
        elif result.out_of_scope is not None:
            left_out["unfit"] += 1
            _log.warning("left out: %s: %s", result.name, result.out_of_scope)
        else:
            clean.append(Untouched.of(owners[i], result.scores, tried))
    base = Calibration(
        temperature=temperature, rates=tuple(sorted(rates)), mode=localizer.mode, precision=localizer.precision
    )
    calibrations = candidates(clean, tried, base)
    _check_enough(max(calibrations[0].photos), max(rates))
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


class Untouched(NamedTuple):
    """An untouched photo, or a piece of one: the number of the photo, its own pixels, and the evidence of its strongest
    part (0 without any) at each threshold that is tried."""

    owner: int
    pixels: int
    evidence: tuple[float, ...]

    @classmethod
    def of(cls, owner: int, scores: NDArray[np.float32], thresholds: Iterable[float]) -> Untouched:
        """Measure a map. scores: (H, W) in [0, 1]."""
        parts = (find_parts(scores, threshold).found for threshold in thresholds)
        return cls(owner, scores.size, tuple(found[0].evidence if found else 0.0 for found in parts))


def candidates(photos: Sequence[Untouched], thresholds: Sequence[float], base: Calibration) -> list[Calibration]:
    """Return base with each of the thresholds, and what untouched photos show at it."""
    made = []
    for number, threshold in enumerate(thresholds):
        values: list[list[float]] = [[] for _ in SIZE_CLASSES]
        owners: list[set[int]] = [set() for _ in SIZE_CLASSES]
        for photo in photos:
            size_class = Calibration.size_class(photo.pixels)
            values[size_class].append(photo.evidence[number])
            owners[size_class].add(photo.owner)
        untouched = tuple(tuple(sorted(each)) for each in values)
        counts = tuple(map(len, owners))
        made.append(dataclasses.replace(base, threshold=threshold, untouched=untouched, photos=counts))
    return made


def with_pieces(localizer: Localizer, paths: Sequence[Path], pieces: int, owners: list[int]) -> Iterator[Path | Photo]:
    """Yield the photos, and pieces of the large ones; owners gets the number of the photo for each picture.

    localizer: whose limits count."""
    for number, path in enumerate(paths):
        pictures: list[Path | Photo] = [path]
        if pieces:
            with contextlib.suppress(ImageError):  # the localizer says it again, of the path
                photo = localizer.read(path)
                own = Calibration.size_class(photo.pixels.size // 3)
                pictures = [photo, *(piece for i in range(1, own + 1) for piece in cut(photo, i, pieces))]
        for picture in pictures:
            owners.append(number)
            yield picture


def _check_enough(photos: int, rate: float) -> None:
    """Raise DatasetError where so many photos support no such false-alarm rate."""
    needed = math.ceil(1 / rate - 1e-9) - 1
    if photos < needed:
        raise DatasetError(
            f"a false-alarm rate of {rate:g} cannot be guaranteed by {photos} untouched photos of one size; "
            f"it needs at least {needed}"
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


def cut(photo: Photo, size_class: int, most: int) -> list[Photo]:
    """Cut a photo into a grid of pieces of a smaller size class, or of its own.

    For calibrations with few large photos: pieces are as untouched as the photo and show other parts of it, but they
    are no independent photos. size_class: an index into SIZE_CLASSES. most: of a finer grid, so many pieces spread
    evenly. Returns [] where there is no such grid of two pieces or more with sides of at most 2:1.
    """
    height, width = photo.size
    grids = [
        (rows, columns)
        for rows in range(1, 13)
        for columns in range(1, 13)
        if rows * columns > 1
        and Calibration.size_class((height // rows) * (width // columns)) == size_class
        and 0.5 <= (height // rows) / max(1, width // columns) <= 2
    ]
    if not grids:
        return []
    # Few and large rather than many and small, but for the largest class, whose pieces have no upper bound.
    rows, columns = (max if size_class == len(SIZE_CLASSES) - 1 else min)(grids, key=lambda grid: grid[0] * grid[1])
    high, wide = height // rows, width // columns
    corners = [(row * high, column * wide) for row in range(rows) for column in range(columns)]
    chosen = sorted({round(i) for i in np.linspace(0, len(corners) - 1, min(most, len(corners)))})
    return [
        Photo(pixels=np.ascontiguousarray(photo.pixels[y : y + high, x : x + wide]), name=f"{photo.name} from {x},{y}")
        for y, x in (corners[i] for i in chosen)
    ]


def false_alarm_range(rate: float, photos: int, *, confidence: float = 0.9) -> tuple[float, float]:
    """Return the range in which the true false-alarm rate of one calibration lies: (low, high) in [0, 1].

    A calibration keeps its rate on average over calibrations. The rate of a single one is random, since its photos are:
    with rank k of n photos it follows Beta(k, n + 1 − k) (for continuous values; with ties it is lower). These are that
    distribution's quantiles with this confidence, as much left out below as above.
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
    """Return the temperature at which scores are closest to how often pixels are manipulated.

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


def fit_threshold(
    fakes: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]], calibrations: Sequence[Calibration]
) -> Calibration:
    """Return that calibration, of several with different thresholds, whose masks fit known ones best (mean IoU).

    fakes: (scores (H, W) in [0, 1], mask (H, W) bool) of manipulated pictures. Raises DatasetError without any.
    """
    total, count = np.zeros(len(calibrations)), 0
    for scores, mask in fakes:
        for i, calibration in enumerate(calibrations):
            found = MaskRule(threshold=calibration.threshold, calibration=calibration).decide(scores).mask
            total[i] += (found & mask).sum() / max(1, (found | mask).sum())
        count += 1
    if not count:
        raise DatasetError("choosing a threshold needs manipulated pictures with masks")
    return calibrations[int(np.argmax(total))]


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
    results = localizer.map((sample.image for sample in samples), batch_size=batch_size)
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


class Retold(Wrapped):
    """An engine under another description."""

    def __init__(self, engine: Engine, spec: ModelSpec) -> None:
        super().__init__(engine)
        self._spec = spec

    @property
    def spec(self) -> ModelSpec:
        """The other description."""
        return self._spec


def _at(localizer: Localizer, temperature: float) -> Localizer:
    """Return the same localizer, its scores made at another temperature."""
    calibration = dataclasses.replace(localizer.spec.calibration or Calibration(), temperature=temperature)
    return localizer.variant(
        engine=Retold(localizer.engine, dataclasses.replace(localizer.spec, calibration=calibration))
    )
