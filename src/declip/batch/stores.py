"""Files by path or URI, through fsspec: reading one, writing one so that it is seen whole or not at all.

A path without "://" is of this machine, and so is a file: URI, in which %20 is a space. Any protocol that fsspec knows
can be read from; written is to folders of this machine (a hidden file that gets its name by renaming) and to object
stores, where a single PUT is atomic.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from declip.errors import DeclipError, ImageError
from declip.files import is_address, local_path, write_atomic

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["absolute", "check_writable", "exists", "fetch", "join", "locate", "names", "protocol", "write"]

# What else fsspec knows (sftp, http …) writes in place, and a reader could see half a file.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")


def protocol(uri: str) -> str:
    """ "s3" of "s3://…"; "file" of a path, "C://…" included, and of a file: URI."""
    if not is_address(uri) or local_path(uri) != uri:
        return "file"
    return uri.partition("://")[0]


def absolute(uri: str) -> str:
    """Return a path of this machine, or a file: URI, as an absolute path; any other URI as it is."""
    return str(Path(local_path(uri)).absolute()) if protocol(uri) == "file" else uri


def join(folder: str, name: str) -> str:
    """folder/name, of paths and URIs."""
    return f"{folder.rstrip('/')}/{name}"


def locate(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return (the file system, the path in it). Raises DeclipError for a protocol that is not installed."""
    import fsspec

    kind = protocol(uri)
    try:
        if kind == "file":  # not by its URL, in which fsspec gives "::" a meaning
            return fsspec.filesystem("file"), absolute(uri)
        system, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:  # fsspec names the package
        raise DeclipError(f"{kind}:// cannot be opened here: {error}") from error
    except ValueError as error:
        raise DeclipError(f"got {uri}; expected a path, or a URI of a protocol that fsspec knows, as s3://") from error
    return system, path


def fetch(uri: str, max_bytes: int) -> bytes:
    """Return the bytes of a file.

    Raises ImageError of kind "missing", "input" (a folder, a pipe) or "too-large"; whatever the store raises where a
    file is there and cannot be read.
    """
    system, path = locate(uri)
    try:
        info = system.info(path)
        if info["type"] != "file":
            raise ImageError(uri, "input", f"is of the type {info['type']!r}; expected a picture file")
        if (info["size"] or 0) > max_bytes:
            raise ImageError(
                uri,
                "too-large",
                f"the file has {info['size']} bytes; at most {max_bytes} are read "
                "(--max-megabytes or max_bytes raises the limit)",
            )
        data: bytes = system.cat_file(path)
    except FileNotFoundError as error:
        raise ImageError(uri, "missing", "there is no such file") from error
    return data


def exists(uri: str) -> bool:
    """Whether there is a file."""
    system, path = locate(uri)
    return bool(system.isfile(path))


def names(folder: str) -> list[str]:
    """Return the names of what lies directly in a folder; read anew each time, since other machines write."""
    system, path = locate(folder)
    system.invalidate_cache()
    try:
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in system.ls(path, detail=False)]
    except FileNotFoundError:
        return []


def check_writable(folder: str) -> None:
    """Raise DeclipError for what `write` does not write to."""
    if protocol(folder) not in ("file", *_OBJECT_STORES):
        raise DeclipError(
            f"got {folder}; expected a folder of this machine, or one of s3://, gs://, abfs://, memory://"
        )
    locate(folder)


def write(uri: str, data: bytes, *, new: bool = False) -> None:
    """Write a file: it appears whole or not at all, in the place of what had this name.

    new: raise FileExistsError if there is one, also where two write at once.
    """
    if protocol(uri) == "file":
        write_atomic(absolute(uri), data, new=new)
        return
    system, path = locate(uri)
    try:
        system.pipe_file(path, data, mode="create" if new else "overwrite")
    except OSError as error:  # each store says it in its own way
        if new and exists(uri):
            raise FileExistsError(f"{uri} exists") from error
        raise
