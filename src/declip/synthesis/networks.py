"""The learnt generators of a recipe: where their weights are, and how they compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from declip.errors import DatasetError, naming_extras
from declip.files import sha256_of
from declip.synthesis import inpainters, upscalers
from declip.synthesis.editing import Apply, Fill, filled
from declip.synthesis.steps import Pixels

if TYPE_CHECKING:
    from declip.synthesis.neural import RoundTrip
    from declip.synthesis.zoo import ZooAutoencoder

__all__ = ["Networks", "fingerprint"]

_REGENERATIONS = ("regenerate-local", "regenerate-global")
_ZOO = ("zoo-local", "zoo-global")
_RECORDED = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What the learnt generators compute with. All of it is loaded once per process.

    autoencoder: folder or hub id of an autoencoder (`neural.load`), for the regenerations.
    weights: of the in-painters by their names, a local path or hub id (`inpainters.load`); of "zoo", a folder of small
        autoencoders (`zoo.open_zoo`).
    steps: of the in-painters' diffusion; None: each one's own number.
    device: where the networks compute, as torch names it.
    fully_regenerated: send the whole result through an autoencoder, as everything has been that a latent generator
        edits; the mask stays that of the change. "sd-inpaint" has passed its own, others need `autoencoder`.
    """

    autoencoder: str | Path | None = None
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    steps: int | None = None
    device: str = "cpu"
    fully_regenerated: bool = False

    def __post_init__(self) -> None:
        takers = (*inpainters.INPAINTERS, "zoo")
        if unknown := sorted(self.weights.keys() - set(takers)):
            raise DatasetError(
                f"there are weights for {', '.join(unknown)}; the generators that take some are {', '.join(takers)}"
            )
        if self.steps is not None and self.steps < 1:
            raise DatasetError(f"steps is {self.steps}; expected at least 1")

    def check(self, generators: Sequence[str]) -> None:
        """Load everything once, to raise now what would otherwise fail every sample."""
        for name in dict.fromkeys(generators):
            if name in inpainters.INPAINTERS:
                self._inpainter(name)
            elif name in upscalers.UPSCALERS:
                upscalers.require(name)
            elif name in _ZOO:
                self._zoo()
            if self.needs_autoencoder(name):
                self._autoencoder()

    def need_torch(self, generators: Sequence[str]) -> bool:
        """Return whether any of the generators is a network of torch."""
        return any(name in inpainters.INPAINTERS or name in _ZOO or self.needs_autoencoder(name) for name in generators)

    def needs_autoencoder(self, generator: str) -> bool:
        """Return whether the generator, or what is done after it, is the autoencoder's round trip."""
        if generator in inpainters.INPAINTERS:
            card = inpainters.INPAINTERS[generator]
            return self.fully_regenerated and not card.whole and card.format != "pipeline"
        return generator in _REGENERATIONS or self.fully_regenerated

    def method(self, generator: str, rng: np.random.Generator) -> tuple[Apply, str]:
        """Return what a learnt generator does to a picture, and which network does it, "" where it has only one."""
        if generator in upscalers.UPSCALERS:
            networks = upscalers.UPSCALERS[generator]
            chosen = networks[int(rng.integers(len(networks)))]
            return filled(partial(upscalers.upscale, chosen), feather=4), chosen.stem
        if generator in inpainters.INPAINTERS:
            card = inpainters.INPAINTERS[generator]
            whole = card.whole or (self.fully_regenerated and card.format == "pipeline")
            return filled(self._inpainter(generator), whole=whole), ""
        from declip.synthesis import neural

        regenerate = neural.regenerate_global if generator.endswith("-global") else neural.regenerate_local
        if generator in _REGENERATIONS:
            return regenerate(self._autoencoder()), ""
        members = self._zoo()
        member = members[int(rng.integers(len(members)))]
        return regenerate(member), f"zoo-{member.plan.number:03d}"

    def regenerate(self, pixels: Pixels) -> Pixels:
        """Send a whole picture (H, W, 3) uint8 RGB through the autoencoder of the regenerations."""
        from declip.synthesis import neural

        return neural.round_trip(self._autoencoder(), pixels)

    def _autoencoder(self) -> RoundTrip:
        if self.autoencoder is None:
            raise DatasetError(
                "the regenerations need an autoencoder: give the folder of its weights or the hub id of one"
            )
        with naming_extras():
            from declip.synthesis import neural

            return neural.load(self.autoencoder, self.device)

    def settings(self, generators: Sequence[str]) -> dict[str, Any]:
        """Return what decides bytes, for the record of a data set: digests instead of paths."""
        used = any(map(self.needs_autoencoder, generators)) and self.autoencoder is not None
        chosen: dict[str, str] = {}
        for name in generators:
            if name in inpainters.INPAINTERS:
                chosen[name] = fingerprint(self.weights.get(name, inpainters.INPAINTERS[name].source))
            elif name in _ZOO:
                chosen["zoo"] = fingerprint(self.weights["zoo"])
        return {
            "autoencoder": fingerprint(self.autoencoder) if used and self.autoencoder is not None else None,
            "weights": chosen,
            "steps": self.steps,
            "device": self.device if self.need_torch(generators) else "cpu",
            "fully_regenerated": self.fully_regenerated,
        }

    def _inpainter(self, name: str) -> Fill:
        with naming_extras():
            return inpainters.load(name, str(self.weights.get(name, "")), self.device, self.steps)

    def _zoo(self) -> tuple[ZooAutoencoder, ...]:
        if "zoo" not in self.weights:
            raise DatasetError("the generators zoo-… need a folder of autoencoders, as tools/make_zoo.py makes them")
        with naming_extras():
            from declip.synthesis import zoo

            return zoo.open_zoo(self.weights["zoo"])


def fingerprint(source: str | Path) -> str:
    """Return what names the weights at a source: a sha256 of a file or of a folder's files, or the hub id itself.

    Raises WeightsError if a file cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return sha256_of(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in _RECORDED)
        listed = [[file.relative_to(path).as_posix(), sha256_of(file)] for file in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return str(source)
