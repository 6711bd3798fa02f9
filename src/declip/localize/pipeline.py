"""The way from sources to results: read ahead → batch → compute → one outcome for each source, in order.

`Localizer.map`, folders and batch jobs give their sources to `stream`; the service, whose queue makes the batches,
calls `read_one` and `compute`. What holds for all of them:

- a picture that cannot be read is its own outcome, an ImageError, and never stops the others;
- where a batch fails, its photos are tried again one by one, and one that the memory does not hold is an ImageError of
  kind "too-large";
- what declip did not foresee is an outcome, too; but a DeclipError that concerns all (a missing extra) is raised;
- no score depends on the batch.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from declip.errors import DeclipError, ImageError
from declip.localize.tiling import Corner, TiledPhoto, WholePhoto, stacked
from declip.process import cores, ending, prefetch, threads
from declip.results import Localization, Photo

if TYPE_CHECKING:
    from declip.localize.localizer import Localizer

__all__ = ["HELD_PIXELS", "Outcome", "Reading", "compute", "read_one", "stream"]

# A batch takes no more photos once those it holds have so many pixels.
HELD_PIXELS = 16_000_000

# What libraries say: ONNX Runtime, torch on CPU and GPU, C++.
_NO_MEMORY = re.compile(
    r"bad_alloc|failed to allocate memory|can't allocate memory|out of memory|can't start new thread", re.IGNORECASE
)

T = TypeVar("T")
Tile: TypeAlias = tuple[WholePhoto | TiledPhoto, Corner]


class Reading(NamedTuple, Generic[T]):
    """A source that was read: what the network will see of it, or why there is nothing. seconds: that it took."""

    item: T
    content: WholePhoto | TiledPhoto | Exception
    seconds: float

    @property
    def photo(self) -> Photo | None:
        """The photo, if there is one."""
        return None if isinstance(self.content, Exception) else self.content.photo

    @property
    def inputs(self) -> int:
        """How many inputs of the network it is: tiles, or one."""
        return 1 if isinstance(self.content, Exception) else len(self.content.corners)

    @property
    def pixels(self) -> int:
        """How many pixels it holds."""
        return 0 if self.photo is None else self.photo.pixels.size // 3


class Outcome(NamedTuple, Generic[T]):
    """What became of a source. result: an ImageError where the picture is at fault, another exception where not."""

    item: T
    photo: Photo | None
    result: Localization | Exception


def stream(
    localizer: Localizer, items: Iterable[T], read: Callable[[T], Photo], batch_size: int, name: Callable[[T], str]
) -> Iterator[Outcome[T]]:
    """Localize the photos that `read` makes of items; one outcome for each, in order.

    batch_size: photos (whole) or tiles (tiled) computed at once. While the caller has the outcomes of one batch, the
    next is computed and the one after it read, in threads of their own. `items` is iterated in one of them. name: of an
    item, for errors. Raises DeclipErrors that concern all photos.
    """
    with (
        ending(prefetch(_batches(localizer, items, read, batch_size, name)), Generator.close) as batches,
        ending(prefetch(compute(localizer, batch, batch_size) for batch in batches), Generator.close) as computed,
    ):
        for outcomes in computed:
            yield from outcomes


def _batches(
    localizer: Localizer, items: Iterable[T], read: Callable[[T], Photo], batch_size: int, name: Callable[[T], str]
) -> Iterator[list[Reading[T]]]:
    """Read the items and group them: up to batch_size inputs, or HELD_PIXELS."""
    # A photo that is seen whole is one input, so that several are needed at once: they are read side by side.
    together = min(batch_size, cores()) if localizer.mode == "whole" else 1
    items = iter(items)
    batch: list[Reading[T]] = []
    while chosen := list(itertools.islice(items, together)):
        for reading in _each(lambda item: read_one(localizer, item, read, name), chosen):
            batch.append(reading)
            if sum(one.inputs for one in batch) >= batch_size or sum(one.pixels for one in batch) >= HELD_PIXELS:
                yield batch
                batch = []
    if batch:
        yield batch


def read_one(localizer: Localizer, item: T, read: Callable[[T], Photo], name: Callable[[T], str]) -> Reading[T]:
    """Read one source and prepare it for the network; what goes wrong is kept as its content."""
    start = time.perf_counter()
    content: WholePhoto | TiledPhoto | Exception
    try:
        content = localizer.prepare(read(item))
    except MemoryError:
        content = ImageError.out_of_memory(name(item))
    except Exception as error:
        content = error
    return Reading(item, content, time.perf_counter() - start)


def compute(localizer: Localizer, batch: list[Reading[T]], batch_size: int) -> list[Outcome[T]]:
    """Return one outcome for each reading, in order; the list is emptied where its photos have to be tried one by one.

    Raises DeclipErrors that concern all photos.
    """
    try:
        return _compute(localizer, batch, batch_size)
    except DeclipError:
        raise
    except Exception as error:
        if len(batch) == 1:
            item, photo = batch[0].item, batch[0].photo
            if photo and (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
                return [Outcome(item, photo, ImageError.out_of_memory(photo.name))]
            return [Outcome(item, photo, error)]
    # Out here the failed attempt holds no memory any more, and its half-filled maps are not used again.
    left = [(reading.item, reading.photo or reading.content) for reading in batch]
    batch.clear()
    found: list[Outcome[T]] = []
    for item, source in left:
        if isinstance(source, Photo):
            found += compute(localizer, [_read_again(localizer, item, source)], 1)
        elif isinstance(source, Exception):
            found.append(Outcome(item, None, source))
    return found


def _read_again(localizer: Localizer, item: T, photo: Photo) -> Reading[T]:
    return read_one(localizer, item, lambda _: photo, lambda _: photo.name)


def _compute(localizer: Localizer, batch: Sequence[Reading[T]], batch_size: int) -> list[Outcome[T]]:
    """Have the network compute all tiles of a batch, and make the results."""
    for reading in batch:
        if isinstance(reading.content, DeclipError) and not isinstance(reading.content, ImageError):
            raise reading.content
    start = time.perf_counter()
    contents = [reading.content for reading in batch if not isinstance(reading.content, Exception)]
    if localizer.spec.statistics == "photo":
        for content in contents:
            if views := content.views():
                content.state = localizer.engine.state(views)
    tiles = [(content, corner) for content in contents for corner in content.corners]
    parts = _parts(tiles, batch_size)
    made = ((part, stacked([content.tile(corner) for content, corner in part])) for part in parts)
    for part, inputs in prefetch(made, threads()) if len(parts) > 1 else made:
        for (content, corner), logits in zip(part, localizer.engine.logits(inputs), strict=True):
            content.finite &= bool(np.isfinite(logits).all())
            content.add(corner, logits)
    shared = (time.perf_counter() - start) / max(1, len(tiles))

    def outcome(reading: Reading[T]) -> Outcome[T]:
        if isinstance(reading.content, Exception):
            return Outcome(reading.item, None, reading.content)
        started = time.perf_counter() - reading.seconds - shared * reading.inputs
        return Outcome(reading.item, reading.content.photo, localizer.finish(reading.content, started))

    return _each(outcome, batch)


def _parts(tiles: Iterable[Tile], batch_size: int) -> list[list[Tile]]:
    """Share tiles out into parts of up to batch_size whose states are of the same names and shapes."""
    alike: dict[tuple[tuple[str, tuple[int, ...]], ...], list[Tile]] = {}
    for tile in tiles:
        alike.setdefault(tuple((name, rows.shape) for name, rows in tile[0].state.items()), []).append(tile)
    return [same[i : i + batch_size] for same in alike.values() for i in range(0, len(same), batch_size)]


def _each(job: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Do a job for each item, several at once where there are several."""
    return list(map(job, items) if len(items) == 1 else threads().map(job, items))
