"""The REST service on Ray Serve: replicas of the same app, on this machine or on a cluster.

    serve run declip.serve.ray_serve:app models=mini max_replicas=4     # Ray's own command
    ray_serve.serve(ray_serve.Settings(models=("mini",), max_replicas=2))   # Ray started for it, on loopback

Each replica is `create_app` with models of its own, so that every path, answer and limit is that of `declip serve`.
Serve gives requests to the replicas that have the fewest, starts more of them while all are busy, replaces one that
dies, and lets one that is to end answer what it has. Batches are made where the app makes them: pictures that wait in a
replica for a model that looks at them whole are computed together, as many as there are, up to `Limits.batch_size`;
nothing waits for a batch to fill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from declip.batch import local_ray
from declip.errors import DeclipError, SpecError
from declip.localize.localizer import load, model_file
from declip.process import cores
from declip.serve.app import Service, create_app
from declip.serve.limits import Limits
from declip.serve.run import LOOPBACK
from declip.spec import Precision, check_choice

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["NAME", "Arguments", "Replica", "Settings", "app", "deployment", "serve"]

# Of the application and its one deployment in Serve.
NAME = "declip"
# What a replica has beside the service's own drain: for answers that are being sent.
_SENDING_SECONDS = 5
# Of Ray's store here: bodies and answers pass by it.
_STORE_BYTES = 128 << 20

# No log of requests.
_LOGGING: dict[str, Any] = {"enable_access_log": False, "log_level": "WARNING"}


Device: TypeAlias = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the service is made of; it travels to the replicas.

    models: as `localizer.load`, the first is the default; files must be there on each machine. precision, offline,
    threads: as there. device: "cuda" gives each replica a GPU. limits: of each replica; `limits.requests` is also how
    many more may wait for one before Serve answers 503. hosts: the names under which it may be called (None = any).
    token: that requests must carry.
    min_replicas, max_replicas: between these there are as many as it takes for each to have about `ongoing` requests.
    """

    models: tuple[str, ...] = ("mini",)
    precision: Precision = "exact"
    offline: bool = False
    threads: int = 1
    device: Device | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    hosts: frozenset[str] | None = LOOPBACK
    token: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    ongoing: float = 4

    def __post_init__(self) -> None:
        if not self.models:
            raise SpecError("there is no model to serve; name at least one")
        check_choice(self.precision, Precision, "precision")
        if self.device is not None:
            check_choice(self.device, Device, "device")
        if self.threads < 1 or not self.ongoing > 0:
            raise SpecError(f"threads is {self.threads} and ongoing {self.ongoing}; expected >= 1, and more than 0")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise SpecError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}; expected 1 <= min <= max"
            )
        if self.token is not None and not self.token:
            raise SpecError("the token is empty; give one of random characters, or None for no token")


