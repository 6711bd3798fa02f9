"""The REST service under load: 64 clients with good, huge, truncated and bogus files, some of which hang up.

    python bench/serve_load.py --seconds 60 --out load.json

Starts `declip serve` with the embedded model as a process, and looks at it from outside:

- every answer by what was sent: nothing unexpected, no 5xx but 503 with Retry-After, no request without an answer, and
  the scores that the localizer gives when it is called directly;
- memory: of the idle process after the first 100 requests, and after all;
- speed: the seconds that the localizer takes for the good pictures when it is called directly (measured in this run,
  before and after), divided by the seconds in which the service answered them;
- SIGTERM under load: every accepted request answered, and exit code 0 within 30 s.

Prints a table, writes the figures to --out, and ends with 1 if something is not as it should be. Needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import httpx
from PIL import Image

import declip
from declip.localize.localizer import Localizer

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
SMALL = ((400, 500), (480, 640), (600, 800), (768, 1024), (866, 1155))  # (height, width): 0.2 to 1 megapixels
LARGE = (3000, 4000)
OPTIONS = ("--max-megapixels", "20", "--max-megabytes", "5")  # of the service; less is "huge" than by default
TAKEN = 0.75  # requests taken at once, of the number of clients: some of these are told to come again
EXIT_SECONDS = 30  # from SIGTERM
LEAST_SPEED, MOST_GROWTH, MOST_DIFFERENCE = 0.75, 1.10, 1e-6

Kind: TypeAlias = Literal["good", "too many pixels", "too many bytes", "truncated", "bogus", "leaves", "breaks off"]

# How often each is sent, and what is to be answered; beside it always 503. Of the last two nobody reads the answer.
MIX: Mapping[Kind, int] = {
    "good": 60,
    "too many pixels": 6,
    "too many bytes": 2,
    "truncated": 8,
    "bogus": 10,
    "leaves": 8,
    "breaks off": 6,
}
EXPECTED: Mapping[Kind, int] = {
    "good": 200,
    "too many pixels": 413,
    "too many bytes": 413,
    "truncated": 422,
    "bogus": 415,
}
LARGE_SHARE = 1 / 60  # of the good ones
RAW_SHARE = 1 / 4  # of the good ones ask for the scores of every pixel


class Shot(NamedTuple):
    """What is sent once."""

    kind: Kind
    name: str
    data: bytes
    raw: bool = False


@dataclass(kw_only=True)
class Tally:
    """What clients saw."""

    answers: Counter[tuple[Kind, int]] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)  # by name of the picture
    faults: Counter[str] = field(default_factory=Counter)
    unanswered: list[tuple[float, str]] = field(default_factory=list)  # (time when it was sent, why)
    hung_up: int = 0
    seconds: float = 0.0

    @property
    def taken(self) -> int:
        """Requests that got an answer, and not that there are too many."""
        return sum(count for (_, status), count in self.answers.items() if status != 503)


# --- what is sent ---------------------------------------------------------------------------------------------------


def good_pictures() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(small, large) pictures by their names, as files: example photos at other sizes."""
    photos = sorted(PHOTOS.iterdir())
    small = {}
    for number, size in enumerate(2 * SMALL):
        kind = "PNG" if number % 5 == 4 else "JPEG"
        small[f"{number}-{size[0]}x{size[1]}.{kind.lower()}"] = _scaled(photos[number % len(photos)], size, kind)
    return small, {f"{LARGE[0]}x{LARGE[1]}.jpeg": _scaled(photos[0], LARGE, "JPEG")}


def _scaled(photo: Path, size: tuple[int, int], kind: str) -> bytes:
    stream = io.BytesIO()
    with Image.open(photo) as opened:
        opened.convert("RGB").resize((size[1], size[0])).save(stream, kind)
    return stream.getvalue()


