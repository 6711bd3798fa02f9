"""The batch job, killed: its driver at a third of the files, one of its workers at two thirds; and how workers add up.

    python bench/batch_job.py --files 2000 --hostile 20 --turns 3 --out batch.json

Makes photos from those of `examples/`, hostile files among them, and runs `declip batch` with the embedded model as
processes of its own:

- uninterrupted, with --workers workers of one thread each;
- the same job again, `kill -9` of the driver at a third of the files, then --resume, and `kill -9` of a worker
  at two thirds: every file exactly once, every hostile one with its error, all columns but the seconds equal;
- uninterrupted with one worker and with --workers by turns, for the ratio: of the medians of files a second between
  the first parts and the last, and, beside it, of whole seconds, with the start of Ray (not with --turns 0).

Prints the figures as JSON, and ends with 1 if something is not as it should be. Needs Linux and `declip[ray]`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

import declip

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
FOLDERS = 10
WAIT = 3600.0  # s, for a part to appear
LEAST_RATIO = 0.85  # of as many workers as were asked for: 1.7 of two

Hostile: TypeAlias = Literal["truncated", "empty", "text", "bomb", "noise", "dangling"]
# What each is to be called in its row.
KINDS: dict[Hostile, str] = {
    "truncated": "corrupt",
    "empty": "corrupt",
    "text": "format",
    "bomb": "too-large",
    "noise": "format",
    "dangling": "missing",
}


class Made(NamedTuple):
    """What was put into a folder: all files, and what the hostile ones are."""

    files: list[Path]
    hostile: dict[Path, Hostile]


# --- files ----------------------------------------------------------------------------------------------------------


def make(folder: Path, files: int, hostile: int, side: int, seed: int = 0) -> Made:
    """Photos of side × side px, each another one, in sub-folders; every so often a hostile file in the place of one."""
    draw = np.random.default_rng(seed)
    photos = []
    for path in sorted(PHOTOS.iterdir()):
        with Image.open(path) as opened:
            photos.append(np.asarray(opened.convert("RGB")))
    bad = {(2 * number + 1) * files // (2 * hostile): number for number in range(hostile)} if hostile else {}
    made = Made([], {})
    for number in range(files):
        path = folder / f"{number % FOLDERS}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = photos[int(draw.integers(len(photos)))]
        y, x = (int(draw.integers(length - side + 1)) for length in photo.shape[:2])
        # A picture is what its bytes say: some of the good ones are PNG.
        format, options = ("PNG", {}) if number % 50 == 7 else ("JPEG", {"quality": int(draw.integers(70, 98))})
        with path.open("wb") as file:
            Image.fromarray(photo[y : y + side, x : x + side]).save(file, format, **options)
        made.files.append(path)
        if number in bad:
            made.hostile[path] = get_args(Hostile)[bad[number] % len(KINDS)]
            spoil(path, made.hostile[path], draw)
    return made


def spoil(path: Path, kind: Hostile, draw: np.random.Generator) -> None:
    """Put a hostile file in the place of a photo."""
    match kind:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-400])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("This is no picture.\n" * 50)
        case "bomb":
            header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
            chunks = (header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
            framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
        case "noise":
            path.write_bytes(draw.bytes(5000))
        case "dangling":
            path.unlink()
            path.symlink_to("nowhere.jpg")


# --- runs -----------------------------------------------------------------------------------------------------------


class Run:
    """`declip batch` as a process; its lines on stderr go to a file."""

    def __init__(self, source: Path, out: Path, workers: int, shard_size: int, model: str, *, resume: bool) -> None:
        self.out = out
        self.start = time.perf_counter()
        command = [sys.executable, "-m", "declip", "batch", str(source), "--out", str(out), "--model", model]
        command += ["--workers", str(workers), "--threads", "1", "--shard-size", str(shard_size)]
        self._log = out.with_suffix(".resumed.log" if resume else ".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--resume"] if resume else command, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def done(self) -> int:
        """How many parts are there."""
        return len(list(self.out.glob("part-*.parquet")))

    def wait_for(self, parts: int) -> None:
        """Until so many are there."""
        while self.done() < parts:
            if self.process.poll() is not None or time.perf_counter() - self.start > WAIT:
                raise SystemExit(f"the job ended before {parts} parts were done:\n{self._log.read_text()}")
            time.sleep(0.02)

    def end(self) -> tuple[int, str, float]:
        """(exit code, the line it prints, seconds)."""
        line = self.process.communicate(timeout=WAIT)[0].strip()
        seconds = time.perf_counter() - self.start
        if self.process.returncode not in (0, 1):
            raise SystemExit(f"the job failed with {self.process.returncode}:\n{self._log.read_text()}")
        return self.process.returncode, line, seconds

    def rate(self, first: int) -> float:
        """Files per second from the first so many parts to the last."""
        parts = sorted(self.out.glob("part-*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        files = sum(pq.read_metadata(path).num_rows for path in parts[first:])
        return files / (parts[-1].stat().st_mtime - parts[first - 1].stat().st_mtime)

    def workers(self) -> list[int]:
        """The processes of this run that compute."""
        parents = {}
        names = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                if folder.name.isdigit():
                    stat = (folder / "stat").read_text().rpartition(")")[2].split()
                    parents[int(folder.name)] = int(stat[1])
                    names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        found = []
        for pid, name in names.items():
            ancestor = pid
            while ancestor > 1 and ancestor != self.process.pid:
                ancestor = parents.get(ancestor, 0)
            if ancestor == self.process.pid and name.startswith("ray::MapWorker"):
                found.append(pid)
        return sorted(found)


def interrupted(source: Path, out: Path, parts: int, workers: int, shard_size: int, model: str) -> dict[str, Any]:
    """The job with both kills; what happened."""
    first = Run(source, out, workers, shard_size, model, resume=False)
    first.wait_for(-(-parts // 3))
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()
    time.sleep(2)  # what it had begun dies with it
    at_third = first.done()
    second = Run(source, out, workers, shard_size, model, resume=True)
    second.wait_for(-(-2 * parts // 3))
    victim = second.workers()[0]
    os.kill(victim, signal.SIGKILL)
    at_two_thirds = second.done()
    code, line, _ = second.end()
    return {"parts_at_third": at_third, "parts_at_two_thirds": at_two_thirds, "exit": code, "line": line}


def rows(out: Path) -> pa.Table:
    """All rows of a job by their file, without the seconds."""
    return ds.dataset(out, format="parquet").to_table().sort_by("image").drop_columns(["seconds"])


def speed(root: Path, workers: int, shard_size: int, model: str, turns: int) -> dict[str, Any]:
    """One worker and several by turns, since a machine's speed changes within minutes; medians, and their ratios."""
    rates: dict[int, list[float]] = {1: [], workers: []}
    seconds: dict[int, list[float]] = {1: [], workers: []}
    for turn in range(turns):
        for count in rates:
            run = Run(root / "photos", root / f"{count}-{turn}", count, shard_size, model, resume=False)
            seconds[count].append(round(run.end()[2], 2))
            rates[count].append(round(run.rate(count), 2))
    return {
        "files_per_second": {str(count): found for count, found in rates.items()},
        "seconds": {str(count): found for count, found in seconds.items()},
        "ratio": round(median(rates[workers]) / median(rates[1]), 3),
        "ratio_with_start": round(median(seconds[1]) / median(seconds[workers]), 3),
    }


