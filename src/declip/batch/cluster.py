"""Ray: started here for the time of a job, or joined, and the parts given out to its workers.

Here it listens on loopback only, without a dashboard, and tells nobody anything. Each row of a Ray Data set is the
number of a part; `Worker` computes it in one of a pool of actors. Ray Data gives the parts out, to each actor one more
than it computes. An actor that dies is started again, and its part computed anew: what it had not finished was seen by
nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from declip.batch.attempts import Attempts, remote
from declip.batch.job import Job
from declip.batch.worker import Weights, Worker
from declip.errors import DeclipError, SpecError, naming_extras
from declip.process import cores

__all__ = ["Device", "Pool", "computed", "prepare", "shared", "started"]

Device: TypeAlias = Literal["cpu", "cuda"]

_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Parts that an actor has been given: one to compute and the next, since Ray Data takes 0.2 s to give another.
_IN_FLIGHT = 2
# How often each worker may die while it starts, on average, before the job ends.
_STARTS = 3
# Of Ray's store here: what passes through it are numbers of parts.
_STORE_BYTES = 128 << 20

_log = logging.getLogger(__name__)


class Pool(NamedTuple):
    """At most so many actors, each of so many threads, on this device."""

    workers: int
    threads: int
    device: Device | None


def prepare(*, here: bool) -> None:
    """Import Ray, with what it reads from the environment when it is imported. here: it will run on this machine alone.

    Raises MissingExtraError without the extra `ray`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns its developers
    if here and os.environ.get(_CLUSTER) is None:
        if "ray" in sys.modules:
            _log.warning(
                "Ray was imported before, with ports open to the network; to keep them closed set %s=0", _CLUSTER
            )
        # As it is on other systems by default: all of it listens on 127.0.0.1, nothing on the network.
        os.environ[_CLUSTER] = "0"
    with naming_extras():
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401


@contextlib.contextmanager
def started(address: str | None, workers: int | None, threads: int | None, device: Device | None) -> Iterator[Pool]:
    """Start Ray here (no address) or join a cluster, unless this process has one; leave it as it was found.

    Raises DeclipError where no cluster answers, SpecError for actors that would wait for ever.
    """
    import ray

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what ends the job is said by the exception
    with contextlib.ExitStack() as stack:
        if ray.is_initialized():
            pass
        elif address is not None:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise DeclipError(f"no Ray cluster answers at {address}: {error}") from error
            stack.callback(ray.shutdown)
        else:
            workers, threads = shared(cores(), workers, threads)
            # Ray's sockets lie in it, whose paths may not be long; its logs go with it. Its processes may still be
            # writing there while they end, and a job that is done must not fail by that.
            place = "/tmp" if Path("/tmp").is_dir() else None
            folder = tempfile.TemporaryDirectory(prefix="declip-", dir=place, ignore_cleanup_errors=True)
            temporary = stack.enter_context(folder)
            stack.callback(ray.shutdown)
            try:
                ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    num_cpus=workers * threads,
                    object_store_memory=_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=temporary,
                )
            except Exception as error:  # Ray has no class of its own for processes that do not come up in time
                raise DeclipError(f"Ray did not start on this machine; is it too busy? try again: {error}") from error
        yield _sized(workers, threads, device)


def _sized(workers: int | None, threads: int | None, device: Device | None) -> Pool:
    """Return the pool for the Ray that runs."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device == "cuda":
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not gpus:
            raise SpecError("device is 'cuda', and Ray knows of no GPU here")
        workers = min(workers or gpus, gpus)
    together = int(sum(node.get("CPU", 0) for node in nodes))
    largest = int(max(node.get("CPU", 0) for node in nodes))
    workers, given = shared(together, workers, threads)
    given = given if threads else max(1, min(given, largest))
    if given > largest:
        raise SpecError(f"threads is {given}; the largest machine has {largest} cores")
    return Pool(workers, given, device)


def shared(total: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """Return (workers, threads) that use every core, as far as they are not given: two workers or more, of up to four
    threads (more workers are a little faster, and each holds the model once)."""
    if workers is None:
        workers = max(1, total // threads) if threads else min(total, max(2, total // 4))
    return workers, threads or max(1, total // workers)


def computed(job: Job, weights: Weights, todo: list[int], pool: Pool, *, offline: bool) -> Iterator[tuple[int, int]]:
    """Compute the parts; yield (files, errors) of each as it is done, in no order.

    Raises DeclipError, which tells why a worker could not go on, or that none could be started.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A part may take hours, and a cluster may have no room for as long.
    context.execution_no_progress_timeout_s = -1
    # The pool grows when every actor has a part.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    most = min(pool.workers, len(todo))
    memory = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    options = {"starts": _STARTS * most, "threads": pool.threads, "device": pool.device, "offline": offline}
    dataset = ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo)).map_batches(
        Worker,
        fn_constructor_args=(job, weights, remote(memory)),
        fn_constructor_kwargs=options,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=_IN_FLIGHT
        ),
        num_cpus=pool.threads,
        num_gpus=1 if pool.device == "cuda" else None,
    )
    try:
        for row in dataset.iter_rows():
            if row["failure"]:
                raise DeclipError(f"{row['failure']}; what is done stays, and is not done again")
            yield int(row["files"]), int(row["errors"])
    except RayError as error:
        raise DeclipError(f"a worker failed; what is done stays, and is not done again. Ray says: {error}") from error
