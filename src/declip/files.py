"""Files and their names: written whole or not at all, found in folders by one rule, given as addresses, read as text.

Names need not be text: Python keeps bytes that are no UTF-8 as lone surrogates, which `encode` writes as "\\udce9".
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from declip.errors import DeclipError, WeightsError
from declip.process import threads

__all__ = [
    "Skipped",
    "Walk",
    "decode",
    "encode",
    "is_address",
    "is_hidden",
    "local_path",
    "make_folder",
    "printable",
    "read_text",
    "sha256_of",
    "temporary",
    "visible",
    "walk",
    "write_atomic",
    "write_together",
]

Content: TypeAlias = bytes | str | Callable[[Path], object]
# What macOS, Synology's and Windows' systems put beside people's own files: companions, thumbnails, what was deleted.
_OF_SYSTEMS = ("__macosx", "@eadir", "#recycle", "$recycle.bin")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_FILE_URI = re.compile(r"file:(?://(?P<host>[^/]*)|(?!//))(?P<path>/.*)", re.DOTALL | re.IGNORECASE)


def write_atomic(path: str | Path, content: Content, *, new: bool = False, sync: bool = True) -> None:
    """Write a file, its folder too if need be: it appears whole or not at all, in the place of what had this name.

    content: bytes, a text (written by `encode`), or what writes the file when it is called with a path.
    new: raise FileExistsError if there is a file of this name, also where two write at once.
    sync: wait until the disk has the bytes; else a power cut (but no killed process) may leave the name without them.

    Raises OSError, and what content raises; then nothing is changed.
    """
    write_together({Path(path): content}, new=new, sync=sync)


def write_together(contents: Mapping[Path, Content], *, new: bool = False, sync: bool = True) -> None:
    """Write several files as `write_atomic`, side by side in threads; none has its name before all are written."""
    with contextlib.ExitStack() as stack:
        partials = []
        for path in contents:
            make_folder(path.parent)
            partials.append(stack.enter_context(temporary(path.parent)))
        if len(partials) == 1:
            _fill(partials[0], next(iter(contents.values())), sync)
        else:
            jobs = [threads().submit(_fill, *each, sync) for each in zip(partials, contents.values(), strict=True)]
            wait(jobs)
            for job in jobs:
                job.result()
        if folder := next(filter(Path.is_dir, contents), None):
            raise IsADirectoryError(errno.EISDIR, "a folder has this name; expected the name of a file", str(folder))
        if new and (there := next(filter(os.path.lexists, contents), None)):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(there))
        for partial, path in zip(partials, contents, strict=True):
            if not (new and _linked(partial, path)):
                partial.replace(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises OSError: where a file has such a name, NotADirectoryError. Raises DeclipError for an address such as s3://….
    """
    address = next(iter(folder.parts), "")
    if _SCHEME.fullmatch(address) and not folder.is_dir():
        raise DeclipError(
            f"got {folder}: {address}//… is an address, and only `declip batch` writes there; give a folder of this "
            "machine"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder has to be", error.filename) from error


@contextlib.contextmanager
def temporary(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a name in folder for a file that gets its own later; what is left of it is removed.

    The name is hidden, so that no walk takes it for a picture, and says what it is if a killed process leaves it:
    ".declip-" + 16 hex digits + ".part" + suffix, however long the final name is.
    """
    path = folder / f".declip-{secrets.token_hex(8)}.part{suffix}"
    try:
        with path.open("xb"):
            pass
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _fill(partial: Path, content: Content, sync: bool) -> None:
    mode = stat.S_IMODE(partial.stat().st_mode)  # as the umask has it; some writers make it anew, for its owner only
    match content:
        case bytes():
            partial.write_bytes(content)
        case str():
            partial.write_bytes(encode(content))
        case _:
            content(partial)
    if stat.S_IMODE(partial.stat().st_mode) != mode:
        partial.chmod(mode)
    if sync:
        with partial.open("r+b") as file:
            os.fsync(file.fileno())


def _linked(partial: Path, path: Path) -> bool:
    """Give a file its name, unless another one has it (FileExistsError); return False where the disk knows no links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def encode(text: str) -> bytes:
    """Return the text as UTF-8.

    A lone surrogate, which a name that is no text has, becomes its escape "\\udce9": in JSON the same character.
    """
    return text.encode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Return the text with its lone surrogates escaped, as `encode` writes them."""
    return encode(text).decode("utf-8")


def visible(text: str) -> str:
    """Return the text with each unprintable character as its code: control characters, marks that turn the writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def decode(data: bytes, *, names: bool = False) -> str:
    """Read a text that people or their tools wrote: UTF-8, or UTF-16 if it begins with a byte order mark.

    names: it lists names of files, which need not be text: bytes that are no UTF-8 become lone surrogates.
    Raises UnicodeDecodeError.
    """
    encoding = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, "surrogateescape" if names and encoding != "utf-16" else "strict")


def read_text(path: str | Path) -> str:
    """Return the text of a file, as `decode`, its line breaks as "\\n". Raises OSError, UnicodeDecodeError."""
    return decode(Path(path).read_bytes()).replace("\r\n", "\n")


def sha256_of(path: str | Path) -> str:
    """Return the file's sha256 as 64 lower-case hex digits. Raises WeightsError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


def is_address(text: str) -> bool:
    """Return whether this is a URI ("s3://…", "file:/…") and no path; "C:\\photos" and "C://photos" are paths."""
    scheme, sign, _ = text.partition("://")
    return bool(sign and len(scheme) > 1) or _FILE_URI.fullmatch(text) is not None


def local_path(text: str) -> str:
    """Return the path that a file: URI means ("file:///my%20photos" → "/my photos"); any other text as it is.

    Raises DeclipError for a URI of another machine than this one.
    """
    match = _FILE_URI.fullmatch(text)
    if match is None:
        if text.lower().startswith("file://"):
            raise DeclipError(f"got {text}; expected file:///FOLDER/NAME, or a plain path")
        return text
    host, path = match["host"] or "", match["path"]
    if sys.platform == "win32":
        from urllib.request import url2pathname  # takes long to import

        return url2pathname(path if host.lower() in ("", "localhost") else f"//{host}{path}")
    if host.lower() not in ("", "localhost"):
        raise DeclipError(f"got {text}, a file of the machine {host!r}; expected file:///…, or a plain path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(path)))


class Skipped(NamedTuple):
    """What a walk passed over, counted; folders: that cannot be read; links: to folders read under another name."""

    others: int = 0
    hidden: int = 0
    outputs: int = 0
    folders: int = 0
    links: int = 0

    def plus(self, other: Skipped) -> Skipped:
        """Add both."""
        return Skipped(*(a + b for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        told = (
            ("other file", "other files"),
            ("hidden name", "hidden names"),
            ("map of declip's", "maps of declip's"),
            ("unreadable folder", "unreadable folders"),
            ("link to a folder read already", "links to folders read already"),
        )
        words = [f"{n} {one if n == 1 else more}" for n, (one, more) in zip(self, told, strict=True)]
        return ", ".join([words[0], *(text for n, text in zip(self[1:], words[1:], strict=True) if n)])


class Walk(NamedTuple):
    """What lies below a folder: files, relative to it and sorted; what was passed over; why folders were not read."""

    files: list[Path]
    skipped: Skipped
    unreadable: list[OSError]


def is_hidden(name: str) -> bool:
    """Return whether walks pass over a name: ".name", and what systems put beside people's files (see _OF_SYSTEMS)."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def walk(root: str | Path) -> Walk:
    """Find the files below a folder, by the rule that holds wherever declip reads folders.

    Hidden names are passed over and counted, with all below them; so are pipes and devices. Links to files are files,
    also those that lead nowhere, which is told when they are read. Links to folders are followed; each folder is read
    once, under the name that no link is part of if there is one: so loops end. root is read whatever its name.
    """
    root = Path(root)
    files: list[Path] = []
    counts = dict.fromkeys(Skipped._fields, 0)
    unreadable: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    linked = [Path()]
    while linked:
        # What no link leads to comes first: depth by depth of links.
        folders, linked = sorted(linked, key=lambda path: path.parts, reverse=True), []
        while folders:
            folder = folders.pop()
            try:
                found = (root / folder).stat()
                place = found.st_dev, found.st_ino
                if place in seen:
                    counts["links"] += 1
                    continue
                seen.add(place)
                with os.scandir(root / folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                counts["folders"] += 1
                unreadable.append(error)
                continue
            for entry in entries:
                path = folder / entry.name
                if is_hidden(entry.name):
                    counts["hidden"] += 1
                    continue
                match _kind(entry):
                    case "folder":
                        (linked if entry.is_symlink() else folders).append(path)
                    case "file":
                        files.append(path)
                    case _:
                        counts["others"] += 1
    return Walk(files=sorted(files, key=lambda path: path.parts), skipped=Skipped(**counts), unreadable=unreadable)


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file" or "other"; what cannot be looked at is a file, and is told when it is read."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not Path(entry).exists() else "other"
    except OSError:
        return "file"
