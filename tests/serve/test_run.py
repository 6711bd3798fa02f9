"""The service as a process: signals, exit codes, and what it leaves on the disk."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import declip
from declip import serve
from declip.localize.localizer import Localizer
from tests.serve.serving import FakeEngine, files, picture, until, value

ROOT = Path(__file__).resolve().parents[2]

# A service whose network waits for a line on stdin, or takes a while. What is opened for writing is told on stderr.
CODE = """
import os, sys, threading, time

def told(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        print("writes", arguments[0], file=sys.stderr, flush=True)
    if event in ("tempfile.mkstemp", "tempfile.mkdtemp", "os.mkdir"):
        print("writes", arguments, file=sys.stderr, flush=True)

from declip import serve
from declip.localize.localizer import Localizer
from tests.serve.serving import FakeEngine

class Slow(FakeEngine):
    def logits(self, inputs):
        time.sleep({seconds})
        if self.entered.is_set() and {gated}:
            go.wait()
        return super().logits(inputs)

def wait():
    sys.stdin.readline()
    go.set()

go = threading.Event()
threading.Thread(target=wait, daemon=True).start()
app = serve.create_app(Localizer(Slow()), serve.Limits({limits}))
sys.addaudithook(told)
serve.serve(app, port=0, {serving}started=lambda url: print(url, flush=True))
print("done", flush=True)
"""


@contextlib.contextmanager
def process(
    seconds: float = 0.0, limits: str = "", gated: bool = False, serving: str = ""
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "",  # compiling every module anew takes a while
    }
    command = [sys.executable, "-c", CODE.format(seconds=seconds, limits=limits, gated=gated, serving=serving)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as running:
        try:
            assert running.stdout is not None
            url = running.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), running.stderr.read() if running.stderr else ""
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                until(lambda: ready(client), 60)
                yield running, client
        finally:
            running.kill()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow)],
)
def test_a_signal_ends_it_with_0_after_what_was_accepted(number: signal.Signals) -> None:
    """With 2 megabytes in each request nothing is written to the disk. Requests are logged on stderr with the address
    that the proxy tells, by which they are counted, too."""
    large = picture(size=(800, 900))
    assert len(large) > 2_000_000
    told = {"X-Forwarded-For": "192.0.2.9", "Authorization": "Bearer secret"}
    limits, serving = "batch_size=1, client_requests=6", "access_log=True, proxies=['127.0.0.0/8'], "
    with process(limits=limits, serving=serving, gated=True) as (running, client), ThreadPoolExecutor(6) as pool:

        def send() -> httpx.Response:
            return client.post("/v1/localize?name=private", files=files(("private.png", large)), headers=told)

        jobs = [pool.submit(send) for _ in range(6)]
        until(lambda: value(client, "declip_requests_in_flight") == 6)
        until(lambda: value(client, "declip_queue_pictures") == 5)
        assert send().status_code == 429
        assert client.post("/v1/localize", files={"photo": b"x"}).status_code == 422
        running.send_signal(number)
        until(lambda: not ready(client))  # nothing new is taken
        assert running.poll() is None and not any(job.done() for job in jobs)
        out, err = running.communicate("go\n", timeout=60)
        assert [job.result().status_code for job in jobs] == [200] * 6
    assert (running.returncode, out) == (0, "done\n"), err
    assert "writes" not in err and "private" not in err and "secret" not in err
    rows = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    found = [(row["client"], row["method"], row["status"]) for row in rows if row["path"] == "/v1/localize"]
    accepted = [("192.0.2.9", "POST", 200)] * 6
    assert found == [("192.0.2.9", "POST", 429), ("127.0.0.1", "POST", 422), *accepted]


@pytest.mark.slow
def test_what_is_not_done_when_the_time_is_over_is_answered_503() -> None:
    limits = "drain_seconds=0.5, batch_size=1"
    with process(seconds=1.0, limits=limits) as (running, client), ThreadPoolExecutor(2) as pool:
        job = pool.submit(client.post, "/v1/localize", files=files(*map(picture, range(8))))
        until(lambda: value(client, "declip_queue_pictures") >= 6)
        running.send_signal(signal.SIGTERM)
        response = job.result()
        assert response.status_code == 503
        assert "stops" in response.json()["detail"] and response.headers["retry-after"] == "5"
        assert running.wait(15) == 0


@pytest.mark.slow
def test_a_client_that_never_reads_does_not_hold_it_up() -> None:
    with process(limits="drain_seconds=0.5") as (running, client):
        address = (client.base_url.host, client.base_url.port or 80)
        request = client.build_request(
            "POST",
            "/v1/localize",
            files=files(picture(size=(1500, 2000), kind="JPEG")),
            data={"maps": "scores,photo"},
        )
        lines = [
            f"{request.method} /v1/localize HTTP/1.1",
            *(f"{key}: {text}" for key, text in request.headers.items()),
        ]
        with socket.create_connection(address) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall("\r\n".join([*lines, "", ""]).encode() + request.read())
            until(lambda: value(client, 'declip_pictures_total{outcome="localized"}') == 1)
            until(lambda: value(client, "declip_held_bytes") > 1_000_000)
            running.send_signal(signal.SIGTERM)
            assert running.wait(30) == 0


def test_a_proxy_that_is_no_address() -> None:
    app = serve.create_app(Localizer(FakeEngine()))
    for proxy in ("nginx", "10.0.0.0/40", ""):
        with pytest.raises(declip.SpecError, match="expected an address as"):
            serve.serve(app, port=0, proxies=[proxy])


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    app = serve.create_app(Localizer(FakeEngine()))
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        serve.serve(app, port=other.getsockname()[1])


def test_a_model_that_cannot_run_here_is_an_error_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.error = declip.MissingExtraError("jpeglib", "data")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(declip.DeclipError, match="could not start"):
        serve.serve(serve.create_app(Localizer(engine)), port=0)
    assert "declip[data]" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_the_command_serves_what_localize_writes(tmp_path: Path) -> None:
    """`declip serve` and `declip localize`, both as processes with the embedded model."""
    photo = min((ROOT / "examples" / "photos").iterdir())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    command = [sys.executable, "-m", "declip"]
    arguments = [*command, "localize", str(photo), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    expected = json.loads(done.stdout)
    with subprocess.Popen(
        [*command, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        try:
            assert run.stderr is not None
            url = run.stderr.readline().split()[-1]
            with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
                until(lambda: ready(client), 120)
                sent = {"file": photo.read_bytes()}
                (row,) = client.post("/v1/localize", files=sent, data={"maps": "scores"}).json()["results"]
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) == 0
        finally:
            run.kill()
    assert abs(row.pop("score") - expected.pop("score")) <= 1e-6
    written = (tmp_path / "out" / f"{photo.name}.scores.png").read_bytes()
    assert base64.b64decode(row.pop("maps")["scores"]) == written
    for unlike in ("image", "seconds"):
        del row[unlike], expected[unlike]
    assert row == expected