class Replica:
    """One process of the service. Ray Serve makes it, and runs the app that it builds."""

    def __init__(self, settings: Settings) -> None:
        if local_ray.is_closed():
            _close_port()
        self._settings = settings
        self._service: Service | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, with models of its own."""
        given = self._settings
        localizers = [
            load(name, threads=given.threads, device=given.device, precision=given.precision, offline=given.offline)
            for name in given.models
        ]
        built = create_app(localizers, given.limits, token=given.token, hosts=given.hosts)
        self._service = built.state.service
        return built

    def check_health(self) -> None:
        """Called by Serve now and then; a replica that raises is replaced."""
        if self._service is not None and self._service.ready and not self._service.workers.alive:
            raise RuntimeError("a thread that localizes has ended")


def _close_port() -> None:
    """Bind to 127.0.0.1 what Ray binds to every address: a replica's port for other deployments, where whatever comes
    is unpickled. There is no option for it."""
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))


def deployment(settings: Settings) -> Application:
    """The service as an application of Ray Serve, for `ray.serve.run`: what `serve` and `app` run.

    Raises MissingExtraError without the extra `ray`.
    """
    local_ray.prepare(here=False)
    from ray import serve as ray_serve
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import LoggingConfig

    made = ray_serve.deployment(
        name=NAME,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.ongoing,
        ),
        max_ongoing_requests=settings.limits.requests,
        max_queued_requests=settings.limits.requests,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": 1 if settings.device == "cuda" else 0},
        graceful_shutdown_timeout_s=settings.limits.drain_seconds + _SENDING_SECONDS,
        logging_config=LoggingConfig(**_LOGGING),
    )(ray_serve.ingress()(Replica))
    application: Application = made.bind(settings)
    return application


class Arguments(BaseModel):
    """What may stand behind `serve run declip.serve.ray_serve:app`, and under `args` in a configuration file.

    models, hosts: separated by commas; hosts "*" is any name. batch_size: of `Limits`. Else as `Settings`.
    """

    model_config = ConfigDict(extra="forbid")

    models: str = "mini"
    precision: Precision = "exact"
    offline: bool = False
    threads: int = 1
    device: Device | None = None
    batch_size: int = Limits().batch_size
    hosts: str = ",".join(sorted(LOOPBACK))
    min_replicas: int = 1
    max_replicas: int = 1
    ongoing: float = 4

    def settings(self) -> Settings:
        """The same; a bearer token is read from the environment, DECLIP_TOKEN. Raises SpecError as `Settings`."""
        return Settings(
            **self.model_dump(exclude={"models", "hosts", "batch_size"}),
            models=tuple(self.models.split(",")),
            hosts=None if self.hosts == "*" else frozenset(self.hosts.split(",")),
            limits=Limits(batch_size=self.batch_size),
            token=os.environ.get("DECLIP_TOKEN"),
        )


def app(arguments: dict[str, str]) -> Application:
    """`deployment`, for Ray's own commands. arguments: those of `Arguments`."""
    return deployment(Arguments.model_validate(arguments).settings())


def serve(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    cpus: int | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Run the service on this machine until SIGTERM or SIGINT, and answer what was accepted by then.

    Ray is started for it and ended with it: all of it on 127.0.0.1 but for the service's own port, without a dashboard,
    and without usage statistics. port 0 takes a free one. cpus: that the replicas may have together; None = this
    machine's. started is called with the URL once pictures are taken. Main thread only.

    Raises SpecError for more replicas or threads than there are cores, DeclipError where no replica could start or the
    port cannot be had; as `localizer.model_file`.
    """
    cpus = cpus or cores()
    if settings.min_replicas * settings.threads > cpus:
        raise SpecError(f"{settings.min_replicas} replicas of {settings.threads} threads; there are {cpus} cores")
    for name in settings.models:  # rather here than in a replica, which would be started again
        model_file(name, offline=settings.offline)
    port = _free(host, port)
    local_ray.prepare(here=True)
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    over, stdout = threading.Event(), sys.stdout
    with (
        contextlib.redirect_stdout(sys.stderr),  # where Ray tells of processes that ended
        local_ray.running(cpus, _STORE_BYTES),
        _signals(over),  # Ray sets handlers of its own when it starts
    ):
        try:
            ray_serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=host, port=port),
                logging_config=LoggingConfig(**_LOGGING),
            )
            ray_serve.run(deployment(settings), name=NAME)
            if started is not None:
                with contextlib.redirect_stdout(stdout):
                    started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            over.wait()
            # The replicas first, while there is a proxy that sends what they answer.
            ray_serve.delete(NAME)
        except RuntimeError as error:
            raise DeclipError(f"the service could not start: {error}") from error
        finally:
            ray_serve.shutdown()


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises DeclipError if it cannot be had: a proxy would say so in its log alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listener:
            found: int = listener.getsockname()[1]
    except OSError as error:
        raise DeclipError(f"port {port} of {host} cannot be had: {error.strerror}") from error
    return found


@contextlib.contextmanager
def _signals(over: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set an event."""

    def note(*_: Any) -> None:
        over.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
