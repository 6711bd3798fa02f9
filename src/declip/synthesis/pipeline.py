"""From a list of photos to a data set: crops, manipulations, files, manifest.

Every manipulated picture has a real twin: the same crop through exactly the same save path, so that neither format
nor quality tells them apart. Each pair is made from its own seed, (seed, index), and knows nothing of the others:
the same seed gives the same bytes whatever the number of workers, and an interrupted run resumes.

    OUT/samples.jsonl           the manifest (datasets.py), with the provenance of every sample
    OUT/images/000012-telea.jpg OUT/images/000012-real.jpg   OUT/masks/000012-telea.png   white = manipulated
    OUT/synthesis.json          the settings: a folder is only ever continued with the same ones

The layout "dolos" puts the pictures where the Dolos data set has them, all PNG, with masks whose black is manipulated:

    OUT/real/train/000003-2.png   OUT/fake/lama/images/train/000003-2.png   OUT/fake/lama/masks/train/000003-2.png
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Literal, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from declip import datasets
from declip.errors import DatasetError
from declip.files import write_atomic
from declip.images.read import read_photo
from declip.results import Sample, check_several
from declip.synthesis import classical, saving
from declip.synthesis import masks as mask_shapes
from declip.synthesis.forging import (
    DEFAULT_MASKS,
    NO_MODELS,
    MaskKind,
    Networks,
    Scene,
    expand,
    family_of,
    known_masks,
    known_models,
    manipulate,
    needs_donor,
)

__all__ = ["LAYOUTS", "Layout", "Maker", "read", "run", "synthesize"]

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Layout = Literal["manifest", "dolos"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_CROP_ATTEMPTS = 5
_DOWNSCALED_SHARE = 0.2
_DOWNSCALE = (0.4, 0.9)
_FACE_ROOM = 1.6  # a crop's side in sides of the face that shall be in it, at least
_BEFORE_SHARE = 0.25
_BEFORE_QUALITY = (70, 98)
_CACHED_PHOTOS = 3


def synthesize(
    photos: Sequence[str | Path],
    out: str | Path,
    *,
    generators: Sequence[str],
    masks: Sequence[str] = DEFAULT_MASKS,
    seed: int,
    size: int = 512,
    per_photo: int = 1,
    workers: int = 1,
    autoencoder: str | Path | None = None,
    jpeg_share: float = 0.5,
    jpeg_quality: tuple[int, int] = (60, 95),
    webp_share: float = 0.0,
    resize_share: float = 0.0,
    resize_range: tuple[float, float] = (0.5, 0.95),
    noise_share: float = 0.0,
    screenshot_share: float = 0.0,
    social_share: float = 0.0,
    social_side: int = 384,
    before_share: float = _BEFORE_SHARE,
    donor_share: float = 0.0,
    models: Mapping[str, str | Path] = NO_MODELS,
    steps: int | None = None,
    device: str = "cpu",
    fully_regenerated: bool = False,
    layout: str = "manifest",
    split: str = "train",
    progress: bool = False,
) -> Path:
    """Make manipulated pictures and their real twins from photos.

    A photo or sample that fails is logged and left out. With several workers call this under
    `if __name__ == "__main__":`: the workers are fresh processes.

    Args:
        photos: files; the order matters to the result, together with the seed.
        out: folder of the data set; one that holds an interrupted run of the same settings is continued.
        generators: names of ALL_GENERATORS or SETS, taken in turn, so that all are equally frequent.
        masks: kinds of mask to draw from, of MASKS.
        seed: any integer >= 0.
        size: px; a photo larger than this is cropped at a random place, at its native resolution (a fifth of the
            crops are downscaled by 0.4-0.9 where the photo is large enough). A smaller photo is used whole.
        per_photo: manipulated pictures per photo.
        workers: processes.
        autoencoder: folder or hub id of an autoencoder (`neural.load`); needed by the regenerations.
        jpeg_share: of the pairs saved as JPEG, the others as PNG; in [0, 1].
        jpeg_quality: lowest and highest quality of those, 1-100.
        webp_share, resize_share, resize_range, noise_share, screenshot_share, social_share, social_side: what else
            happens to the pairs before or when they are saved, see `saving.Saving`.
        before_share: of the photos saved as JPEG of quality 70-98 before they are manipulated; in [0, 1].
        donor_share: of the donors saved so before a part of them is taken, whatever happened to the photo; in [0, 1].
        models, steps, device, fully_regenerated: of the learnt generators, as in `forge`.
        layout: of LAYOUTS; the manifest is written in either.
        split: written into the manifest.
        progress: show a bar on stderr.

    Returns:
        The manifest, OUT/samples.jsonl.

    Raises:
        DatasetError: unusable settings, a folder of other settings, or no sample at all.
        MissingExtraError, WeightsError: learnt generators without torch or diffusers, or without their weights.
    """
    check_several(photos, "synthesize([…], …)")
    check_several(generators, "generators=[…]")
    check_several(masks, "masks=[…]")
    maker = _Maker(
        photos=tuple(Path(photo) for photo in photos),
        out=Path(out),
        generators=expand(generators),
        masks=known_masks(masks),
        seed=seed,
        size=size,
        per_photo=per_photo,
        networks=Networks(
            autoencoder=autoencoder, models=known_models(models), steps=steps, device=device, whole=fully_regenerated
        ),
        finish=saving.Saving(
            jpeg_share=jpeg_share,
            jpeg_quality=(jpeg_quality[0], jpeg_quality[1]),
            webp_share=webp_share,
            resize_share=resize_share,
            resize_range=(resize_range[0], resize_range[1]),
            noise_share=noise_share,
            screenshot_share=screenshot_share,
            social_share=social_share,
            social_side=social_side,
        ),
        before_share=before_share,
        donor_share=donor_share,
        layout=_known_layout(layout),
        split=split,
    )
    return run(maker, len(maker.photos) * per_photo, workers=workers, progress=progress)


class Maker(Protocol):
    """The settings of a data set; makes the pair of one index from nothing else. Travels to the workers.

    out: folder of the data set. seed: of all that is random. is_neural: whether networks of torch take part.
    """

    @property
    def out(self) -> Path: ...

    @property
    def seed(self) -> int: ...

    @property
    def is_neural(self) -> bool: ...

    def check(self) -> None:
        """Raise now what would otherwise fail every sample."""

    def folders(self) -> list[Path]:
        """Return where the files of any index lie."""

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes of the data set, for synthesis.json; without absolute paths."""

    def make(self, index: int, cache: dict[Path, Pixels]) -> list[str]:
        """Make and save the pair of `index`; return its two lines of the manifest, the fake's first.

        The provenance of both has "seed": [seed, index]. Raises DatasetError or ImageError.
        """