# --- what is looked at ----------------------------------------------------------------------------------------------


def measure(files: int, hostile: int, side: int, workers: int, shard_size: int, model: str, turns: int) -> dict:
    """Run everything in a folder of its own; the figures."""
    with tempfile.TemporaryDirectory(prefix="batch-") as name:
        root = Path(name)
        made = make(root / "photos", files, hostile, side)
        parts = -(-files // shard_size)
        found: dict[str, Any] = {
            "files": files,
            "hostile": hostile,
            "side": side,
            "model": model,
            "parts": parts,
            "environment": environment(),
        }
        calm = Run(root / "photos", root / "calm", workers, shard_size, model, resume=False)
        code, line, seconds = calm.end()
        found["uninterrupted"] = {"workers": workers, "seconds": round(seconds, 2), "exit": code, "line": line}
        found["interrupted"] = interrupted(root / "photos", root / "killed", parts, workers, shard_size, model)
        if turns:
            found["speed"] = speed(root, workers, shard_size, model, turns)
            found["ratio"] = found["speed"]["ratio"]
        calm_rows, killed_rows = rows(root / "calm"), rows(root / "killed")
        expected = sorted(str(path) for path in made.files)
        errors = killed_rows.filter(pc.is_valid(killed_rows["kind"]))
        kinds = dict(zip(errors["image"].to_pylist(), errors["kind"].to_pylist(), strict=True))
        found["once"] = killed_rows["image"].to_pylist() == expected
        found["errors"] = dict(sorted(Counter(kinds.values()).items()))
        found["errors_right"] = kinds == {str(path): KINDS[kind] for path, kind in made.hostile.items()}
        found["identical"] = killed_rows.equals(calm_rows)
        found["left_over"] = sorted(path.name for path in (root / "killed").glob(".*"))
        found["bytes"] = sum(path.stat().st_size for path in (root / "calm").rglob("*.parquet"))
    return found


def checks(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    interruption = found["interrupted"]
    code = 1 if found["hostile"] else 0
    wrong = [name for name in ("once", "errors_right", "identical") if not found[name]]
    if sum(found["errors"].values()) != found["hostile"]:
        wrong.append("errors")
    if not 0 < interruption["parts_at_third"] < interruption["parts_at_two_thirds"] < found["parts"]:
        wrong.append("a kill came too late")
    wrong += [f"exit of {name}" for name in ("uninterrupted", "interrupted") if found[name]["exit"] != code]
    workers = found["uninterrupted"]["workers"]
    if "ratio" in found and found["ratio"] < LEAST_RATIO * workers:
        wrong.append(f"ratio: {found['ratio']} of {workers} workers")
    return wrong


def environment() -> dict[str, Any]:
    """What the figures belong to."""
    import ray

    return {
        "declip": declip.__version__,
        "ray": ray.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),  # before: of others
    }


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--hostile", type=int, default=20)
    parser.add_argument("--side", type=int, default=192, help="of the photos, px")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=32)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--turns", type=int, default=3, help="of one worker and of all; 0 = leave the ratio out")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    found = measure(given.files, given.hostile, given.side, given.workers, given.shard_size, given.model, given.turns)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")
    wrong = checks(found)
    for line in wrong:
        print(f"not as it should be: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
