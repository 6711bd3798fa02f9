"""Samples → what a network is trained on: inputs and targets, whole or cropped, augmented or as they are.

Every random choice is drawn from the seed, the number of the view and the bytes of the picture, so that a view is the
same in every run and list of samples that it appears in, and `Views.key` can name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from declip.errors import DatasetError, WeightsError
from declip.files import sha256_of
from declip.images import jpeg
from declip.images.dose import Augmentation, augment
from declip.images.mapfiles import read_mask
from declip.images.orientation import to_stored
from declip.images.read import read_photo
from declip.images.tensors import resize_scores, squash, to_input
from declip.process import cores
from declip.results import Sample
from declip.spec import ModelSpec, Target, check_choice

__all__ = ["AUGMENTATIONS", "Inputs", "Views"]

_MOST_THREADS = 8
# What a network takes, by name.
Inputs: TypeAlias = dict[str, NDArray[np.float32]]
# "flip": mirrored and turned by quarters; the others are those of `augment`, after the resize or crop.
AUGMENTATIONS: tuple[str, ...] = ("flip", *get_args(Augmentation))


class Views:
    """The inputs and targets of samples: whole pictures squashed, or native crops, as the model's mode says.

    seed: of crops and augmentations. augment: of AUGMENTATIONS. share: probability of each but "flip", in [0, 1].
    A tiled model's crop is drawn anew for each view; without augmentation, a whole picture has one view only.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        spec: ModelSpec,
        *,
        seed: int = 0,
        augment: Sequence[str] = (),
        share: float = 1.0,
        target: Target = "mask",
    ) -> None:
        check_choice(target, Target, "target")
        self.samples = list(samples)
        self.spec = spec
        self.seed = seed
        self.augment = tuple(augment)
        self.share = share
        self.target = target
        self._digests: dict[Path, str] = {}

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.samples)

    def load(self, position: int, view: int = 0) -> tuple[Inputs, NDArray[np.float32]]:
        """Return view `view` of a sample: (inputs, target).

        Inputs are {"image": (3, S, S) float32 normalised}; for CAT-Net {"coefficients": (S, S), "table": (8, 8)} of the
        file, too, as float32, on the grid in which they are stored. The target is (T, T) float32 in [0, 1], the mask
        resized with antialias and not binarised (paper §4); of whole pictures, for the target "image", () float32,
        1 = fake.
        Raises ImageError for a file that cannot be read, DatasetError for a mask that does not fit.
        """
        sample, spec = self.samples[position], self.spec
        rng = np.random.default_rng((self.seed, view, int(self._digest(sample.image)[:16], 16)))
        photo = read_photo(sample.image)
        pixels, mask = photo.pixels, self._mask(sample, photo.size)
        inputs: Inputs = {}
        planes: list[NDArray[Any]] = []
        if spec.traits.reads_coefficients:
            found = jpeg.read_coefficients(photo)
            pixels, mask = (to_stored(array, found.orientation) for array in (pixels, mask))
            height, width = (max(side, spec.input_size) for side in mask.shape)
            planes, inputs["table"] = [found.plane(height, width)], found.table.astype(np.float32)
        if spec.mode == "tiled":
            pixels, mask, *planes = _crop([pixels, mask, *planes], spec.input_size, rng)
        if planes:
            inputs["coefficients"] = np.ascontiguousarray(planes[0])
        if "flip" in self.augment:
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            pixels, mask = np.rot90(pixels, turns), np.rot90(mask, turns)
            if mirrored:
                pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        pixels = np.ascontiguousarray(pixels)
        kinds = [kind for kind in get_args(Augmentation) if kind in self.augment]
        if kinds:
            pixels = augment(squash(pixels, spec.input_size), kinds, rng, self.share)
        if self.target == "image":
            target = np.asarray(sample.label == "fake", np.float32)
        else:
            target = resize_scores(np.ascontiguousarray(mask, np.float32), (spec.output_size, spec.output_size))
        return {"image": to_input(pixels, spec)} | inputs, target

    def key(self, position: int, view: int = 0) -> tuple[str, str]:
        """Return digests of all that decides the input of a view, and of all that decides its target and its input."""
        sample, spec = self.samples[position], self.spec
        given: dict[str, Any] = {key: getattr(spec, key) for key in ("input_size", "mean", "std", "mode")}
        given["image"] = self._digest(sample.image)
        if spec.mode == "tiled" or self.augment:
            given |= {"seed": self.seed, "view": view, "augment": sorted(self.augment), "share": self.share}
        about: dict[str, Any] = {"input": given, "target": self.target, "size": spec.output_size}
        if self.target == "image" or sample.mask is None:
            about["label"] = sample.label
        else:
            about |= {"mask": self._digest(sample.mask), "fake_is": sample.fake_is}
        return _hash(given), _hash(about)

    def keys(self, count: int) -> list[tuple[str, str]]:
        """Return the keys of `count` views of each sample, the first view of all samples first."""
        pairs = [(position, view) for view in range(count) for position in range(len(self))]
        with ThreadPoolExecutor(min(_MOST_THREADS, cores())) as pool:  # hashing files lets other threads run
            return list(pool.map(lambda pair: self.key(*pair), pairs))

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            try:
                self._digests[path] = sha256_of(path)
            except WeightsError as error:  # what it calls every file
                raise DatasetError(f"{path} cannot be read: {error.__cause__}") from error
        return self._digests[path]

    def _mask(self, sample: Sample, size: tuple[int, ...]) -> NDArray[np.bool_]:
        if self.target == "image" or (sample.label == "real" and sample.mask is None):
            return np.zeros(size, bool)
        mask = read_mask(sample)
        if mask.shape != size:
            raise DatasetError(f"{sample.mask} is {mask.shape}, its picture {size}; they must agree")
        return mask


def _crop(arrays: Sequence[NDArray[Any]], size: int, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Cut the same random crop, size × size, out of arrays (H, W, …). Smaller ones are padded by reflection first, as
    the localizer does.

    Corners are multiples of 8, as the localizer's are: JPEG's grid keeps its phase.
    """
    y, x = (8 * int(rng.integers((max(side, size) - size) // 8 + 1)) for side in arrays[0].shape[:2])
    crops = []
    for array in arrays:
        missing = [(0, max(0, size - side)) for side in array.shape[:2]] + [(0, 0)] * (array.ndim - 2)
        whole = np.pad(array, missing, mode="reflect") if any(pad for _, pad in missing) else array
        crops.append(whole[y : y + size, x : x + size])
    return crops


def _hash(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
