"""Read score maps that were made elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from declip.errors import DatasetError, ImageError
from declip.images.mapfiles import read_scores
from declip.images.read import name_of
from declip.regions import MaskRule
from declip.results import Localization, PictureLike, Polarity, check_several
from declip.spec import check_choice

__all__ = ["Maps"]

_MAP_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff")


class Maps:
    """Score maps made elsewhere, as a Predictor: so the maps of any method are measured by the same code.

    The map of an image at SUB/photo.jpg below root is the first of these files in folder that exists, of any size and
    of a kind that `read_scores` reads, 1.0 = surely manipulated: SUB/photo.jpg.scores.png, photo.jpg.scores.png (as
    `declip localize` writes), SUB/photo.png, photo.png, and the same two with .npy, .npz, .tif and .tiff.
    The image score is the mean of the map, as in the paper. An image without a map is an ImageError of kind "missing";
    a file that is the map of several images is one of kind "input" for each of them.

    images: all that will be asked for. threshold: of the mask. fake_is: "black" if 0 means manipulated in the maps;
    then they are inverted when they are read. Raises DatasetError if there is no such folder.
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
        """Yield the map of each image path, in order, at its own size. The pictures themselves are not read."""
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
