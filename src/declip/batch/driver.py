"""Running a batch job on Ray Data: here, or on a cluster.

Each row of the data set is the number of a part that is not done; `Worker` computes it in one of a pool of actors and
gives back how many files it had. Ray Data gives the parts out, to each actor one more than it computes. An actor that
dies is started again, and its part computed anew: what it had not finished was seen by nobody.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from declip.batch import local_ray
from declip.batch.attempts import Attempts, RemoteAttempts, Starts
from declip.batch.job import Job, Model, open_job
from declip.batch.worker import Weights, Worker
from declip.errors import DeclipError, SpecError, naming_extras
from declip.images.read import MAX_BYTES, MAX_PIXELS
from declip.localize.localizer import Localizer, load, model_file
from declip.process import cores
from declip.spec import Mode, Precision, check_choice

__all__ = [
    "Device",
    "Pool",
    "Summary",
    "check_counts",
    "check_device",
    "computed",
    "need_extra",
    "run",
    "shown",
    "started",
]

Device: TypeAlias = Literal["cpu", "cuda"]

# Between two lines of progress, where there is no bar.
_LINE_SECONDS = 10.0
# Parts that an actor has been given: one to compute and the next, since Ray Data takes 0.2 s to give another.
_IN_FLIGHT = 2
# How often each worker may die while it starts, on average, before the job ends.
_STARTS = 3
# Of Ray's store here: what passes through it are numbers of parts.
_STORE_BYTES = 128 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a job has done. files, errors: of the whole job, those done before included. done_before: files that were.
    seconds: of this run, from the start of Ray to the last part."""

    files: int
    errors: int
    done_before: int
    seconds: float

    @property
    def rate(self) -> float:
        """Files per second, of this run."""
        return (self.files - self.done_before) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        before = f", {self.done_before} of them before" if self.done_before else ""
        return f"{self.files} files{before}, {self.errors} errors, {self.seconds:.1f} s, {self.rate:.1f} files/s"


