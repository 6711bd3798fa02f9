"""Running a batch job: what is to be done, and what was."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from declip.batch.cluster import Device, computed, prepare, shared, started
from declip.batch.job import Model, open_job
from declip.batch.worker import Weights
from declip.errors import SpecError
from declip.images.read import MAX_BYTES, MAX_PIXELS
from declip.localize.localizer import load, model_file
from declip.process import cores
from declip.spec import Mode, Precision, check_choice

__all__ = ["Summary", "run", "shown"]

# Between two lines of progress, where there is no bar.
_LINE_SECONDS = 10.0

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
    clues: bool = True,
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

    model, mode, threshold, precision, clues, offline, max_pixels, max_bytes: as `localizer.load`. resume: go on with
    the job of out, or start one.
    address: of a Ray cluster; None = workers on this machine. workers: processes at most, threads: of each; by default
    as many as use every core. device: "cuda" takes one GPU for each worker. shard_size: see `job.open_job`.
    progress: a bar on stderr; else lines in the log.

    Raises MissingExtraError without the extra `ray`, DeclipError where the job cannot be started, gone on with or
    ended; what is done by then stays. As `load`, `listing.find` and `job.open_job`.
    """
    prepare(here=address is None)
    import ray

    for name, value in {"workers": workers, "threads": threads, "shard_size": shard_size}.items():
        if value is not None and value < 1:
            raise SpecError(f"{name} is {value}; expected >= 1")
    if device is not None:
        check_choice(device, Device, "device")
    check_choice(precision, Precision, "precision")
    path = model_file(model, offline=offline)
    # Opened once, so that what is wrong with it shows before anything starts.
    localizer = load(
        path,
        threads=1,
        device="cpu",
        mode=mode,
        threshold=threshold,
        precision=precision,
        clues=clues,
        offline=offline,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
    )
    described = Model(
        name=localizer.model,
        sha256=localizer.sha256,
        mode=localizer.mode,
        precision=precision,
        threshold=threshold,
        clues=clues,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
    )
    expected = shared(cores(), workers, threads)[0]
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
            # For workers here the file itself, for those of a cluster its bytes as well.
            reference = None if address is None else ray.put(path.read_bytes())
            weights = Weights(path=path, sha256=described.sha256, reference=reference)
            for files, errors in computed(job, weights, todo, pool, offline=offline):
                failed += errors
                show(files)
    return Summary(files=job.files, errors=failed, done_before=before, seconds=time.perf_counter() - start)


@contextlib.contextmanager
def shown(files: int, done: int, bar: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function to be told of files that were done: it moves a bar on stderr, or writes lines to the log."""
    columns = (
        TextColumn("localizing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start = said = time.perf_counter()
    now = 0
    with Progress(*columns, console=Console(stderr=True), disable=not bar) as display:
        task = display.add_task("", total=files, completed=done, rate="")

        def show(count: int) -> None:
            nonlocal said, now
            now += count
            at = time.perf_counter()
            rate = f"{now / (at - start):.1f} files/s"
            display.update(task, advance=count, rate=rate)
            if not bar and at - said >= _LINE_SECONDS:
                said = at
                _log.info("%d of %d files, %s", done + now, files, rate)

        yield show
