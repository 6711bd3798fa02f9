"""The way of a photo: read → to_input → logits → scores → Localization; whole or tiled."""

from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from declip import provenance
from declip.engines import model_file, open_engine
from declip.errors import ImageError, SpecError
from declip.images import jpeg, scope
from declip.images.orientation import to_stored, to_upright
from declip.images.read import MAX_BYTES, MAX_PIXELS, name_of, read_photo
from declip.images.tensors import normalise, resize_scores, to_input, to_scores
from declip.process import check_process, cores, ending
from declip.results import Engine, Localization, MaskRule, Photo, PictureLike, check_several
from declip.spec import Mode, ModelSpec, Precision, check_choice

__all__ = ["Localizer", "ahead", "lacks_memory", "load", "model_file"]

# What libraries say: ONNX Runtime, torch on CPU and GPU, C++.
_NO_MEMORY = re.compile(
    r"bad_alloc|failed to allocate memory|can't allocate memory|out of memory|can't start new thread", re.IGNORECASE
)

T = TypeVar("T")
Corner: TypeAlias = tuple[int, int]  # (y, x) px of a tile's first pixel
Inputs: TypeAlias = dict[str, NDArray[Any]]  # what a network takes, by name


def load(
    model: str | Path | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
    mode: Mode | None = None,
    threshold: float | None = None,
    precision: Precision = "exact",
    offline: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Localizer:
    """Open a model: None = the embedded one; a name of `declip.models.catalog`; a path to a .onnx or .safetensors.

    threads: of the engine (None = one for each core). device: "cpu", "cuda" or "cuda:1" (the second GPU), or with torch
    "mps" or "xpu"; None = the CPU for .onnx files, CUDA for .safetensors where there is one. mode and threshold
    override the model's own (see Localizer). precision: "exact" is fp32; "fast" is bf16 where the CPU has it, by
    OpenVINO for .onnx files and by torch for .safetensors; elsewhere it is fp32, and `Localizer.precision` says
    "exact". offline: never download. max_pixels, max_bytes: of a picture and of its file; larger ones are refused.
    Raises WeightsError, SpecError, or MissingExtraError if torch or OpenVINO is needed and not installed.
    """
    # Before a model is fetched.
    check_choice(precision, Precision, "precision")
    if mode is not None:
        check_choice(mode, Mode, "mode")
    _check_threshold(threshold)
    path = model_file(model, offline=offline)
    engine = open_engine(path, threads=threads, device=device, precision=precision, offline=offline)
    return Localizer(engine, mode=mode, threshold=threshold, max_pixels=max_pixels, max_bytes=max_bytes)


def _check_threshold(threshold: object) -> None:
    """Raise SpecError for what is no score."""
    if threshold is None:
        return
    if not isinstance(threshold, (int, float, np.floating)) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise SpecError(f"threshold is {threshold!r}; expected a number in [0, 1], as scores are")


class Localizer:
    """Pictures → Localizations with one engine. Thread-safe.

    mode: "whole" squashes the photo to the network's square input, "tiled" slides over it at native resolution;
    None = the model's (one made for "whole" is tiled with a quarter of overlap). threshold: of the mask; without one
    the model's calibration decides on mask and verdict, where it was made in this mode at the engine's precision.
    max_pixels, max_bytes: of a picture, see `read`.

    It can be pickled if its engine can: those that `load` opens are opened anew, from the same file, in the process
    that it is sent to. Others raise TypeError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        mode: Mode | None = None,
        threshold: float | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if mode is not None:
            check_choice(mode, Mode, "mode")
        _check_threshold(threshold)
        if max_pixels < 1 or max_bytes < 1:
            raise SpecError(f"max_pixels is {max_pixels} and max_bytes {max_bytes}; expected numbers >= 1")
        self.engine = engine
        self.mode: Mode = mode or engine.spec.mode
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.overlap = engine.spec.overlap if engine.spec.mode == "tiled" else engine.spec.input_size // 4
        self.threshold = threshold
        self.rule = self._rule(threshold)
        if self.mode == "tiled" and self.spec.input_size % self.spec.output_size:
            raise SpecError(
                f"{engine.model} cannot run tiled: its map of {self.spec.output_size} px does not divide its input of "
                f"{self.spec.input_size} px; use whole mode"
            )

    def _rule(self, threshold: float | None) -> MaskRule:
        """What decides on mask and verdict."""
        rule, calibration = MaskRule.of(self.spec), self.spec.calibration
        if threshold is not None:
            return MaskRule(threshold=threshold)
        if calibration is not None and (calibration.mode, calibration.precision) == (self.mode, self.precision):
            return rule
        return MaskRule(threshold=rule.threshold)

    def variant(
        self, *, engine: Engine | None = None, mode: Mode | None = None, threshold: float | None = None
    ) -> Localizer:
        """Return a localizer like this one, with another engine for the same weights, mode or threshold."""
        return Localizer(
            engine or self.engine,
            mode=mode or self.mode,
            threshold=self.threshold if threshold is None else threshold,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
        )

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.engine.spec

    @property
    def precision(self) -> Precision:
        """How the engine computes."""
        return self.engine.precision

    def __getstate__(self) -> dict[str, Any]:
        if type(self.engine).__reduce__ is object.__reduce__:  # nothing says how to make it again
            raise TypeError(
                f"this Localizer's {type(self.engine).__name__} was not loaded from a file, and cannot be sent to "
                "another process: load it in each process"
            )
        return self.__dict__

    @property
    def model(self) -> str:
        """The model's name, as in results."""
        return self.engine.model

    @property
    def sha256(self) -> str:
        """Of the weight file."""
        return self.engine.sha256

    def __call__(self, picture: PictureLike) -> Localization:
        """Localize one picture: str, Path, bytes, PIL image, (H, W, 3) uint8 or Photo. Raises ImageError
        (of kind "too-large" also where the memory does not hold it)."""
        (result,) = self._each([self._read(picture)], 8, map)
        if isinstance(result, ImageError):
            raise result
        return result

    def read(self, picture: PictureLike, *, page: int | None = None) -> Photo:
        """`read_photo` within this localizer's limits. Raises ImageError."""
        return read_photo(picture, max_pixels=self.max_pixels, max_bytes=self.max_bytes, page=page)

    def map(self, images: Iterable[PictureLike], batch_size: int = 8) -> Iterator[Localization | ImageError]:
        """Localize pictures in order; a bad one is yielded as its ImageError.

        One that the memory does not hold is an ImageError of kind "too-large"; the others of its batch are then tried
        alone.

        batch_size counts photos (whole) or tiles (tiled; of one photo, or of several small ones) computed at once; it
        changes no score. While the caller has the results of one batch, the next is computed and the one after it
        read, in threads of their own, so that at most three batches, or large photos, are held. `images` is iterated
        in one of them. Raises ImageError for one picture instead of several.
        """
        check_several(images, "map([…])")
        if batch_size < 1:
            raise SpecError(f"batch_size is {batch_size}; expected >= 1")
        with (
            ending(
                ThreadPoolExecutor(cores(), thread_name_prefix="declip-photos"), ThreadPoolExecutor.shutdown
            ) as pool,
            ending(ahead(self._batches(images, batch_size, pool)), Generator.close) as batches,
            ending(ahead(self._each(batch, batch_size, pool.map) for batch in batches), Generator.close) as found,
        ):
            for results in found:
                yield from results

    def _batches(
        self, images: Iterable[PictureLike], batch_size: int, pool: ThreadPoolExecutor
    ) -> Iterator[list[_Underway]]:
        if self.mode == "whole":
            # Each is one input. A network's threads wait for each other: reading a photo beside it holds them all up.
            images = iter(images)
            while photos := list(itertools.islice(images, batch_size)):
                yield list(pool.map(self._read, photos))
            return
        batch: list[_Underway] = []
        for picture in images:
            batch.append(self._read(picture))
            if sum(read.inputs for read in batch) >= batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, picture: PictureLike) -> _Underway:
        start = time.perf_counter()
        try:
            photo = self.read(picture)
            content: _Whole | _Scan
            if self.mode == "tiled":
                found = jpeg.read_coefficients(photo) if self.spec.traits.reads_coefficients else None
                content = _Scan(photo, self.spec, self.overlap, found)
            else:
                content = _Whole(photo, self.spec)
        except ImageError as error:
            return _Underway(error, time.perf_counter() - start)
        except MemoryError:
            return _Underway(ImageError.out_of_memory(name_of(picture)), time.perf_counter() - start)
        return _Underway(content, time.perf_counter() - start)

    def _each(
        self, batch: list[_Underway], batch_size: int, each: Callable[..., Iterable[Any]]
    ) -> list[Localization | ImageError]:
        """As `_localize`. What the memory does not hold is tried one by one, and what it does not hold then is an
        ImageError of kind "too-large"."""
        try:
            return self._localize(batch, batch_size, each)
        except Exception as error:
            if not lacks_memory(error):
                raise
        # Out here the failed attempt holds no memory any more, and its half-filled maps are not used again.
        left = [read.content if isinstance(read.content, ImageError) else read.content.photo for read in batch]
        if len(left) == 1:
            return [first if isinstance(first := left[0], ImageError) else ImageError.out_of_memory(first.name)]
        batch.clear()
        found: list[Localization | ImageError] = []
        for photo in left:
            found += [photo] if isinstance(photo, ImageError) else self._each([self._read(photo)], 1, map)
        return found

    def _localize(
        self, batch: Sequence[_Underway], batch_size: int, each: Callable[..., Iterable[Any]]
    ) -> list[Localization | ImageError]:
        """One outcome for each, in order. each: as `map`."""
        start = time.perf_counter()
        work = [read.content for read in batch if not isinstance(read.content, ImageError)]
        tiles = [(content, corner) for content in work for corner in content.corners]
        parts = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
        for part, inputs in ahead((part, _stacked(part)) for part in parts):
            for (content, corner), logits in zip(part, self.engine.logits(inputs), strict=True):
                content.finite &= bool(np.isfinite(logits).all())
                content.add(corner, logits)
        shared = (time.perf_counter() - start) / max(1, len(tiles))

        def outcome(read: _Underway) -> Localization | ImageError:
            if isinstance(read.content, ImageError):
                return read.content
            if not read.content.finite:
                return _not_finite(read.content.photo, self.precision)
            start = time.perf_counter() - read.seconds - shared * read.inputs
            grid, logit_grid = read.content.grids()
            score = self._image_score(grid, logit_grid)
            return self._result(read.content.photo, read.content.full(grid), score, start)

        return list(each(outcome, batch))

    def _image_score(self, scores: NDArray[np.float32], logits: NDArray[np.float32] | None) -> float:
        """The image's score in [0, 1], on the network's grid (see ModelSpec.image_score)."""
        match self.spec.image_score:
            case "mean-logit":
                assert logits is not None
                mean = np.array([logits.mean(dtype=np.float64)], np.float32)
                return float(to_scores(mean, self.spec.temperature)[0])
            case "mean":
                return float(scores.mean(dtype=np.float64))
            case "top":
                flat = scores.ravel()
                count = min(flat.size, max(64, round(flat.size / 100)))
                return float(np.partition(flat, flat.size - count)[-count:].mean(dtype=np.float64))

    def _result(self, photo: Photo, scores: NDArray[np.float32], score: float, start: float) -> Localization:
        return Localization(
            name=photo.name,
            scores=np.ascontiguousarray(scores),
            rule=self.rule,
            image_score=score,
            provenance=provenance.read(photo).to_dict(),
            notes=photo.notes,
            pages=photo.pages,
            page=photo.page,
            out_of_scope=None if (why := scope.why_not(photo.pixels)) is None else why.reason,
            model=self.model,
            sha256=self.sha256,
            mode=self.mode,
            precision=self.precision,
            seconds=time.perf_counter() - start,
        )


