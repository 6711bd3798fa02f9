"""The service on Ray Serve is that of `declip serve`: the same answers, nothing on the network, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from declip.batch import local_ray
from declip.errors import DeclipError, SpecError, WeightsError
from declip.localize.localizer import load
from declip.serve import Limits, ray_serve
from declip.serve.ray_serve import Arguments, Replica, Settings
from declip.serve.run import LOOPBACK
from tests.serve.serving import files, picture, running, until

ROOT = Path(__file__).resolve().parents[2]


# --- what it is made of ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"models": ()}, "there is no model"),
        ({"threads": 0}, "threads is 0"),
        ({"ongoing": 0.0}, "ongoing 0.0"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3 and max_replicas 2"),
        ({"min_replicas": 0}, "min_replicas is 0"),
        ({"token": ""}, "the token is empty"),
        ({"precision": "half"}, "precision is 'half'; expected one of 'exact', 'fast'"),
        ({"device": "gpu"}, "device is 'gpu'; expected one of 'cpu', 'cuda'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Settings(**fields)


def test_settings_travel() -> None:
    settings = Settings(models=("mini", "a.onnx"), limits=Limits(files=3), hosts=None, token="secret")
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_arguments_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DECLIP_TOKEN", raising=False)
    assert Arguments().settings() == Settings()
    monkeypatch.setenv("DECLIP_TOKEN", "secret")
    given = Arguments.model_validate(
        {"models": "mini,my.onnx", "hosts": "a.org", "max_replicas": "4", "batch_size": "2"}
    )
    assert given.settings() == Settings(
        models=("mini", "my.onnx"),
        hosts=frozenset({"a.org"}),
        max_replicas=4,
        limits=Limits(batch_size=2),
        token="secret",
    )
    assert Arguments(hosts="*").settings().hosts is None
    assert Settings().hosts == LOOPBACK
    with pytest.raises(ValueError, match="replicas"):
        Arguments.model_validate({"replicas": "4"})


# Of Ray Serve's own fields, when it is imported.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
def test_a_replica_is_the_app(tiny_model: tuple[Path, Path]) -> None:
    replica = Replica(Settings(models=(str(tiny_model[1]),), limits=Limits(files=3), token="secret"))
    replica.check_health()
    service = replica.__serve_build_asgi_app__().state.service
    assert list(service.localizers) == ["tiny"] and service.limits.files == 3 and service.token == "secret"
    replica.check_health()  # it has not begun
    service.ready = True
    with pytest.raises(RuntimeError, match="has ended"):
        replica.check_health()
    service.workers.start()
    replica.check_health()
    service.workers.stop()


def test_what_cannot_run_is_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_ray, "running", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(SpecError, match="3 replicas of 2 threads; there are 4 cores"):
        ray_serve.serve(Settings(min_replicas=3, max_replicas=3, threads=2), cpus=4)
    with pytest.raises(WeightsError, match=r"gone\.onnx"):
        ray_serve.serve(Settings(models=(str(tmp_path / "gone.onnx"),)))
    with running(load("mini")) as client, pytest.raises(DeclipError, match="cannot be had"):
        ray_serve.serve(Settings(), port=client.base_url.port or 0)


# --- running --------------------------------------------------------------------------------------------------------

CODE = """
from declip.serve import Limits, ray_serve
settings = ray_serve.Settings(models=({model!r},), min_replicas=2, max_replicas=2, limits=Limits(batch_size=4))
ray_serve.serve(settings, port=0, cpus=2, started=lambda url: print(url, flush=True))
print("done", flush=True)
"""


@contextlib.contextmanager
def process(model: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", CODE.format(model=str(model))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as service:
        try:
            assert service.stdout is not None and service.stderr is not None
            url = service.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), service.stderr.read()
            with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
                yield service, client
        finally:
            service.kill()


def answer(client: httpx.Client, *pictures: bytes, accept: str = "application/json", **fields: str) -> Any:
    """Status and content; rows without their seconds."""
    found = client.post("/v1/localize", files=files(*pictures), data=fields, headers={"Accept": accept})
    if "json" not in found.headers["content-type"]:
        return found.status_code, found.content
    body = found.json()
    return found.status_code, [{**row, "seconds": None} for row in body["results"]] if "results" in body else body


def listening(tree: list[psutil.Process]) -> set[str]:
    return {
        connection.laddr.ip
        for each in tree
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.slow
def test_the_same_app_in_replicas(tiny_model: tuple[Path, Path]) -> None:
    model = tiny_model[1]
    photos = [picture(seed, (96 + 16 * seed, 120)) for seed in range(6)]
    asked: list[tuple[tuple[bytes, ...], dict[str, Any]]] = [
        *(((photo,), {}) for photo in photos),
        (tuple(photos), {"mode": "whole", "threshold": "0.3"}),
        ((photos[0],), {"accept": "image/png", "maps": "mask"}),
        ((photos[1],), {"accept": "application/octet-stream"}),
        ((photos[2], b"no picture"), {}),
        ((b"no picture",), {}),
        ((photos[3],), {"mode": "sideways"}),
    ]
    with running(load(model, threads=1)) as plain:
        expected = [answer(plain, *pictures, **options) for pictures, options in asked]
        models = plain.get("/v1/models").json()
    assert [status for status, _ in expected] == [200] * 10 + [415, 422]

    with process(model) as (service, client), ThreadPoolExecutor(8) as pool:
        tree = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
        replicas = [each for each in tree if each.cmdline() and each.cmdline()[0].startswith("ray::ServeReplica")]
        assert len(replicas) == 2
        assert listening(tree) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"} and listening(tree)
        for path in ("/healthz", "/readyz", "/"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/models").json() == models
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 400

        for _ in range(2):  # at once, twice: both replicas answer
            jobs = [pool.submit(answer, client, *pictures, **options) for pictures, options in asked]
            assert [job.result() for job in jobs] == expected

        # Where a replica dies, the other one answers, and a new one comes.
        replicas[0].kill()
        until(lambda: _asks(client, photos[0]) == expected[0], 60)

        jobs = [pool.submit(answer, client, *photos) for _ in range(4)]
        until(lambda: any(job.running() for job in jobs))
        until(lambda: any(_value(client) for _ in range(4)) or any(job.done() for job in jobs))
        service.send_signal(signal.SIGTERM)
        assert [job.result()[0] for job in jobs] == [200] * 4
        out, err = service.communicate(timeout=120)
        assert (service.returncode, out) == (0, "done\n"), err
        _, left = psutil.wait_procs(tree, timeout=20)
        assert left == []


def _asks(client: httpx.Client, photo: bytes) -> Any:
    try:
        return answer(client, photo)
    except httpx.TransportError:
        return None


def _value(client: httpx.Client) -> float:
    """Requests in flight, in the replica that happens to answer."""
    text = client.get("/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith("declip_requests_in_flight ")).split()[1])


@pytest.mark.slow
def test_rays_own_command_makes_the_same() -> None:
    """`serve run declip.serve.ray_serve:app` calls it so; in a process of its own, since Ray warns when imported."""
    code = (
        "from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call\n"
        "from declip.serve.ray_serve import Settings, app\n"
        "made = call(app, {'models': 'mini', 'max_replicas': '3', 'threads': '2', 'hosts': '*'})\n"
        "found = made._bound_deployment\n"
        "scaling = found._deployment_config.autoscaling_config\n"
        "assert (scaling.min_replicas, scaling.max_replicas, found.name) == (1, 3, 'declip')\n"
        "assert found.ray_actor_options['num_cpus'] == 2\n"
        "assert found.init_args == (Settings(max_replicas=3, threads=2, hosts=None),), found.init_args\n"
        "print('well')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DECLIP_TOKEN"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200)
    assert found.stdout == "well\n", found.stderr
