"""Data sets of pictures that have lived: cameras and crops before the manipulation, editors and messengers after it.

`Recipe` says what is made, `make` makes it. The files are those of `pipeline`: pairs of a manipulated picture and its
untouched twin, each pair from its own seed; an interrupted run resumes. Beside what `synthesize` makes, here

- every sample has a history (`history.History`), the same for the manipulated picture and its twin, donors their own;
- pictures have many sizes and shapes;
- masks can be whole objects, or keep clear of them (`saliency`), by maps that are computed once per photo;
- no source of photos has more than 8 % of the samples (`sources.allot`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip import datasets
from declip.errors import DatasetError
from declip.files import write_atomic
from declip.results import Sample
from declip.synthesis import classical, saving
from declip.synthesis import saliency as salient_maps
from declip.synthesis.forging import (
    SPLICE_OBJECT,
    Forgery,
    MaskKind,
    Networks,
    Scene,
    expand,
    family_of,
    known_masks,
    manipulate,
    needs_donor,
)
from declip.synthesis.history import History
from declip.synthesis.pipeline import read, run
from declip.synthesis.sources import allot, source_of

__all__ = ["Places", "Recipe", "make"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_ATTEMPTS = 5
_SHORT = (0.6, 1.0)  # the shorter side of a picture as a share of its longer one
_SMALLEST_SCALE = 0.25
_LEAST_LEFT = 0.003  # of the picture, that the mask must have after its history


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a data set is made of.

    generators: names of forging.ALL_GENERATORS, taken in turn; a name that is there twice is twice as frequent.
    masks: kinds of mask to draw from. sides: px, shortest and longest of the pictures' longer side when they are
    manipulated, drawn log-uniformly. count: pairs. cap: largest share of a source of photos. split: for the manifest.
    """

    generators: tuple[str, ...]
    masks: tuple[MaskKind, ...]
    seed: int
    count: int
    history: History = dataclasses.field(default_factory=History)
    sides: tuple[int, int] = (448, 1400)
    cap: float = 0.08
    split: str = "train"

    def __post_init__(self) -> None:
        expand(self.generators)
        known_masks(self.masks)
        if not 128 <= self.sides[0] <= self.sides[1]:
            raise DatasetError(f"sides are {self.sides}; expected 128 <= shortest <= longest")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where everything lies. out: folder of the data set. autoencoder: folder of TAEF2's files. zoo: folder of small
    autoencoders. saliency: folder of maps, which is filled where maps are missing."""

    out: Path
    autoencoder: Path | None = None
    zoo: Path | None = None
    saliency: Path | None = None


def make(photos: Sequence[Path], recipe: Recipe, places: Places, *, workers: int = 1, progress: bool = False) -> Path:
    """Make the data set of a recipe, or what an interrupted run has not made of it; return its manifest.

    Raises:
        DatasetError: unusable settings, a folder of other settings, or no sample at all.
        MissingExtraError, WeightsError: learnt generators without their packages or weights.
    """
    chosen = tuple(allot(photos, recipe.count, cap=recipe.cap, seed=recipe.seed))
    return run(_Maker(photos=chosen, recipe=recipe, places=places), recipe.count, workers=workers, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """Makes the pair of one index: see pipeline.Maker."""

    photos: tuple[Path, ...]  # the photo of each index
    recipe: Recipe
    places: Places

    @property
    def out(self) -> Path:
        return self.places.out

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def networks(self) -> Networks:
        models = () if self.places.zoo is None else (("zoo", str(self.places.zoo)),)
        return Networks(autoencoder=self.places.autoencoder, models=models, steps=None, device="cpu", whole=False)

    @property
    def is_neural(self) -> bool:
        return self.networks.are_needed(self.recipe.generators)

    def check(self) -> None:
        if "patchmatch" in self.recipe.generators:
            classical.require_patchmatch()
        self.networks.check(self.recipe.generators)

    def folders(self) -> list[Path]:
        return [self.out / "images", self.out / "masks"]

    def settings(self) -> dict[str, Any]:
        names = "\n".join(photo.name for photo in self.photos)
        about = dataclasses.asdict(self.recipe) | self.networks.settings(self.recipe.generators)
        about["photos"] = hashlib.sha256(names.encode()).hexdigest()
        # As it comes back from JSON, with lists for tuples.
        return {key: list(value) if isinstance(value, tuple) else value for key, value in about.items()}

    def make(self, index: int, cache: dict[Path, Pixels]) -> list[str]:
        photo = self.photos[index]
        generator = self.recipe.generators[index % len(self.recipe.generators)]
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, index)))
        for attempt in range(1, _ATTEMPTS + 1):
            about: dict[str, Any] = {"seed": [self.seed, index], "photo": photo.name, "attempt": attempt}
            host, taken, salient = self._host(photo, cache, rng)
            made: dict[str, Any] = {"generator": generator, "family": family_of(generator)}
            donor = None
            if needs_donor(generator):
                other, made["donor"], others_salient = self._host(
                    self._donor(photo, rng), cache, rng, entire=generator == SPLICE_OBJECT
                )
                donor = Scene(other, salient=others_salient)
            try:
                forgery = manipulate(Scene(host, donor, salient), generator, rng, self.recipe.masks, self.networks)
                return self._save(index, host, forgery, made, about | taken, rng)
            except DatasetError as error:
                last = error
        raise DatasetError(f"{photo.name}, {generator}: {last}")

    def _host(
        self, photo: Path, cache: dict[Path, Pixels], rng: np.random.Generator, *, entire: bool = False
    ) -> tuple[Pixels, dict[str, Any], NDArray[np.float32] | None]:
        """A part of a photo after its first history, its record, and its map of what stands out.

        entire: all of the photo, so that no object is cut off; made smaller if it exceeds the longest of the sides.
        """
        whole, history = read(photo, cache), self.recipe.history
        longest = float(np.exp(rng.uniform(*np.log(self.recipe.sides))))
        scale = history.draw_scale(max(_SMALLEST_SCALE, longest / max(whole.shape[:2])), rng)
        shape = np.array((longest * rng.uniform(*_SHORT), longest))
        if entire:
            scale, shape = min(1.0, self.recipe.sides[1] / max(whole.shape[:2])), np.array((np.inf, np.inf))
        upright = (whole.shape[0] > whole.shape[1]) != (rng.random() < 0.2)
        height, width = (
            int(min(side, np.rint(wanted / scale)))
            for side, wanted in zip(whole.shape[:2], shape[::-1] if upright else shape, strict=True)
        )
        y, x = int(rng.integers(whole.shape[0] - height + 1)), int(rng.integers(whole.shape[1] - width + 1))
        pixels = np.ascontiguousarray(whole[y : y + height, x : x + width])
        size = round(height * scale), round(width * scale)
        if scale != 1.0:
            pixels = saving.apply(pixels, (saving.Resizing(size=size),))
        steps = history.draw_before(size, rng)
        taken = {"photo": photo.name, "crop": [x, y, x + width, y + height], "scale": round(scale, 4)}
        taken["before"] = [saving.record(step) for step in steps]
        salient = None
        if {"salient", "beside"} & set(self.recipe.masks):
            salient = _cut(self._salient(photo, whole), whole.shape[:2], (y, x, height, width), size)
            for step in steps:
                salient = step.of(salient) if isinstance(step, saving.Cropping) else salient
        return saving.apply(pixels, steps), taken, salient

    def _salient(self, photo: Path, whole: Pixels) -> NDArray[np.float32]:
        if self.places.saliency is None:
            return salient_maps.saliency(whole)
        path = self.places.saliency / f"{photo.name}.png"
        if not path.exists():
            self.places.saliency.mkdir(parents=True, exist_ok=True)
            found = salient_maps.saliency(_small(whole))
            write_atomic(path, saving.encode(np.rint(found * 255).astype(np.uint8), saving.Encoding(format="png")))
        return _read_map(path)

    def _donor(self, photo: Path, rng: np.random.Generator) -> Path:
        others = [path for path in self.photos if path != photo]
        if not others:
            raise DatasetError("a splice needs two photos or more: one gives its content to the other")
        return others[int(rng.integers(len(others)))]

    def _save(
        self,
        index: int,
        host: Pixels,
        forgery: Forgery,
        made: dict[str, Any],
        about: dict[str, Any],
        rng: np.random.Generator,
    ) -> list[str]:
        fate, steps, last = self.recipe.history.draw_after((host.shape[0], host.shape[1]), rng)
        mask = saving.resize_mask(forgery.mask, steps)
        if mask.mean() < _LEAST_LEFT:
            raise DatasetError(f"only {mask.mean():.2%} of the picture is left of the mask")
        suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[last.format]
        fake, real = (self.out / "images" / f"{index:06d}-{name}{suffix}" for name in (made["generator"], "real"))
        drawn = self.out / "masks" / f"{index:06d}-{made['generator']}.png"
        files = [saving.encode(saving.apply(pixels, steps), last) for pixels in (forgery.pixels, host)]
        for path, data in zip((fake, real), files, strict=True):
            write_atomic(path, data)
        after, before = (saving.decode(data)[mask].astype(np.int16) for data in files)
        # What is left to be seen of the change: under a level, compression has taken it away.
        left = round(float(np.abs(after - before).mean()), 2)
        write_atomic(drawn, saving.encode(mask.astype(np.uint8) * 255, saving.Encoding(format="png")))
        group = Path(about["photo"]).stem
        sample = Sample(
            image=fake, mask=drawn, label="fake", split=self.recipe.split, source=made["generator"], group=group
        )
        twin = Sample(image=real, label="real", split=self.recipe.split, source="real", group=group)
        about = about | {"from": source_of(about["photo"]), "fate": fate}
        about |= {"after": [saving.record(step) for step in steps], "saved": saving.record(last)}
        made = made | forgery.record() | {"area": round(float(mask.mean()), 6), "left": left}
        return [datasets.format_line(sample, self.out, made | about), datasets.format_line(twin, self.out, about)]


def _small(pixels: Pixels) -> Pixels:
    """At most 518 px a side: what the saliency network sees, and large enough for its map."""
    scale = 518 / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


@lru_cache(maxsize=8)
def _read_map(path: Path) -> NDArray[np.float32]:
    return np.asarray(Image.open(path), dtype=np.float32) / np.float32(255)


def _cut(
    salient: NDArray[np.float32], whole: tuple[int, ...], box: tuple[int, int, int, int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The part of a map that belongs to box (y, x, height, width) of a photo of size `whole`, brought to `size`."""
    y, x, height, width = box
    across, down = salient.shape[1] / whole[1], salient.shape[0] / whole[0]  # px of the map per px of the photo
    step_x, step_y = across * width / size[1], down * height / size[0]
    to_map = np.array(
        [[step_x, 0, x * across + step_x / 2 - 0.5], [0, step_y, y * down + step_y / 2 - 0.5]], dtype=np.float64
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(salient, to_map, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, dtype=np.float32)
