"""Predictor × samples → Evaluation: figures with intervals, the protocol they were measured by, and pictures of cases.

    evaluation = declip.evaluate(declip.load(), samples)
    evaluation.mean.iou, evaluation.low.iou, evaluation.high.iou
    evaluation.save("out")      # images.csv, summary.json, report.html

Localization (IoU, F1, AP, AUC) is averaged over fakes, as in the paper; untouched pictures have the flagged area and
the false alarms; both together have detection. What is not defined is nan, left out of its mean and counted. What
failed is a row with an error, in no figure, and a warning. Figures whose name ends in "_oracle" looked at the known
mask or label to choose something: nobody can reach them on a new photo. docs/evaluate.md says what each figure means.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console, Group
from rich.progress import track

from declip import datasets
from declip._version import __version__
from declip.errors import DatasetError, DeclipError, ImageError
from declip.evaluation import metrics, page
from declip.evaluation.page import Case, CaseKind
from declip.files import write_atomic
from declip.images.mapfiles import read_mask, read_scores
from declip.images.overlay import overlay
from declip.images.read import MAX_PIXELS, name_of, read_photo
from declip.images.tensors import resize_scores
from declip.models import catalog
from declip.results import Localization, MaskRule, Photo, PictureLike, Polarity, Predictor, Sample, check_several
from declip.spec import SIZE_CLASSES, ModelSpec, check_choice

__all__ = ["FILES", "Evaluation", "Figures", "Maps", "Row", "Summary", "check_free", "evaluate"]

FILES = ("images.csv", "summary.json", "report.html")
# Share of the area above which an untouched picture counts as a false alarm.
FLAGGED = 0.02
# Groups that a source needs before it is said to point the wrong way.
CLEAR_GROUPS = 5
# Longer side of the pictures in the report, px.
THUMBNAIL = 256

Over = Literal["fakes", "reals", "all"]


def _over(over: Over, title: str) -> Any:
    return field(default=math.nan, metadata={"over": over, "title": title})


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One number per figure, in [0, 1], or nan where it is not defined. In this order they are printed.

    Which pictures a figure is over, and its title, stand in its field's metadata. What the names in `Row` have, too, is
    a mean over pictures; the others are computed from all pictures together.
    """

    iou: float = _over("fakes", "IoU")
    f1: float = _over("fakes", "F1-fixed (TruFor's, border band left out)")
    f1_best_oracle: float = _over("fakes", "F1-best (oracle: best threshold per picture)")
    ap: float = _over("fakes", "AP")
    auc: float = _over("fakes", "AUC")
    manipulated: float = _over("fakes", "manipulated area (AP of a map that says nothing)")
    area: float = _over("reals", "flagged area")
    false_alarm: float = _over("reals", f"false-alarm rate (more than {100 * FLAGGED:g} % of the area flagged)")
    detection_ap: float = _over("all", "detection AP")
    detection_auc: float = _over("all", "detection AUC")
    detection_eer: float = _over("all", "detection EER")
    accuracy: float = _over("all", "accuracy at the calibrated threshold")
    hits: float = _over("fakes", "found at the calibrated threshold")
    verdict_false_alarm: float = _over("reals", "false alarms at the calibrated threshold")
    accuracy_half: float = _over("all", "accuracy at 0.5 (the paper's)")
    accuracy_best_oracle: float = _over("all", "accuracy (oracle: best threshold)")
    iou_pooled: float = _over("fakes", "IoU, pixels pooled")
    f1_pooled: float = _over("fakes", "F1, pixels pooled")
    f1_pixels: float = _over("fakes", "F1 over all pixels")
    f1_imdl: float = _over("all", "F1 of IMDL-BenCo (reals count as 0)")
    f1_either_oracle: float = _over("fakes", "F1-fixed (oracle: map or inverted map)")
    f1_best_either_oracle: float = _over("fakes", "F1-best (oracle: threshold, and map or inverted map)")


