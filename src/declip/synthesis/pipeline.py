"""From a list of photos to a data set: crops, manipulations, files, manifest.

Every manipulated picture has a real twin: the same crop through exactly the same save path, so that neither format
nor quality tells them apart. Each pair is made from its own seed, (seed, index), and knows nothing of the others:
the same seed gives the same bytes whatever the number of workers, and an interrupted run resumes.

    OUT/samples.jsonl           the manifest (datasets.py), with the provenance of every sample
    OUT/images/000012-telea.jpg OUT/images/000012-real.jpg   OUT/masks/000012-telea.png   white = manipulated
    OUT/synthesis.json          the settings: a folder is only ever continued with the same ones
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from declip import datasets, image, weights
from declip.errors import DatasetError, MissingExtraError
from declip.synthesis import classical
from declip.synthesis import masks as mask_shapes
from declip.types import Sample

if TYPE_CHECKING:
    from declip.synthesis.neural import Autoencoder

__all__ = ["ALL_GENERATORS", "MASKS", "SETS", "MaskKind", "forge", "synthesize"]

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
MaskKind = Literal["random", "object"]

MASKS: tuple[MaskKind, ...] = get_args(MaskKind)
NEURAL: Mapping[str, classical.Family] = MappingProxyType(
    {"regenerate-local": "regeneration", "regenerate-global": "regeneration"}
)
ALL_GENERATORS: tuple[str, ...] = (*classical.GENERATORS, *NEURAL)
# Short names for several generators.
SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all-classical": tuple(classical.GENERATORS),
        "splice": tuple(name for name, row in classical.GENERATORS.items() if row.family == "splice"),
        "regenerate": tuple(NEURAL),
    }
)

_MASK_ATTEMPTS = 5
_CROP_ATTEMPTS = 5
_VISIBLE = 2  # levels of 255 by which a pixel must have changed in some channel
_DOWNSCALED_SHARE = 0.2
_DOWNSCALE = (0.4, 0.9)
_PRIOR_JPEG_SHARE = 0.25
_PRIOR_QUALITY = (70, 98)
_CACHED_PHOTOS = 3


def forge(
    pixels: Pixels,
    generator: str,
    rng: np.random.Generator,
    donor: Pixels | None = None,
    masks: Sequence[str] = MASKS,
    autoencoder: str | Path | None = None,
) -> tuple[Pixels, Mask]:
    """Manipulate one picture.

    Args:
        pixels: (H, W, 3) uint8 RGB, at least 32 px a side.
        generator: one of ALL_GENERATORS.
        donor: (h, w, 3) uint8 RGB, another photo; needed by the splices.
        masks: kinds of mask to draw from, of MASKS.
        autoencoder: folder of the autoencoder's weights; needed by the regenerations.

    Returns:
        pixels: (H, W, 3) uint8; bit-identical to the input outside the mask.
        mask: (H, W) bool, True = manipulated; at least half of it differs visibly from the input.

    Raises:
        DatasetError: nothing visible came of it in several attempts, an unknown name, or a missing donor.
        MissingExtraError, WeightsError: the regenerations without torch, or without their weights.
    """
    network = None
    if generator in NEURAL:
        network = _autoencoder(autoencoder)
    return _forge(pixels, _expand((generator,))[0], rng, donor, _known_masks(masks), network)[:2]


def synthesize(
    photos: Sequence[str | Path],
    out: str | Path,
    *,
    generators: Sequence[str],
    masks: Sequence[str] = MASKS,
    seed: int,
    size: int = 512,
    per_photo: int = 1,
    workers: int = 1,
    autoencoder: str | Path | None = None,
    jpeg_share: float = 0.5,
    jpeg_quality: tuple[int, int] = (60, 95),
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
        autoencoder: folder of the autoencoder's weights; needed by the regenerations.
        jpeg_share: of the pairs saved as JPEG, the others as PNG; in [0, 1].
        jpeg_quality: lowest and highest quality of those, 1-100.
        split: written into the manifest.
        progress: show a bar on stderr.

    Returns:
        The manifest, OUT/samples.jsonl.

    Raises:
        DatasetError: unusable settings, a folder of other settings, or no sample at all.
        MissingExtraError, WeightsError: the regenerations without torch, or without their weights.
    """
    maker = _Maker(
        photos=tuple(Path(photo) for photo in photos),
        out=Path(out),
        generators=_expand(generators),
        masks=_known_masks(masks),
        seed=seed,
        size=size,
        per_photo=per_photo,
        autoencoder=None if autoencoder is None else Path(autoencoder),
        jpeg_share=jpeg_share,
        jpeg_quality=(jpeg_quality[0], jpeg_quality[1]),
        split=split,
    )
    if workers < 1:
        raise DatasetError(f"workers is {workers}; expected at least 1")
    maker.check()
    _claim(maker)
    manifest, part = maker.out / "samples.jsonl", maker.out / "samples.jsonl.part"
    total = len(maker.photos) * per_photo
    done = _completed(maker, (manifest, part))
    missing = [index for index in range(total) if index not in done]
    reasons: list[str] = []
    with _open_part(part, done) as stream:
        results = _run(maker, missing, workers)
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
    _write(manifest, text.encode())
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
    autoencoder: Path | None
    jpeg_share: float
    jpeg_quality: tuple[int, int]
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
        low, high = self.jpeg_quality
        if not (0 <= self.jpeg_share <= 1 and 1 <= low <= high <= 100):
            raise DatasetError(
                f"jpeg_share is {self.jpeg_share} and jpeg_quality {self.jpeg_quality}; expected a share in [0, 1] and "
                "1 <= lowest <= highest <= 100"
            )
        rows = [classical.GENERATORS[name] for name in self.generators if name in classical.GENERATORS]
        if any(row.needs_donor for row in rows) and len(set(self.photos)) < 2:
            raise DatasetError("a splice needs two photos or more: one gives its content to the other")
        if "patchmatch" in self.generators:
            classical.require_patchmatch()
        if self.is_neural:
            _autoencoder(self.autoencoder)

    @property
    def is_neural(self) -> bool:
        return any(name in NEURAL for name in self.generators)

    def settings(self) -> dict[str, Any]:
        """What decides the bytes of the data set, for synthesis.json; without absolute paths."""
        record: dict[str, Any] = {
            "generators": list(self.generators),
            "masks": list(self.masks),
            "seed": self.seed,
            "size": self.size,
            "per_photo": self.per_photo,
            "jpeg_share": self.jpeg_share,
            "jpeg_quality": list(self.jpeg_quality),
            "split": self.split,
        }
        if self.is_neural and self.autoencoder is not None:
            from declip.synthesis import neural

            record["autoencoder"] = [weights.sha256_of(self.autoencoder / name) for name in neural.FILES]
        record["photos"] = [path.name for path in self.photos]
        return record

    def make(self, index: int, cache: dict[Path, Pixels]) -> list[str]:
        """Make and save the pair of `index`; its two lines of the manifest. Raises DatasetError or ImageError."""
        photo = self.photos[index // self.per_photo]
        generator = self.generators[index % len(self.generators)]
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, index)))
        network = _autoencoder(self.autoencoder) if generator in NEURAL else None
        whole = _read(photo, cache)
        for attempt in range(1, _CROP_ATTEMPTS + 1):
            crop, provenance = _crop(whole, self.size, rng)
            provenance = {"seed": [self.seed, index], "photo": photo.name, "attempt": attempt, **provenance}
            if rng.random() < _PRIOR_JPEG_SHARE:
                # As most pictures are when somebody comes to manipulate them.
                quality, chroma = int(rng.integers(_PRIOR_QUALITY[0], _PRIOR_QUALITY[1] + 1)), _chroma(rng)
                crop = classical.decode_jpeg(classical.encode_jpeg(crop, quality, chroma))
                provenance["before"] = {"format": "jpeg", "quality": quality, "chroma": chroma}
            donor = None
            made: dict[str, Any] = {"generator": generator, "family": _family(generator)}
            if generator in classical.GENERATORS and classical.GENERATORS[generator].needs_donor:
                other = self._donor(photo, rng)
                donor, taken = _crop(_read(other, cache), self.size, rng)
                made["donor"] = {"photo": other.name, **taken}
            try:
                forged, mask, kind = _forge(crop, generator, rng, donor, self.masks, network)
            except DatasetError as error:
                last = error
                continue
            made |= {"mask": kind, "area": round(float(mask.mean()), 6)}
            return self._save(index, photo, crop, forged, mask, made, provenance, rng)
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
        saved: dict[str, Any] = {"format": "png"}
        if rng.random() < self.jpeg_share:
            low, high = self.jpeg_quality
            saved = {"format": "jpeg", "quality": int(rng.integers(low, high + 1)), "chroma": _chroma(rng)}
        suffix = ".jpg" if saved["format"] == "jpeg" else ".png"
        fake = self.out / "images" / f"{index:06d}-{made['generator']}{suffix}"
        real = self.out / "images" / f"{index:06d}-real{suffix}"
        white = self.out / "masks" / f"{index:06d}-{made['generator']}.png"
        for path, pixels in ((fake, forged), (real, crop)):
            if saved["format"] == "jpeg":
                _write(path, classical.encode_jpeg(pixels, saved["quality"], saved["chroma"]))
            else:
                _write(path, _encode_png(pixels))
        _write(white, _encode_png(mask.astype(np.uint8) * 255))
        sample = Sample(
            image=fake, mask=white, label="fake", split=self.split, source=made["generator"], group=photo.stem
        )
        twin = Sample(image=real, label="real", split=self.split, source="real", group=photo.stem)
        samples = ((sample, made | provenance), (twin, provenance))
        return [datasets.format_line(sample, self.out, extra | {"saved": saved}) for sample, extra in samples]


