"""Download weight files and verify them.

Beside NAME.pth lies its hash, in NAME.pth.sha256 (`sha256sum -c` reads it): the published hash, or that of the first
download. A later difference is an error, never a silent replacement.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from declip.errors import WeightsError
from declip.files import read_text, sha256_of, write_atomic
from declip.models.catalog import ModelCard

__all__ = ["download", "fetch_by_hand", "verify"]

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20


def download(card: ModelCard, folder: Path, *, attempts: int = 4, timeout: float = 30.0, pause: float = 0.5) -> Path:
    """Fetch a model into folder, verify it, and only then give it its name; processes that want it wait for each other.

    An interrupted download is kept as NAME.part, and the next call goes on if the server still has the same file. Each
    of card.urls is given up after `attempts` tries in a row that brought nothing, with pauses of 1, 2, 4, … × pause
    seconds in between. timeout (s) is for each wait on the network.
    Raises WeightsError that says what failed and which file to put where.
    """
    target, part = folder / card.file, folder / f"{card.file}.part"
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{card.file}.lock"):
            if target.is_file():  # another process fetched it while this one waited
                verify(target, card)
                return target
            for url in card.urls:
                _log.info("fetching %s to %s", url, target)
                try:
                    _fetch_patiently(url, part, attempts=attempts, timeout=timeout, pause=pause)
                except _TransferError as error:
                    failures.append(f"{error} ({url})")
                    continue
                verify(part, card, target=target)
                part.replace(target)
                _version_file(part).unlink(missing_ok=True)
                return target
    except OSError as error:
        raise WeightsError(f"cannot write {error.filename or target}: {error.strerror}") from error
    raise WeightsError(f"cannot fetch {card.name}: {'; '.join(failures)}. {fetch_by_hand(card, folder)}")


def fetch_by_hand(card: ModelCard, folder: Path) -> str:
    """Return a sentence that says which file to put where instead of a download."""
    return f"Get {card.urls[0]} by other means and put it at {folder / card.file}"


def verify(path: Path, card: ModelCard, *, target: Path | None = None) -> None:
    """Compare a file with the published or pinned hash. Pin its hash where there is neither.

    target: the name that a download is to get; a download that does not match is removed, since it would be resumed.
    Raises WeightsError for another hash.
    """
    final = target or path
    pin = final.with_name(f"{final.name}.sha256")
    published = card.sha256 if final.name == card.file else None
    expected = published or _pinned(pin)
    if expected is None and final.name != card.file:
        return  # converted here from a verified file, and no hash was kept
    actual = sha256_of(path)
    if expected is None:
        try:
            write_atomic(pin, f"{actual}  {final.name}\n")
        except OSError as error:  # a shared cache may be read-only: usable, just not pinned
            _log.warning("cannot pin the hash of %s: %s", final, error.strerror)
    elif actual != expected:
        advice = "it is damaged or was replaced: move it away to fetch it anew"
        if target is not None:
            path.unlink()
            advice = "the download was dropped; try again, and if it stays so, the file at the source has changed"
        origin = "published" if published else f"pinned in {pin}"
        raise WeightsError(f"{final} has sha256 {actual}; expected {expected} ({origin}): {advice}")


def _pinned(pin: Path) -> str | None:
    """Return the hash in a .sha256 file, or None if there is no such file."""
    try:
        text = read_text(pin)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read the pinned hash {pin}: {error}") from error
    match = re.match(r"[0-9a-fA-F]{64}\b", text)
    if match is None:
        raise WeightsError(f"{pin} holds no sha256: write the 64 hex digits there, or remove it to pin anew")
    return match[0].lower()


class _TransferError(Exception):
    """A download that failed; `again` says whether another try may help."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


def _fetch_patiently(url: str, part: Path, *, attempts: int, timeout: float, pause: float) -> None:
    """Fetch until `attempts` tries in a row have failed without bringing a byte."""
    failed = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, timeout)
            return
        except _TransferError as error:
            failed = 1 if _size(part) > before else failed + 1
            if not error.again or failed >= attempts:
                raise
            _log.warning("%s: %s; trying again", url, error)
            time.sleep(pause * 2 ** (failed - 1))


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Bring part to the whole content of url, from where it stopped if that is safe."""
    have, version = _resumable(url, part)
    response = _request(url, part, have, version, timeout)
    if response is None:
        return
    with response:
        start, total, found = _read_headers(response)
        if start == 0:
            # In this order: a crash in between never leaves old bytes under a new version.
            _version_file(part).unlink(missing_ok=True)
            part.write_bytes(b"")
            _version_file(part).write_text(json.dumps({"url": url, "validator": found}), encoding="utf-8")
        elif start != have or found not in ("", version):
            part.unlink()
            raise _TransferError("the file changed on the server in between", again=True)
        _append(response, part, start, total)
    if total is not None and _size(part) != total:
        raise _TransferError(f"the connection ended after {_size(part)} of {total} bytes", again=True)


def _request(url: str, part: Path, have: int, version: str, timeout: float) -> HTTPResponse | None:
    """Ask for what follows the first `have` bytes of this version, or for all. Return None if nothing follows."""
    request = urllib.request.Request(url, headers={"User-Agent": "declip", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)  # of another version the server sends the whole file
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
        return response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                # Nothing follows what is here: it is whole, or it belongs to another file.
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return None
                part.unlink()
                raise _TransferError("the partial file did not fit the server's", again=True) from error
            again = error.code in (408, 429) or error.code >= 500
            raise _TransferError(f"HTTP {error.code} {error.reason}", again=again) from error
    except (OSError, HTTPException) as error:
        raise _network_error(error) from error


def _read_headers(response: HTTPResponse) -> tuple[int, int | None, str]:
    """Return where the reply's bytes belong, the size of the whole file, and what names this version, if anything.

    Raises _TransferError for an answer that cannot be the file.
    """
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise _TransferError("the server sent a web page (a login or a proxy?), not a weight file", again=False)
    etag = headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    length = headers.get("Content-Length")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None:
            raise _TransferError(f"unusable Content-Range {headers.get('Content-Range')!r}", again=False)
        return int(match[1]), None if match[2] == "*" else int(match[2]), version
    if length is None and headers.get("Transfer-Encoding") != "chunked":
        raise _TransferError("the server does not say where the file ends", again=False)
    return 0, None if length is None else int(length), version


def _append(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    """Append the body to part, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar, part.open("ab") as file:
        task = bar.add_task(part.name.removesuffix(".part"), total=total, completed=start)
        while True:
            try:
                block = response.read1(_CHUNK)
            except (OSError, HTTPException) as error:
                raise _network_error(error) from error
            if not block:
                return
            bar.advance(task, len(block))
            file.write(block)


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """Return how many bytes can be kept and their version: (0, "") where none can be trusted."""
    try:
        noted: dict[str, Any] = json.loads(_version_file(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (FileNotFoundError, ValueError):
        return 0, ""
    if size == 0 or noted.get("url") != url or not noted.get("validator"):
        return 0, ""
    return size, noted["validator"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _network_error(error: Exception) -> _TransferError:
    reason = getattr(error, "reason", None) or error
    return _TransferError(f"{reason}" or type(reason).__name__, again=True)


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Wait until no other process holds this lock file. It is released when its holder ends, in whatever way."""
    with lock.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.2)
        else:
            import fcntl

            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
