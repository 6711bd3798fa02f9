"""The cache of frozen features, filled by several workers on Ray: one pass of the backbones for any number of decoders.

What there is to compute is what a training by the same recipe would compute first, into the same folder and under the
same names (`training.features`). Samples are cut into parts. A worker builds the backbones once
and fills in what its parts lack. Entries appear whole, and their names are digests of what decides them: a part that
is computed again, since its worker was killed, is gone on with, and so is a job that is started anew.

Manifest, pictures and cache are on a disk that all workers see under the same names: this machine's, or a shared one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from declip import datasets
from declip.batch.driver import Device, check_counts, check_device, computed, need_extra, shown, started
from declip.batch.job import EACH
from declip.errors import DatasetError, DeclipError, SpecError
from declip.results import Sample, check_several
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec
from declip.training.views import Views

if TYPE_CHECKING:
    from declip.training import TrainConfig
    from declip.training.features import CachedViews

__all__ = ["Filled", "fill_cache", "recipe_for"]

# Samples of a part: at most so many, and a multiple of the backbones' batch.
_LARGEST = 256
# Workers that a part may cost: a picture that they die of cannot be left out of a training's samples.
_DEATHS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """What a job has done. views: that the cache has now, of the samples it was for; before: those it had before.
    seconds: from the start of Ray to the last part."""

    views: int
    before: int
    seconds: float

    @property
    def rate(self) -> float:
        """Views per second, of this run."""
        return (self.views - self.before) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        before = f", {self.before} of them before" if self.before else ""
        return f"{self.views} views{before}, {self.seconds:.1f} s, {self.rate:.1f} views/s"


class _Lot(NamedTuple):
    """Samples, and how many views of each are kept."""

    views: Views
    kept: int


class _Part(NamedTuple):
    """Samples of a lot, from start to before stop."""

    lot: int
    start: int
    stop: int


def recipe_for(
    backbones: Sequence[BackboneSpec], recipe: str | Path | None = None, changes: Sequence[str] = ()
) -> TrainConfig:
    """The recipe of a file, with these backbones if there are any; without a file, the paper's for these backbones.

    changes: as `TrainConfig.from_toml`. Raises SpecError where there is neither, or where they do not fit.
    """
    from declip.training import TrainConfig

    if recipe is not None:
        config = TrainConfig.from_toml(recipe, changes)
        if not backbones:
            return config
        return dataclasses.replace(config, model=dataclasses.replace(config.model, backbones=tuple(backbones)))
    if not backbones or changes:
        raise SpecError("which features? Give a recipe (which alone can be changed), or a backbone and its layers")
    # The decoder decides no feature.
    return TrainConfig(model=ModelSpec(backbones=tuple(backbones), decoder=DecoderSpec(kind="linear")))


def fill_cache(
    manifests: Sequence[str | Path],
    folder: str | Path,
    *,
    config: TrainConfig,
    every: bool = False,
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: Device | None = None,
    progress: bool = False,
) -> Filled:
    """Compute the features of manifests' samples into a cache that `training.train` is then given.

    config: the recipe. every: of every sample, whatever its split and label; else exactly those that a training by the
    recipe keeps. address, workers, threads, device, progress: as `batch.run`.

    Raises MissingExtraError without the extras `ray` and `torch`, SpecError for a recipe that keeps no features,
    DatasetError for manifests without samples for it, a disk that is too small, and a folder that not all workers see;
    ImageError for a picture that cannot be read. What is computed by then stays.
    """
    check_several(manifests, "fill_cache([…], …)")
    need_extra(address)
    check_counts(workers=workers, threads=threads)
    check_device(device)
    samples = [_absolute(sample) for manifest in manifests for sample in datasets.read_manifest(manifest)]
    lots = _lots(config, samples, every)
    # A first process does what all of them will: what cannot work shows before anything starts.
    caches = _open(config, lots, Path(folder).absolute())
    missing = [cache.missing() for cache in caches]
    for cache, items in zip(caches, missing, strict=True):
        cache.net.to("meta")  # the workers have their own
        if items:
            cache.announce(items)
    total, left = sum(map(len, caches)), sum(map(len, missing))
    start = time.perf_counter()
    if left:
        with (
            contextlib.redirect_stdout(sys.stderr),  # where Ray tells of workers that died
            started(address, workers, threads, device) as pool,
            shown(total, total - left, progress, "frozen features", "views") as show,
        ):
            import ray

            parts = _cut(lots, missing, pool.workers)
            options = {"threads": pool.threads, "device": pool.device}
            arguments = (config, ray.put(lots), parts, Path(folder).absolute())
            for row in computed(_Worker, arguments, options, range(len(parts)), pool, deaths=_DEATHS):
                show(row["views"])
    seconds = time.perf_counter() - start
    if lost := sum(len(cache.missing()) for cache in caches):
        raise DatasetError(
            f"{lost} of {left} views were computed, and are not in {folder}: it has to be a folder that all workers "
            "share, under this name"
        )
    return Filled(views=total, before=total - left, seconds=seconds)


class _Worker:
    """What Ray keeps one of in each process: called with the numbers of parts, it computes what they lack.

    lots: a Ray object, with the digests of the files, which are not read for them again.
    """

    def __init__(
        self,
        config: TrainConfig,
        lots: Any,
        parts: Sequence[_Part],
        folder: Path,
        *,
        threads: int,
        device: Device | None = None,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._lots: list[_Lot] = ray.get(lots)
        self._parts = parts
        empty = [_Lot(lot.views.part(0, 0), lot.kept) for lot in self._lots]
        self._caches = _open(config, empty, folder, device or "cpu")

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        """{"part": one number} → {"views": how many it lacked, "failure": why the job cannot go on, or ""}."""
        (number,) = batch["part"].tolist()
        try:
            return {"views": [self._compute(self._parts[number])], "failure": [""]}
        except DeclipError as error:
            return {"views": [0], "failure": [str(error)]}

    def _compute(self, part: _Part) -> int:
        cache = self._caches[part.lot].of(self._lots[part.lot].views.part(part.start, part.stop))
        missing = cache.missing()
        cache.fill(missing)
        return len(missing)


def _absolute(sample: Sample) -> Sample:
    mask = None if sample.mask is None else sample.mask.absolute()
    return dataclasses.replace(sample, image=sample.image.absolute(), mask=mask)


def _lots(config: TrainConfig, samples: Sequence[Sample], every: bool) -> list[_Lot]:
    """What there is to keep. Raises SpecError if that is nothing, DatasetError for samples that do not do."""
    from declip.training import parts_of

    if not config.kept_of("valid"):
        raise SpecError(f"all of {config.model.architecture} is learnt, there are no features to keep")
    if every:
        if not samples:
            raise DatasetError("the manifests have no samples")
        return [_Lot(Views(samples, config.model, seed=config.seed, target=config.target), 1)]
    chosen = {split: [sample for sample in samples if sample.split == split] for split in ("train", "valid")}
    parts = parts_of(config, **chosen)
    if not config.kept_of("train"):
        raise SpecError("by this recipe each epoch draws new views, and none are kept; set views = 1 or more in it")
    return [_Lot(views, config.kept_of(name)) for name, views in parts.items()]


def _open(config: TrainConfig, lots: Sequence[_Lot], folder: Path, device: Device = "cpu") -> list[CachedViews]:
    """The cache of each lot, all with one network: that which `training.train` begins with."""
    import torch

    from declip.nn.model import build
    from declip.training.features import CachedViews

    torch.manual_seed(config.seed)  # which decides backbones without published weights
    net = build(config.model)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [
        CachedViews(net, config.model, lot.views, folder, precision=config.features, count=lot.kept) for lot in lots
    ]


def _cut(lots: Sequence[_Lot], missing: Sequence[Sequence[int]], workers: int) -> list[_Part]:
    """Parts that have all that is missing: 16 or more to each worker where they then fill the backbones' batches."""
    from declip.training.features import BATCH_SIZE

    parts: list[_Part] = []
    for number, (lot, items) in enumerate(zip(lots, missing, strict=True)):
        samples = len(lot.views)
        wanted = -(-samples // (EACH * workers * BATCH_SIZE)) * BATCH_SIZE
        size = min(_LARGEST, wanted)
        begun = {item % samples // size for item in items}
        parts += [_Part(number, n * size, min(samples, (n + 1) * size)) for n in sorted(begun)]
    return parts