def _forge(
    pixels: Pixels,
    generator: str,
    rng: np.random.Generator,
    donor: Pixels | None,
    kinds: tuple[MaskKind, ...],
    network: Autoencoder | None,
) -> tuple[Pixels, Mask, str]:
    """`forge` with everything resolved; also tells the kind of the mask."""
    reason = ""
    for _ in range(_MASK_ATTEMPTS):
        try:
            forged, mask, kind = _apply(pixels, generator, rng, donor, kinds, network)
        except DatasetError as error:
            reason = str(error)
            continue
        changed = np.abs(forged[mask].astype(np.int16) - pixels[mask]).max(axis=1) >= _VISIBLE
        # A round trip reaches every pixel, if only by a trace that a smooth sky hides.
        if changed.mean() >= (0.1 if kind == "whole" else 0.5):
            return forged, mask, kind
        reason = f"only {changed.mean():.0%} of the masked pixels changed visibly"
    raise DatasetError(f"{generator} did not work in {_MASK_ATTEMPTS} attempts on this picture: {reason}")


def _apply(
    pixels: Pixels,
    generator: str,
    rng: np.random.Generator,
    donor: Pixels | None,
    kinds: tuple[MaskKind, ...],
    network: Autoencoder | None,
) -> tuple[Pixels, Mask, str]:
    if network is not None:
        from declip.synthesis import neural

        if generator == "regenerate-global":
            return *neural.regenerate_global(pixels, network), "whole"
        mask, kind = _draw_mask(pixels, rng, kinds, mask_shapes.AREA)
        return *neural.regenerate_local(pixels, mask, rng, network), kind
    row = classical.GENERATORS[generator]
    smallest, largest = mask_shapes.AREA[0], row.max_area
    if row.max_pixels is not None:
        largest = min(largest, row.max_pixels / (pixels.shape[0] * pixels.shape[1]))
    mask, kind = _draw_mask(pixels, rng, kinds, (min(smallest, largest / 2), largest))
    return *row.apply(pixels, mask, rng, donor), kind


