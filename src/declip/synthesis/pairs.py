"""One pair of a data set: a manipulated picture and its untouched twin, made from a recipe, photos and an index.

The twin is the same crop, taken through exactly the same steps, so that neither format nor quality tells them apart.
Each pair has its own seed, (seed, index), and knows nothing of the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from declip import datasets
from declip.errors import DatasetError
from declip.files import write_atomic
from declip.images.read import read_photo
from declip.results import Polarity, Sample
from declip.synthesis import classical, saliency, steps
from declip.synthesis.forging import Forgery, Scene, manipulate
from declip.synthesis.generators import GENERATORS, SPLICE_OBJECT, family_of
from declip.synthesis.history import After
from declip.synthesis.masks import Box
from declip.synthesis.recipe import Recipe
from declip.synthesis.sources import source_of
from declip.synthesis.steps import Pixels

__all__ = ["Maker", "draw_frame"]

_ATTEMPTS = 5
_CACHED_PHOTOS = 3
_LARGEST_SCALE = 0.9  # of what is made smaller
_UPRIGHT = 0.2  # share of the crops that lie across their photo
_FACE_ROOM = 1.6  # a crop's side in sides of the face that shall be in it, at least
_LEAST_LEFT = 0.001  # of the picture, that the mask must have at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Makes the pair of one index. It travels to the workers.

    photos: the photo of each index. donors: what splices take content from. out: folder of the data set.
    maps: folder of the photos' maps of what stands out; it is filled where maps are missing.
    """

    photos: tuple[Path, ...]
    donors: tuple[Path, ...]
    recipe: Recipe
    out: Path
    maps: Path

    def check(self) -> None:
        """Raise now what would otherwise fail every sample."""
        if not self.photos:
            raise DatasetError("there are no photos; give at least one file")
        generators = self.recipe.generators
        if any(GENERATORS[name].needs_donor for name in generators) and len(set(self.donors)) < 2:
            raise DatasetError("a splice needs two photos or more: one gives its content to the other")
        if "patchmatch" in generators:
            classical.require_patchmatch()
        self.recipe.networks.check(generators)

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes of the data set, for synthesis.json; without paths."""
        networks = self.recipe.networks.settings(self.recipe.generators)
        photos = [path.name for path in dict.fromkeys(self.donors)]
        return asdict(self.recipe) | {"networks": networks, "photos": photos}

    def make(self, index: int, cache: dict[Path, Scene]) -> list[str]:
        """Make and save the pair of an index; return its two lines of the manifest, the fake's first.

        cache: the last few photos, as several samples of one follow each other.
        The provenance of both has "seed": [seed, index]. Raises DatasetError or ImageError.
        """
        photo, generator = self.photos[index], self.recipe.generators[index % len(self.recipe.generators)]
        rng = np.random.default_rng(np.random.SeedSequence((self.recipe.seed, index)))
        made: dict[str, Any] = {"generator": generator, "family": family_of(generator)}
        last = DatasetError()
        for attempt in range(1, _ATTEMPTS + 1):
            about = {"seed": [self.recipe.seed, index], "photo": photo.name, "attempt": attempt}
            scene, taken = self._cut(self._read(photo, cache), photo.name, rng, "host")
            if GENERATORS[generator].needs_donor:
                others = [path for path in self.donors if path != photo]
                other = others[int(rng.integers(len(others)))]
                role = "all" if generator == SPLICE_OBJECT else "donor"
                scene.donor, made["donor"] = self._cut(self._read(other, cache), other.name, rng, role)
            try:
                forgery = manipulate(scene, generator, rng, self.recipe)
                return self._save(index, scene.pixels, forgery, made, about | taken, rng)
            except DatasetError as error:
                last = error
        raise DatasetError(f"{photo.name}, {generator}: {last}")

    def _cut(self, whole: Scene, name: str, rng: np.random.Generator, role: str) -> tuple[Scene, dict[str, Any]]:
        """Take a part of a photo through what happens before the manipulation; return it and its record.

        role: "host" is manipulated, of a "donor" content is taken, of "all" it is, too, so that no object is cut off.
        """
        face = None
        if role == "host" and "face" in self.recipe.masks and whole.faces:
            face = whole.faces[int(rng.integers(len(whole.faces)))]
        if role == "all":
            box, scale = (0, 0, *whole.size[::-1]), min(1.0, self.recipe.size / max(whole.size))
        else:
            box, scale = draw_frame(whole.size, self.recipe, rng, face)
        x0, y0, x1, y1 = box
        pixels = np.ascontiguousarray(whole.pixels[y0:y1, x0:x1])
        size = y1 - y0, x1 - x0
        if scale != 1.0:
            size = round(size[0] * scale), round(size[1] * scale)
            pixels = steps.apply(pixels, (steps.Resizing(size=size),))
        taken: dict[str, Any] = {"photo": name, "crop": list(box), "scale": round(scale, 4)}
        history = self.recipe.history or self.recipe.saving
        before = history.draw_before(size, rng, donor=role != "host")
        if before:
            taken["before"] = steps.record(before)

        def salient() -> saliency.Map:
            found = saliency.cut(whole.salient, whole.size, box, size)
            for step in before:
                found = step.of(found) if isinstance(step, steps.Cropping) else found
            return found

        return Scene(steps.apply(pixels, before), salient=salient), taken

    def _read(self, photo: Path, cache: dict[Path, Scene]) -> Scene:
        if photo not in cache:
            while len(cache) >= _CACHED_PHOTOS:
                del cache[next(iter(cache))]
            pixels = read_photo(photo).pixels
            cache[photo] = Scene(pixels, salient=partial(self._salient, photo.name, pixels))
        return cache[photo]

    def _salient(self, name: str, pixels: Pixels) -> saliency.Map:
        """Return the photo's map of what stands out, at most 518 px a side; it is kept as a file of 8 bits."""
        path = self.maps / f"{name}.png"
        if not path.exists():
            found = saliency.saliency(saliency.smaller(pixels))
            write_atomic(path, steps.encode(np.rint(found * 255).astype(np.uint8)))
        return np.asarray(Image.open(path), dtype=np.float32) / np.float32(255)

    def _save(
        self,
        index: int,
        host: Pixels,
        forgery: Forgery,
        made: dict[str, Any],
        about: dict[str, Any],
        rng: np.random.Generator,
    ) -> list[str]:
        recipe = self.recipe
        after = (recipe.history or recipe.saving).draw_after((host.shape[0], host.shape[1]), rng)
        mask = steps.resize_mask(forgery.mask, after.steps)
        if mask.mean() < _LEAST_LEFT:
            raise DatasetError(f"only {mask.mean():.2%} of the picture is left of the mask")
        made = made | {"mask": forgery.kind} | ({"network": forgery.network} if forgery.network else {})
        if recipe.networks.fully_regenerated and forgery.kind != "whole":
            made["fully_regenerated"] = True
        made["area"] = round(float(mask.mean()), 6)
        black_is_fake = recipe.layout == "dolos"
        if black_is_fake and after.last != steps.PNG:  # its files are all PNG
            after = After((*after.steps, after.last), steps.PNG, after.name)
        files = [steps.encode(steps.apply(pixels, after.steps), after.last) for pixels in (forgery.pixels, host)]
        fake, real, drawn = self._places(index, made["generator"], after.last.suffix)
        written = (*files, steps.encode((mask ^ black_is_fake).astype(np.uint8) * 255))
        for path, data in zip((fake, real, drawn), written, strict=True):
            write_atomic(path, data)
        if recipe.history is not None:
            one, other = (steps.decode(data)[mask].astype(np.int16) for data in files)
            # What can still be seen of the change: under one level, compression has taken it away.
            made["left"] = round(float(np.abs(one - other).mean()), 2)
            about = about | {"from": source_of(about["photo"]), "fate": after.name}
        about = about | ({"after": steps.record(after.steps)} if after.steps else {})
        about["saved"] = steps.record((after.last,))[0]
        twin = Sample(image=real, label="real", split=recipe.split, source="real", group=Path(about["photo"]).stem)
        polarity: Polarity = "black" if black_is_fake else "white"
        sample = replace(twin, image=fake, mask=drawn, fake_is=polarity, label="fake", source=made["generator"])
        return [datasets.format_line(sample, self.out, made | about), datasets.format_line(twin, self.out, about)]

    def _places(self, index: int, generator: str, suffix: str) -> tuple[Path, Path, Path]:
        """Return the files of a pair: fake, real, mask."""
        if self.recipe.layout == "dolos":
            number, variant = divmod(index, 1 if self.recipe.count else self.recipe.per_photo)
            fake, name = self.out / "fake" / generator, f"{number:06d}-{variant}.png"
            split = self.recipe.split
            return fake / "images" / split / name, self.out / "real" / split / name, fake / "masks" / split / name
        images = self.out / "images"
        return (
            images / f"{index:06d}-{generator}{suffix}",
            images / f"{index:06d}-real{suffix}",
            self.out / "masks" / f"{index:06d}-{generator}.png",
        )


