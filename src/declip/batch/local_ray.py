"""Ray on this machine, for the time of a job: on loopback, without a dashboard, telling nobody anything."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from declip.errors import naming_extras

__all__ = ["is_closed", "prepare", "running"]

_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

_log = logging.getLogger(__name__)


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
        import ray  # noqa: F401


def is_closed() -> bool:
    """Whether the Ray of this process, which may be one of its workers, keeps to 127.0.0.1."""
    return os.environ.get(_CLUSTER) == "0"


@contextlib.contextmanager
def running(cpus: int, store_bytes: int) -> Iterator[None]:
    """Ray, started here with so many cores and so much memory for objects, and ended afterwards."""
    import ray

    # Ray's sockets lie in it, whose paths may not be long; its logs go with it.
    folder = tempfile.mkdtemp(prefix="declip-", dir="/tmp" if Path("/tmp").is_dir() else None)
    try:
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=cpus,
            object_store_memory=store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        # Ray's processes may still be writing there while they end; a job that is done must not fail by that.
        shutil.rmtree(folder, ignore_errors=True)
