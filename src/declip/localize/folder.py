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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from declip.errors import DeclipError, ImageError
from declip.files import Skipped, local_path, make_folder, printable, walk, write_together
from declip.images.mapfiles import mask_png, scores_png
from declip.images.overlay import overlay_png
from declip.images.read import EXTENSIONS, count_pages
from declip.localize.localizer import Localizer
from declip.localize.pipeline import stream
from declip.results import Localization, Photo, check_several
from declip.spec import check_choice

__all__ = ["SUFFIXES", "Pair", "error_row", "failed_row", "find_pictures", "is_output", "localize_files"]

SUFFIXES = (".scores.png", ".mask.png", ".overlay.png")

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
    """A picture of a file, and the name of its outputs. repeated: another picture of this run has the same name.

    number: from 1; None = the only one that is examined, whose name is the file's.
    """

    path: Path
    name: Path
    number: int | None
    repeated: bool

    @property
    def label(self) -> str:
        """What rows and messages call it."""
        return str(self.path) if self.number is None else f"{self.path}#{self.number}"

    def outputs(self, out: Path) -> list[Path]:
        """Return the files that are written for it."""
        return [out / self.name.with_name(self.name.name + suffix) for suffix in SUFFIXES]

    def taken(self, there: str | Path) -> ImageError:
        """Return the error of a picture one of whose outputs is there already."""
        return ImageError(self.label, "exists", f"{there} exists; --force (force=True) overwrites it")


def find_pictures(paths: Iterable[str | Path]) -> tuple[list[Pair], Skipped]:
    """Return (the pictures that paths stand for, each once; what was passed over).

    A file is taken whatever its extension. A folder is read as `files.walk` does it, in sorted order; files without an
    image extension are passed over. declip's own outputs are never inputs, not even those given by name.

    A picture's name is its path below the one folder that was given; where several paths are given, below the deepest
    folder that holds all of them: those of a/x.jpg and b/x.jpg are a/x.jpg and b/x.jpg, given as files or as folders.

    Raises ImageError of kind "missing" for a path that does not exist, DeclipError where paths hold no picture at all
    or a URI is of another machine.
    """
    check_several(paths, "find_pictures([…])")
    given = [Path(local_path(str(path))) for path in paths]
    for path in given:
        if not os.path.exists(path):  # noqa: PTH110 (also false of a name that is too long)
            raise ImageError(str(path), "missing", "there is no such file or folder")
    common = _common(path if path.is_dir() else path.parent for path in given)
    pairs: dict[str, Pair] = {}
    skipped = Skipped()
    empty = []
    for path in given:
        if path.is_dir():
            found, others = _walk(path)
            if not found:
                empty.append((path, others))
        elif is_output(path.name):
            found, others = [], Skipped(outputs=1)
        else:
            found, others = [path], Skipped()
        for picture in found:
            place = _place(picture)
            pairs.setdefault(str(place), Pair(picture, _below(common, place)))
        skipped = skipped.plus(others)
    if given and not pairs:
        raise DeclipError(f"there is no picture in {', '.join(map(str, given))}: {skipped}; {_EXPECTED}")
    for path, others in empty:
        _log.warning("there is no picture in %s: %s", path, others)
    return list(pairs.values()), skipped


