"""Where samples come from: the paper's data sets as they lie on disk, or stand-ins made from photos."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from declip import datasets
from declip.errors import DatasetError
from declip.images.mapfiles import write_mask
from declip.results import Sample

__all__ = ["Dolos", "Sources", "Split", "StandIns"]

Split = Literal["train", "valid", "test"]

# Shares of the photos; the rest is the test part.
_TRAIN, _VALID = 0.6, 0.2
_FEWEST, _MOST = 10, 240  # photos
_SIDE = 256  # px, as Dolos has it
_VARIANTS = 2  # manipulated versions of each training photo


class Sources(Protocol):
    """Sets of manipulated pictures, one per generator, each with the parts train, valid and test."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the generators."""

    def samples(self, name: str, split: Split, *, reals: bool = False) -> list[Sample]:
        """Return the manipulated samples of one generator and part; then, if asked for, as many real ones at most."""

    def describe(self) -> str:
        """Return one line for reports: what these data are."""


class Dolos:
    """The four generators of Dolos that the paper's matrices are of.

    root: the folder with celebahq/; one with AutoSplice/ beside it is used by the experiment of that name.
    out: where the mask of whole fakes is written when it is asked for.
    """

    names = ("ldm", "repaint-p2-9k", "lama", "pluralistic")

    def __init__(self, root: Path, out: Path) -> None:
        self.root = root
        self.out = out
        if not (root / "celebahq").is_dir():
            raise DatasetError(f"{root} has no folder celebahq; expected Dolos as its authors publish it")

    def samples(self, name: str, split: Split, *, reals: bool = False) -> list[Sample]:
        """Return them as `Sources`; "p2", pictures that are generated as a whole, with a mask of everything."""
        samples = datasets.dolos(self.root, name, split=split, reals=reals)
        if name != "p2":
            return samples
        everything = self.out / "everything.png"
        if not everything.exists():
            everything.parent.mkdir(parents=True, exist_ok=True)
            write_mask(everything, np.ones((_SIDE, _SIDE), bool))
        return [dataclasses.replace(s, mask=everything, fake_is="white") if s.label == "fake" else s for s in samples]

    def describe(self) -> str:
        """Return one line for reports."""
        return f"Dolos (CelebA-HQ), {', '.join(self.names)}"


class StandIns:
    """Data made from photos, for the tiny scale: one set per stand-in, the same photos and crops in each.

    The photos (at most 240, drawn by the seed) are split once, 60 : 20 : 20, so that none is in two parts, whatever the
    generator. Crops of at most 256 px, PNG, no JPEG; two manipulated versions of each photo to train on, one to
    validate and test.
    Data are made when they are first asked for, into out/GENERATOR/PART, and an interrupted set is continued.

    Raises DatasetError for fewer than 10 photos.
    """

    # In-painting, splicing, and local edits of two sorts: their traces differ, so that a model of one knows little of
    # another.
    names = ("telea", "splice-hard", "noise", "blur")

    def __init__(self, photos: Sequence[Path], out: Path, *, seed: int = 0) -> None:
        if len(photos) < _FEWEST:
            raise DatasetError(
                f"--photos has {len(photos)} pictures; expected at least {_FEWEST}: they are split into three parts"
            )
        order = np.random.default_rng((seed, 2)).permutation(len(photos))[:_MOST]
        drawn = [sorted(photos)[i] for i in order]
        first, second = round(_TRAIN * len(drawn)), round((_TRAIN + _VALID) * len(drawn))
        parts = drawn[:first], drawn[first:second], drawn[second:]
        self.photos: dict[Split, list[Path]] = dict(zip(get_args(Split), parts, strict=True))
        self.out = out
        self.seed = seed
        self._made: dict[tuple[str, Split], list[Sample]] = {}

    def samples(self, name: str, split: Split, *, reals: bool = False) -> list[Sample]:
        """Return them as `Sources`; makes the data where they are missing."""
        if (name, split) not in self._made:
            self._made[name, split] = self._make(name, split)
        return [sample for sample in self._made[name, split] if reals or sample.label == "fake"]

    def describe(self) -> str:
        """Return one line for reports."""
        counts = ", ".join(f"{len(photos)} {split}" for split, photos in self.photos.items())
        return f"stand-ins made from photos ({counts}): {', '.join(self.names)}"

    def _make(self, name: str, split: Split) -> list[Sample]:
        from declip import synthesis
        from declip.synthesis.history import Saving

        recipe = synthesis.Recipe(
            generators=(name,),
            seed=self.seed * 3 + get_args(Split).index(split),
            size=_SIDE,
            per_photo=_VARIANTS if split == "train" else 1,
            saving=Saving(jpeg=0.0),
            split=split,
        )
        manifest = synthesis.synthesize(self.photos[split], recipe, self.out / name / split)
        samples = datasets.read_manifest(manifest)
        # Fakes first, as in Dolos.
        return sorted(samples, key=lambda sample: (sample.label != "fake", str(sample.image)))