_FIGURES = {figure.name: figure.metadata for figure in dataclasses.fields(Figures)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What came of one sample: a line of images.csv. Names that `Figures` has, too, mean the same, of one picture.

    height, width: of the mask, px; of an untouched picture without one, of the scores. threshold: lowest score that is
    flagged. area: flagged share. score: of the whole picture, 0 of one that was not examined. called: the verdict is
    "manipulated", or the score reaches a threshold of one's own; None where there is neither. true, false, missed:
    pixels. resized: the scores had another size than the mask. error, kind: as in `ImageError`; then the sample is in
    no figure.
    """

    image: str
    label: str
    source: str
    split: str
    group: str
    height: int = 0
    width: int = 0
    threshold: float = math.nan
    score: float = math.nan
    verdict: str | None = None
    called: bool | None = None
    manipulated: float = math.nan
    area: float = math.nan
    false_alarm: float = math.nan
    iou: float = math.nan
    f1: float = math.nan
    f1_best_oracle: float = math.nan
    ap: float = math.nan
    auc: float = math.nan
    f1_pixels: float = math.nan
    f1_imdl: float = math.nan
    f1_either_oracle: float = math.nan
    f1_best_either_oracle: float = math.nan
    true: int = 0
    false: int = 0
    missed: int = 0
    resized: bool = False
    stretched: bool = False
    error: str = ""
    kind: str = ""


_PER_PICTURE = tuple(name for name in _FIGURES if name in {column.name for column in dataclasses.fields(Row)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Figures over a set of pictures. low, high: 95 % bootstrap intervals over groups; nan for a single group.

    undefined: how many pictures of those a figure is over have no such value.
    """

    fakes: int
    reals: int
    groups: int
    mean: Figures
    low: Figures
    high: Figures
    undefined: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything that was measured. rows: one per sample, in order. protocol: the card, to be printed with any figure.

    sources: the figures per `Sample.source`. warnings: what makes the figures doubtful; empty if nothing does.
    """

    title: str
    rows: tuple[Row, ...]
    overall: Summary
    sources: Mapping[str, Summary]
    protocol: Mapping[str, str]
    warnings: tuple[str, ...]
    cases: tuple[Case, ...] = ()

    @property
    def mean(self) -> Figures:
        """The figures over all pictures."""
        return self.overall.mean

    @property
    def low(self) -> Figures:
        """Lower ends of their 95 % intervals."""
        return self.overall.low

    @property
    def high(self) -> Figures:
        """Upper ends of their 95 % intervals."""
        return self.overall.high

    @property
    def errors(self) -> tuple[Row, ...]:
        """The samples that failed."""
        return tuple(row for row in self.rows if row.error)

    def to_dict(self) -> dict[str, Any]:
        """What summary.json holds: plain types, None for nan."""
        return {
            "title": self.title,
            "warnings": list(self.warnings),
            "protocol": dict(self.protocol),
            "overall": _summary_dict(self.overall),
            "sources": {name: _summary_dict(summary) for name, summary in self.sources.items()},
            "errors": [{"image": row.image, "error": row.error, "kind": row.kind} for row in self.errors],
        }

    def save(self, out: str | Path, *, force: bool = False) -> None:
        """Write FILES into the folder out, each whole or not at all. Raises DeclipError if one exists, unless force."""
        out = Path(out)
        check_free(out, force=force)
        data = self.to_dict()
        summary = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        html = page.page(data, self.cases)
        for name, text in zip(FILES, (_csv(self.rows), summary, html), strict=True):
            write_atomic(out / name, text)

    def render(self) -> Group:
        """Warnings, figures, figures per source and the protocol card, for a Rich console."""
        return page.render(self.to_dict())


_MAP_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff")


class Maps:
    """Score maps made elsewhere, as a Predictor: the maps of any method are scored by the same code.

    For an image at SUB/photo.jpg below root, the first of these that exists in folder is its map, of any size and of a
    kind that `read_scores` reads, 1.0 = surely manipulated: SUB/photo.jpg.scores.png, photo.jpg.scores.png (as
    `declip localize` writes), SUB/photo.png, photo.png, and the same two with .npy, .npz, .tif and .tiff.
    The image score is the mean of the map, as in the paper. An image without a map is an ImageError of kind "missing";
    a file that is the map of several images is one of kind "input" for each of them.

    images: all that will be asked for. threshold: of the mask. fake_is: "black" = the maps are the other way round, 0
    means manipulated; they are turned when they are read. Raises DatasetError if folder is none.
    """

    def __init__(
        self,
        folder: str | Path,
        images: Iterable[Path],
        *,
        root: str | Path = "",
        threshold: float = 0.5,
        fake_is: Polarity = "white",
    ) -> None:
        check_choice(fake_is, Polarity, "fake_is")
        self.folder = Path(folder)
        self.fake_is: Polarity = fake_is
        self.threshold = threshold
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: no such folder of maps")
        self._maps = {path: self._find(path, Path(root)) for path in dict.fromkeys(images)}
        self._claims = Counter(found for found in self._maps.values() if found is not None)

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        """The map of each image path, in order, at its own size. The pictures themselves are not read."""
        check_several(images, "map([…])")
        for path in map(Path, map(name_of, images)):
            try:
                yield self._read(path)
            except (ImageError, MemoryError) as error:
                yield error if isinstance(error, ImageError) else ImageError.out_of_memory(str(path))

    def _read(self, path: Path) -> Localization:
        found = self._maps.get(path)
        if found is None:
            raise ImageError(
                str(path),
                "missing",
                f"no map in {self.folder}; expected {path.name}.scores.png, or {path.stem} with one of "
                + ", ".join(_MAP_SUFFIXES),
            )
        if self._claims[found] > 1:
            raise ImageError(
                str(path), "input", f"{found} would be the map of {self._claims[found]} images; keep their sub-folders"
            )
        scores = read_scores(found)
        if self.fake_is == "black":
            scores = 1 - scores
        return Localization(
            name=str(path),
            scores=scores,
            rule=MaskRule(threshold=self.threshold),
            image_score=float(scores.mean(dtype=np.float64)),
            model=str(self.folder),
            sha256="",
        )

    def _find(self, path: Path, root: Path) -> Path | None:
        inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        places = [self.folder / inside] if ".." not in inside.parts else []
        places.append(self.folder / path.name)
        names = [place.with_name(place.name + ".scores.png") for place in places]
        names += [place.with_suffix(suffix) for suffix in _MAP_SUFFIXES for place in places]
        # A folder that holds the photos, too: a photo is not its own map.
        return next((p for p in names if p.is_file() and not (path.exists() and p.samefile(path))), None)


def evaluate(
    predictor: Predictor,
    samples: Iterable[Sample],
    *,
    threshold: float | None = None,
    score_threshold: float | None = None,
    batch_size: int = 8,
    resamples: int = 1000,
    seed: int = 0,
    cases: int = 6,
    title: str = "",
    progress: bool = False,
) -> Evaluation:
    """Measure a predictor on samples with known masks.

    threshold: scores from it on are flagged; None = the predictor's own mask. score_threshold: pictures whose score is
    at or above it are called manipulated; None = by the predictor's own verdict, where it is calibrated. resamples,
    seed: of the bootstrap, which draws groups (a sample without a group is one of its own). cases: how many worst, best
    and false-alarm pictures are kept for the report. title: names the data. progress: show a bar on stderr.

    A sample whose picture, mask or map fails becomes a row with an error, and the others go on.
    Raises DatasetError where there are no samples.
    """
    check_several(samples, "evaluate(predictor, […])")
    samples = list(samples)
    if not samples:
        raise DatasetError(f"{title or 'the list'} has no samples to evaluate")
    results = predictor.map((sample.image for sample in samples), batch_size=batch_size)
    pairs = zip(samples, results, strict=True)
    console = Console(stderr=True)
    rows = []
    gallery = _Gallery(cases)
    model: tuple[str, str] | None = None
    for sample, result in track(pairs, "evaluating", len(samples), console=console, disable=not progress):
        try:
            if isinstance(result, ImageError):
                raise result
            model = model or (result.model, result.sha256)
            scores, mask, shown, row = _measure(sample, result, threshold, score_threshold)
        except (ImageError, DatasetError) as error:
            kind = error.kind if isinstance(error, ImageError) else "input"
            rows.append(dataclasses.replace(_blank(sample), error=str(error), kind=kind))
            continue
        except MemoryError:
            message = str(ImageError.out_of_memory(str(sample.image)))
            rows.append(dataclasses.replace(_blank(sample), error=message, kind="too-large"))
            continue
        rows.append(row)
        gallery.offer(sample, row, scores, mask, shown)
    good = [row for row in rows if not row.error]
    fakes = [sample for sample, row in zip(samples, rows, strict=True) if row.label == "fake" and not row.error]
    empty = [sample for sample, row in zip(samples, rows, strict=True) if row.label == "fake" and row.manipulated == 0]
    warned = datasets.warn_of_empty_masks(empty, len(fakes))
    overall = _summarise(good, resamples, seed)
    names = sorted({row.source for row in good})
    sources = {name: _summarise([row for row in good if row.source == name], resamples, seed) for name in names}
    return Evaluation(
        title=title,
        rows=tuple(rows),
        overall=overall,
        sources=sources,
        protocol=_protocol(
            predictor,
            model,
            samples,
            good,
            overall,
            threshold=threshold,
            score_threshold=score_threshold,
            seed=seed,
            resamples=resamples,
        ),
        warnings=(*([warned] if warned else []), *_warnings(samples, rows, overall, sources)),
        cases=gallery.cases(),
    )


def check_free(out: str | Path, *, force: bool = False) -> None:
    """Raise DeclipError if one of FILES is in the folder out already, unless force: before hours of computing."""
    there = [name for name in FILES if (Path(out) / name).exists()]
    if there and not force:
        raise DeclipError(f"{Path(out) / there[0]} exists; --force (force=True) overwrites it")


# --- one picture ----------------------------------------------------------------------------------------------------


def _blank(sample: Sample) -> Row:
    """What is known of a sample before anything is measured."""
    name = str(sample.image)
    return Row(image=name, label=sample.label, source=sample.source, split=sample.split, group=sample.group or name)


def _read_mask(sample: Sample, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The mask, which may be as large as the picture that was read."""
    return read_mask(sample, max_pixels=max(MAX_PIXELS, scores.size))


def _measure(
    sample: Sample, result: Localization, threshold: float | None, score_threshold: float | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], Row]:
    """The scores at the mask's size, the known mask, the flagged one, and all that is known about one sample."""
    if threshold is not None:
        result = dataclasses.replace(result, rule=MaskRule(threshold=threshold))
    scores = result.scores
    if not np.isfinite(scores).all() or not math.isfinite(result.image_score):
        raise ImageError(str(sample.image), "input", "the scores are not finite; expected floats in [0, 1]")
    untouched = sample.label == "real" and sample.mask is None
    mask = np.zeros(scores.shape, dtype=bool) if untouched else _read_mask(sample, scores)
    resized = scores.shape != mask.shape
    stretched = resized and not _same_aspect(scores.shape, mask.shape)
    shown = result.mask
    if resized:
        scores = resize_scores(scores, (mask.shape[0], mask.shape[1]))
        shown = _resized_mask(result, scores)
    true, false, missed, _ = metrics.confusion(shown, mask)
    area = (true + false) / mask.size
    called = None if result.verdict is None else result.verdict == "manipulated"
    if score_threshold is not None:
        called = (result.score or 0.0) >= score_threshold
    row = dataclasses.replace(
        _blank(sample),
        height=mask.shape[0],
        width=mask.shape[1],
        threshold=result.threshold,
        score=0.0 if result.score is None else result.score,
        verdict=result.verdict,
        called=called,
        manipulated=(true + missed) / mask.size,
        area=area,
        f1_imdl=metrics.imdl_f1(shown, mask),
        true=true,
        false=false,
        missed=missed,
        resized=resized,
        stretched=stretched,
    )
    if sample.label == "real":
        return scores, mask, shown, dataclasses.replace(row, false_alarm=float(area > FLAGGED))
    row = dataclasses.replace(
        row,
        # The paper counts two empty masks as agreeing; here a fake with an empty mask has no figures at all.
        iou=metrics.iou(shown, mask) if mask.any() else math.nan,
        f1=metrics.f1(shown.astype(np.float32), mask),
        f1_best_oracle=metrics.best_f1(scores, mask),
        ap=metrics.average_precision(scores, mask),
        auc=metrics.auc(scores, mask),
        f1_pixels=metrics.pixel_f1(shown, mask),
        f1_either_oracle=metrics.either_f1(scores, mask, result.threshold),
        f1_best_either_oracle=metrics.best_either_f1(scores, mask),
    )
    return scores, mask, shown, row