def run(maker: Maker, total: int, *, workers: int = 1, progress: bool = False) -> Path:
    """Make the pairs 0 to total - 1 into a maker's folder, or those that an interrupted run has not made.

    Returns the manifest, OUT/samples.jsonl. Pairs that fail are logged and left out. progress: show a bar on stderr.
    Raises DatasetError for unusable settings, a folder of other settings, or no sample at all.
    """
    if workers < 1:
        raise DatasetError(f"workers is {workers}; expected at least 1")
    maker.check()
    _claim(maker)
    manifest, part = maker.out / "samples.jsonl", maker.out / "samples.jsonl.part"
    done = _completed(maker, (manifest, part))
    missing = [index for index in range(total) if index not in done]
    reasons: list[str] = []
    with _open_part(part, done) as stream:
        results = _results(maker, missing, workers)
        bar = track(results, "Synthesizing", len(missing), console=Console(stderr=True), disable=not progress)
        for index, lines, reason in bar:
            if reason is not None:
                log.warning("sample %d is left out: %s", index, reason)
                reasons.append(reason)
                continue
            done[index] = lines
            stream.write("".join(line + "\n" for line in lines))
            stream.flush()
    if not done:
        raise DatasetError(f"not one of {total} samples could be made; the first failed because: {reasons[0]}")
    text = "".join(line + "\n" for index in sorted(done) for line in done[index])
    write_atomic(manifest, text)
    part.unlink()
    if reasons:
        log.warning("%d of %d samples were left out", len(reasons), total)
    return manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """The settings of a run; makes the pair of one index from nothing else. Travels to the workers."""

    photos: tuple[Path, ...]
    out: Path
    generators: tuple[str, ...]
    masks: tuple[MaskKind, ...]
    seed: int
    size: int
    per_photo: int
    networks: Networks
    finish: saving.Saving
    before_share: float
    donor_share: float
    layout: Layout
    split: str

    def check(self) -> None:
        """Raise now what would otherwise fail every sample."""
        if not self.photos:
            raise DatasetError("there are no photos; give at least one file")
        if self.seed < 0:
            raise DatasetError(f"seed is {self.seed}; expected an integer >= 0")
        if self.size < mask_shapes.SMALLEST_SIDE:
            raise DatasetError(f"size is {self.size}; expected at least {mask_shapes.SMALLEST_SIDE} px")
        if self.per_photo < 1:
            raise DatasetError(f"per_photo is {self.per_photo}; expected at least 1")
        for name in ("before_share", "donor_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DatasetError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")
        if any(map(needs_donor, self.generators)) and len(set(self.photos)) < 2:
            raise DatasetError("a splice needs two photos or more: one gives its content to the other")
        if "patchmatch" in self.generators:
            classical.require_patchmatch()
        self.networks.check(self.generators)

    @property
    def is_neural(self) -> bool:
        return self.networks.are_needed(self.generators)

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the data set, for synthesis.json; without absolute paths.

        What came later than the first data sets is there only where it is not the default: those can still be resumed.
        """
        record: dict[str, Any] = {
            "generators": list(self.generators),
            "masks": list(self.masks),
            "seed": self.seed,
            "size": self.size,
            "per_photo": self.per_photo,
            "jpeg_share": self.finish.jpeg_share,
            "jpeg_quality": list(self.finish.jpeg_quality),
            "split": self.split,
        }
        default = asdict(saving.Saving())
        first = ("jpeg_share", "jpeg_quality")
        record |= {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.finish).items()
            if name not in first and value != default[name]
        }
        record |= {} if self.before_share == _BEFORE_SHARE else {"before_share": self.before_share}
        record |= {} if not self.donor_share else {"donor_share": self.donor_share}
        record |= {} if self.layout == "manifest" else {"layout": self.layout}
        record |= self.networks.settings(self.generators)
        record["photos"] = [path.name for path in self.photos]
        return record

    def make(self, index: int, cache: dict[Path, Pixels]) -> list[str]:
        """Make and save the pair of `index`; its two lines of the manifest. Raises DatasetError or ImageError."""
        photo = self.photos[index // self.per_photo]
        generator = self.generators[index % len(self.generators)]
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, index)))
        whole = read(photo, cache)
        faces = mask_shapes.find_faces(whole) if "face" in self.masks else []
        for attempt in range(1, _CROP_ATTEMPTS + 1):
            face = faces[int(rng.integers(len(faces)))] if faces else None
            crop, provenance = _crop(whole, self.size, rng, face)
            provenance = {"seed": [self.seed, index], "photo": photo.name, "attempt": attempt, **provenance}
            if rng.random() < self.before_share:
                # As most pictures are when somebody comes to manipulate them.
                crop, provenance["before"] = _saved_before(crop, rng)
            donor = None
            made: dict[str, Any] = {"generator": generator, "family": family_of(generator)}
            if needs_donor(generator):
                other = self._donor(photo, rng)
                donor, taken = _crop(read(other, cache), self.size, rng)
                made["donor"] = {"photo": other.name, **taken}
                if self.donor_share and rng.random() < self.donor_share:
                    donor, made["donor"]["before"] = _saved_before(donor, rng)
            try:
                forgery = manipulate(
                    Scene(crop, None if donor is None else Scene(donor)), generator, rng, self.masks, self.networks
                )
            except DatasetError as error:
                last = error
                continue
            made |= forgery.record()
            if self.networks.whole and forgery.kind != "whole":
                made["fully_regenerated"] = True
            return self._save(index, photo, crop, forgery.pixels, forgery.mask, made, provenance, rng)
        raise DatasetError(f"{photo.name}, {generator}: {last}")

    def _donor(self, photo: Path, rng: np.random.Generator) -> Path:
        others = [path for path in self.photos if path != photo]
        return others[int(rng.integers(len(others)))]

    def _save(
        self,
        index: int,
        photo: Path,
        crop: Pixels,
        forged: Pixels,
        mask: Mask,
        made: dict[str, Any],
        provenance: dict[str, Any],
        rng: np.random.Generator,
    ) -> list[str]:
        after, last = self.finish.draw((mask.shape[0], mask.shape[1]), rng)
        mask = saving.resize_mask(mask, after)
        made["area"] = round(float(mask.mean()), 6)
        if self.layout == "dolos" and last.format != "png":  # its files are all PNG
            after, last = (*after, last), saving.Encoding(format="png")
        fake, real, drawn = self._places(index, made["generator"], last)
        for path, pixels in ((fake, forged), (real, crop)):
            write_atomic(path, saving.encode(saving.apply(pixels, after), last))
        black_is_fake = self.layout == "dolos"
        write_atomic(drawn, saving.encode((mask ^ black_is_fake).astype(np.uint8) * 255, saving.Encoding(format="png")))
        sample = Sample(
            image=fake,
            mask=drawn,
            fake_is="black" if black_is_fake else "white",
            label="fake",
            split=self.split,
            source=made["generator"],
            group=photo.stem,
        )
        twin = Sample(image=real, label="real", split=self.split, source="real", group=photo.stem)
        saved: dict[str, Any] = {"after": [saving.record(step) for step in after]} if after else {}
        saved["saved"] = saving.record(last)
        samples = ((sample, made | provenance), (twin, provenance))
        return [datasets.format_line(sample, self.out, extra | saved) for sample, extra in samples]

    def _places(self, index: int, generator: str, last: saving.Encoding) -> tuple[Path, Path, Path]:
        """The files of a pair: fake, real, mask."""
        match self.layout:
            case "manifest":
                suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[last.format]
                images = self.out / "images"
                return (
                    images / f"{index:06d}-{generator}{suffix}",
                    images / f"{index:06d}-real{suffix}",
                    self.out / "masks" / f"{index:06d}-{generator}.png",
                )
            case "dolos":
                name = f"{index // self.per_photo:06d}-{index % self.per_photo}.png"
                fake = self.out / "fake" / generator
                return (
                    fake / "images" / self.split / name,
                    self.out / "real" / self.split / name,
                    fake / "masks" / self.split / name,
                )

    def folders(self) -> list[Path]:
        """Where the files of any index lie."""
        png = saving.Encoding(format="png")
        files = [path for name in self.generators for path in self._places(0, name, png)]
        return sorted({path.parent for path in files})


def _crop(
    pixels: Pixels, size: int, rng: np.random.Generator, face: mask_shapes.Box | None = None
) -> tuple[Pixels, dict[str, Any]]:
    """At most size × size px of the photo, at a random place, and where it was taken: box in px of the photo.

    face: to be in the crop; the photo is made as much smaller as that needs.
    """
    height, width = pixels.shape[:2]
    scale = 1.0
    smallest = max(_DOWNSCALE[0], size / min(height, width))
    if smallest < _DOWNSCALE[1] and rng.random() < _DOWNSCALED_SHARE:
        scale = float(rng.uniform(smallest, _DOWNSCALE[1]))
    if face is not None:
        scale = min(scale, size / (_FACE_ROOM * max(face[2] - face[0], face[3] - face[1])))
    taken = [min(side, round(size / scale)) for side in (height, width)]
    corner = []
    for side, part, edges in zip((height, width), taken, ((1, 3), (0, 2)), strict=True):
        low, high = 0, side - part
        if face is not None:
            first, last = (face[edge] for edge in edges)
            low, high = min(max(0, last - part), high), max(min(high, first), 0)
        corner.append(int(rng.integers(low, max(low, high) + 1)))
    y, x = corner
    crop = np.ascontiguousarray(pixels[y : y + taken[0], x : x + taken[1]])
    if scale != 1.0:
        smaller = (round(taken[1] * scale), round(taken[0] * scale))
        crop = np.asarray(cv2.resize(crop, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return crop, {"crop": [x, y, x + taken[1], y + taken[0]], "scale": round(scale, 4)}


def read(path: Path, cache: dict[Path, Pixels]) -> Pixels:
    """The photo's pixels; the last few photos are kept, as several samples of one follow each other."""
    if path not in cache:
        while len(cache) >= _CACHED_PHOTOS:
            del cache[next(iter(cache))]
        cache[path] = read_photo(path).pixels
    return cache[path]