def localize_files(
    localizer: Localizer,
    pairs: Iterable[tuple[Path, Path]],
    out: Path,
    *,
    force: bool = False,
    batch_size: int = 8,
    pages: Pages = "first",
) -> Iterator[Row]:
    """Localize each (path, name), write its maps to out / name + suffix, and yield one row per picture, in order.

    Each photo is decoded once, see `pipeline.stream`. An output that exists is not computed again but reported as kind
    "exists", unless force. Files appear whole or not at all. "seconds" of a row includes decoding. pages: "first" or
    "all" of the pictures in a file that holds several; then each has its own row.
    Raises DeclipError if out cannot be made, or where no picture could be localized (a missing extra, say).
    """
    try:
        make_folder(out)
    except OSError as error:
        raise DeclipError(f"cannot make the output folder {out}: {error.strerror}") from error
    check_choice(pages, Pages, "pages")

    def read(page: _Page) -> Photo:
        if not force and (there := next(filter(os.path.lexists, page.outputs(out)), None)):
            raise page.taken(there)
        if page.repeated:
            message = f"another picture of this run writes {page.outputs(out)[0]} …"
            raise ImageError(page.label, "exists", message)
        return dataclasses.replace(localizer.read(page.path, page=page.number), name=page.label)

    items = _pages(pairs, pages, localizer.max_bytes)
    for page, photo, result in stream(localizer, items, read, batch_size, lambda page: page.label):
        if photo is None or not isinstance(result, Localization):
            yield failed_row(page.label, result)
        else:
            yield _keep(page, photo, result, out, new=not force)


def failed_row(name: str, error: object) -> Row:
    """Return the row of a picture without a result. What is no ImageError was not foreseen, and goes to the log."""
    if isinstance(error, ImageError):
        return error_row(name, error.kind, f"{name}: {error.message}")
    if isinstance(error, MemoryError):
        return failed_row(name, ImageError.out_of_memory(name))
    _log.error("%s: unforeseen error", printable(name), exc_info=error if isinstance(error, Exception) else None)
    return error_row(name, "internal", f"{name}: {type(error).__name__}: {error}")


def error_row(name: str, kind: str, message: str) -> Row:
    """Return what stands for a picture that failed; message names it."""
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


def _place(path: Path) -> Path:
    """Return where a path leads, by its words alone: links keep the names they were given."""
    return Path(os.path.normpath(path.absolute()))


def _common(roots: Iterable[Path]) -> str:
    """Return the deepest folder that holds all roots; "" where there is none, as on two drives of Windows."""
    try:
        return os.path.commonpath([_place(root) for root in roots])
    except ValueError:
        return ""


def _below(common: str, place: Path) -> Path:
    """Return the name of a picture: its path below common; where there is none, drive letters become folders."""
    return place.relative_to(common) if common else Path(place.drive.rstrip(":"), *place.parts[1:])


def is_output(name: str) -> bool:
    """Return whether `localize_files` writes such a name: "photo.jpg.mask.png", but not "my.mask.png"."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return Path(_PAGE.sub("", name.removesuffix(suffix))).suffix.lower() in EXTENSIONS
    return False


# --- maps out -------------------------------------------------------------------------------------------------------


def _pages(pairs: Iterable[tuple[Path, Path]], pages: Pages, max_bytes: int) -> Iterator[_Page]:
    """Yield the pictures of the files that are to be examined. What cannot be read stays, for its row to say why."""
    claimed: set[Path] = set()
    for path, name in pairs:
        count = 1
        if pages == "all":
            with contextlib.suppress(ImageError, MemoryError):
                count = count_pages(path, max_bytes=max_bytes)
        for number in range(1, count + 1):
            own = name if count == 1 else name.with_name(f"{name.name}#{number}")
            yield _Page(path, own, None if count == 1 else number, own in claimed)
            claimed.add(own)


def _keep(page: _Page, photo: Photo, result: Localization, out: Path, *, new: bool) -> Row:
    """Write the three maps, then give them their names; return the row that tells how it went."""
    # PNG compression takes most of the time of a large photo, and Pillow lets other threads run meanwhile.
    maps = (
        lambda path: path.write_bytes(scores_png(result.scores)),
        lambda path: path.write_bytes(mask_png(result.mask)),
        lambda path: path.write_bytes(overlay_png(photo, result)),
    )
    targets = page.outputs(out)
    try:
        # new: they may have been made meanwhile, by another run or for a name of other case.
        write_together(dict(zip(targets, maps, strict=True)), new=new)
        return result.to_dict()
    except FileExistsError as error:
        return failed_row(page.label, page.taken(error.filename))
    except OSError as error:
        return error_row(page.label, "write", f"cannot write {targets[0]} …: {error.strerror or error}")
    except Exception as error:
        return failed_row(page.label, error)
