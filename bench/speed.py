"""Measure how fast declip computes, and write docs/performance.md and the costs in docs/scale.md.

    python bench/speed.py                     measure everything: an hour on two idle cores; then write
    python bench/speed.py --only mini start   measure some sections; the figures of the others stay
    python bench/speed.py --only              write the pages from bench/results.json
    python bench/speed.py --quick --out F     try whether it works; write no page

What is compared is timed in turns A B C A B C … in one process, since other work on a machine slows whatever runs just
then. Weights of the paper's networks are random, pictures are the example photos.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import psutil
import torch
from networks import MAIN, MODELS, PHOTOS, Built, build, inputs
from PIL import Image

import declip
from declip.engines import Engine
from declip.images import to_scores
from declip.images.mapfiles import scores_png
from declip.localize.localizer import Localizer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.json"
CORES = len(os.sched_getaffinity(0))
PACKAGES = ("torch", "onnxruntime", "openvino", "timm", "numpy", "pillow")
HALF, LARGE = (816, 612), (4000, 3000)  # (width, height): 0.5 and 12 megapixels
PEAK_SIDE = 2048  # of the matrices whose product stands for the fastest that the machine can compute
PRICE = 0.04  # dollars for a core and hour: roughly what clouds ask; no measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="one turn of few rows: whether it works, not how fast")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    found = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    for section in arguments.only:
        print(f"{section} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            busy = psutil.cpu_percent(interval=2.0)
            measured = SECTIONS[section](Path(folder), arguments.quick)
        found[section] = {"where": where(busy), **measured}
        # After every section, so that one that fails costs no other.
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not arguments.quick:
        write_pages(found)


def where(busy: float) -> dict[str, Any]:
    """Return the machine, what is installed on it, and the share of it that other work took before, in percent."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": f"{fields.get('model name', platform.processor())}, model {fields.get('model', '?')}",
        "cores": CORES,
        "flags": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()],
        "versions": f"declip {declip.__version__}, Python {platform.python_version()}, {versions}",
        "busy": busy,
    }


def interleaved(contenders: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of every contender, timed in turns; one turn before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, work in contenders.items():
            time.sleep(0.02)  # threads of the one before that still spin go to sleep
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the minimum, median and maximum, of four digits."""
    found = sorted(values)
    picked = {"min": found[0], "median": statistics.median(found), "max": found[-1]}
    return {name: float(f"{value:.4g}") for name, value in picked.items()}


def by_precision(model: str | Path | None = None) -> dict[str, Localizer]:
    """Open a model in the precisions that this machine has: "exact", and "fast" where that is another one."""
    found = {way: declip.load(model, threads=CORES, device="cpu", precision=way) for way in ("exact", "fast")}
    return {way: one for way, one in found.items() if one.precision == way}


# --- sections -------------------------------------------------------------------------------------------------------


def networks(folder: Path, quick: bool) -> dict[str, Any]:
    """Compare the paper's networks with the official way, and with the fastest that this machine multiplies."""
    rows = []
    for name in [MAIN] if quick else MODELS:
        built = build(name, folder)
        engines = {way: one.engine for way, one in by_precision(built.path).items()}
        apart = agreement(built, engines)
        for batch in (1,) if quick else (1, 4, 8):
            rows.append({"name": name, "batch": batch, "agreement": apart} | network_row(built, engines, batch, quick))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"rows": rows}


def network_row(built: Built, engines: Mapping[str, Engine], batch: int, quick: bool) -> dict[str, Any]:
    """Time one network on a batch: seconds per picture, ratios of the medians, share of the peak in the same turns."""
    pictures = inputs(built.spec, batch)
    matrix = torch.randn(PEAK_SIDE, PEAK_SIDE)
    contenders: dict[str, Callable[[], object]] = {
        "peak": partial(torch.mm, matrix, matrix),
        "official": partial(built.official, torch.from_numpy(pictures)),
        **{way: partial(engine.logits, {"image": pictures}) for way, engine in engines.items()},
    }
    seconds = interleaved(contenders, 1 if quick else 5)
    peak = 2 * PEAK_SIDE**3 / min(seconds.pop("peak"))
    ways = {way: spread(value / batch for value in values) for way, values in seconds.items()}
    work = {way: 2e9 * (built.official_gmac if way == "official" else built.gmac) for way in ways}
    return {
        "ways": ways,
        "gmac": {"official": built.official_gmac, "exact": built.gmac},
        "against_official": {way: round(ways["official"]["median"] / ways[way]["median"], 2) for way in ways},
        "share_of_peak": {way: round(work[way] / ways[way]["median"] / peak, 3) for way in ways},
    }


def agreement(built: Built, engines: Mapping[str, Engine]) -> dict[str, float]:
    """Tell how far apart the ways are on the example photos."""
    pictures = inputs(built.spec, len(list(PHOTOS.iterdir())))
    official = built.official(torch.from_numpy(pictures)).numpy()
    logits = {way: engine.logits({"image": pictures}) for way, engine in engines.items()}
    found = {"exact_logits": float(np.abs(logits["exact"] - official).max() / official.std())}
    if "fast" in logits:
        exact, fast = to_scores(logits["exact"]), to_scores(logits["fast"])
        found["fast_scores"] = float(np.abs(exact - fast).mean(dtype=np.float64))
        found["fast_alike"] = float(np.mean((exact >= 0.5) == (fast >= 0.5)))
    return found


