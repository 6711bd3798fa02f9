"""Put the REST service under load: 64 clients with good, huge, truncated and bogus files, some of which hang up.

    python bench/serve_load.py --seconds 60 --out load.json

Starts `declip serve` with the embedded model as a process, looks at it from outside, and checks:

- answers: nothing unexpected, no 5xx but 503 with Retry-After, none missing, and the scores of the localizer;
- memory: of the idle process after all, at most 10 % above that after the first 100 requests;
- speed: at least 75 % of the localizer's, called directly on the same pictures before and after;
- SIGTERM under load: every accepted request is answered, and the process ends with 0 within 30 s.

Prints the figures and the checks, writes the figures to --out, and ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from PIL import Image

import declip

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
SIZES = ((400, 500), (480, 640), (600, 800), (768, 1024), (866, 1155))  # (height, width): 0.2 to 1 megapixels
LARGE, LARGE_SHARE = (3000, 4000), 1 / 60  # of the good ones
OPTIONS = ("--max-megapixels", "20", "--max-megabytes", "5")  # of the service; less is "huge" than by default
# What is sent: how often of 100, and the expected status; 503 is expected beside it. None: nobody reads the answer.
MIX: Mapping[str, tuple[int, int | None]] = {
    "good": (60, 200),
    "too many pixels": (6, 413),
    "too many bytes": (2, 413),
    "truncated": (8, 422),
    "bogus": (10, 415),
    "leaves": (14, None),
}


class Shot(NamedTuple):
    """What is sent once."""

    kind: str
    name: str
    data: bytes


@dataclass
class Tally:
    """What the clients saw. good: answers by picture. unanswered: (time when it was sent, why)."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    unanswered: list[tuple[float, str]] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """Return how many requests got another answer than 503."""
        return sum(count for (_, status), count in self.answers.items() if status != 503)

    def by_kind(self) -> dict[str, dict[int, int]]:
        """Return the answers by kind and status."""
        return {name: {s: n for (kind, s), n in sorted(self.answers.items()) if kind == name} for name in MIX}


def good_pictures() -> dict[str, bytes]:
    """Return example photos at other sizes as files by name, the large one last."""
    photos = sorted(PHOTOS.iterdir())
    made = {}
    for number, (height, width) in enumerate((*SIZES, *SIZES, LARGE)):
        stream = io.BytesIO()
        kind = "PNG" if number % 5 == 4 else "JPEG"
        with Image.open(photos[number % len(photos)]) as opened:
            opened.convert("RGB").resize((width, height)).save(stream, kind)
        made[f"{number}-{height}x{width}.{kind.lower()}"] = stream.getvalue()
    return made


def shots(pictures: Mapping[str, bytes], seed: int) -> Iterator[Shot]:
    """Yield shots without end, in the shares of MIX; the same seed gives the same ones."""
    draw = random.Random(seed)
    stream = io.BytesIO()
    Image.new("L", (5000, 5000)).save(stream, "PNG")
    others = {"too many pixels": stream.getvalue(), "too many bytes": bytes(6_000_000)}
    *small, large = pictures
    while True:
        kind = draw.choices(list(MIX), [weight for weight, _ in MIX.values()])[0]
        name = large if kind == "good" and draw.random() < LARGE_SHARE else draw.choice(small)
        data = others.get(kind, pictures[name])
        if kind == "truncated":
            data = data[: draw.randrange(2000, len(data) - 2000)]
        elif kind == "bogus":
            data = b"no picture " + draw.randbytes(draw.randrange(200_000))
        yield Shot(kind, name, data)


async def load(
    url: str, source: Iterator[Shot], scores: Mapping[str, float], clients: int, over: Callable[[Tally], bool]
) -> Tally:
    """Let clients send one shot after the other until over. scores: image scores of the localizer, by picture."""
    tally, draw = Tally(), random.Random(0)

    async def send(client: httpx.AsyncClient, shot: Shot) -> float:
        """Send one shot and note the answer; return the seconds that the client is to wait."""
        sent = time.monotonic()
        try:
            async with asyncio.timeout(draw.uniform(0.05, 2) if shot.kind == "leaves" else None):
                answer = await client.post("/v1/localize", files={"file": (shot.name, shot.data)})
        except TimeoutError:
            return 0
        except httpx.TransportError as error:
            if shot.kind != "leaves":
                tally.unanswered.append((sent, f"{shot.kind}: {type(error).__name__} {error}"))
            return 1
        tally.answers[shot.kind, answer.status_code] += 1
        if answer.status_code == 503 and answer.headers.get("retry-after", "").isdecimal():
            return min(5.0, float(answer.headers["retry-after"]))
        if answer.status_code != (MIX[shot.kind][1] or 200):
            tally.faults[f"{shot.kind}: {answer.status_code} {answer.text[:200]}"] += 1
        elif shot.kind == "good":
            tally.good[shot.name] += 1
            found = answer.json()["results"][0]["image_score"]
            if abs(found - scores[shot.name]) > 1e-6:
                tally.faults[f"{shot.name}: score {found}, called directly {scores[shot.name]}"] += 1
        return 0

    async def run(client: httpx.AsyncClient) -> None:
        while not over(tally):
            await asyncio.sleep(await send(client, next(source)))

    unlimited = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=unlimited) as client:
        await asyncio.gather(*(run(client) for _ in range(clients)))
    return tally


class Service:
    """`declip serve` as a process, which takes three quarters of the clients' requests at once."""

    def __init__(self, clients: int, options: Sequence[str]) -> None:
        taken = ("--requests", str(round(0.75 * clients)), "--client-requests", str(clients))
        command = [sys.executable, "-m", "declip", "serve", "--port", "0", "--no-access-log", *OPTIONS, *taken]
        command += options
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = self.process.stderr.readline().split()[-1]
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        while self.client.get("/readyz").status_code != 200:
            time.sleep(0.1)

    def metrics(self) -> dict[str, float]:
        """Return /metrics by name and labels."""
        lines = self.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def idle_megabytes(self) -> float:
        """Wait until nothing is in flight, and a little longer; return the memory that the process has then."""
        while any(self.metrics()[name] for name in ("declip_requests_in_flight", "declip_queue_pictures")):
            time.sleep(0.2)
        time.sleep(3)
        return round(self.metrics()["process_resident_memory_bytes"] / 1e6)


