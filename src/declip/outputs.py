"""Pictures in folders → maps in a folder: what `declip localize` does, as a library.

For `photo.jpg` it writes `photo.jpg.scores.png` (16-bit grey, 65535 = 1.0), `photo.jpg.mask.png` (8-bit, 255 =
manipulated) and `photo.jpg.overlay.png`, each at the upright photo's own size; relative sub-folders are kept. Where all
pages are asked for, those of a file that holds several are `photo.tif#1`, `photo.tif#2`, … in rows and names.

Every picture gives one row, in order: `Localization.to_dict()`, or {"image", "error", "kind"} where it failed. One
bad picture never stops the others. Kinds are those of `ImageError`, and
- "exists": an output is already there, or another picture of this run writes the same names;
- "write": an output cannot be written (disk full, no permission, name too long);
- "internal": something declip did not foresee; its traceback goes to the log. MemoryError is not caught.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from declip import image
from declip.errors import DeclipError, ImageError
from declip.localizer import Localizer, ahead
from declip.types import Localization, Photo, Predictor, check_several

__all__ = ["SUFFIXES", "Pair", "error_row", "find_pictures", "is_output", "localize_files", "outcomes"]

SUFFIXES = (".scores.png", ".mask.png", ".overlay.png")

# Photos that wait for the network together stay below this many pixels, however many a batch may hold.
_HELD_PIXELS = 16_000_000

_PAGE = re.compile(r"#\d+$")

_log = logging.getLogger(__name__)

Row: TypeAlias = dict[str, Any]
Pages: TypeAlias = Literal["first", "all"]


class Pair(NamedTuple):
    """A picture and the name of its outputs, relative to the output folder and without their suffixes."""

    path: Path
    name: Path


class _Page(NamedTuple):
    """One picture of a file, from 1, and the name of its outputs; None = the file's first one, whose name is the
    file's."""

    path: Path
    name: Path
    page: int | None

    @property
    def label(self) -> str:
        """What rows and messages call it."""
        return str(self.path) if self.page is None else f"{self.path}#{self.page}"


class _Decoded(NamedTuple):
    pair: _Page
    photo: Photo
    seconds: float  # that reading took


def find_pictures(paths: Iterable[str | Path]) -> tuple[list[Pair], int]:
    """(the pictures that paths stand for, the number of files skipped).

    A file is taken whatever its name. A folder is read recursively, in sorted order, without following links to
    folders; files without an image extension are skipped and counted, and declip's own outputs are never inputs.
    Raises ImageError of kind "missing" for a path that does not exist.
    """
    check_several(paths, "find_pictures([…])")
    pairs: list[Pair] = []
    skipped = 0
    for path in map(Path, paths):
        match _kind(path):
            case "folder":
                found, others = _walk(path)
                pairs += found
                skipped += others
            case "file" | "other":
                pairs.append(Pair(path, Path(path.name)))
            case None:
                raise ImageError(str(path), "missing", "there is no such file or folder")
    return pairs, skipped