def shots(small: Mapping[str, bytes], large: Mapping[str, bytes], seed: int) -> Iterator[Shot]:
    """Endlessly, in the shares of MIX; the same seed gives the same ones."""
    draw = random.Random(seed)
    stream = io.BytesIO()
    Image.new("L", (5000, 5000)).save(stream, "PNG")
    wide, heavy = stream.getvalue(), bytes(6_000_000)
    while True:
        kind = draw.choices(list(MIX), list(MIX.values()))[0]
        name = draw.choice(list(small))
        match kind:
            case "good" if draw.random() < LARGE_SHARE:
                name = draw.choice(list(large))
                yield Shot(kind, name, large[name], raw=draw.random() < RAW_SHARE)
            case "good":
                yield Shot(kind, name, small[name], raw=draw.random() < RAW_SHARE)
            case "leaves" | "breaks off":
                yield Shot(kind, name, small[name])
            case "truncated":
                yield Shot(kind, name, small[name][: draw.randrange(2000, len(small[name]) - 2000)])
            case "bogus":
                yield Shot(kind, "notes.jpg", b"no picture " + draw.randbytes(draw.randrange(200_000)))
            case "too many pixels":
                yield Shot(kind, "wide.png", wide)
            case "too many bytes":
                yield Shot(kind, "heavy.png", heavy)


# --- clients --------------------------------------------------------------------------------------------------------


async def load(
    url: str,
    source: Iterator[Shot],
    scores: Mapping[str, float],
    clients: int,
    *,
    seconds: float | None = None,
    requests: int | None = None,
    stop: asyncio.Event | None = None,
) -> Tally:
    """Clients that send one shot after the other, for some seconds, until so many were taken, or until stop.

    scores: of the good pictures, as the localizer has them.
    """
    tally = Tally()
    start = time.monotonic()

    def over() -> bool:
        return (
            (seconds is not None and time.monotonic() - start >= seconds)
            or (requests is not None and tally.taken >= requests)
            or (stop is not None and stop.is_set())
        )

    async def run(number: int) -> None:
        draw = random.Random(number)
        while not over():
            await asyncio.sleep(await _send(client, next(source), scores, tally, draw))

    unlimited = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=unlimited) as client:
        await asyncio.gather(*map(run, range(clients)))
    tally.seconds = time.monotonic() - start
    return tally


async def _send(
    client: httpx.AsyncClient, shot: Shot, scores: Mapping[str, float], tally: Tally, draw: random.Random
) -> float:
    """Send one shot and note the answer; the seconds that the client is to wait."""
    request = client.build_request(
        "POST",
        "/v1/localize",
        files={"file": (shot.name, shot.data)},
        headers={"Accept": "application/octet-stream" if shot.raw else "application/json"},
    )
    if shot.kind in ("leaves", "breaks off"):
        tally.hung_up += 1
        with contextlib.suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(draw.uniform(0.05, 2)):
                if shot.kind == "breaks off":
                    request = client.build_request(
                        "POST", "/v1/localize", content=_half(request.read()), headers=request.headers
                    )
                await client.send(request)
        return 0
    sent = time.monotonic()
    try:
        answer = await client.send(request)
    except httpx.TransportError as error:
        tally.unanswered.append((sent, f"{shot.kind}: {type(error).__name__} {error}"))
        return 1
    tally.answers[shot.kind, answer.status_code] += 1
    if answer.status_code == 503:
        if not answer.headers.get("retry-after", "").isdecimal():
            tally.faults[f"{shot.kind}: 503 without Retry-After"] += 1
            return 1
        return min(5.0, float(answer.headers["retry-after"]))
    if answer.status_code != EXPECTED[shot.kind]:
        tally.faults[f"{shot.kind}: {answer.status_code} {answer.text[:200]}"] += 1
    elif shot.kind == "good":
        tally.good[shot.name] += 1
        if not shot.raw:
            (row,) = answer.json()["results"]
            if abs(row["image_score"] - scores[shot.name]) > MOST_DIFFERENCE:
                tally.faults[f"{shot.name}: score {row['image_score']}, called directly {scores[shot.name]}"] += 1
    return 0