async def terminate(
    service: Service, load_until: Callable[[Callable[[Tally], bool]], Any], wait: float
) -> dict[str, Any]:
    """Send SIGTERM after a time of load. What was on its way for a second by then counts as accepted."""
    stop = asyncio.Event()
    work = asyncio.create_task(load_until(lambda _: stop.is_set()))
    await asyncio.sleep(wait)
    service.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    stop.set()
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(service.process.wait, 60)
    seconds = time.monotonic() - start
    tally = await work
    lost = [why for sent, why in tally.unanswered if sent < start - 1]
    return {"lost": lost, "faults": dict(tally.faults), "code": service.process.poll(), "seconds": round(seconds, 1)}


def measure(clients: int, seconds: float, first: int, options: Sequence[str]) -> dict[str, Any]:
    """Return all figures of one run."""
    pictures = good_pictures()
    localizer = declip.load()
    localizer(next(iter(pictures.values())))  # the first one takes longer
    scores: dict[str, float] = {}

    def directly() -> dict[str, float]:
        """Return the seconds of each picture, and note its score."""
        took = {}
        for name, data in pictures.items():
            start = time.perf_counter()
            scores[name] = localizer(data).image_score
            took[name] = time.perf_counter() - start
        return took

    earlier, source, service = directly(), shots(pictures, 0), Service(clients, options)

    def load_until(over: Callable[[Tally], bool]) -> Any:
        return load(service.url, source, scores, clients, over)

    try:
        warm = asyncio.run(load_until(lambda tally: tally.taken >= first))
        before, start = service.idle_megabytes(), time.monotonic()
        tally = asyncio.run(load_until(lambda _: time.monotonic() - start >= seconds))
        took, after, later = time.monotonic() - start, service.idle_megabytes(), directly()
        ended = asyncio.run(terminate(service, load_until, min(10, seconds / 2)))
    finally:
        service.client.close()
        service.process.kill()
        service.process.wait()
    direct = sum(count * (earlier[name] + later[name]) / 2 for name, count in tally.good.items())
    return {
        "answers": tally.by_kind(),
        "faults": dict(warm.faults + tally.faults),
        "unanswered": [why for _, why in warm.unanswered + tally.unanswered],
        "megabytes": [before, after],
        "good": tally.good.total(),
        "seconds": round(took, 1),
        "direct_seconds": round(direct, 1),
        "sigterm": ended,
    }


def checks(found: Mapping[str, Any]) -> dict[str, bool]:
    """Return what is asked for, and whether it is so."""
    ended, (before, after) = found["sigterm"], found["megabytes"]
    return {
        "answers": not found["faults"] and not found["unanswered"],
        "memory": after <= 1.1 * before,
        "speed": found["direct_seconds"] >= 0.75 * found["seconds"],
        "sigterm": not ended["lost"] and not ended["faults"] and ended["code"] == 0 and ended["seconds"] <= 30,
    }


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
    found["checks"] = checks(found)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(f"{text}\n", encoding="utf-8")
    return 0 if all(found["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
