"""Weights: names and paths, downloads from a server on this machine, hashes, the cache."""

from __future__ import annotations

import hashlib
import http.server
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from declip.errors import WeightsError
from declip.models import catalog, resolve
from declip.models.catalog import ModelCard
from declip.models.download import download

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at /m.pth, and misbehaves as told."""

    content = CONTENT
    validators: dict[str, str]
    cuts: list[int]  # the next replies break off after so many bytes
    statuses: list[int]  # the next replies are these errors
    ranges = True
    conditional = True
    html = False
    length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.validators = {"ETag": '"v1"'}
        self.cuts = []
        self.statuses = []
        self.seen: list[tuple[str | None, str | None]] = []  # Range and If-Range of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/m.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        server.seen.append((wanted, condition))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if self.path != "/m.pth":
            self.send_error(404)
            return
        total = len(server.content)
        same = not server.conditional or condition in server.validators.values()
        start = 0
        if wanted and server.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        for name, value in server.validators.items():
            self.send_header(name, value)
        if server.length:
            self.send_header("Content-Length", str(total - start))
        self.send_header("Content-Type", "text/html" if server.html else "application/octet-stream")
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else total
        self.wfile.write(server.content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DECLIP_OFFLINE", raising=False)
    return tmp_path / "cache"


def card(*urls: str, sha256: str | None = None) -> ModelCard:
    return ModelCard(name="m", summary="", spec=None, file="m.pth", urls=urls, sha256=sha256, license="", trained_on="")


def fetch(model: ModelCard, folder: Path, attempts: int = 3) -> Path:
    return download(model, folder, attempts=attempts, timeout=5, pause=0.001)


def interrupt(server: Server, folder: Path) -> None:
    """Leave the first 100,000 bytes, as a process does whose connection breaks off."""
    server.cuts = [100_000]
    with pytest.raises(WeightsError, match="the connection ended after 100000 of 300000 bytes"):
        fetch(card(server.url), folder, attempts=1)
    assert (folder / "m.pth.part").read_bytes() == CONTENT[:100_000]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


# --- downloads ------------------------------------------------------------------------------------------------------


def test_a_download_is_whole_verified_and_leaves_no_partial_file(server: Server, tmp_path: Path) -> None:
    path = fetch(card(server.url, sha256=SHA256), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert files(path.parent) == {"m.pth"}
    assert server.seen == [(None, None)]


def test_an_unpublished_hash_is_pinned_in_the_format_of_sha256sum(server: Server, tmp_path: Path) -> None:
    fetch(card(server.url), tmp_path)
    assert (tmp_path / "m.pth.sha256").read_text() == f"{SHA256}  m.pth\n"


def test_another_process_goes_on_where_a_download_stopped(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    assert fetch(card(server.url), tmp_path, attempts=1).read_bytes() == CONTENT
    assert server.seen == [(None, None), ("bytes=100000-", '"v1"')]


def test_tries_that_bring_something_are_not_counted(server: Server, tmp_path: Path) -> None:
    server.cuts = [50_000] * 5
    assert fetch(card(server.url), tmp_path, attempts=2).read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.seen][-1] == "bytes=250000-"


DATE = "Wed, 01 Jan 2025 00:00:00 GMT"


@pytest.mark.parametrize(
    ("validators", "ranges", "again"),
    [
        ({"ETag": 'W/"weak"', "Last-Modified": DATE}, True, ("bytes=100000-", DATE)),
        ({}, True, (None, None)),  # what goes on may be of another file: from the start
        ({"ETag": '"v1"'}, False, ("bytes=100000-", '"v1"')),  # a server that sends all again
    ],
    ids=["last-modified", "none", "no ranges"],
)
def test_a_cut_download_becomes_whole(
    validators: dict[str, str], ranges: bool, again: tuple[str | None, ...], server: Server, tmp_path: Path
) -> None:
    server.validators, server.ranges, server.cuts = validators, ranges, [100_000]
    assert fetch(card(server.url), tmp_path).read_bytes() == CONTENT
    assert server.seen == [(None, None), again]


@pytest.mark.parametrize("conditional", [True, False])
def test_a_file_that_changed_in_between_is_never_mixed(server: Server, tmp_path: Path, conditional: bool) -> None:
    interrupt(server, tmp_path)
    server.content = CONTENT[::-1]
    server.validators = {"ETag": '"v2"'}
    server.conditional = conditional  # False: a server that does not know If-Range
    assert fetch(card(server.url), tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(("more", "asked"), [(b"", 2), (b"more", 3)], ids=["whole", "longer"])
def test_a_partial_file_that_is_too_long_is_not_continued(
    more: bytes, asked: int, server: Server, tmp_path: Path
) -> None:
    """A process that died before it could rename leaves a whole one, for which the server answers 416."""
    interrupt(server, tmp_path)
    (tmp_path / "m.pth.part").write_bytes(CONTENT + more)
    assert fetch(card(server.url), tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == asked


def test_a_partial_file_of_another_url_is_not_continued(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    other = server.url.replace("127.0.0.1", "localhost")
    assert fetch(card(other), tmp_path).read_bytes() == CONTENT
    assert server.seen[-1] == (None, None)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert fetch(card(server.url), tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_a_missing_file_says_which_file_to_put_where(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("m.pth", "gone.pth")
    with pytest.raises(WeightsError) as caught:
        fetch(card(url), tmp_path)
    assert str(caught.value) == (
        f"cannot fetch m: HTTP 404 Not Found ({url}). Get {url} by other means and put it at {tmp_path / 'm.pth'}"
    )
    assert len(server.seen) == 1  # no use asking again
    assert not files(tmp_path)


def test_the_next_url_is_tried(server: Server, tmp_path: Path) -> None:
    gone = server.url.replace("m.pth", "gone.pth")
    assert fetch(card(gone, server.url), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "message"), [({"html": True}, "sent a web page"), ({"length": False}, "does not say where the file ends")]
)
def test_a_reply_that_cannot_be_the_file_is_refused(
    fault: dict[str, bool], message: str, server: Server, tmp_path: Path
) -> None:
    vars(server).update(fault)
    with pytest.raises(WeightsError, match=message):
        fetch(card(server.url), tmp_path)
    assert not files(tmp_path)


def test_no_server_at_all(tmp_path: Path, server: Server) -> None:
    with pytest.raises(WeightsError, match=r"Connection refused.*put it at .*m\.pth"):
        fetch(card("http://127.0.0.1:9/m.pth"), tmp_path, attempts=2)


def test_a_silent_server_runs_into_the_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/m.pth"
        with pytest.raises(WeightsError, match="timed out"):
            download(card(url), tmp_path, attempts=1, timeout=0.1, pause=0)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"cannot write .*file"):
        fetch(card(server.url), tmp_path / "file")


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch(card(server.url), tmp_path).read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 3
    assert len(server.seen) == 1


# --- hashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", ["0" * 64, None])
def test_a_download_of_another_hash_is_refused_and_dropped(
    published: str | None, server: Server, tmp_path: Path
) -> None:
    if published is None:
        fetch(card(server.url), tmp_path).unlink()
        server.content = CONTENT[::-1]
    found = hashlib.sha256(server.content).hexdigest()
    origin = "published" if published else "pinned in .*"
    message = rf"has sha256 {found}; expected {published or SHA256} \({origin}\): .*the file at the source has changed"
    with pytest.raises(WeightsError, match=message):
        fetch(card(server.url, sha256=published), tmp_path)
    assert files(tmp_path) <= {"m.pth.sha256", "m.pth.part.json"}


def test_a_cached_file_is_verified_every_time(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MODELS", (card(server.url),))
    path = resolve.resolve("m")
    assert path == cache / "m.pth"
    assert resolve.resolve("m") == path
    assert len(server.seen) == 1
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(WeightsError, match=f"expected {SHA256} .pinned in .*move it away"):
        resolve.resolve("m")
    (cache / "m.pth.sha256").write_text("nonsense")
    with pytest.raises(WeightsError, match="holds no sha256"):
        resolve.resolve("m")


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert resolve.sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(WeightsError, match=r"cannot read .*No such file"):
        resolve.sha256_of(tmp_path / "none")


# --- names and paths ------------------------------------------------------------------------------------------------


def test_a_file_put_there_by_hand_is_pinned(cache: Path) -> None:
    cache.mkdir()
    (cache / "vit-l14-conv20-lama.pth").write_bytes(CONTENT)
    assert resolve.resolve("vit-l14-conv20-lama", offline=True) == cache / "vit-l14-conv20-lama.pth"
    assert SHA256 in (cache / "vit-l14-conv20-lama.pth.sha256").read_text()


def test_the_converted_file_is_preferred(cache: Path) -> None:
    cache.mkdir()
    (cache / "vit-l14-conv20-lama.pth").write_bytes(CONTENT)
    converted = cache / "vit-l14-conv20-lama.safetensors"
    converted.write_bytes(b"converted")
    assert resolve.resolve("vit-l14-conv20-lama") == converted
    assert resolve.cached(catalog.find("vit-l14-conv20-lama")) == converted
    (cache / "vit-l14-conv20-lama.safetensors.sha256").write_text(SHA256)
    with pytest.raises(WeightsError, match=f"expected {SHA256}"):
        resolve.resolve("vit-l14-conv20-lama")


@pytest.mark.parametrize(("argument", "variable"), [(True, None), (False, "1")])
def test_offline_fetches_nothing_and_says_what_to_put_where(
    cache: Path, monkeypatch: pytest.MonkeyPatch, argument: bool, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv("DECLIP_OFFLINE", variable)
    with pytest.raises(WeightsError) as caught:
        resolve.resolve("fusion-conv20-ldm", offline=argument)
    url = catalog.find("fusion-conv20-ldm").urls[0]
    assert f"Get {url} by other means and put it at {cache / 'fusion-conv20-ldm.pth'}" in str(caught.value)
    assert not cache.exists()


def test_offline_0_is_online(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECLIP_OFFLINE", "0")
    monkeypatch.setattr(catalog, "MODELS", (card(server.url),))
    assert resolve.resolve("m").read_bytes() == CONTENT


@pytest.mark.parametrize("name", [card.name for card in catalog.MODELS if card.by_hand])
def test_what_is_got_by_hand_says_from_where_and_is_then_found(name: str, cache: Path) -> None:
    card = catalog.find(name)
    with pytest.raises(WeightsError) as caught:
        resolve.resolve(name)
    message = str(caught.value)
    assert f"declip does not download {name}: get its weights from {card.by_hand} (terms: {card.license})" in message
    assert message.endswith(f"`declip convert OFFICIAL --out {cache / card.file}`")
    assert resolve.cached(card) is None and not cache.exists()
    cache.mkdir()
    (cache / card.file).write_bytes(b"converted")
    assert resolve.resolve(name, offline=True) == resolve.cached(card) == cache / card.file
    (cache / card.file).write_bytes(b"converted anew")  # nothing is pinned: the file is one's own
    assert resolve.resolve(name) == cache / card.file


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.onnx"
    file.write_bytes(b"x")
    assert resolve.resolve(file) == resolve.resolve(str(file)) == file
    with pytest.raises(WeightsError, match=r"there is no weight file .*gone\.onnx"):
        resolve.resolve("gone.onnx")
    with pytest.raises(WeightsError, match="there is no weight file"):
        resolve.resolve(Path("mini"))  # a Path is never a name
    with pytest.raises(WeightsError, match="is a folder"):
        resolve.resolve(str(tmp_path))
    with pytest.raises(WeightsError, match="did you mean mini"):
        resolve.resolve("minni")
    monkeypatch.chdir(tmp_path)
    Path("lama").write_bytes(b"x")
    assert resolve.resolve("lama") == Path("lama")
    Path("vit-l14-conv20-lama").write_bytes(b"x")
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="offline"):  # the catalogue's name wins
        resolve.resolve("vit-l14-conv20-lama", offline=True)


def test_the_cache_is_where_the_platform_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DECLIP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.platform", "linux")
    assert resolve.cache_dir() == tmp_path / "xdg" / "declip"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert resolve.cache_dir() == tmp_path / "home" / ".cache" / "declip"
    monkeypatch.setattr("sys.platform", "darwin")
    assert resolve.cache_dir() == tmp_path / "home" / "Library" / "Caches" / "declip"
    monkeypatch.setattr("sys.platform", "win32")
    assert resolve.cache_dir() == tmp_path / "local" / "declip" / "cache"


def test_the_embedded_model_is_no_download(cache: Path) -> None:
    if resolve.cached(catalog.find("mini")) is None:
        with pytest.raises(WeightsError, match="the embedded model is missing"):
            resolve.resolve("mini")
    else:
        assert resolve.resolve("mini") == resolve.embedded_path()
        assert resolve.embedded_path().stat().st_size <= 12_000_000
    assert not cache.exists()
