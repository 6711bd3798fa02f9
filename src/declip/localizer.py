"""The way of a photo: read → to_input → logits → scores → Localization; whole or tiled."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from declip import image, jpeg, weights
from declip.engines import open_engine
from declip.errors import ImageError, MissingExtraError, SpecError
from declip.types import Engine, Localization, Mode, ModelSpec, Photo, PictureLike, Precision, Verdict

__all__ = ["Localizer", "load", "model_file"]


def load(
    model: str | Path | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
    mode: Mode | None = None,
    threshold: float | None = None,
    precision: Precision = "exact",
    offline: bool = False,
) -> Localizer:
    """Open a model: None = the embedded one; a name of `declip.catalog`; a path to a .onnx or .safetensors.

    threads: of the engine (None = its default); device: torch's or "cuda" for ONNX Runtime (None = what there is).
    mode and threshold override the model's own (see Localizer). precision: "exact" (fp32) is all this release computes.
    offline: never download.
    Raises WeightsError, SpecError, or MissingExtraError if the file needs torch and torch is not installed.
    """
    if precision != "exact":
        raise SpecError(f"precision is {precision!r}; this release computes 'exact' (fp32) only")
    engine = open_engine(model_file(model, offline=offline), threads=threads, device=device, offline=offline)
    return Localizer(engine, mode=mode, threshold=threshold)


def model_file(model: str | Path | None = None, *, offline: bool = False) -> Path:
    """The file that `load` opens: of the embedded model (None), of a name of `declip.catalog`, or a path.

    An official checkpoint is downloaded, and converted to .safetensors beside it. Raises as `load` does.
    """
    path = weights.embedded_path() if model is None else weights.resolve(model, offline=offline)
    return _converted(path) if path.suffix == ".pth" and path.parent == weights.cache_dir() else path


def _converted(path: Path) -> Path:
    """An official .pth of the cache as .safetensors beside it, converted once."""
    out = path.with_suffix(".safetensors")
    if not out.exists():
        try:
            from declip.nn import checkpoint
        except ModuleNotFoundError as error:
            if missing := MissingExtraError.behind(error):
                raise missing from error
            raise
        checkpoint.convert(path, out)
    return out


class Localizer:
    """Pictures → Localizations with one engine. Thread-safe.

    mode: "whole" squashes the photo to the network's square input, "tiled" slides over it at native resolution;
    None = the model's (one made for "whole" is tiled with a quarter of overlap). threshold, peak: of the mask
    (`types.flagged`); without a threshold both are the model's, calibrated or default. precision: how the engine
    computes; a verdict is given only where mode and precision are those of the calibration.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        mode: Mode | None = None,
        threshold: float | None = None,
        peak: float = 0.0,
        precision: Precision = "exact",
    ) -> None:
        self.engine = engine
        self.mode: Mode = mode or engine.spec.mode
        self.threshold = engine.spec.mask_threshold if threshold is None else threshold
        self.peak = engine.spec.mask_peak if threshold is None else peak
        self.precision: Precision = precision
        self.overlap = engine.spec.overlap if engine.spec.mode == "tiled" else engine.spec.input_size // 4
        if not 0 <= self.threshold <= 1:
            raise SpecError(f"threshold is {self.threshold}; expected in [0, 1], as scores are")
        if self.mode == "tiled" and self.spec.input_size % self.spec.output_size:
            raise SpecError(
                f"{engine.model} cannot run tiled: its map of {self.spec.output_size} px does not divide its input of "
                f"{self.spec.input_size} px; use whole mode"
            )

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.engine.spec

    @property
    def model(self) -> str:
        """The model's name, as in results."""
        return self.engine.model

    @property
    def sha256(self) -> str:
        """Of the weight file."""
        return self.engine.sha256

    def __call__(self, picture: PictureLike) -> Localization:
        """Localize one picture: str, Path, bytes, PIL image, (H, W, 3) uint8 or Photo. Raises ImageError."""
        result = next(self.map([picture], batch_size=1))
        if isinstance(result, ImageError):
            raise result
        return result

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        """Localize pictures in order; a bad one is yielded as its ImageError. Holds at most batch_size at a time.

        batch_size counts photos (whole) or tiles (tiled) computed at once; it changes no score.
        """
        if batch_size < 1:
            raise SpecError(f"batch_size is {batch_size}; expected >= 1")
        pictures = iter(images)
        if self.mode == "tiled":
            for picture in pictures:
                yield self._tiled(picture, batch_size)
            return
        while batch := list(islice(pictures, batch_size)):
            yield from self._whole(batch)

    def _whole(self, pictures: list[PictureLike]) -> Iterator[Localization | ImageError]:
        start = time.perf_counter()
        photos = [_read(picture) for picture in pictures]
        good = [photo for photo in photos if isinstance(photo, Photo)]
        if good:
            inputs = np.stack([image.to_input(photo.pixels, self.spec) for photo in good])
            maps = iter(self.engine.logits({"image": inputs}))
        shared = (time.perf_counter() - start) / len(pictures)
        for photo in photos:
            if isinstance(photo, ImageError):
                yield photo
                continue
            start = time.perf_counter() - shared
            logits = next(maps)
            scores = image.to_scores(logits, self.spec.temperature)
            score = self._image_score(scores, logits)
            # As the rival's authors do it.
            bicubic = self.spec.architecture == "patch-forensics"
            yield self._result(photo, image.resize_scores(scores, photo.size, bicubic=bicubic), score, start)

    def _tiled(self, picture: PictureLike, batch_size: int) -> Localization | ImageError:
        start = time.perf_counter()
        photo = _read(picture)
        if isinstance(photo, ImageError):
            return photo
        if self.spec.architecture == "cat-net":
            return self._tiled_jpeg(photo, batch_size, start)
        scores, score = self._scan(photo, batch_size)
        return self._result(photo, scores, score, start)

    def _tiled_jpeg(self, photo: Photo, batch_size: int, start: float) -> Localization | ImageError:
        """With the coefficients of the file, on the grid in which they are stored."""
        try:
            found = jpeg.read_coefficients(photo)
        except ImageError as error:
            return error
        as_stored = dataclasses.replace(photo, pixels=image.stored(photo.pixels, found.orientation))
        scores, score = self._scan(as_stored, batch_size, found)
        return self._result(photo, image.upright(scores, found.orientation), score, start)

    def _scan(
        self, photo: Photo, batch_size: int, found: jpeg.JpegCoefficients | None = None
    ) -> tuple[NDArray[np.float32], float]:
        """(scores (H, W), image score) by tiles. found: what a network reads beside the pixels, on the same grid."""
        size, ratio = self.spec.input_size, self.spec.input_size // self.spec.output_size
        padded = _pad(photo.pixels, size, _unit(size, self.overlap, ratio))
        height, width = padded.shape[:2]
        coefficients = None if found is None else found.plane(height, width)
        corners = [
            (y, x)
            for y in _offsets(height, size, self.overlap, ratio)
            for x in _offsets(width, size, self.overlap, ratio)
        ]
        blend = _window(self.spec.output_size, self.overlap // ratio)
        total = np.zeros((height // ratio, width // ratio), np.float32)
        logit_total = np.zeros_like(total) if self.spec.image_score == "mean-logit" else None
        weight = np.zeros_like(total)
        remaining = iter(corners)
        while batch := list(islice(remaining, batch_size)):
            windows = [(slice(y, y + size), slice(x, x + size)) for y, x in batch]
            inputs = {"image": np.stack([image.normalise(padded[window], self.spec) for window in windows])}
            if found is not None and coefficients is not None:
                inputs["coefficients"] = np.stack([coefficients[window] for window in windows])
                inputs["table"] = np.stack([found.table.astype(np.float32)] * len(windows))
            for (y, x), logits in zip(batch, self.engine.logits(inputs), strict=True):
                rows = slice(y // ratio, (y + size) // ratio)
                columns = slice(x // ratio, (x + size) // ratio)
                total[rows, columns] += blend * image.to_scores(logits, self.spec.temperature)
                weight[rows, columns] += blend
                if logit_total is not None:
                    logit_total[rows, columns] += blend * logits
        # Scores of the padding are no part of the photo.
        inside = (-(-photo.size[0] // ratio), -(-photo.size[1] // ratio))
        total /= weight
        scores = total[: inside[0], : inside[1]]
        mean_logits = None
        if logit_total is not None:
            logit_total /= weight
            mean_logits = logit_total[: inside[0], : inside[1]]
        score = self._image_score(scores, mean_logits)
        del padded, coefficients, weight  # what is resized next is large as well
        full = image.resize_scores(scores, (inside[0] * ratio, inside[1] * ratio))
        return full[: photo.size[0], : photo.size[1]], score

    def _image_score(self, scores: NDArray[np.float32], logits: NDArray[np.float32] | None) -> float:
        """The image's score in [0, 1], on the network's grid (see ModelSpec.image_score)."""
        match self.spec.image_score:
            case "mean-logit":
                assert logits is not None
                mean = np.array([logits.mean(dtype=np.float64)], np.float32)
                return float(image.to_scores(mean, self.spec.temperature)[0])
            case "mean":
                return float(scores.mean(dtype=np.float64))
            case "top":
                flat = scores.ravel()
                count = min(flat.size, max(64, round(flat.size / 100)))
                return float(np.partition(flat, flat.size - count)[-count:].mean(dtype=np.float64))

    def _result(self, photo: Photo, scores: NDArray[np.float32], score: float, start: float) -> Localization:
        calibration = self.spec.calibration
        read: tuple[Verdict | None, float | None, float | None] = (None, None, None)
        if (
            calibration is not None
            and calibration.image_thresholds
            and (calibration.mode, calibration.precision) == (self.mode, self.precision)
        ):
            read = calibration.verdict(score)
        verdict, rate, score_threshold = read
        return Localization(
            name=photo.name,
            scores=np.ascontiguousarray(scores),
            threshold=self.threshold,
            peak=self.peak,
            score=score,
            verdict=verdict,
            false_alarm_rate=rate,
            score_threshold=score_threshold,
            model=self.model,
            sha256=self.sha256,
            seconds=time.perf_counter() - start,
        )


def _read(picture: PictureLike) -> Photo | ImageError:
    try:
        return image.read(picture)
    except ImageError as error:
        return error


def _unit(size: int, overlap: int, ratio: int) -> int:
    """What the corners of windows are multiples of: `ratio`, and 8 where that leaves a step (JPEG's grid keeps its
    phase, which a model may have learnt)."""
    unit = math.lcm(8, ratio)
    return unit if size - overlap >= unit and size % unit == 0 else ratio


def _pad(pixels: NDArray[np.uint8], size: int, unit: int) -> NDArray[np.uint8]:
    """Pad below and to the right to at least `size` and a multiple of `unit`: by reflection, whose noise is the
    photo's own; by edge where the photo is too small to be reflected."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        missing = max(size, -(-length // unit) * unit) - length
        if missing:
            widths = [(0, 0)] * 3
            widths[axis] = (0, missing)
            pixels = np.pad(pixels, widths, mode="reflect" if length > 1 else "edge")
    return pixels


def _offsets(length: int, size: int, overlap: int, ratio: int) -> list[int]:
    """Starts of windows that cover `length`, neighbours overlapping by at least `overlap`: multiples of `_unit`, of
    which `length` is one; the last window is flush with the end."""
    if length <= size:
        return [0]
    unit = _unit(size, overlap, ratio)
    step = max(unit, (size - overlap) // unit * unit)
    return [*range(0, length - size, step), length - size]


def _window(size: int, overlap: int) -> NDArray[np.float32]:
    """Blending weights of a tile, (size, size) > 0: a raised cosine across the overlap, 1 inside."""
    ramp = np.ones(size, np.float32)
    if overlap:
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap)
        ramp[:overlap] = rise
        ramp[-overlap:] = np.minimum(ramp[-overlap:], rise[::-1])
    return np.outer(ramp, ramp).astype(np.float32)
