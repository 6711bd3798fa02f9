"""Pictures in folders → maps in a folder: what `declip localize` does, as a library.

For `photo.jpg` it writes `photo.jpg.scores.png` (16-bit grey, 65535 = 1.0), `photo.jpg.mask.png` (8-bit, 255 =
manipulated) and `photo.jpg.overlay.png`, each at the upright photo's own size; sub-folders are kept (`find_pictures`).
Where all pages are asked for, those of a file that holds several are `photo.tif#1`, `photo.tif#2`, … in rows and names.

Every picture gives one row, in order: `Localization.to_dict()`, or {"image", "error", "kind"} where it failed. One
bad picture never stops the others. Kinds are those of `ImageError`, and
- "exists": an output is already there, or another picture of this run writes the same names;
- "write": an output cannot be written (disk full, no permission, name too long);
- "internal": something declip did not foresee; its traceback goes to the log.
A picture that the memory does not hold is "too-large"; the others of its batch are then tried one by one.
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
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from declip.errors import DeclipError, ImageError
from declip.files import Skipped, local_path, walk, write_together
from declip.images.mapfiles import mask_png, scores_png
from declip.images.overlay import overlay_png
from declip.images.read import EXTENSIONS, MAX_BYTES, count_pages, read_photo
from declip.localize.localizer import Localizer, ahead, lacks_memory
from declip.results import Localization, Photo, Predictor, check_several

__all__ = ["SUFFIXES", "Pair", "error_row", "find_pictures", "is_output", "localize_files", "outcomes"]

SUFFIXES = (".scores.png", ".mask.png", ".overlay.png")

# Photos that wait for the network together stay below this many pixels, however many a batch may hold.
_HELD_PIXELS = 16_000_000

_PAGE = re.compile(r"#\d+$")

_log = logging.getLogger(__name__)

_EXPECTED = f"expected files that end in {', '.join(sorted(EXTENSIONS))}"

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


def find_pictures(paths: Iterable[str | Path]) -> tuple[list[Pair], Skipped]:
    """(the pictures that paths stand for, each once; what was passed over).

    A file is taken whatever its extension. A folder is read as `files.walk` does it, in sorted order; files without an
    image extension are passed over. declip's own outputs are never inputs, not even those given by name.

    A picture's name is its path below the one folder that was given; where several paths are given, below the deepest
    folder that holds all of them: those of a/x.jpg and b/x.jpg are a/x.jpg and b/x.jpg, given as files or as folders.

    Raises ImageError of kind "missing" for a path that does not exist, DeclipError where paths hold no picture at all
    or a URI is of another machine.
    """
    check_several(paths, "find_pictures([…])")
    given = [Path(local_path(str(path))) for path in paths]
    roots = []
    for path in given:
        kind = _kind(path)
        if kind is None:
            raise ImageError(str(path), "missing", "there is no such file or folder")
        roots.append(path if kind == "folder" else path.parent)
    common = _common(roots)
    pairs: dict[str, Pair] = {}
    skipped = Skipped()
    empty = []
    for path, root in zip(given, roots, strict=True):
        found, others = ([path], Skipped()) if path != root else _walk(path)
        if path != root and is_output(path.name):
            found, others = [], Skipped(outputs=1)
        if path == root and not found:
            empty.append((path, others))
        for picture in found:
            place = _place(picture)
            pairs.setdefault(place, Pair(picture, _below(common, place)))
        skipped = skipped.plus(others)
    if given and not pairs:
        raise DeclipError(f"there is no picture in {', '.join(map(str, given))}: {skipped}; {_EXPECTED}")
    for path, others in empty:
        _log.warning("there is no picture in %s: %s", path, others)
    return list(pairs.values()), skipped


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
    """One outcome per photo, in order. If a batch fails as a whole, its photos are tried one by one.

    What the memory does not hold is an ImageError of kind "too-large", whose cause is a MemoryError.
    """
    done = 0
    failure: Exception | None = None
    try:
        for outcome in localizer.map(photos, batch_size=batch_size):
            done += 1
            yield outcome
    except DeclipError:
        raise
    except Exception as error:
        alone = len(photos) - done == 1
        failure = ImageError.out_of_memory(photos[done].name) if alone and lacks_memory(error) else error
    # Out here the failed attempt holds no memory any more.
    if failure is not None and len(photos) - done == 1:
        yield failure
    elif failure is not None:
        del failure
        for photo in photos[done:]:
            yield from outcomes(localizer, [photo], batch_size)


def error_row(name: str, kind: str, message: str) -> Row:
    """What stands for a picture that failed; message names it."""
    return {"image": name, "error": message, "kind": kind}


# --- pictures in ----------------------------------------------------------------------------------------------------


def _walk(root: Path) -> tuple[list[Path], Skipped]:
    found = walk(root)
    for error in found.unreadable:
        _log.warning("skipped the folder %s: %s", error.filename, error.strerror)
    named = [path for path in found.files if not is_output(path.name)]
    pictures = [root / path for path in named if path.suffix.lower() in EXTENSIONS]
    more = Skipped(others=len(named) - len(pictures), outputs=len(found.files) - len(named))
    return pictures, found.skipped.plus(more)


def _common(roots: Sequence[Path]) -> str:
    """The deepest folder that holds all roots; "" where there is none, as on two drives of Windows."""
    try:
        return os.path.commonpath(map(_place, roots)) if roots else ""
    except ValueError:
        return ""


def _place(path: Path) -> str:
    """Where a path leads, by its words alone: links keep the names they were given."""
    return os.path.normpath(path.absolute())


def _below(common: str, place: str) -> Path:
    """The name of a picture: its path below common; where there is none, drive letters become folders."""
    path = Path(place)
    return path.relative_to(common) if common else Path(path.drive.rstrip(":"), *path.parts[1:])


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
            return Path(_PAGE.sub("", name.removesuffix(suffix))).suffix.lower() in EXTENSIONS
    return False


# --- one batch ------------------------------------------------------------------------------------------------------


class _Plan:
    """What is to be done with each picture. localizer: whose limits count, None = the usual ones."""

    def __init__(self, out: Path, force: bool, pages: Pages, localizer: Localizer | None) -> None:
        self.out = out
        self.force = force
        self.pages = pages
        self.read = read_photo if localizer is None else localizer.read
        self.max_bytes = MAX_BYTES if localizer is None else localizer.max_bytes
        self.claimed: set[Path] = set()

    def expand(self, path: Path, name: Path) -> list[_Page]:
        """The pictures of a file that are to be examined. What cannot be read stays, for its row to say why."""
        count = 1
        if self.pages == "all":
            with contextlib.suppress(ImageError, MemoryError):
                count = count_pages(path, max_bytes=self.max_bytes)
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
        return _too_large(pair)
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
    # PNG compression takes most of the time of a large photo, and Pillow lets other threads run meanwhile.
    maps = (
        lambda path: path.write_bytes(scores_png(result.scores)),
        lambda path: path.write_bytes(mask_png(result.mask)),
        lambda path: path.write_bytes(overlay_png(item.photo, result)),
    )
    try:
        # new: they may have been made meanwhile, by another run or for a name of other case.
        write_together(dict(zip(_outputs(target), maps, strict=True)), new=not force)
        return result.to_dict()
    except FileExistsError as error:
        return _row(item.pair, "exists", f"{error.filename} exists; --force (force=True) overwrites it")
    except OSError as error:
        return _row(item.pair, "write", f"cannot write {target}{SUFFIXES[0]} …: {error.strerror or error}")
    except MemoryError:
        return _too_large(item.pair)
    except Exception as error:
        return _unforeseen(item.pair, error)


def _outputs(target: Path) -> list[Path]:
    return [target.with_name(target.name + suffix) for suffix in SUFFIXES]


def _existing(target: Path) -> Path | None:
    return next((path for path in _outputs(target) if os.path.lexists(path)), None)


def _row(pair: _Page, kind: str, message: str) -> Row:
    return error_row(pair.label, kind, message)


def _too_large(pair: _Page) -> Row:
    return _row(pair, "too-large", str(ImageError.out_of_memory(pair.label)))


def _unforeseen(pair: _Page, error: Exception) -> Row:
    _log.error("%s: unforeseen error", pair.label, exc_info=error)
    return _row(pair, "internal", f"{pair.label}: {type(error).__name__}: {error}")