def run(
    source: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    mode: Mode | None = None,
    threshold: float | None = None,
    precision: Precision = "exact",
    resume: bool = False,
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: Device | None = None,
    shard_size: int | None = None,
    offline: bool = False,
    progress: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Summary:
    """Localize every picture of source into Parquet files in out; see `listing` for source and `rows` for the columns.

    model, mode, threshold, precision, offline, max_pixels, max_bytes: as `localizer.load`. resume: go on with the job
    of out, or start one.
    address: of a Ray cluster; None = workers on this machine. workers: processes at most, threads: of each; by default
    as many as use every core. device: "cuda" takes one GPU for each worker. shard_size: see `job.open_job`.
    progress: a bar on stderr; else lines in the log.

    Raises MissingExtraError without the extra `ray`, DeclipError where the job cannot be started, gone on with or
    ended; what is done by then stays. As `load`, `listing.find` and `job.open_job`.
    """
    need_extra(address)
    check_counts(workers=workers, threads=threads, shard_size=shard_size)
    check_choice(precision, Precision, "precision")
    check_device(device)
    path = model_file(model, offline=offline)
    described = _describe(
        load(
            path,
            threads=1,
            device="cpu",
            mode=mode,
            threshold=threshold,
            precision=precision,
            offline=offline,
            max_pixels=max_pixels,
            max_bytes=max_bytes,
        ),
        precision,
    )
    expected = _shared(cores(), workers, threads)[0]
    job = open_job(str(source), str(out), described, resume=resume, shard_size=shard_size, workers=expected)
    done = job.done()
    before, failed = sum(map(job.size, done)), job.errors(done)
    todo = sorted(set(range(job.parts)) - set(done))
    if job.skipped or job.repeated:
        _log.info(
            "passed over: %d (other files, hidden names); left out: %d (repeated entries of the list)",
            job.skipped,
            job.repeated,
        )
    start = time.perf_counter()
    if todo:
        with (
            contextlib.redirect_stdout(sys.stderr),  # where Ray tells of workers that died
            started(address, workers, threads, device) as pool,
            shown(job.files, before, progress) as show,
        ):
            weights = _weights(path, described.sha256, address)
            for files, errors in _parts(job, weights, todo, pool, offline):
                failed += errors
                show(files)
    return Summary(files=job.files, errors=failed, done_before=before, seconds=time.perf_counter() - start)


def check_device(device: object) -> None:
    """Raise SpecError for what is neither None nor a Device."""
    if device is not None:
        check_choice(device, Device, "device")


def check_counts(**counts: int | None) -> None:
    """Raise SpecError for a count that is given and below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise SpecError(f"{name} is {value}; expected >= 1")


def _describe(found: Localizer, precision: Precision) -> Model:
    """Open the model once, so that what is wrong with it shows before anything starts; describe it for the job."""
    return Model(
        name=found.model,
        sha256=found.sha256,
        mode=found.mode,
        precision=precision,
        threshold=found.threshold,
        max_pixels=found.max_pixels,
        max_bytes=found.max_bytes,
    )


def _weights(path: Path, sha256: str, address: str | None) -> Weights:
    """For workers here the file itself, for those of a cluster its bytes as well."""
    if address is None:
        return Weights(path=path, sha256=sha256)
    import ray

    return Weights(path=path, sha256=sha256, reference=ray.put(path.read_bytes()))


# --- Ray ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """At most so many actors, each of so many threads, on this device."""

    workers: int
    threads: int
    device: Device | None


def need_extra(address: str | None) -> None:
    """Import what the extra `ray` brings. Raises MissingExtraError without it."""
    local_ray.prepare(here=address is None)
    with naming_extras():
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401


@contextlib.contextmanager
def started(address: str | None, workers: int | None, threads: int | None, device: Device | None) -> Iterator[Pool]:
    """Ray, started here or joined; left as it was found."""
    import ray

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what ends the job is said by the exception
    if ray.is_initialized():
        yield _sized(workers, threads, device)
        return
    if address is not None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DeclipError(f"no Ray cluster answers at {address}: {error}") from error
        try:
            yield _sized(workers, threads, device)
        finally:
            ray.shutdown()
        return
    here = _shared(cores(), workers, threads)
    with local_ray.running(here[0] * here[1], _STORE_BYTES):
        yield _sized(*here, device)


def _sized(workers: int | None, threads: int | None, device: Device | None) -> Pool:
    """Return the pool for the Ray that runs. Raises SpecError for actors that would wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device == "cuda":
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not gpus:
            raise SpecError("device is 'cuda', and Ray knows of no GPU here")
        workers = min(workers or gpus, gpus)
    together = int(sum(node.get("CPU", 0) for node in nodes))
    largest = int(max(node.get("CPU", 0) for node in nodes))
    workers, given = _shared(together, workers, threads)
    given = given if threads else max(1, min(given, largest))
    if given > largest:
        raise SpecError(f"threads is {given}; the largest machine has {largest} cores")
    return Pool(workers=workers, threads=given, device=device)


def _shared(total: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """(workers, threads) that use every core, as far as they are not given: two workers or more, of up to four threads
    (more workers are a little faster, and each holds the model once)."""
    if workers is None:
        workers = max(1, total // threads) if threads else min(total, max(2, total // 4))
    return workers, threads or max(1, total // workers)


def _kept(memory: Callable[[], Any]) -> Any:
    """Start an actor of a class; it is restarted where it dies, as Ray Data's own are."""
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(memory).remote()


def _parts(job: Job, weights: Weights, todo: list[int], pool: Pool, offline: bool) -> Iterator[tuple[int, int]]:
    """Compute the parts; (files, errors) of each as it is done, in no order."""
    attempts = _kept(Attempts)
    options = {"threads": pool.threads, "device": pool.device, "offline": offline}
    for row in computed(Worker, (job, weights, RemoteAttempts(attempts)), options, todo, pool):
        yield row["files"], row["errors"]


class _Counted:
    """A worker that may die for a number of times alone, since Ray starts it, and gives it its part, for ever.

    limits: how many may die while they start, one after another; and of one part (-1 = any number).
    """

    def __init__(
        self,
        worker: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        starts: Any,
        limits: tuple[int, int],
    ) -> None:
        import ray

        limit, self._deaths = limits
        self._starts = starts
        self._failure = ""
        if ray.get(starts.begin.remote()) > limit:
            self._failure = (
                f"workers died {limit} times while they started, and none was ready in between; each has the model in "
                "memory, so that fewer of them may do"
            )
            return
        self._worker = worker(*arguments, **options)
        ray.get(starts.ready.remote())

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        import ray

        if self._failure:
            return {"failure": [self._failure]}
        (part,) = batch["part"].tolist()
        if self._deaths >= 0 and ray.get(self._starts.tries.remote(part)) > 1 + self._deaths:
            return {"failure": [f"part {part} was begun {1 + self._deaths} times, and each time its worker died"]}
        found: dict[str, list[Any]] = self._worker(batch)
        return found


def computed(
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    todo: Sequence[int],
    pool: Pool,
    *,
    deaths: int = -1,
) -> Iterator[dict[str, int]]:
    """Have the parts `todo` computed by actors of a class that is called as `Worker`; its rows as they are done, in no
    order, but for "failure".

    arguments, options: of its constructor. deaths: how many workers may die of one part before that ends the job; -1 =
    any number. Raises DeclipError, which tells why a worker could not go on, or that none could be started.
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
    strategy = ray.data.ActorPoolStrategy(
        min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=_IN_FLIGHT
    )
    dataset = ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo)).map_batches(
        _Counted,
        fn_constructor_args=(worker, arguments, options, _kept(Starts), (_STARTS * most, deaths)),
        batch_size=1,
        compute=strategy,
        num_cpus=pool.threads,
        num_gpus=1 if pool.device == "cuda" else None,
    )
    try:
        for row in dataset.iter_rows():
            if failure := row.pop("failure"):
                raise DeclipError(f"{failure}; what is done stays, and is not done again")
            yield {name: int(value) for name, value in row.items()}
    except RayError as error:
        raise DeclipError(f"a worker failed; what is done stays, and is not done again. Ray says: {error}") from error


# --- progress -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shown(files: int, done: int, progress: bool, doing: str = "localizing", what: str = "files") -> Iterator[Any]:
    """Yield a function to be told of files that were done: it moves a bar on stderr, or writes lines to the log."""
    if not progress:
        yield _lines(files, done, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start, now = time.perf_counter(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=files, completed=done, rate="")

        def show(count: int) -> None:
            nonlocal now
            now += count
            bar.update(task, advance=count, rate=f"{now / (time.perf_counter() - start):.1f} {what}/s")

        yield show


def _lines(files: int, done: int, what: str) -> Any:
    start = said = time.perf_counter()
    now = 0

    def show(count: int) -> None:
        nonlocal said, now
        now += count
        if time.perf_counter() - said >= _LINE_SECONDS:
            said = time.perf_counter()
            _log.info("%d of %d %s, %.1f %s/s", done + now, files, what, now / (said - start), what)

    return show