def localize_files(
    localizer: Predictor,
    pairs: Iterable[tuple[Path, Path]],
    out: Path,
    *,
    force: bool = False,
    batch_size: int = 8,
    pages: Pages = "first",
) -> Iterator[Row]:
    """Localize each (path, name), write its maps to out / name + suffix, and yield one row per picture, in order.

    Decodes each photo once, a batch ahead: at most twice batch_size decoded ones are held. An output that exists is
    not computed again but reported as kind "exists", unless force. Files appear whole or not at all. "seconds" of a row
    includes decoding. pages: "first" or "all" of the pictures in a file that holds several; then each has its own row.
    Raises DeclipError if out cannot be made, or where no picture could be localized (a missing extra, say).
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeclipError(f"cannot make the output folder {out}: {error.strerror}") from error
    if pages not in get_args(Pages):
        raise DeclipError(f"pages is {pages!r}; expected 'first' or 'all'")
    given = localizer if isinstance(localizer, Localizer) else None
    plan = _Plan(out, force, pages, given)
    for batch in ahead(_batches(pairs, plan, batch_size)):
        yield from _flush(localizer, batch, out, force, batch_size)


def outcomes(
    localizer: Predictor, photos: Sequence[Photo], batch_size: int
) -> Iterator[Localization | ImageError | Exception]:
    """One outcome per photo, in order. If a batch fails as a whole, its photos are tried one by one."""
    done = 0
    try:
        for outcome in localizer.map(photos, batch_size=batch_size):
            done += 1
            yield outcome
    except (DeclipError, MemoryError):
        raise
    except Exception as error:
        if len(photos) - done == 1:
            yield error
        else:
            for photo in photos[done:]:
                yield from outcomes(localizer, [photo], batch_size)


def error_row(name: str, kind: str, message: str) -> Row:
    """What stands for a picture that failed; message names it."""
    return {"image": name, "error": message, "kind": kind}


# --- pictures in ----------------------------------------------------------------------------------------------------


def _walk(root: Path) -> tuple[list[Pair], int]:
    pairs = []
    skipped = 0

    def unreadable(error: OSError) -> None:
        nonlocal skipped
        skipped += 1
        _log.warning("skipped the folder %s: %s", error.filename, error.strerror)

    for folder, _, names in os.walk(root, onerror=unreadable):
        for name in names:
            path = Path(folder, name)
            if is_output(name):
                continue
            # A link that leads nowhere is reported when it is read; pipes and devices are no pictures.
            if path.suffix.lower() in image.EXTENSIONS and _kind(path) != "other":
                pairs.append(Pair(path, path.relative_to(root)))
            else:
                skipped += 1
    return sorted(pairs, key=lambda pair: pair.name.parts), skipped


def _kind(path: Path) -> Literal["file", "folder", "other"] | None:
    """What lies at path; None if nothing does, or if looking is forbidden."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def is_output(name: str) -> bool:
    """Whether a file of this name is one that `localize_files` writes: "photo.jpg.mask.png", but not "my.mask.png"."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return Path(_PAGE.sub("", name.removesuffix(suffix))).suffix.lower() in image.EXTENSIONS
    return False


# --- one batch ------------------------------------------------------------------------------------------------------


class _Plan:
    """What is to be done with each picture. localizer: whose limits count, None = the usual ones."""

    def __init__(self, out: Path, force: bool, pages: Pages, localizer: Localizer | None) -> None:
        self.out = out
        self.force = force
        self.pages = pages
        self.read = image.read if localizer is None else localizer.read
        self.max_bytes = image.MAX_BYTES if localizer is None else localizer.max_bytes
        self.claimed: set[Path] = set()

    def expand(self, path: Path, name: Path) -> list[_Page]:
        """The pictures of a file that are to be examined. What cannot be read stays, for its row to say why."""
        count = 1
        if self.pages == "all":
            with contextlib.suppress(ImageError):
                count = image.count_pages(path, max_bytes=self.max_bytes)
        if count == 1:
            return [_Page(path, name, None)]
        return [_Page(path, name.with_name(f"{name.name}#{page}"), page) for page in range(1, count + 1)]


def _prepare(pair: _Page, plan: _Plan) -> _Decoded | Row:
    """The decoded photo, or the row that says why there is none."""
    if pair.name in plan.claimed:
        return _row(pair, "exists", f"another picture of this run writes {plan.out / pair.name}{SUFFIXES[0]} …")
    plan.claimed.add(pair.name)
    if not plan.force and (there := _existing(plan.out / pair.name)):
        return _row(pair, "exists", f"{there} exists; --force (force=True) overwrites it")
    start = time.perf_counter()
    try:
        photo = plan.read(pair.path, page=pair.page)
    except ImageError as error:
        return _row(pair, error.kind, str(error))
    except MemoryError:
        raise
    except Exception as error:
        return _unforeseen(pair, error)
    return _Decoded(pair, photo, time.perf_counter() - start)


def _batches(pairs: Iterable[tuple[Path, Path]], plan: _Plan, batch_size: int) -> Iterator[list[_Decoded | Row]]:
    waiting: list[_Decoded | Row] = []
    for pair in (page for path, name in pairs for page in plan.expand(path, name)):
        waiting.append(_prepare(pair, plan))
        photos = [item.photo for item in waiting if isinstance(item, _Decoded)]
        if len(waiting) >= batch_size or sum(p.size[0] * p.size[1] for p in photos) >= _HELD_PIXELS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _flush(
    localizer: Predictor, waiting: Sequence[_Decoded | Row], out: Path, force: bool, batch_size: int
) -> Iterator[Row]:
    """One row per waiting item, in order."""
    results = outcomes(localizer, [item.photo for item in waiting if isinstance(item, _Decoded)], batch_size)
    for item in waiting:
        if isinstance(item, dict):
            yield item
            continue
        outcome = next(results)
        if isinstance(outcome, Localization):
            outcome = dataclasses.replace(outcome, name=item.pair.label, seconds=outcome.seconds + item.seconds)
            yield _keep(item, outcome, out, force)
        elif isinstance(outcome, ImageError):
            yield _row(item.pair, outcome.kind, str(outcome))
        else:
            yield _unforeseen(item.pair, outcome)


def _keep(item: _Decoded, result: Localization, out: Path, force: bool) -> Row:
    """Write the three maps, then give them their names; the row that tells how it went."""
    target = out / item.pair.name
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    written = [partial.with_name(partial.name + suffix) for suffix in SUFFIXES]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_maps(item.photo, result, *written)
        if not force and (there := _existing(target)):  # made meanwhile: by another run, or a name of other case
            return _row(item.pair, "exists", f"{there} exists; --force (force=True) overwrites it")
        for path, suffix in zip(written, SUFFIXES, strict=True):
            path.replace(target.with_name(target.name + suffix))
        return result.to_dict()
    except OSError as error:
        return _row(item.pair, "write", f"cannot write {target}{SUFFIXES[0]} …: {error.strerror or error}")
    except MemoryError:
        raise
    except Exception as error:
        return _unforeseen(item.pair, error)
    finally:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()


def _write_maps(photo: Photo, result: Localization, scores: Path, mask: Path, overlay: Path) -> None:
    # PNG compression takes most of the time of a large photo, and Pillow lets other threads run meanwhile.
    with ThreadPoolExecutor(3) as pool:
        jobs = (
            pool.submit(lambda: overlay.write_bytes(image.overlay_png(photo, result))),
            pool.submit(image.write_scores, scores, result.scores),
            pool.submit(image.write_mask, mask, result.mask),
        )
    for job in jobs:
        job.result()


def _existing(target: Path) -> Path | None:
    outputs = (target.with_name(target.name + suffix) for suffix in SUFFIXES)
    return next((path for path in outputs if os.path.lexists(path)), None)


def _row(pair: _Page, kind: str, message: str) -> Row:
    return error_row(pair.label, kind, message)


def _unforeseen(pair: _Page, error: Exception) -> Row:
    _log.error("%s: unforeseen error", pair.label, exc_info=error)
    return _row(pair, "internal", f"{pair.label}: {type(error).__name__}: {error}")