async def _half(body: bytes) -> AsyncIterator[bytes]:
    """The first half of a body; then nothing until the client hangs up."""
    yield body[: len(body) // 2]
    await asyncio.sleep(60)


# --- the service ----------------------------------------------------------------------------------------------------


class Service:
    """`declip serve` as a process."""

    def __init__(self, clients: int, options: Sequence[str]) -> None:
        taken = ("--requests", str(round(TAKEN * clients)), "--client-requests", str(clients))  # all have one address
        command = [
            sys.executable,
            "-m",
            "declip",
            "serve",
            "--port",
            "0",
            "--no-access-log",
            *OPTIONS,
            *taken,
            *options,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = self.process.stderr.readline().split()[-1]
        self._client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        while not self._ready():
            time.sleep(0.1)

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError("the service ended by itself; see above")
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> dict[str, float]:
        """/metrics by name and labels."""
        lines = self._client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def settle(self) -> None:
        """Wait until nothing is in flight, and a little longer."""
        while any(self.metrics()[name] for name in ("declip_requests_in_flight", "declip_queue_pictures")):
            time.sleep(0.2)
        time.sleep(3)

    def megabytes(self) -> tuple[int, int]:
        """(resident memory of the process and its children now, the process's highest so far)."""
        pages = 0
        waiting = [str(self.process.pid)]
        while waiting:
            folder = Path("/proc", waiting.pop())
            pages += int((folder / "statm").read_text().split()[1])
            waiting += [pid for task in (folder / "task").iterdir() for pid in (task / "children").read_text().split()]
        status = (Path("/proc") / str(self.process.pid) / "status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6), round(int(peak.split()[1]) * 1024 / 1e6)

    def close(self) -> None:
        """End it, however it is."""
        self._client.close()
        self.process.kill()
        self.process.wait()


def directly(localizer: Localizer, pictures: Mapping[str, bytes]) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds, score) of each picture."""
    seconds, scores = {}, {}
    for name, data in pictures.items():
        start = time.perf_counter()
        scores[name] = localizer(data).image_score
        seconds[name] = time.perf_counter() - start
    return seconds, scores


async def terminated(
    service: Service, source: Iterator[Shot], scores: Mapping[str, float], clients: int, seconds: float
) -> dict[str, Any]:
    """SIGTERM after some seconds of load. A request that was on its way for a second by then counts as accepted."""
    stop = asyncio.Event()
    work = asyncio.create_task(load(service.url, source, scores, clients, stop=stop))
    await asyncio.sleep(seconds)
    flying = (await asyncio.to_thread(service.metrics))["declip_requests_in_flight"]
    service.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    stop.set()
    code: int | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = await asyncio.to_thread(service.process.wait, EXIT_SECONDS + 30)
    took = time.monotonic() - start
    tally = await work
    return {
        "in_flight": int(flying),
        "answers": _by_kind(tally),
        "accepted_and_unanswered": [why for sent, why in tally.unanswered if sent < start - 1],
        "sent_in_the_last_second_and_unanswered": [why for sent, why in tally.unanswered if sent >= start - 1],
        "faults": dict(tally.faults),
        "exit_code": code,
        "exit_seconds": round(took, 1),
    }


# --- the run --------------------------------------------------------------------------------------------------------


def measure(clients: int, seconds: float, first: int, options: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """All figures of one run."""
    small, large = good_pictures()
    pictures = small | large
    localizer = declip.load()
    localizer(next(iter(pictures.values())))  # the first one takes longer
    earlier, scores = directly(localizer, pictures)
    source = shots(small, large, seed)
    service = Service(clients, options)
    try:
        started = service.megabytes()[0]
        warm = asyncio.run(load(service.url, source, scores, clients, requests=first))
        service.settle()
        before = service.megabytes()[0]
        counted = service.metrics()
        spent = time.process_time()
        tally = asyncio.run(load(service.url, source, scores, clients, seconds=seconds))
        spent = time.process_time() - spent
        service.settle()
        later, _ = directly(localizer, pictures)
        after, peak = service.megabytes()
        last = service.metrics()
        ended = asyncio.run(terminated(service, source, scores, clients, min(10, seconds / 2)))
    finally:
        service.close()
    direct = sum(count * (earlier[name] + later[name]) / 2 for name, count in tally.good.items())
    return {
        "version": declip.__version__,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "clients": clients,
        "answers": _by_kind(tally),
        "hung_up": tally.hung_up,
        "faults": dict(warm.faults + tally.faults),
        "unanswered": [why for _, why in warm.unanswered + tally.unanswered],
        "answers_nobody_waited_for": _extra(tally, counted, last),
        "seconds": round(tally.seconds, 1),
        "good": tally.good.total(),
        "good_per_second": round(tally.good.total() / tally.seconds, 2),
        "direct_seconds": round(direct, 1),
        "speed": round(direct / tally.seconds, 3),
        "cpu_seconds": {
            "service": round(last["process_cpu_seconds_total"] - counted["process_cpu_seconds_total"], 1),
            "clients": round(spent, 1),
        },
        "direct_drift": round(sum(later.values()) / sum(earlier.values()), 2),
        "megabytes": {"started": started, "after_first": before, "after_all": after, "highest": peak},
        "growth": round(after / before, 3),
        "sigterm": ended,
    }


def _by_kind(tally: Tally) -> dict[str, dict[str, int]]:
    """Answers by kind and status."""
    found: dict[str, dict[str, int]] = {kind: {} for kind in EXPECTED}
    for (kind, status), count in sorted(tally.answers.items()):
        found[kind][str(status)] = count
    return found


def _extra(tally: Tally, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int]:
    """Answers that the service counted and no client did, by status: of those that hung up. Negative: miscounted."""
    seen = Counter[str]()
    for (_, status), count in tally.answers.items():
        seen[str(status)] += count
    counted = Counter[str]()
    prefix, suffix = 'declip_requests_total{path="/v1/localize",status="', '"}'
    for name, value in after.items():
        if name.startswith(prefix):
            counted[name.removeprefix(prefix).removesuffix(suffix)] = int(value - before.get(name, 0))
    return {status: counted[status] - seen[status] for status in sorted(counted | seen)}


def checks(found: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(what is asked for, what was found, whether it is so)."""
    ended, memory = found["sigterm"], found["megabytes"]
    extra = found["answers_nobody_waited_for"]
    return [
        (
            "answers as expected, the scores of the localizer",
            f"{sum(found['faults'].values())} others",
            not found["faults"],
        ),
        ("no request without an answer", f"{len(found['unanswered'])} of them", not found["unanswered"]),
        (
            "the service counts what the clients count",
            f"{sum(extra.values())} more, of {found['hung_up']} that hung up",
            min(extra.values(), default=0) >= 0 and sum(extra.values()) <= found["hung_up"],
        ),
        (
            f"memory afterwards at most {MOST_GROWTH:.0%} of that after the first requests",
            f"{found['growth']:.0%}: {memory['after_first']} → {memory['after_all']} MB, highest {memory['highest']}",
            found["growth"] <= MOST_GROWTH,
        ),
        (
            f"at least {LEAST_SPEED:.0%} of the speed of the localizer called directly",
            f"{found['speed']:.0%}: {found['good']} good pictures in {found['seconds']} s; {found['direct_seconds']} s",
            found["speed"] >= LEAST_SPEED,
        ),
        (
            "SIGTERM: every accepted request answered",
            f"{ended['in_flight']} in flight: {len(ended['accepted_and_unanswered'])} not answered, "
            f"{sum(ended['faults'].values())} wrongly",
            not ended["accepted_and_unanswered"] and not ended["faults"],
        ),
        (
            f"SIGTERM: exit code 0 within {EXIT_SECONDS} s",
            f"{ended['exit_code']} after {ended['exit_seconds']} s",
            ended["exit_code"] == 0 and ended["exit_seconds"] <= EXIT_SECONDS,
        ),
    ]


def table(found: Mapping[str, Any]) -> str:
    """The figures as two tables in Markdown, as docs/serve.md has them."""
    statuses = sorted({status for counts in found["answers"].values() for status in counts})
    lines = [f"| sent | {' | '.join(statuses)} |", f"|---{'|---' * len(statuses)}|"]
    for kind, counts in found["answers"].items():
        lines.append(f"| {kind} | {' | '.join(str(counts.get(status, '')) for status in statuses)} |")
    lines += ["", "| asked for | found | |", "|---|---|---|"]
    lines += [f"| {asked} | {text} | {'yes' if good else '**no**'} |" for asked, text, good in checks(found)]
    return "\n".join(lines)


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=100, help="requests before memory is looked at")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("options", nargs="*", help="more options of `declip serve`, after --")
    arguments = parser.parse_args()
    found = measure(arguments.clients, arguments.seconds, arguments.first, arguments.options)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    ended = found["sigterm"]
    for text, count in (*found["faults"].items(), *ended["faults"].items()):
        print(f"{count} × {text}", file=sys.stderr)
    for text in (*found["unanswered"], *ended["accepted_and_unanswered"]):
        print(text, file=sys.stderr)
    return 0 if all(good for _, _, good in checks(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
