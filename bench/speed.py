"""How fast a DeCLIP computes: the official way against declip's engines, side by side in one run.

    python bench/speed.py                     everything, an hour on two cores; writes bench/results.json
    python bench/speed.py --quick --out F     whether it works: few rows, one repeat
    python bench/speed.py --only networks     one section; the others in the file stay as they are

Every figure that is compared comes from turns A B C A B C … in one process, and a peak (how fast this machine
multiplies matrices) from the same turns. Weights are random, pictures are the example photos. Prints tables, and what
is asked for with what was found. It wants a machine to itself; `busy_before` of every section says whether it had it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cached_training
import numpy as np
import torch
from acceptance import checks
from linux import processor
from machine import CORES, PEAK_FLOP, busy, environment, interleaved, peak_contenders, peaks, spread
from networks import MAIN, MODELS, PHOTOS, Built, build, inputs
from numpy.typing import NDArray
from PIL import Image
from speed_page import tables

import declip
from declip.engines.engines import Wrapped, open_engine
from declip.errors import DeclipError
from declip.images.read import read_photo
from declip.images.tensors import normalise, resize_scores, to_input, to_scores
from declip.localize.localizer import Localizer
from declip.results import Engine

HALF = (816, 612)  # half a megapixel
# Networks whose streams are measured, with photos of a turn and turns for each repeat. The second stands for the first
# in bf16, where that cannot be measured: it takes less time, and what is done beside the network weighs more.
STREAMS = {MAIN: (8, 2), "RN50, linear": (16, 5)}
RESULTS = Path(__file__).resolve().parent / "results.json"
SECTIONS = ("networks", "mini", "pipeline", "streams", "start", "training")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured. repeats: counted turns; batches: of pictures at once; large: photos of 12 megapixels."""

    repeats: int
    batches: tuple[int, ...]
    models: tuple[str, ...]
    training: tuple[str, ...]
    large: bool


FULL = Effort(
    repeats=5,
    batches=(1, 4, 8),
    models=tuple(name for name, (_, kind) in MODELS.items() if kind != "linear"),
    training=("conv-4", "conv-20"),
    large=True,
)
QUICK = Effort(repeats=1, batches=(4,), models=(MAIN,), training=("linear",), large=False)


def main() -> int:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few repeats of a few rows: whether it works, not how fast"
    )
    parser.add_argument("--repeats", type=int, help="counted turns of each comparison")
    parser.add_argument("--batches", type=int, nargs="+", help="of pictures, in the sections networks and mini")
    parser.add_argument(
        "--models", nargs="+", choices=FULL.models, help="in the section networks; others stay as they are"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--mini-fast-iou", type=float, help="mean IoU of mini's fast engine, measured elsewhere")
    parser.add_argument("--mini-exact-iou", type=float, help="that of its exact engine on the same photos")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    effort = QUICK if arguments.quick else FULL
    effort = dataclasses.replace(
        effort,
        repeats=arguments.repeats or effort.repeats,
        batches=tuple(arguments.batches or effort.batches),
        models=tuple(arguments.models or effort.models),
    )
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    found: dict[str, Any] = {
        "official_s": None,
        "exact_s": None,
        "fast_s": None,
        "mini_fast_iou": None,
        "mini_exact_iou": None,
    }
    found |= {"sections": {}, "environment": environment()} | kept | {"version": declip.__version__}
    if "networks" in arguments.only:  # another machine may add a section: each says of which processor it is
        found["environment"] = environment()
    for name, value in (("mini_fast_iou", arguments.mini_fast_iou), ("mini_exact_iou", arguments.mini_exact_iou)):
        found[name] = found[name] if value is None else value
    for section in SECTIONS:
        if section in arguments.only:
            when = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "quick": arguments.quick}
            found["sections"][section] = when | {"busy_before": busy(), "cpu": processor()}
            rows = [row for row in found.get("networks", ()) if row["name"] not in effort.models]
            found |= measure(section, effort)
            if section == "networks":
                found["networks"] += rows
            # After every section, so that one that fails costs no other.
            arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n\n".join(tables(found)))
    return 0 if all(good is not False for _, _, good in checks(found)) else 1