def photos(folder: Path, quick: bool) -> dict[str, Any]:
    """Time one photo from its JPEG file to its mask, by the embedded model and by the paper's network."""
    sizes = {"0.5 MP": photo_of(folder, HALF)} | ({} if quick else {"12 MP": photo_of(folder, LARGE)})
    models = {"mini": by_precision(), MAIN: by_precision(build(MAIN, folder).path)}
    contenders = {
        (model, way, size): partial(one, photo)
        for size, photo in sizes.items()
        for model, ways in models.items()
        for way, one in ways.items()
    }
    seconds = interleaved({str(key): work for key, work in contenders.items()}, 1 if quick else 5)
    rows = [
        {"model": model, "precision": way, "photo": size, "seconds": spread(seconds[str((model, way, size))])}
        for model, way, size in contenders
    ]
    return {"rows": rows, "storage": storage(models["mini"]["exact"])}


def storage(localizer: Localizer) -> dict[str, float]:
    """Measure what is kept of a photo, by the example photos: bytes per megapixel, and of a row of Parquet."""
    from declip.batch.rows import encode_mask, to_parquet

    results = [localizer(path) for path in sorted(PHOTOS.iterdir())]
    megapixels = sum(one.scores.size for one in results) / 1e6
    blank = {"bytes": 0, "content": "0" * 64, "error": None, "kind": None}
    rows = [one.to_dict() | blank | {"mask": encode_mask(one.mask)} for one in results]
    return {
        "photos": len(results),
        "file": sum(path.stat().st_size for path in PHOTOS.iterdir()) / megapixels,
        "scores": sum(len(scores_png(one.scores)) for one in results) / megapixels,
        "row": (len(to_parquet(rows)) - len(to_parquet([]))) / len(rows),
    }


def start(folder: Path, quick: bool) -> dict[str, Any]:
    """Time a fresh process from its start to its end behind the first mask, and its highest memory."""
    photo = photo_of(folder, HALF)
    models = {"mini": "mini", MAIN: str(build(MAIN, folder).path)}
    code = (
        "import sys, resource, declip; declip.load(sys.argv[1])(sys.argv[2]).mask.any(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    memory: dict[str, float] = {}

    def run(name: str, model: str) -> None:
        done = subprocess.run([sys.executable, "-c", code, model, photo], capture_output=True, text=True, check=True)
        memory[name] = round(int(done.stdout) * 1024 / 1e6)

    seconds = interleaved({name: partial(run, name, model) for name, model in models.items()}, 1 if quick else 5)
    return {"rows": [{"model": name, "seconds": spread(seconds[name]), "mb": memory[name]} for name in models]}


def steady(folder: Path, quick: bool) -> dict[str, Any]:
    """Send 2,000 photos through `Localizer.map`: memory after the first 100 and at the end."""
    count, mark = (20, 10) if quick else (2000, 100)
    photo, localizer, process = photo_of(folder, HALF), declip.load(), psutil.Process()
    begun, first = time.perf_counter(), 0.0
    for number, result in enumerate(localizer.map([photo] * count), start=1):
        if isinstance(result, Exception):
            raise result
        first = process.memory_info().rss / 1e6 if number == mark else first
    seconds, last = time.perf_counter() - begun, process.memory_info().rss / 1e6
    return {
        "photos": count,
        "mark": mark,
        "mb_first": round(first, 1),
        "mb_last": round(last, 1),
        "rate": round(count / seconds, 2),
    }


SECTIONS: Mapping[str, Callable[[Path, bool], dict[str, Any]]] = {
    "networks": networks,
    "photos": photos,
    "start": start,
    "steady": steady,
}


def photo_of(folder: Path, size: tuple[int, int]) -> Path:
    """Make a JPEG of this size (width, height) from an example photo."""
    path = folder / f"{size[0]}.jpg"
    with Image.open(PHOTOS / "china-untouched.jpg") as photo:
        photo.convert("RGB").resize(size).save(path, quality=92)
    return path


# --- pages ----------------------------------------------------------------------------------------------------------


def write_pages(found: Mapping[str, Any]) -> None:
    """Write docs/performance.md, and the costs between two marks in docs/scale.md."""
    loader = jinja2.FileSystemLoader(ROOT / "bench")
    templates = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = templates.get_template("performance.md.jinja").render(found=found)
    (ROOT / "docs" / "performance.md").write_text(page + "\n", encoding="utf-8")
    scale = ROOT / "docs" / "scale.md"
    before, begin, rest = scale.read_text(encoding="utf-8").partition("<!-- by bench/speed.py, from here -->")
    _, end, after = rest.partition("<!-- to here -->")
    costs = templates.get_template("costs.md.jinja").render(found=found, price=PRICE)
    scale.write_text(f"{before}{begin}\n\n{costs}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