def _draw_mask(
    pixels: Pixels, rng: np.random.Generator, kinds: tuple[MaskKind, ...], area: tuple[float, float]
) -> tuple[Mask, str]:
    kind = kinds[int(rng.integers(len(kinds)))]
    match kind:
        case "random":
            return mask_shapes.random_mask((pixels.shape[0], pixels.shape[1]), rng, area), kind
        case "object":
            return mask_shapes.object_mask(pixels, rng, area), kind


def _crop(pixels: Pixels, size: int, rng: np.random.Generator) -> tuple[Pixels, dict[str, Any]]:
    """At most size × size px of the photo, at a random place, and where it was taken: box in px of the photo."""
    height, width = pixels.shape[:2]
    scale = 1.0
    smallest = max(_DOWNSCALE[0], size / min(height, width))
    if smallest < _DOWNSCALE[1] and rng.random() < _DOWNSCALED_SHARE:
        scale = float(rng.uniform(smallest, _DOWNSCALE[1]))
    taken = [min(side, round(size / scale)) for side in (height, width)]
    y, x = (int(rng.integers(side - part + 1)) for side, part in zip((height, width), taken, strict=True))
    crop = np.ascontiguousarray(pixels[y : y + taken[0], x : x + taken[1]])
    if scale != 1.0:
        crop = np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return crop, {"crop": [x, y, x + taken[1], y + taken[0]], "scale": round(scale, 4)}