def _saved_before(pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, dict[str, Any]]:
    """The pixels after a JPEG, and its record."""
    quality, chroma = int(rng.integers(_BEFORE_QUALITY[0], _BEFORE_QUALITY[1] + 1)), _chroma(rng)
    saved = classical.decode_jpeg(classical.encode_jpeg(pixels, quality, chroma))
    return saved, {"format": "jpeg", "quality": quality, "chroma": chroma}


def _chroma(rng: np.random.Generator) -> classical.Chroma:
    return "4:2:0" if rng.random() < 0.5 else "4:4:4"


def _known_layout(name: str) -> Layout:
    for layout in LAYOUTS:
        if layout == name:
            return layout
    raise DatasetError(f"layout is {name}; expected {' or '.join(LAYOUTS)}")


# Files -------------------------------------------------------------------------------------------------------------


def _claim(maker: Maker) -> None:
    """Make the folder this run's, or see that it already is."""
    for folder in maker.folders():
        folder.mkdir(parents=True, exist_ok=True)
    path = maker.out / "synthesis.json"
    settings = maker.settings()
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetError(f"{path} is not JSON; choose another folder: {error}") from error
        if found != settings:
            other = [key for key in settings if found.get(key) != settings[key]]
            raise DatasetError(
                f"{maker.out} holds a data set of other settings ({', '.join(other)}); give those, or another folder"
            )
    elif (maker.out / "samples.jsonl").exists():
        raise DatasetError(f"{maker.out} holds a data set that was not synthesized; choose another folder")
    else:
        write_atomic(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def _completed(maker: Maker, manifests: Sequence[Path]) -> dict[int, list[str]]:
    """The pairs that an earlier run has made and whose files are there: index → their lines."""
    found: dict[int, dict[str, str]] = {}
    for manifest in manifests:
        text = manifest.read_text(encoding="utf-8") if manifest.exists() else ""
        for line in text.split("\n")[:-1]:  # what follows the last line break was not written to its end
            sample, provenance = datasets.parse_line(line, maker.out, str(manifest))
            match provenance.get("seed"):
                case [maker.seed, int(index)]:
                    if all(path is None or path.exists() for path in (sample.image, sample.mask)):
                        found.setdefault(index, {})[sample.label] = line
                case other:
                    raise DatasetError(
                        f"{manifest}: the seed in a line's provenance is {other}, not [{maker.seed}, index], so it is "
                        "not of this run; choose another folder"
                    )
    return {index: [pair["fake"], pair["real"]] for index, pair in found.items() if len(pair) == 2}


def _open_part(path: Path, done: Mapping[int, Sequence[str]]) -> IO[str]:
    """The list of the pairs made so far, open to be continued; half a line that a killed run left is gone."""
    write_atomic(path, "".join(line + "\n" for lines in done.values() for line in lines))
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")  # as files.encode


# Workers -----------------------------------------------------------------------------------------------------------

_Result = tuple[int, list[str], str | None]


def _results(maker: Maker, indices: Sequence[int], workers: int) -> Iterator[_Result]:
    """(index, lines, None), or (index, [], why it failed), in the order of the indices."""
    if workers == 1 or len(indices) < 2:
        cache: dict[Path, Pixels] = {}
        with _single_thread(maker.is_neural):
            for index in indices:
                yield _attempt(maker, index, cache)
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(maker,))
    try:
        yield from executor.map(_work, indices)
    finally:
        executor.shutdown(cancel_futures=True)


def _attempt(maker: Maker, index: int, cache: dict[Path, Pixels]) -> _Result:
    try:
        return index, maker.make(index, cache), None
    except Exception as error:  # one bad photo must not end a run of hours; what it was is logged
        return index, [], f"{type(error).__name__}: {error}"


@contextmanager
def _single_thread(neural: bool) -> Iterator[None]:
    """One thread per process: the workers share the processors, and the bytes depend on nothing else."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        if not neural:
            yield
            return
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
    finally:
        cv2.setNumThreads(before)


# One per worker process, set when it starts.
_worker: tuple[Maker, dict[Path, Pixels]] | None = None


def _start(maker: Maker) -> None:
    global _worker
    _worker = (maker, {})
    cv2.setNumThreads(1)
    if maker.is_neural:
        import torch

        torch.set_num_threads(1)


def _work(index: int) -> _Result:
    if _worker is None:
        raise RuntimeError("the worker was not started by _run")
    return _attempt(_worker[0], index, _worker[1])