def _resized_mask(result: Localization, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The mask at another size. scores: those of the result, at that size."""
    if result.rule.calibration is None:
        return scores >= np.float32(result.threshold)
    # Which parts count was decided at the photo's own size.
    return resize_scores(result.mask.astype(np.float32), (scores.shape[0], scores.shape[1])) >= 0.5


def _same_aspect(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two sizes are of one shape, to a pixel of the smaller: a grid of 32×43 is one of 480×640."""
    height, width = min(first, second)
    other_height, other_width = max(first, second)
    return abs(height * other_width - width * other_height) <= max(other_height, other_width)


# --- many pictures --------------------------------------------------------------------------------------------------


class _Columns:
    """Rows as arrays; `figures` of a draw, in which each row comes as often as its weight says."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.fake = np.array([row.label == "fake" for row in rows], dtype=bool)
        self.values = np.array([[getattr(row, name) for name in _PER_PICTURE] for row in rows], dtype=np.float64)
        for column, name in enumerate(_PER_PICTURE):
            self.values[~self._of(_FIGURES[name]["over"]), column] = np.nan
        self.defined = ~np.isnan(self.values)
        self.filled = np.nan_to_num(self.values)
        self.pixels = np.array([[row.true, row.false, row.missed] for row in rows], dtype=np.float64)
        self.pixels[~self.fake] = 0
        self.scores = np.array([row.score for row in rows], dtype=np.float64)
        # As floats: nan where there is no calibrated threshold.
        self.called = np.array([math.nan if row.called is None else row.called for row in rows], dtype=np.float64)

    def _of(self, over: Over) -> NDArray[np.bool_]:
        match over:
            case "fakes":
                return self.fake
            case "reals":
                return ~self.fake
            case "all":
                return np.ones(len(self.fake), dtype=bool)

    def undefined(self, mean: Figures) -> dict[str, int]:
        """Of each figure: how many of the pictures that it is over have no such value."""
        has = dict(zip(_PER_PICTURE, self.defined.T, strict=True))
        has |= dict.fromkeys(("accuracy", "hits", "verdict_false_alarm"), ~np.isnan(self.called))
        counts = {}
        for name, about in _FIGURES.items():
            known = has.get(name, ~np.isnan(self.scores)) & (not math.isnan(getattr(mean, name)))
            counts[name] = int(np.count_nonzero(self._of(about["over"]) & ~known))
        return counts

    def figures(self, weights: NDArray[np.int64]) -> list[float]:
        """In the order of `Figures`."""
        with np.errstate(invalid="ignore"):
            means = (weights @ self.filled) / (weights @ self.defined)
        true, false, missed = (float(count) for count in weights @ self.pixels)
        found = dict(zip(_PER_PICTURE, means.tolist(), strict=True))
        found["iou_pooled"] = true / (true + false + missed) if true + missed else math.nan
        found["f1_pooled"] = 2 * true / (2 * true + false + missed) if true + missed else math.nan
        found["hits"] = _mean(self.called[self.fake], weights[self.fake])
        found["verdict_false_alarm"] = _mean(self.called[~self.fake], weights[~self.fake])
        reals = int(weights[~self.fake].sum())
        if 0 < reals < weights.sum():
            drawn = np.repeat(np.arange(len(weights)), weights)
            scores, labels = self.scores[drawn], self.fake[drawn]
            found["detection_ap"] = metrics.average_precision(scores, labels)
            found["detection_auc"] = metrics.auc(scores, labels)
            found["detection_eer"] = metrics.equal_error_rate(scores, labels)
            found["accuracy_half"] = float(np.mean((scores > 0.5) == labels))
            found["accuracy_best_oracle"] = metrics.best_accuracy(scores, labels)
            found["accuracy"] = _mean(np.where(self.fake, self.called, 1 - self.called), weights)
        return [found.get(name, math.nan) for name in _FIGURES]


def _mean(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    known = weights * ~np.isnan(values)
    return float(np.nan_to_num(values) @ known / known.sum()) if known.any() else math.nan


def _summarise(rows: Sequence[Row], resamples: int, seed: int) -> Summary:
    if not rows:
        nothing = Figures()
        return Summary(fakes=0, reals=0, groups=0, mean=nothing, low=nothing, high=nothing, undefined={})
    columns = _Columns(rows)
    names, index = np.unique([row.group for row in rows], return_inverse=True)
    mean = _figures(columns.figures(np.ones(len(rows), dtype=np.int64)))
    low = high = Figures()
    if len(names) > 1:
        low, high = (
            _figures(ends) for ends in _bootstrap(columns.figures, index, len(names), resamples=resamples, seed=seed)
        )
    return Summary(
        fakes=sum(row.label == "fake" for row in rows),
        reals=sum(row.label == "real" for row in rows),
        groups=len(names),
        mean=mean,
        low=low,
        high=high,
        undefined=columns.undefined(mean),
    )


def _bootstrap(
    statistic: Callable[[NDArray[np.int64]], list[float]],
    index: NDArray[np.intp],
    groups: int,
    *,
    resamples: int,
    seed: int,
) -> tuple[list[float], list[float]]:
    """95 % percentile intervals, (low, high), of a statistic of how often each row is drawn; groups come as wholes.

    index: the group of each row, 0 … groups − 1.
    """
    rng = np.random.default_rng(seed)
    even = np.full(groups, 1 / groups)
    drawn = np.array([statistic(rng.multinomial(groups, even)[index]) for _ in range(resamples)])
    # A figure that half of the draws do not have has no interval.
    common = np.count_nonzero(~np.isnan(drawn), axis=0) > resamples / 2
    ends = np.full((2, drawn.shape[1]), np.nan)
    if common.any():
        ends[:, common] = np.nanquantile(drawn[:, common], (0.025, 0.975), axis=0)
    return ends[0].tolist(), ends[1].tolist()


def _figures(values: Sequence[float]) -> Figures:
    return Figures(**dict(zip(_FIGURES, values, strict=True)))


# --- warnings -------------------------------------------------------------------------------------------------------


def _warnings(
    samples: Sequence[Sample], rows: Sequence[Row], overall: Summary, sources: Mapping[str, Summary]
) -> Iterator[str]:
    """What makes the figures doubtful, worst first."""
    if _points_backwards(overall):
        yield _backwards("over all fakes", overall)
    else:
        for name, summary in sources.items():
            # A few pictures of one source lie below chance together by chance alone.
            if summary.groups >= CLEAR_GROUPS and _points_backwards(summary):
                yield _backwards(f"over the fakes of source {name or '-'!r}", summary)
    covered = [row.manipulated for row in rows if row.label == "fake" and 0 < row.manipulated < 1]
    if covered and np.mean(covered) > 0.5:
        yield (
            f"The masks call {100 * np.mean(covered):.0f} % of the fakes' area manipulated. If that is too much, "
            "fake_is in the manifest names the wrong colour."
        )
    failed = sum(bool(row.error) for row in rows)
    if failed:
        yield f"{failed} of {len(rows)} samples failed and are in no figure; images.csv names them and the causes."
    marked = sum(row.label == "real" and row.manipulated > 0 for row in rows)
    if marked:
        yield f"{marked} samples are labelled real and have a mask with manipulated pixels."
    stretched = sum(row.stretched for row in rows)
    if stretched:
        yield f"The scores of {stretched} pictures had another shape than the mask and were stretched onto it."
    fakes, reals = _suffixes(samples, "fake"), _suffixes(samples, "real")
    if fakes and reals and not fakes.keys() & reals.keys():
        yield (
            f"The file format alone tells fakes ({', '.join(fakes)}) from reals ({', '.join(reals)}): the detection "
            "figures may measure just that."
        )


def _points_backwards(summary: Summary) -> bool:
    """Mean AUC below chance, and clearly so where there is an interval. 1 − AUC is what the inverted map reaches."""
    return (summary.mean.auc if math.isnan(summary.high.auc) else summary.high.auc) < 0.5


def _backwards(where: str, summary: Summary) -> str:
    return (
        f"The scores point the wrong way: AUC {_number(summary.mean.auc)}{_interval(summary, 'auc')} {where}, and the "
        f"inverted map would have {_number(1 - summary.mean.auc)}. Either the masks are inverted (fake_is in the "
        "manifest names the wrong colour), or the maps are (1.0 must mean manipulated), or the method does worse than "
        "chance here. Do not use these figures before you know which."
    )


def _suffixes(samples: Sequence[Sample], label: str) -> Counter[str]:
    return Counter(sample.image.suffix.lower().lstrip(".") or "-" for sample in samples if sample.label == label)


# --- the protocol card ----------------------------------------------------------------------------------------------


def _protocol(
    predictor: Predictor,
    model: tuple[str, str] | None,
    samples: Sequence[Sample],
    rows: Sequence[Row],
    overall: Summary,
    *,
    threshold: float | None,
    score_threshold: float | None,
    resamples: int,
    seed: int,
) -> dict[str, str]:
    spec = getattr(predictor, "spec", None)
    name, sha256 = model or ("unknown", "")
    trained_on = next((card.trained_on for card in catalog.MODELS if card.name == name), "not recorded")
    limits = sorted({row.threshold for row in rows})
    polarity = Counter(sample.fake_is for sample in samples if sample.mask is not None)
    resized = sum(row.resized for row in rows)
    formats = "; ".join(
        f"{label}s: {', '.join(f'{suffix} {count}' for suffix, count in _suffixes(samples, label).most_common())}"
        for label in ("fake", "real")
        if _suffixes(samples, label)
    )
    return {
        "declip": __version__,
        "model": f"{name}, SHA-256 {sha256}" if sha256 else name,
        "training set": trained_on,
        "samples": f"{overall.fakes} fakes, {overall.reals} reals, {len(samples) - len(rows)} failed; splits: "
        + ", ".join(f"{split or '-'} {count}" for split, count in Counter(s.split for s in samples).items()),
        "input size": _input(predictor, spec),
        "resize": f"scores, after the sigmoid, bilinearly to the size of the mask file; needed for {resized} of "
        f"{len(rows)} pictures",
        "threshold": f"scores >= {', '.join(f'{limit:g}' for limit in limits) or '-'} "
        + (
            "(given)"
            if threshold is not None
            else "in the parts that the predictor's calibration flags"
            if any(row.verdict for row in rows)
            else "(the predictor's own)"
        ),
        "calibrated threshold": _score_threshold(spec, rows, score_threshold),
        "image score": "mean of the map" if isinstance(predictor, Maps) else f"{_image_score(spec)}",
        "polarity": "; ".join(f"{colour} = manipulated in {count} mask files" for colour, count in polarity.items())
        + ("no mask files" if not polarity else "")
        + (f"; {predictor.fake_is} = manipulated in the maps" if isinstance(predictor, Maps) else ""),
        "borders": "F1-fixed and F1-best leave out a band around the mask's border (eroded 15×15, dilated 11×11), "
        "all other figures take every pixel",
        "averaging": "mean over pictures; localization over fakes only, as in the paper; pooled: sums of pixels first",
        "reals included": "in flagged area, false alarms, detection and IMDL-BenCo's F1 only",
        "empty rule": "undefined is nan, left out and counted: a fake with an empty mask has no figure; F1 none where "
        "the eroded mask is empty; AUC none where all is manipulated",
        "intervals": f"95 % percentile bootstrap, {resamples} draws of {overall.groups} groups, seed {seed}",
        "file formats": formats,
    }


def _input(predictor: Predictor, spec: Any) -> str:
    if isinstance(predictor, Maps):
        return "unknown: maps made elsewhere"
    if not isinstance(spec, ModelSpec):
        return "unknown"
    if getattr(predictor, "mode", spec.mode) == "whole":
        return f"{spec.input_size}×{spec.input_size} px, the whole picture squashed (bilinear, antialiased)"
    overlap = getattr(predictor, "overlap", spec.overlap)
    return f"tiles of {spec.input_size}×{spec.input_size} px at native resolution, overlap {overlap} px"


def _image_score(spec: Any) -> str:
    match spec.image_score if isinstance(spec, ModelSpec) else None:
        case "mean":
            return "mean of the scores on the network's grid"
        case "mean-logit":
            return "sigmoid of the mean logit"
        case "top":
            return "mean of the highest 1 % of the scores, at least 64"
        case _:
            return "the predictor's own"


def _score_threshold(spec: Any, rows: Sequence[Row], given: float | None) -> str:
    if given is not None:
        return f"image score ≥ {given:g} (given)"
    if not any(row.verdict for row in rows):
        return "none: the predictor gives no verdicts"
    calibration = spec.calibration if isinstance(spec, ModelSpec) else None
    if calibration is None:
        return "the predictor's verdict 'manipulated'"
    sizes = []
    for i, (name, photos) in enumerate(zip(SIZE_CLASSES, calibration.photos, strict=True)):
        rate = next((step.rate for step in calibration.steps(i) if step.word == "manipulated"), None)
        said = "never given" if rate is None else f"at most {100 * rate:g} % of untouched photos"
        sizes.append(f"{name} {said}, by {photos} of them")
    return f"the verdict 'manipulated': {'; '.join(sizes)}"


# --- cases ----------------------------------------------------------------------------------------------------------


class _Gallery:
    """The worst and best fakes by IoU and the worst untouched pictures, kept small while the others pass by."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._shelves: dict[CaseKind, list[tuple[float, Case]]] = {"worst": [], "best": [], "false alarm": []}

    def offer(
        self,
        sample: Sample,
        row: Row,
        scores: NDArray[np.float32],
        mask: NDArray[np.bool_],
        shown: NDArray[np.bool_],
    ) -> None:
        """Keep a picture on the shelves it is extreme enough for. The lower its key, the further in front."""
        ranks: list[tuple[CaseKind, float]] = []
        if not math.isnan(row.iou):
            ranks = [("worst", row.iou), ("best", -row.iou)]
        elif row.label == "real" and row.area > 0:
            ranks = [("false alarm", -row.area)]
        wanted = [(kind, key) for kind, key in ranks if self._takes(kind, key)]
        pictures = _thumbnails(sample, scores, mask, shown) if wanted else ()
        for kind, key in wanted:
            shelf = self._shelves[kind]
            shelf.append((key, Case(kind=kind, image=row.image, caption=_caption(row), pictures=pictures)))
            shelf.sort(key=lambda item: item[0])
            del shelf[self._size :]

    def cases(self) -> tuple[Case, ...]:
        """Worst, best and false alarms, most extreme first; no fake is shown as both."""
        worst = [case for _, case in self._shelves["worst"]]
        shown = {case.image for case in worst}
        best = [case for _, case in self._shelves["best"] if case.image not in shown]
        return (*worst, *best, *(case for _, case in self._shelves["false alarm"]))

    def _takes(self, kind: CaseKind, key: float) -> bool:
        shelf = self._shelves[kind]
        return len(shelf) < self._size or (self._size > 0 and key < shelf[-1][0])


def _caption(row: Row) -> str:
    caption = f"flagged area {row.area:.1%}, image score {row.score:.3f}"
    if row.label == "real":
        return caption
    return f"IoU {_number(row.iou)}, AUC {_number(row.auc)}, known area {row.manipulated:.1%}, {caption}"


def _thumbnails(
    sample: Sample, scores: NDArray[np.float32], mask: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> tuple[tuple[str, str], ...]:
    """Photo, known mask, scores (black 0, white 1, never stretched) and the photo with what is flagged, where the photo
    can be read."""
    known = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    known.thumbnail((THUMBNAIL, THUMBNAIL))
    small = resize_scores(scores, (known.height, known.width))
    grey = Image.fromarray((small * np.float32(255)).astype(np.uint8))
    found = (("known mask", _data_uri(known, "PNG")), ("scores", _data_uri(grey, "PNG")))
    try:
        photo = read_photo(sample.image, max_pixels=max(MAX_PIXELS, scores.size))
    except ImageError:
        return found
    pixels = np.asarray(Image.fromarray(photo.pixels).resize(known.size))
    flagged = resize_scores(shown.astype(np.float32), (known.height, known.width))
    result = Localization(name="", scores=flagged, rule=MaskRule(threshold=0.5), image_score=0.0, model="", sha256="")
    drawn = overlay(Photo(pixels=pixels, name=photo.name), result)
    return (("photo", _data_uri(Image.fromarray(pixels), "JPEG")), *found, ("overlay", _data_uri(drawn, "JPEG")))


def _data_uri(picture: Image.Image, kind: Literal["PNG", "JPEG"]) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- files ----------------------------------------------------------------------------------------------------------


def _summary_dict(summary: Summary) -> dict[str, Any]:
    pictures = {"fakes": summary.fakes, "reals": summary.reals, "all": summary.fakes + summary.reals}
    figures = {
        name: {
            "title": about["title"],
            "over": about["over"],
            "oracle": name.endswith("_oracle"),
            "mean": _plain(getattr(summary.mean, name)),
            "low": _plain(getattr(summary.low, name)),
            "high": _plain(getattr(summary.high, name)),
            "defined": pictures[about["over"]] - summary.undefined.get(name, 0),
            "undefined": summary.undefined.get(name, 0),
        }
        for name, about in _FIGURES.items()
    }
    return {"fakes": summary.fakes, "reals": summary.reals, "groups": summary.groups, "figures": figures}


def _csv(rows: Sequence[Row]) -> str:
    """One line per sample; nan and None are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [column.name for column in dataclasses.fields(Row)]
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.3f}"


def _interval(summary: Summary, name: str) -> str:
    low, high = getattr(summary.low, name), getattr(summary.high, name)
    return "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