def measure(section: str, effort: Effort) -> dict[str, Any]:
    """One section's part of the results."""
    print(f"{section} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode(section != "training"):
        folder = Path(name)
        match section:
            case "networks":
                return networks(folder, effort)
            case "mini":
                return {"mini": mini(folder, effort)}
            case "pipeline":
                return {"pipeline": pipeline(folder, effort)}
            case "streams":
                return {"streams": streams(folder, effort)}
            case "start":
                return {"start": start(folder, effort)}
            case _:
                return {"training": training(folder, effort)}


# --- the paper's networks ---------------------------------------------------------------------------------------------


def networks(folder: Path, effort: Effort) -> dict[str, Any]:
    """Rows of the paper's networks, the peaks of the machine, and the three figures at the top."""
    rows, turns, tops = [], dict[str, list[float]](), {}
    for name in effort.models:
        built = build(name, folder)
        engines, reason = open_both(built.path)
        agreement = agree(built, engines)
        for batch in effort.batches:
            contenders = peak_contenders() | network_contenders(built, engines, batch)
            seconds = interleaved(contenders, effort.repeats)
            for key in contenders:
                if key.startswith("peak "):
                    turns.setdefault(key, []).extend(seconds[key])
            row = network_row(name, batch, built, seconds) | {"fast_skipped": reason}
            rows.append(row | {"agreement": agreement})
            print(json.dumps(row), file=sys.stderr, flush=True)
            if (name, batch) == (MAIN, 4):
                tops = {f"{way}_s": row["ways"].get(way, {"median": None})["median"] for way in WAYS}
        del engines
        built.path.unlink()
    return tops | {"peak": peaks(turns), "networks": rows}


WAYS = ("official", "exact", "fast")


def open_both(path: Path) -> tuple[dict[str, Engine], str | None]:
    """The engines by precision, and why there is no fast one."""
    engines: dict[str, Engine] = {"exact": open_engine(path, threads=CORES)}
    if torch.bfloat16 not in PEAK_FLOP:
        return engines, "this processor has no instructions for bf16, and fast computes as exact does"
    try:
        engines["fast"] = open_engine(path, threads=CORES, precision="fast")
    except (TypeError, DeclipError) as error:
        return engines, f"{type(error).__name__}: {error}"
    return engines, None


def network_contenders(built: Built, engines: Mapping[str, Engine], batch: int) -> dict[str, Callable[[], object]]:
    """The ways of one network on the same pictures."""
    pictures = inputs(built.spec, batch)
    tensor = torch.from_numpy(pictures)
    found: dict[str, Callable[[], object]] = {}
    if built.official is not None:
        found["official"] = partial(built.official_logits, tensor)
    for precision, engine in engines.items():
        found[precision] = partial(engine.logits, {"image": pictures})
    return found


def network_row(name: str, batch: int, built: Built, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Seconds per picture, ratios of the medians, and the share of the peak of the same turns, by way."""
    ways = {way: spread([value / batch for value in seconds[way]], 5) for way in WAYS if way in seconds}
    peak = {dtype: entry["gflops"]["median"] for dtype, entry in peaks(seconds).items()}
    gmac = {"official": built.official_gmac, "exact": built.gmac, "fast": built.gmac}
    rates = {way: 2 * gmac[way] / ways[way]["median"] for way in ways}
    return {
        "name": name,
        "batch": batch,
        "ways": ways,
        "gmac": {way: gmac[way] for way in ways},
        "gflops": {way: round(rate, 1) for way, rate in rates.items()},
        "share_of_fp32_peak": {way: round(rate / peak["float32"], 3) for way, rate in rates.items()},
        "share_of_bf16_peak": {
            way: round(rate / peak["bfloat16"], 3) for way, rate in rates.items() if "bfloat16" in peak
        },
        "against_official": {
            way: round(ways["official"]["median"] / entry["median"], 3)
            for way, entry in ways.items()
            if "official" in ways
        },
    }


def agree(built: Built, engines: Mapping[str, Engine]) -> dict[str, float]:
    """How far apart the ways are on the example photos."""
    pictures = inputs(built.spec, len(list(PHOTOS.iterdir())))
    exact = engines["exact"].logits({"image": pictures})
    found = {}
    if built.official is not None:
        official = built.official_logits(torch.from_numpy(pictures)).numpy()
        found["exact_logits_relative"] = float(np.abs(exact - official).max() / official.std())
    if "fast" in engines:
        found |= difference(exact, engines["fast"].logits({"image": pictures}))
    return found


def difference(exact: NDArray[np.float32], fast: NDArray[np.float32]) -> dict[str, float]:
    """Mean |Δscore|, and the share of pixels decided alike at 0.5."""
    first, second = to_scores(exact), to_scores(fast)
    return {
        "fast_mean_score_difference": float(np.abs(first - second).mean(dtype=np.float64)),
        "fast_decisions_alike": float(np.mean((first >= 0.5) == (second >= 0.5))),
    }


# --- the embedded model -----------------------------------------------------------------------------------------------


def load_both() -> tuple[dict[str, Localizer], str | None]:
    """The embedded model by precision, and why there is no fast one."""
    found = {"exact": declip.load(threads=CORES)}
    try:
        found["fast"] = declip.load(threads=CORES, precision="fast")
    except (TypeError, DeclipError) as error:
        return found, f"{type(error).__name__}: {error}"
    return found, None


def mini(folder: Path, effort: Effort) -> dict[str, Any]:
    """The embedded model: tiles at once, and a photo of 12 megapixels."""
    localizers, reason = load_both()
    spec = localizers["exact"].spec
    rows = []
    for batch in effort.batches:
        tiles = crops(spec.input_size, batch, localizers["exact"])
        seconds = interleaved(
            {way: partial(one.engine.logits, {"image": tiles}) for way, one in localizers.items()}, 3 * effort.repeats
        )
        rows.append({"what": "tile", "batch": batch} | compared(seconds, batch))
    if effort.large:
        large = large_photo(folder)
        seconds = interleaved({way: partial(one, large) for way, one in localizers.items()}, effort.repeats)
        rows.append({"what": "12 MP photo, from its file", "batch": 1} | compared(seconds, 1))
    agreement = {}
    if "fast" in localizers:
        maps = {way: one.engine.logits({"image": tiles}) for way, one in localizers.items()}
        agreement = difference(maps["exact"], maps["fast"])
    return {"rows": rows, "agreement": agreement, "fast_skipped": reason}


def compared(seconds: Mapping[str, list[float]], count: int) -> dict[str, Any]:
    """Seconds per picture by way, and how much faster fast is."""
    ways = {way: spread([value / count for value in values], 5) for way, values in seconds.items()}
    ratio = round(ways["exact"]["median"] / ways["fast"]["median"], 3) if "fast" in ways else None
    return {"ways": ways, "fast_against_exact": ratio}


def crops(size: int, count: int, localizer: Localizer) -> NDArray[np.float32]:
    """(count, 3, size, size): corners of the example photos, at their own resolution."""
    files = sorted(PHOTOS.iterdir())
    pixels = (read_photo(files[number % len(files)]).pixels for number in range(count))
    fitting = (np.pad(one, ((0, size), (0, size), (0, 0)), mode="reflect")[:size, :size] for one in pixels)
    return np.stack([normalise(one, localizer.spec) for one in fitting])


def large_photo(folder: Path) -> Path:
    """A JPEG of 12 megapixels, of the example photos enlarged."""
    whole = Image.new("RGB", (4000, 3000))
    for number, file in enumerate(sorted(PHOTOS.iterdir())[:4]):
        with Image.open(file) as photo:
            whole.paste(photo.convert("RGB").resize((2000, 1500)), (2000 * (number % 2), 1500 * (number // 2)))
    path = folder / "large.jpg"
    whole.save(path, quality=92)
    return path


def photos_of(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs of this size (width, height), the example photos resized."""
    files = sorted(PHOTOS.iterdir())
    folder.mkdir()
    for number in range(count):
        with Image.open(files[number % len(files)]) as photo:
            photo.convert("RGB").resize(size).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


# --- from a file to a Localization ------------------------------------------------------------------------------------


class Timed(Wrapped):
    """An engine that adds up the seconds it takes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seconds = 0.0

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """As `Engine.logits`."""
        begun = time.perf_counter()
        try:
            return super().logits(inputs)
        finally:
            self.seconds += time.perf_counter() - begun


def pipeline(folder: Path, effort: Effort) -> dict[str, Any]:
    """Whole ways and their parts; and a batch of photos against the network alone."""
    (half,) = photos_of(folder / "half", 1, HALF)
    photos = {"0.5 MP": half} | ({"12 MP": large_photo(folder)} if effort.large else {})
    built = build(MAIN, folder)
    engines, reason = open_both(built.path)
    linear = open_engine(build("ViT-L/14, linear", folder).path, threads=CORES)
    rows = []
    for precision, engine in engines.items():
        for what, photo in photos.items():
            rows.append(
                {"model": MAIN, "precision": precision, "photo": what}
                | whole_parts(engine, linear if precision == "exact" else None, photo, effort.repeats)
            )
    localizers, mini_reason = load_both()
    for precision, localizer in localizers.items():
        for what, photo in photos.items():
            found = tiled_parts(localizer, photo, effort.repeats)
            rows.append({"model": "mini", "precision": precision, "photo": what} | found)
    return {"rows": rows, "fast_skipped": reason, "mini_fast_skipped": mini_reason}


def whole_parts(engine: Engine, linear: Engine | None, photo: Path, repeats: int) -> dict[str, Any]:
    """A photo that the network sees whole. linear: the same backbone with a decoder that costs nothing."""
    localizer = Localizer(engine, mode="whole")
    read = read_photo(photo)
    pictures = to_input(read.pixels, engine.spec)[None]
    logits = engine.logits({"image": pictures})[0]
    contenders: dict[str, Callable[[], object]] = {
        "whole": lambda: localizer(photo),
        "read": lambda: read_photo(photo),
        "preprocess": lambda: to_input(read.pixels, engine.spec),
        "network": lambda: engine.logits({"image": pictures}),
        "post-process": lambda: resize_scores(to_scores(logits), read.size),
    }
    if linear is not None:
        contenders["backbone"] = lambda: linear.logits({"image": pictures})
    parts = {part: spread(values) for part, values in interleaved(contenders, repeats).items()}
    if "backbone" in parts:
        parts["decoder"] = {"median": round(parts["network"]["median"] - parts["backbone"]["median"], 4)}
    return {"parts": parts}


def tiled_parts(localizer: Localizer, photo: Path, repeats: int) -> dict[str, Any]:
    """A photo that is computed in tiles: reading, the network's share of the whole, and the rest."""
    timed = Timed(localizer.engine)
    watched = Localizer(timed, mode="tiled")
    inside = []

    def whole() -> None:
        timed.seconds = 0.0
        watched(photo)
        inside.append(timed.seconds)

    seconds = interleaved({"whole": whole, "read": lambda: read_photo(photo)}, repeats)
    parts = {part: spread(values) for part, values in seconds.items()} | {"network": spread(inside[-repeats:])}
    rest = parts["whole"]["median"] - parts["read"]["median"] - parts["network"]["median"]
    return {"parts": parts | {"tiling and blending": {"median": round(rest, 4)}}}


def streams(folder: Path, effort: Effort) -> dict[str, Any]:
    """Batches of photos from their files against the network alone, of photos of two sizes."""
    sizes = {"256 px": (256, 256), "0.5 MP": HALF}
    photos = {what: photos_of(folder / what, 16, size) for what, size in sizes.items()}
    rows, reason = [], None
    for model, (count, times) in STREAMS.items():
        engines, skipped = open_both(build(model, folder).path)
        reason = reason or skipped
        for precision, engine in engines.items():
            for what, files in photos.items():
                found = stream(Localizer(engine), files[:count], times * effort.repeats)
                rows.append({"model": model, "precision": precision, "photo": what} | found)
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"rows": rows, "fast_skipped": reason}


def stream(localizer: Localizer, photos: Sequence[Path], repeats: int, batch: int = 4) -> dict[str, Any]:
    """Photos per second of `map`, and of the network alone on as many pictures. Their ratio is that of a turn, in which
    they follow each other; a machine that others use as well may be another one in the next turn."""
    pictures = np.stack([to_input(read_photo(photo).pixels, localizer.spec) for photo in photos[:batch]])

    def network() -> None:
        for _ in range(0, len(photos), batch):
            localizer.engine.logits({"image": pictures})

    def mapped() -> None:
        for _ in localizer.map(photos, batch_size=batch):
            pass

    seconds = interleaved({"network": network, "map": mapped}, repeats)
    rates = {way: spread([len(photos) / value for value in values]) for way, values in seconds.items()}
    shares = [alone / whole for alone, whole in zip(seconds["network"], seconds["map"], strict=True)]
    found = {"photos": len(photos), "batch": batch, "turns": repeats, "photos_per_second": rates}
    return found | {"share_of_network": spread(shares, 3)}


# --- a fresh process --------------------------------------------------------------------------------------------------


def start(folder: Path, effort: Effort) -> dict[str, Any]:
    """Seconds from starting a process to its end behind the first mask, and its highest memory."""
    (photo,) = photos_of(folder / "half", 1, HALF)
    built = build(MAIN, folder)
    assert built.official is not None
    pickle = folder / "official.pt"
    torch.save(built.official.state_dict(), pickle)
    cases = {("mini", "exact"): "mini", ("mini", "fast"): "mini", (MAIN, "official"): str(pickle)}
    cases |= {(MAIN, "exact"): str(built.path), (MAIN, "fast"): str(built.path)}
    skipped, memory = {}, dict[str, list[float]]()
    contenders = {}
    for (model, way), file in cases.items():
        name = f"{model}, {way}"
        if problem := cold(way, file, photo, memory.setdefault(name, [])):
            skipped[name] = problem
            continue
        contenders[name] = partial(cold, way, file, photo, memory[name])
    seconds = interleaved(contenders, effort.repeats)
    rows = [
        {"name": name, "seconds": spread(values, 3), "peak_mb": round(max(memory[name]))}
        for name, values in seconds.items()
    ]
    return {"rows": rows, "skipped": skipped}


def cold(way: str, file: str, photo: Path, memory: list[float]) -> str | None:
    """Run cold.py; its memory is appended. Returns what it said where it failed."""
    script = Path(__file__).resolve().parent / "cold.py"
    command = [sys.executable, str(script), way, file, str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    memory.append(float(done.stdout))
    return None


# --- training ---------------------------------------------------------------------------------------------------------


def training(folder: Path, effort: Effort) -> dict[str, Any]:
    """Epochs with features from the cache and without, and what one step takes."""
    images, batch = (16, 4) if effort.large else (4, 4)
    rows = cached_training.measure(folder, images, batch, min(effort.repeats, 3), list(effort.training))
    for row in rows:
        for kind in ("uncached", "cached"):
            row[kind] = spread(row[kind])
        row["step"] = {"median": round(row["cached"]["median"] / (images / batch), 4)}
    return {"images": images, "batch": batch, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