def _read(path: Path, cache: dict[Path, Pixels]) -> Pixels:
    """The photo's pixels; the last few photos are kept, as several samples of one follow each other."""
    if path not in cache:
        while len(cache) >= _CACHED_PHOTOS:
            del cache[next(iter(cache))]
        cache[path] = image.read(path).pixels
    return cache[path]


def _chroma(rng: np.random.Generator) -> classical.Chroma:
    return "4:2:0" if rng.random() < 0.5 else "4:4:4"


def _family(generator: str) -> classical.Family:
    return NEURAL[generator] if generator in NEURAL else classical.GENERATORS[generator].family


def _expand(names: Sequence[str]) -> tuple[str, ...]:
    """Names of generators and of sets → generators, each once, in the order given."""
    expanded = [name for given in names for name in SETS.get(given, (given,))]
    unknown = sorted(set(expanded) - set(ALL_GENERATORS))
    if unknown or not expanded:
        came = f"unknown generators {', '.join(unknown)}" if unknown else "no generators"
        raise DatasetError(f"{came}; expected some of {', '.join((*ALL_GENERATORS, *SETS))}")
    return tuple(dict.fromkeys(expanded))


def _known_masks(names: Sequence[str]) -> tuple[MaskKind, ...]:
    known = tuple(kind for kind in MASKS if kind in names)
    if not known or set(names) - set(MASKS):
        raise DatasetError(f"masks are {', '.join(names) or 'none'}; expected some of {', '.join(MASKS)}")
    return known


def _autoencoder(folder: str | Path | None) -> Autoencoder:
    if folder is None:
        raise DatasetError("the regenerations need an autoencoder: give the folder of its weights")
    try:
        from declip.synthesis import neural
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "torch") from error
    return neural.load(Path(folder))


# Files -------------------------------------------------------------------------------------------------------------


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _claim(maker: _Maker) -> None:
    """Make the folder this run's, or see that it already is."""
    (maker.out / "images").mkdir(parents=True, exist_ok=True)
    (maker.out / "masks").mkdir(exist_ok=True)
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
        _write(path, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())


def _completed(maker: _Maker, manifests: Sequence[Path]) -> dict[int, list[str]]:
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
    _write(path, "".join(line + "\n" for lines in done.values() for line in lines).encode())
    return path.open("a", encoding="utf-8", newline="\n")


# Workers -----------------------------------------------------------------------------------------------------------

_Result = tuple[int, list[str], str | None]


def _run(maker: _Maker, indices: Sequence[int], workers: int) -> Iterator[_Result]:
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


def _attempt(maker: _Maker, index: int, cache: dict[Path, Pixels]) -> _Result:
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
_worker: tuple[_Maker, dict[Path, Pixels]] | None = None


def _start(maker: _Maker) -> None:
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