def draw_frame(
    size: tuple[int, int], recipe: Recipe, rng: np.random.Generator, face: Box | None = None
) -> tuple[Box, float]:
    """Draw which part of a photo of `size` (height, width) is used: box in px, and the factor that makes it smaller.

    face: to be in the part; the photo is made as much smaller as that needs.
    """
    longest: float = recipe.size
    if recipe.smallest_size not in (None, recipe.size):
        longest = float(np.exp(rng.uniform(*np.log((recipe.smallest_size, recipe.size)))))
    wanted = longest, longest
    if recipe.narrowest < 1:
        shorter = longest * float(rng.uniform(recipe.narrowest, 1))
        upright = (size[0] > size[1]) != (rng.random() < _UPRIGHT)
        wanted = (longest, shorter) if upright else (shorter, longest)
    scale = 1.0
    least = max(recipe.smallest_scale, *(length / side for length, side in zip(wanted, size, strict=True)))
    if least < _LARGEST_SCALE and rng.random() < recipe.downscaled:
        scale = float(rng.uniform(least, _LARGEST_SCALE))
    if face is not None:
        scale = min(scale, min(wanted) / (_FACE_ROOM * max(face[2] - face[0], face[3] - face[1])))
    corner, taken = [], []
    for axis in (0, 1):
        part = min(size[axis], round(wanted[axis] / scale))
        low, high = 0, size[axis] - part
        if face is not None:
            first, last = face[1 - axis], face[3 - axis]
            low, high = min(max(0, last - part), high), max(min(high, first), 0)
        corner.append(int(rng.integers(low, max(low, high) + 1)))
        taken.append(part)
    (y, x), (height, width) = corner, taken
    return (x, y, x + width, y + height), scale
