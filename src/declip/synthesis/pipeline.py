"""From photos and a recipe to a data set: folders, workers, the manifest.

The same seed gives the same bytes whatever the number of workers, and an interrupted run resumes.

    OUT/samples.jsonl           the manifest (`datasets`), with the provenance of every sample
    OUT/images/000012-telea.jpg OUT/images/000012-real.jpg   OUT/masks/000012-telea.png   white = manipulated
    OUT/synthesis.json          the recipe: a folder is only ever continued with the same one

The layout "dolos" puts the pictures where the Dolos data set has them, all PNG, with masks whose black is manipulated:

    OUT/real/train/000003-2.png   OUT/fake/lama/images/train/000003-2.png   OUT/fake/lama/masks/train/000003-2.png
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import IO, TypeAlias

import cv2
from rich.console import Console
from rich.progress import track

from declip import datasets
from declip.errors import DatasetError
from declip.files import write_atomic
from declip.results import check_several, check_type
from declip.synthesis.forging import Scene
from declip.synthesis.pairs import Maker
from declip.synthesis.recipe import Recipe
from declip.synthesis.sources import allot

__all__ = ["synthesize"]

Result: TypeAlias = tuple[int, list[str], str]  # index, lines of the manifest, why it failed or ""

log = logging.getLogger(__name__)


def synthesize(
    photos: Sequence[str | Path],
    recipe: Recipe,
    out: str | Path,
    *,
    workers: int = 1,
    maps: str | Path | None = None,
    progress: bool = False,
) -> Path:
    """Make manipulated pictures and their untouched twins from photos; return the manifest, OUT/samples.jsonl.

    A photo or sample that fails is logged and left out. With several workers call this under
    `if __name__ == "__main__":`: the workers are fresh processes.

    photos: files; their order matters to the result, together with the recipe's seed.
    out: folder of the data set; one that holds an interrupted run of the same recipe and photos is continued.
    workers: processes. progress: show a bar on stderr.
    maps: folder of the photos' maps of what stands out, for the masks salient and beside and for splice-object; it is
        filled where maps are missing, and several data sets can share it. None: OUT/saliency.

    Raises DatasetError for no photos or too few, a folder of another recipe, or no sample at all; MissingExtraError or
    WeightsError for learnt generators without their packages or weights.
    """
    check_several(photos, "synthesize([…], …)")
    check_type(recipe, Recipe, "synthesis.Recipe.read('fresh')")
    if workers < 1:
        raise DatasetError(f"workers is {workers}; expected at least 1")
    out, given = Path(out), tuple(map(Path, photos))
    turns = tuple(photo for photo in given for _ in range(recipe.per_photo))
    if recipe.count is not None and given:
        given = turns = tuple(allot(given, recipe.count, cap=recipe.cap, seed=recipe.seed))
    maps = Path(maps) if maps is not None else out / "saliency"
    maker = Maker(photos=turns, donors=given, recipe=recipe, out=out, maps=maps)
    maker.check()
    _claim(maker)
    manifest, part = out / "samples.jsonl", out / "samples.jsonl.part"
    done = _completed(maker, (manifest, part))
    missing = [index for index in range(len(turns)) if index not in done]
    reasons: list[str] = []
    with _open_part(part, done) as stream:
        results = _results(maker, missing, workers)
        bar = track(results, "Synthesizing", len(missing), console=Console(stderr=True), disable=not progress)
        for index, lines, reason in bar:
            if reason:
                log.warning("sample %d is left out: %s", index, reason)
                reasons.append(reason)
                continue
            done[index] = lines
            stream.write("".join(line + "\n" for line in lines))
            stream.flush()
    if not done:
        raise DatasetError(f"not one of {len(turns)} samples could be made; the first failed because: {reasons[0]}")
    write_atomic(manifest, "".join(line + "\n" for index in sorted(done) for line in done[index]))
    part.unlink()
    if reasons:
        log.warning("%d of %d samples were left out", len(reasons), len(turns))
    return manifest


def _claim(maker: Maker) -> None:
    """Make the folder this run's, or see that it already is."""
    path = maker.out / "synthesis.json"
    text = json.dumps(maker.settings(), indent=1, ensure_ascii=False) + "\n"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetError(f"{path} is not JSON; choose another folder: {error}") from error
        settings = json.loads(text)
        if other := [key for key in settings if found.get(key) != settings[key]]:
            raise DatasetError(
                f"{maker.out} holds a data set of other settings ({', '.join(other)}); give those, or another folder"
            )
    elif (maker.out / "samples.jsonl").exists():
        raise DatasetError(f"{maker.out} holds a data set that was not synthesized; choose another folder")
    else:
        write_atomic(path, text)


def _completed(maker: Maker, manifests: Sequence[Path]) -> dict[int, list[str]]:
    """Return the pairs that an earlier run has made and whose files are there: index → their lines."""
    found: dict[int, dict[str, str]] = {}
    for manifest in manifests:
        text = manifest.read_text(encoding="utf-8") if manifest.exists() else ""
        for line in text.split("\n")[:-1]:  # what follows the last line break was not written to its end
            sample, provenance = datasets.parse_line(line, maker.out, str(manifest))
            match provenance.get("seed"):
                case [maker.recipe.seed, int(index)]:
                    if all(path is None or path.exists() for path in (sample.image, sample.mask)):
                        found.setdefault(index, {})[sample.label] = line
                case other:
                    raise DatasetError(
                        f"{manifest}: the seed in a line's provenance is {other}, not [{maker.recipe.seed}, index], so "
                        "it is not of this run; choose another folder"
                    )
    return {index: [pair["fake"], pair["real"]] for index, pair in found.items() if len(pair) == 2}


def _open_part(path: Path, done: Mapping[int, Sequence[str]]) -> IO[str]:
    """Open the list of the pairs made so far, to be continued; half a line that a killed run left is gone."""
    write_atomic(path, "".join(line + "\n" for lines in done.values() for line in lines))
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")  # as files.encode


def _results(maker: Maker, indices: Sequence[int], workers: int) -> Iterator[Result]:
    """Make the pairs, in the order of the indices."""
    if workers == 1 or len(indices) < 2:
        cache: dict[Path, Scene] = {}
        with _use_one_thread(maker):
            for index in indices:
                yield _attempt(maker, index, cache)
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(maker,))
    try:
        yield from executor.map(_work, indices)
    finally:
        executor.shutdown(cancel_futures=True)


def _attempt(maker: Maker, index: int, cache: dict[Path, Scene]) -> Result:
    try:
        return index, maker.make(index, cache), ""
    except Exception as error:  # one bad photo must not end a run of hours; what it was is logged
        return index, [], f"{type(error).__name__}: {error}"


def _use_one_thread(maker: Maker) -> ExitStack:
    """Use one thread per process: the workers share the processors, and the bytes depend on nothing else.

    Closing what is returned brings the threads back.
    """
    before = ExitStack()
    before.callback(cv2.setNumThreads, cv2.getNumThreads())
    cv2.setNumThreads(1)
    if maker.recipe.networks.need_torch(maker.recipe.generators):
        import torch

        before.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    return before


# One per worker process, set when it starts.
_worker: tuple[Maker, dict[Path, Scene]] | None = None


def _start(maker: Maker) -> None:
    global _worker
    _use_one_thread(maker)
    _worker = maker, {}


def _work(index: int) -> Result:
    if _worker is None:
        raise RuntimeError("the worker was not started by _results")
    maker, cache = _worker
    return _attempt(maker, index, cache)
