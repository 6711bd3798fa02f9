"""Open a model and localize with it: photos → Localizations, whole or tiled. `pipeline` has the order of the steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip import provenance
from declip.clues import CLUES, Clue
from declip.clues.findings import scale_of
from declip.engines import Engine, model_file, open_engine
from declip.errors import ImageError, SpecError
from declip.images import jpeg, scope
from declip.images.read import MAX_BYTES, MAX_PIXELS, name_of, read_photo
from declip.images.tensors import to_scores
from declip.localize import looking
from declip.localize.pipeline import compute, read_one, stream
from declip.localize.tiling import TiledPhoto, WholePhoto
from declip.regions import MaskRule
from declip.results import Localization, Photo, PictureLike, check_several, check_type
from declip.spec import Mode, ModelSpec, Precision, Scale, check_choice

__all__ = ["Asked", "Localizer", "load", "model_file"]

Asked: TypeAlias = Literal["calibrated", "all", "none"]  # clues


def load(
    model: str | Path | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
    mode: Mode | None = None,
    threshold: float | None = None,
    precision: Precision = "exact",
    clues: bool = True,
    offline: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Localizer:
    """Open a model: None = the embedded one; a name of `declip.models.catalog`; a path to a .onnx or .safetensors.

    threads: of the engine (None = one for each core). device: "cpu", "cuda" or "cuda:1" (the second GPU), or with torch
    "mps" or "xpu"; None = the CPU for .onnx files, CUDA for .safetensors where there is one. mode and threshold
    override the model's own (see Localizer). precision: "exact" is fp32; "fast" is bf16 where the CPU has it, by
    OpenVINO for .onnx files and by torch for .safetensors; elsewhere it is fp32, and `Localizer.precision` says
    "exact". clues: look for those that the model was calibrated with. offline: never download. max_pixels, max_bytes:
    of a picture and of its file; larger ones are refused.
    Raises WeightsError, SpecError, or MissingExtraError if torch or OpenVINO is needed and not installed.
    """
    check_choice(precision, Precision, "precision")
    _check(mode, threshold)  # before a model is fetched
    path = model_file(model, offline=offline)
    engine = open_engine(path, threads=threads, device=device, precision=precision, offline=offline)
    localizer = Localizer(engine, mode=mode, threshold=threshold, max_pixels=max_pixels, max_bytes=max_bytes)
    return localizer.look_for("calibrated" if clues else "none")


def _check(mode: object, threshold: object) -> None:
    """Raise SpecError for another mode, or a threshold that is no score."""
    if mode is not None:
        check_choice(mode, Mode, "mode")
    number = isinstance(threshold, int | float | np.floating) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0 <= threshold <= 1):  # type: ignore[operator]
        raise SpecError(f"threshold is {threshold!r}; expected a number in [0, 1], as scores are")


class Localizer:
    """Pictures → Localizations with one engine. Thread-safe.

    mode: "whole" squashes the photo to the network's square input, "tiled" slides over it at native resolution;
    None = the model's (one made for "whole" is tiled with a quarter of overlap). threshold: of the mask; without one
    the model's calibration decides on mask and verdict, where it was made in this mode at the engine's precision.
    Besides, it looks for the clues that this calibration knows, see `look_for`.
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
        check_type(engine, Engine, "declip.load('mini') opens a model by its name or file")
        _check(mode, threshold)
        if not all(isinstance(limit, int | np.integer) and limit >= 1 for limit in (max_pixels, max_bytes)):
            raise SpecError(f"max_pixels is {max_pixels!r} and max_bytes {max_bytes!r}; expected whole numbers >= 1")
        spec, calibration = engine.spec, engine.spec.calibration
        self.engine = engine
        self.mode: Mode = mode or spec.mode
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.overlap = spec.overlap if spec.mode == "tiled" else spec.input_size // 4
        self.threshold = threshold
        self.rule = MaskRule.of(spec)
        fits = calibration is not None and (calibration.mode, calibration.precision) == (self.mode, engine.precision)
        if threshold is not None or not fits:
            self.rule = MaskRule(threshold=self.rule.threshold if threshold is None else threshold)
        self.look_for("calibrated")
        if self.mode == "tiled" and spec.input_size % spec.output_size:
            raise SpecError(
                f"{engine.model} cannot run tiled: its map of {spec.output_size} px does not divide its input of "
                f"{spec.input_size} px; use whole mode"
            )

    def look_for(self, clues: Asked) -> Localizer:
        """Look for clues: those that the calibration knows (none, where there is no verdict), all, or none.

        Returns the localizer itself. It is for one that nobody uses yet; `variant` leaves it as it is.
        """
        check_choice(clues, Asked, "clues")
        known = () if self.rule.calibration is None else self.rule.calibration.clues
        kinds = {"calibrated": known, "all": tuple(CLUES), "none": ()}[clues]
        self.asked: Asked = clues
        self.clues: tuple[Clue, ...] = tuple(CLUES[kind] for kind in CLUES if kind in kinds)
        return self

    def variant(
        self,
        *,
        engine: Engine | None = None,
        mode: Mode | None = None,
        threshold: float | None = None,
        clues: Asked | None = None,
    ) -> Localizer:
        """Return a localizer like this one, with another engine for the same weights, mode, threshold or clues."""
        other = Localizer(
            engine or self.engine,
            mode=mode or self.mode,
            threshold=self.threshold if threshold is None else threshold,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
        )
        return other.look_for(clues or self.asked)

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.engine.spec

    @property
    def precision(self) -> Precision:
        """How the engine computes."""
        return self.engine.precision

    @property
    def scales(self) -> tuple[Scale, ...]:
        """What the evidence of the clues is worth that are looked for."""
        return tuple(Scale(clue.kind, *scale_of(clue.kind)) for clue in self.clues)

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
        """Localize one picture: str, Path, bytes, PIL image, (H, W, 3) uint8 or Photo.

        Raises ImageError (of kind "too-large" also where the memory does not hold it).
        """
        (outcome,) = compute(self, [read_one(self, picture, self.read, name_of)], 8)
        if isinstance(outcome.result, Exception):
            raise outcome.result
        return outcome.result

    def read(self, picture: PictureLike, *, page: int | None = None) -> Photo:
        """Read a picture within this localizer's limits, as `read_photo` does. Raises ImageError."""
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
        for outcome in stream(self, images, self.read, batch_size, name_of):
            if isinstance(outcome.result, Exception) and not isinstance(outcome.result, ImageError):
                raise outcome.result
            yield outcome.result

    # --- the steps that `pipeline` takes ----------------------------------------------------------------------------

    def prepare(self, photo: Photo) -> WholePhoto | TiledPhoto:
        """Make the inputs of the network, and begin to look for clues.

        Raises MissingExtraError where it reads JPEG coefficients without jpeglib.
        """
        content: WholePhoto | TiledPhoto
        if self.mode == "whole":
            content = WholePhoto(photo, self.spec)
        else:
            found = jpeg.read_coefficients(photo) if self.spec.traits.reads_coefficients else None
            content = TiledPhoto(photo, self.spec, self.overlap, found)
        content.looking = looking.start(photo, self.clues)
        return content

    def finish(self, content: WholePhoto | TiledPhoto, start: float) -> Localization | ImageError:
        """Make the result of a photo whose logits are all there. start: `time.perf_counter()` when work on it began."""
        photo, engine = content.photo, self.engine
        if not content.finite:  # scores of such logits would be a map on which nothing is found
            tried = "" if engine.precision == "exact" else "; try it with --precision exact (precision='exact')"
            return ImageError(
                photo.name,
                "internal",
                "the network's logits are not finite (nan or inf), so there is no map; expected finite ones: "
                f"the model or the way it is computed is at fault, not the picture{tried}",
            )
        grid, logit_grid = content.grids()
        score = self._image_score(grid, logit_grid)
        scores = np.ascontiguousarray(content.full(grid))
        why, looked = scope.why_not(photo.pixels), content.looking.result()
        return Localization(
            name=photo.name,
            scores=scores,
            rule=self.rule,
            image_score=score,
            provenance=provenance.read(photo).to_dict(),
            findings=looked.findings,
            clues=looked.clues,
            notes=(*photo.notes, *looked.notes),
            pages=photo.pages,
            page=photo.page,
            out_of_scope=None if why is None else why.reason,
            model=engine.model,
            sha256=engine.sha256,
            mode=self.mode,
            precision=engine.precision,
            seconds=time.perf_counter() - start,
        )

    def _image_score(self, scores: NDArray[np.float32], logits: NDArray[np.float32] | None) -> float:
        """Return the image's score in [0, 1], on the network's grid (see ModelSpec.image_score)."""
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