@dataclass(frozen=True, slots=True)
class _Underway:
    """A picture that was read, or why it could not be, and the seconds that took."""

    content: _Whole | _Scan | ImageError
    seconds: float

    @property
    def inputs(self) -> int:
        """Of the network: tiles, or one."""
        return 1 if isinstance(self.content, ImageError) else len(self.content.corners)


def _not_finite(photo: Photo, precision: Precision) -> ImageError:
    """Why there is no result: scores of such logits would be a map on which nothing is found."""
    tried = "" if precision == "exact" else "; try it with --precision exact (precision='exact')"
    return ImageError(
        photo.name,
        "internal",
        "the network's logits are not finite (nan or inf), so there is no map; expected finite ones: "
        f"the model or the way it is computed is at fault, not the picture{tried}",
    )


class _Whole:
    """A photo that the network sees squashed into one input. finite: whether all logits of it were."""

    corners: tuple[Corner, ...] = ((0, 0),)
    finite = True

    def __init__(self, photo: Photo, spec: ModelSpec) -> None:
        self.photo = photo
        self.spec = spec
        self._input = to_input(photo.pixels, spec)

    def tile(self, corner: Corner) -> Inputs:
        """The input."""
        return {"image": self._input}

    def add(self, corner: Corner, logits: NDArray[np.float32]) -> None:
        """Keep the network's answer."""
        self._logits = logits

    def grids(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """(scores, logits) as the network gave them, (T, T) both."""
        return to_scores(self._logits, self.spec.temperature), self._logits

    def full(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(T, T) → (H, W)."""
        return resize_scores(scores, self.photo.size, bicubic=self.spec.traits.resizes_bicubic)


class _Scan:
    """A photo in overlapping tiles, and the map that their scores are blended into. finite: whether all logits were.

    found: what a network reads beside the pixels; the tiles then lie on the grid in which the file stores it.
    """

    finite = True

    def __init__(self, photo: Photo, spec: ModelSpec, overlap: int, found: jpeg.JpegCoefficients | None = None) -> None:
        self.photo = photo
        self.spec = spec
        self._found = found
        size, ratio = spec.input_size, spec.input_size // spec.output_size
        pixels = photo.pixels if found is None else to_stored(photo.pixels, found.orientation)
        self._size = pixels.shape[:2]
        self._padded = _pad(pixels, size, _unit(size, overlap, ratio))
        height, width = self._padded.shape[:2]
        self._coefficients = None if found is None else found.plane(height, width)
        self._ratio = ratio
        self.corners: tuple[Corner, ...] = tuple(
            (y, x) for y in _offsets(height, size, overlap, ratio) for x in _offsets(width, size, overlap, ratio)
        )
        self._blend = _window(spec.output_size, overlap // ratio)
        self._total = np.zeros((height // ratio, width // ratio), np.float32)
        self._logit_total = np.zeros_like(self._total) if spec.image_score == "mean-logit" else None
        self._weight = np.zeros_like(self._total)

    def tile(self, corner: Corner) -> Inputs:
        """The input with this corner (y, x)."""
        window = self._window(corner, 1)
        inputs: Inputs = {"image": normalise(self._padded[window], self.spec)}
        if self._found is not None and self._coefficients is not None:
            inputs |= {"coefficients": self._coefficients[window], "table": self._found.table.astype(np.float32)}
        return inputs

    def add(self, corner: Corner, logits: NDArray[np.float32]) -> None:
        """Blend the network's answer in."""
        window = self._window(corner, self._ratio)
        self._total[window] += self._blend * to_scores(logits, self.spec.temperature)
        self._weight[window] += self._blend
        if self._logit_total is not None:
            self._logit_total[window] += self._blend * logits

    def grids(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """(scores, logits where the image score needs them) of the photo without its padding; for the last time."""
        height, width = (-(-side // self._ratio) for side in self._size)
        self._total /= self._weight
        scores, logits = self._total[:height, :width], None
        if self._logit_total is not None:
            self._logit_total /= self._weight
            logits = self._logit_total[:height, :width]
        del self._padded, self._coefficients, self._total, self._weight  # what is resized next is large as well
        return scores, logits

    def full(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """On the photo's own pixels, (H, W)."""
        height, width = (side * self._ratio for side in scores.shape)
        full = resize_scores(scores, (height, width))[: self._size[0], : self._size[1]]
        return full if self._found is None else to_upright(full, self._found.orientation)

    def _window(self, corner: Corner, ratio: int) -> tuple[slice, slice]:
        y, x = (start // ratio for start in corner)
        side = self.spec.input_size // ratio
        return slice(y, y + side), slice(x, x + side)


def _stacked(tiles: Sequence[tuple[_Whole | _Scan, Corner]]) -> Inputs:
    inputs = [content.tile(corner) for content, corner in tiles]
    return {name: np.stack([each[name] for each in inputs]) for name in inputs[0]}


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory; ONNX Runtime and torch have errors of their own for it."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def ahead(items: Iterator[T]) -> Generator[T]:
    """The same items; each is made in a thread of its own while the one before it is used.

    Raises DeclipError in a fork that goes on with what its parent began.
    """
    process = os.getpid()
    with ending(ThreadPoolExecutor(1, thread_name_prefix="declip-ahead"), ThreadPoolExecutor.shutdown) as thread:
        upcoming = thread.submit(next, items, None)
        try:
            while (item := upcoming.result()) is not None:
                upcoming = thread.submit(next, items, None)
                yield item
                check_process(process, "this iteration over photos")
        finally:
            if os.getpid() == process:
                upcoming.cancel()


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
