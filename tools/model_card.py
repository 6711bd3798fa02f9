"""Measure a localizer: docs/models.json, and from it all pages that show its figures (tools/model_page.py).

    python tools/model_card.py                                        the embedded model; writes the pages
    python tools/model_card.py --model a.onnx --model b.safetensors   compares candidates; writes nothing

What is measured, always on the same pictures:
- `photos/valid`, split once and for all into two halves by a hash of the file name. Every photo is manipulated by every
  kind (`declip.synthesis.forge` on a native crop of at most 512 px, seeded by the photo's name and the kind); half
  of the results are re-saved as JPEG. Thresholds are chosen on one half, and everything is reported on the other.
  Intervals are 95 % bootstrap intervals over photos.
- The same photos untouched, whole files: as they are, and re-saved as JPEG 75.
- The manipulated ones of the reporting half saved again as JPEG 75.
- `forged/dev`: real manipulated pictures that nobody here made; the originals of some of them; and what the
  training-free maps make of them (`declip.clues`).
- With --manipulated N only N photos of each half, in the order of a hash, are manipulated: all of it takes hours.
- Every second photo of these of the reporting half after JPEG, WebP, resizing, blur and noise of rising strength.
- Time and memory of the command line, in fresh processes.
- docs/leave-one-out.json, where tools/leave_one_out.py has written it.

The mask is the model's own where it is calibrated (`make mini` chooses its threshold on the choosing half). Otherwise
a threshold is chosen here: the highest mean IoU on the choosing half of all thresholds that leave 95 % of its untouched
photos alone, both as they are and re-saved.

Needs `pip install 'declip[all]'`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import card_figures
import model_page
import numpy as np
import torch
from card_cases import (
    FLAGGED,
    KINDS,
    SEED,
    THRESHOLDS,
    Case,
    Outcome,
    Pixels,
    forgeries,
    half_of,
    measure,
    published,
    untouched,
)
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import binomtest
from torch.utils.flop_counter import FlopCounterMode

import declip
from declip import clues
from declip.engines import Engine, Wrapped
from declip.evaluation import plots
from declip.images.read import EXTENSIONS, read_photo
from declip.localize.folder import localize_files
from declip.localize.localizer import Localizer, load
from declip.models import resolve
from declip.nn.model import build_network
from declip.results import Predictor
from declip.spec import SIZE_CLASSES, Calibration, ModelSpec
from declip.synthesis import family_of

ROOT = Path(__file__).resolve().parents[1]
RESAMPLES = 2000
FALSE_ALARMS = 0.05  # share of untouched photos that may be flagged by more than FLAGGED of their area
# Sets of forged/dev by what was done to their pictures.
FAMILIES = {
    "in-painting by networks": (
        "crfill_places256",
        "inpaintanything_lama",
        "inpaintanything_sd2",
        "pixelhacker_celebahq",
    ),
    "splices": ("casia1_subset", "psbattles_mantranet"),
}
PARTS = {"train": "training", "valid": "choosing and reporting", "calibrate": "verdicts"}


def best_threshold(forged: Sequence[Outcome], clean: Sequence[Outcome] = ()) -> int:
    """Index into THRESHOLDS of the highest IoU, averaged over the kinds' means; all outcomes given are used.

    clean: outcomes of untouched photos; of each kind of these at most FALSE_ALARMS may then be flagged. Where no
    threshold keeps that, the highest one.
    """
    iou = np.mean([np.mean([o.iou()[:-1] for o in kind], axis=0) for kind in _by_kind(forged).values()], axis=0)
    for outcomes in _by_kind(clean).values():
        flagged = np.mean([outcome.flagged()[:-1] > FLAGGED for outcome in outcomes], axis=0)
        iou = np.where(flagged <= FALSE_ALARMS, iou, -1.0)
    return int(np.argmax(iou)) if iou.max() >= 0 else len(THRESHOLDS) - 1


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.kind, []).append(outcome)
    return kinds


def interval(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> dict[str, float]:
    """Mean over the outcomes of each kind, then over kinds, with its 95 % bootstrap interval over groups."""
    names, index = np.unique([outcome.group for outcome in outcomes], return_inverse=True)
    kinds = sorted({outcome.kind for outcome in outcomes})
    sums, counts = np.zeros((2, len(names), len(kinds)))
    for row, outcome in zip(index, outcomes, strict=True):
        if not math.isnan(found := value(outcome)):
            sums[row, kinds.index(outcome.kind)] += found
            counts[row, kinds.index(outcome.kind)] += 1
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    with np.errstate(invalid="ignore"):
        means = np.nanmean(drawn @ sums / (drawn @ counts), axis=1)
        mean = np.nanmean(sums.sum(axis=0) / counts.sum(axis=0))
    return _with_ends(mean, means)


def told_apart(forged: Sequence[float], originals: Sequence[float]) -> dict[str, float]:
    """AUC of the image score, forged against originals, both re-saved alike, with its 95 % bootstrap interval."""
    wins = np.asarray([[(f > o) + (f == o) / 2 for o in originals] for f in forged])
    rng = np.random.default_rng(SEED)
    rows = rng.integers(len(forged), size=(RESAMPLES, len(forged)))
    columns = rng.integers(len(originals), size=(RESAMPLES, len(originals)))
    means = [wins[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
    return _with_ends(wins.mean(), means)


def _with_ends(mean: float, draws: Any) -> dict[str, float]:
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return {"mean": float(mean), "low": float(low), "high": float(high)}


class At(NamedTuple):
    """Indices into the arrays of an Outcome: the threshold of the figures, and the one of the highest mean IoU."""

    used: int
    best: int


def summarise(outcomes: Mapping[str, Sequence[Outcome]], *, calibrated: bool) -> dict[str, Any]:
    """All figures of one model; on the reporting half, but for the choice of thresholds. outcomes: by their source."""
    forged, clean, real = outcomes["manipulated"], outcomes["untouched"], outcomes["forged/dev"]
    originals = _by_kind(outcomes["originals"])
    choosing = [outcome for outcome in forged if outcome.half == "choose"]
    reporting = [outcome for outcome in forged if outcome.half == "report"]
    best = best_threshold(choosing)
    allowed = best_threshold(choosing, [outcome for outcome in clean if outcome.half == "choose"])
    at = At(used=-1 if calibrated else allowed, best=best)
    return {
        "threshold": {
            "used": forged[0].threshold if calibrated else float(THRESHOLDS[allowed]),
            "origin": "calibration" if calibrated else "choosing half",
            "best": float(THRESHOLDS[best]),
        },
        "photos": {half: len({o.group for o in forged if o.half == half}) for half in ("choose", "report")},
        "kinds": {kind: _figures(found, at) for kind, found in _by_kind(reporting).items()},
        "mean": _figures(reporting, at),
        "saved": {
            name: _figures([outcome for outcome in reporting if outcome.jpeg == jpeg], at)
            for name, jpeg in (("lossless", False), ("JPEG 75-95", True))
        },
        "JPEG 75": _figures(outcomes["JPEG 75"], at),
        "untouched": {
            half: {kind: _alarms(found, at) for kind, found in _by_kind([o for o in clean if o.half == half]).items()}
            for half in ("report", "choose")
        },
        "sizes": {kind: _sizes(found) for kind, found in _by_kind(clean).items()},
        "forged": {
            name: {
                ("JPEG 90" if jpeg else "as they are"): _figures([o for o in found if o.jpeg == jpeg], at)
                for jpeg in (False, True)
            }
            for name, found in _by_kind(real).items()
        },
        "originals": {name: _alarms([o for o in found if not o.jpeg], at) for name, found in originals.items()},
        "told apart": {
            name: told_apart([o.score for o in real if o.kind == name and o.jpeg], [o.score for o in found if o.jpeg])
            for name, found in originals.items()
        },
    }


def _figures(outcomes: Sequence[Outcome], at: At) -> dict[str, Any]:
    """Of forgeries. prevalence is what flagging everything reaches, both in AP and in IoU."""
    if not outcomes:
        return {"pictures": 0}
    return {
        "pictures": len(outcomes),
        "groups": len({outcome.group for outcome in outcomes}),
        "prevalence": interval(outcomes, lambda o: o.manipulated / o.pixels)["mean"],
        "ap": interval(outcomes, lambda o: o.ap),
        "auc": interval(outcomes, lambda o: o.auc),
        "iou": interval(outcomes, lambda o: float(o.iou()[at.used])),
        "f1": interval(outcomes, lambda o: float(o.f1()[at.used])),
        "iou_best": interval(outcomes, lambda o: float(o.iou()[at.best])),
        "verdicts": _verdicts(outcomes),
    }


def _alarms(outcomes: Sequence[Outcome], at: At) -> dict[str, Any]:
    """Of untouched photos."""
    areas = [float(outcome.flagged()[at.used]) for outcome in outcomes]
    worst = sorted(zip(areas, (outcome.group for outcome in outcomes), strict=True), reverse=True)[:5]
    return {
        "pictures": len(outcomes),
        "flagged": float(np.mean([area > FLAGGED for area in areas])),
        "flagged_best": float(np.mean([outcome.flagged()[at.best] > FLAGGED for outcome in outcomes])),
        "mean_area": float(np.mean(areas)),
        "worst": [[group, round(area, 4)] for area, group in worst if area > FLAGGED],
        "verdicts": _verdicts(outcomes),
    }


def _sizes(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of untouched photos of each size: how many are called manipulated, with the exact 95 % interval of that share."""
    rows = []
    for i, size in enumerate(SIZE_CLASSES):
        found = [outcome.verdict for outcome in outcomes if Calibration.size_class(outcome.pixels) == i]
        row = {"size": size, "pictures": len(found)}
        row |= {word: found.count(word) for word in ("manipulated", "inconclusive")}
        share = binomtest(row["manipulated"], len(found)).proportion_ci() if found else None
        rows.append(row | {"low": share.low if share else math.nan, "high": share.high if share else math.nan})
    return rows


def _verdicts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.verdict or "none" for outcome in outcomes).items()))


# Time and memory ---------------------------------------------------------------------------------------------------


class TimedEngine(Wrapped):
    """An engine that notes how long it computes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seconds = 0.0

    def state(self, views: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        state = super().state(views)
        self.seconds += time.perf_counter() - start
        return state

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        start = time.perf_counter()
        logits = super().logits(inputs)
        self.seconds += time.perf_counter() - start
        return logits


# A process counts the memory of the one it was started from, so a small one stands in between.
_STOPWATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss * 1024]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_command(model: Path, photo: Path, out: Path) -> tuple[float, int]:
    """(seconds, peak bytes of memory) of `declip localize` in a fresh process, files written."""
    command = [sys.executable, "-m", "declip", "localize", photo, "--out", out, "--model", model, "--force"]
    done = subprocess.run([sys.executable, "-c", _STOPWATCH, *map(str, command)], check=True, stdout=subprocess.PIPE)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def time_model(model: Path, photos: Sequence[Path]) -> dict[str, Any]:
    """Time and memory of the command line on a photo of 12 megapixels and on one of 512 × 512 px."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, small = folder / "large.jpg", folder / "small.jpg"
        pixels = _twelve_megapixels(photos)
        Image.fromarray(pixels).save(large, "JPEG", quality=92)
        Image.fromarray(np.ascontiguousarray(pixels[1000:1512, 1000:1512])).save(small, "JPEG", quality=92)
        run_command(model, small, folder)  # the file cache is warm from here on
        seconds, memory = run_command(model, large, folder)
        starts = [run_command(model, small, folder)[0] for _ in range(5)]
        engine = TimedEngine(load(model).engine)
        localizer = Localizer(engine)
        list(localize_files(localizer, [(large, Path(large.name))], folder, force=True))
        network = engine.seconds
        started = []
        for _ in range(5):
            start = time.perf_counter()
            localizer(small)
            started.append(time.perf_counter() - start)
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    times = {"seconds": statistics.median(starts), "started_seconds": statistics.median(started)}
    return {
        "large": size | {"seconds": seconds, "peak_bytes": memory, "network_seconds": network},
        "small": {"height": 512, "width": 512} | times,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load_before,
    }


def _twelve_megapixels(photos: Sequence[Path]) -> Pixels:
    """The middle 3000 × 4000 px of the smallest photo that has them; failing that, the largest enlarged."""
    sizes = {path: Image.open(path).size for path in sorted(photos, key=lambda path: math.prod(Image.open(path).size))}
    fitting = [path for path, (width, height) in sizes.items() if width >= 4000 and height >= 3000]
    if not fitting:
        pixels = read_photo(list(sizes)[-1]).pixels
        return np.asarray(Image.fromarray(pixels).resize((4000, 3000), Image.Resampling.BICUBIC))
    pixels = read_photo(fitting[0]).pixels
    top, left = (pixels.shape[0] - 3000) // 2, (pixels.shape[1] - 4000) // 2
    return np.ascontiguousarray(pixels[top : top + 3000, left : left + 4000])


def macs(spec: ModelSpec) -> float:
    """Multiply–accumulates of 256 × 256 px, in thousand millions, counted on one tile."""
    net = build_network(spec, load_weights=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, spec.input_size, spec.input_size))
    return float(counter.get_total_flops() / 2e9 * (256 / spec.input_size) ** 2)


# Goals -------------------------------------------------------------------------------------------------------------


def goals(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a small model was wanted to reach, and what this one measures: {"goal", "wanted", "measured", "met"}."""
    rows: list[tuple[str, str, float, float]] = []
    kinds, mean = card["kinds"], card["mean"]
    for name, bound, wanted in (
        ("all kinds", 0.50, list(kinds)),
        ("in-painting", 0.65, [kind for kind in kinds if family_of(kind) == "in-painting"]),
        ("regeneration", 0.50, [kind for kind in kinds if family_of(kind) == "regeneration"]),
    ):
        if wanted:
            value = statistics.fmean(kinds[kind]["iou"]["mean"] for kind in wanted)
            rows.append((f"mean IoU, {name}", ">=", bound, value))
    if left_out := card.get("leave_one_out"):
        rows.append(("mean IoU, families never met", ">=", 0.15, left_out["mean"]["iou"]))
        gain = left_out["mean"]["ap"] - left_out["mean"]["prevalence"]
        rows.append(("mean AP over the masks' share, families never met", ">=", 0.20, gain))
    for name, sets in FAMILIES.items():
        if all(one in card["forged"] for one in sets) and "training_free" in card:
            rows.append((f"AP over the best that needs no training, {name}", ">=", 0.15, _gain(card, sets)))
    if auc := card["told apart"].get("casia1_subset"):
        rows.append(("AUC of CASIA 1 against its originals, all as JPEG 90", ">=", 0.70, auc["mean"]))
    for kind, sizes in card["sizes"].items():
        for row in sizes:
            if row["pictures"] >= 50:
                name = f"untouched photos {row['size']} called manipulated, {kind}"
                rows.append((name, "<=", 0.02, row["manipulated"] / row["pictures"]))
    if card["JPEG 75"]["pictures"]:
        lost = 1 - card["JPEG 75"]["iou"]["mean"] / mean["iou"]["mean"]
        rows.append(("share of the IoU lost after JPEG 75", "<=", 0.35, lost))
    if "gmac" in card:
        rows.append(("GMAC of 256 × 256 px", "<=", 0.7, card["gmac"]))
    if timings := card.get("timings"):
        rows.append(("12 megapixels: seconds in the network", "<=", 5, timings["large"]["network_seconds"]))
        rows.append(("12 megapixels, files written: seconds", "<=", 8, timings["large"]["seconds"]))
        rows.append(("12 megapixels: peak memory, GB", "<=", 1.2, timings["large"]["peak_bytes"] / 1e9))
        rows.append(("512 × 512 px, once started: seconds", "<=", 0.4, timings["small"]["started_seconds"]))
    return [
        {
            "goal": goal,
            "wanted": f"{'≥' if sign == '>=' else '≤'} {bound:g}",
            "measured": round(value, 3),
            "met": value >= bound if sign == ">=" else value <= bound,
        }
        for goal, sign, bound, value in rows
    ]


def _gain(card: Mapping[str, Any], sets: Sequence[str]) -> float:
    """Mean AP over sets, above the best training-free map's and above the masks' share, each also a mean over them."""
    own = statistics.fmean(card["forged"][name]["as they are"]["ap"]["mean"] for name in sets)
    share = statistics.fmean(card["forged"][name]["as they are"]["prevalence"] for name in sets)
    others = [statistics.fmean(found[name] for name in sets) for found in card["training_free"].values()]
    return own - max(share, *others)


# Printing ----------------------------------------------------------------------------------------------------------


def print_goals(card: Mapping[str, Any], console: Console) -> None:
    """Print what was wanted of a model and what it reaches; docs/models.md has the rest."""
    table = Table("goal", "wanted", "measured", "met", title=f"{card['model']} {card['sha256'][:12]}")
    for row in goals(card):
        table.add_row(row["goal"], row["wanted"], f"{row['measured']:g}", "yes" if row["met"] else "no")
    console.print(table)


def print_comparison(cards: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The models side by side."""
    table = Table("AP / IoU", *(card["model"] for card in cards), title="side by side", title_justify="left")
    for kind in cards[0]["kinds"]:
        table.add_row(kind, *(_pair(card["kinds"][kind]) for card in cards))
    table.add_section()
    table.add_row("mean over kinds", *(_pair(card["mean"]) for card in cards))
    table.add_row("… at the best IoU's threshold", *(f"{card['mean']['iou_best']['mean']:.3f}" for card in cards))
    for kind in cards[0]["untouched"]["report"]:
        shares = (f"{card['untouched']['report'][kind]['flagged']:.1%}" for card in cards)
        table.add_row(f"untouched flagged, {kind}", *shares)
    table.add_section()
    for name in cards[0]["forged"]:
        for saved in ("as they are", "JPEG 90"):
            table.add_row(f"{name}, {saved}", *(_pair(card["forged"][name][saved]) for card in cards))
    console.print(table)


def _pair(figures: Mapping[str, Any]) -> str:
    return f"{figures['ap']['mean']:.3f} / {figures['iou']['mean']:.3f}" if figures["pictures"] else "–"


# The command -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure models by the protocol of docs/models.md.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="holds photos/ and forged/")
    parser.add_argument("--manipulated", type=int, metavar="N", help="manipulate at most N photos of each half")
    parser.add_argument("--model", action="append", help="a path or a catalogue name; repeatable (default: mini)")
    parser.add_argument("--quick", type=int, metavar="N", help="at most N photos of each half, N of each forged set")
    parser.add_argument("--no-timings", action="store_true", help="leave out time and memory")
    parser.add_argument("--no-write", action="store_true", help="print only; so do --model, --quick and --no-timings")
    parser.add_argument("--json", type=Path, help="put all figures of all models here")
    given = parser.parse_args()

    models = given.model or ["mini"]
    valid = given.data / "photos" / "valid"
    photos = _mixed([path for path in valid.iterdir() if path.suffix.lower() in EXTENSIONS], given.quick)
    chosen = _mixed(photos, given.manipulated)
    cards = measure_models([load(model) for model in models], photos, chosen, given.data, given.quick)
    if not given.no_timings:
        for model, card in zip(models, cards, strict=True):
            card["timings"] = time_model(resolve.resolve(model), photos)
    # A table is never squeezed into a narrow pipe.
    console = Console(width=None if sys.stdout.isatty() else 150)
    print_comparison(cards, console)
    if given.json:
        given.json.write_text(json.dumps(cards, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    left_out = ROOT / "docs" / "leave-one-out.json"
    if not given.model and left_out.exists():
        cards[0]["leave_one_out"] = json.loads(left_out.read_text(encoding="utf-8"))
    for card in cards:
        print_goals(card, console)
    if not (given.model or given.quick or given.no_timings or given.no_write):
        draw(load("mini"), cards[0], chosen, given.data / "weights")
        write(cards[0], given.data / "photos" / "ATTRIBUTION.csv")


def draw(localizer: Localizer, card: dict[str, Any], photos: Sequence[Path], autoencoder: Path) -> None:
    """Draw mini-robustness.png, whose figures go into the card, and mini-misses.png, of the reporting half."""
    images = ROOT / "docs" / "images"
    reporting = [path for path in photos if half_of(path.name) == "report"]
    # Of every second photo: a mean over all kinds needs no more, and there are seventeen versions of each.
    cases = [case for case in forgeries(reporting[::2], KINDS, autoencoder) if case is not None]
    card["robustness"] = card_figures.robustness(localizer, cases)
    plots.save(card_figures.robustness_figure(card["robustness"]), images / "mini-robustness.png")
    hardest = card_figures.hardest(card["kinds"])
    shown = [path for path in reporting if path.name.startswith(card_figures.SHOWN_SOURCES)]
    cases = [case for case in forgeries(shown, hardest, autoencoder) if case is not None]
    misses = images / "mini-misses.png"
    plots.save(card_figures.misses(localizer, cases, hardest), misses)
    Image.open(misses).convert("RGB").quantize(256).save(misses, optimize=True)  # a third of the bytes


def measure_models(
    predictors: Sequence[Predictor], photos: Sequence[Path], chosen: Sequence[Path], data: Path, quick: int | None
) -> list[dict[str, Any]]:
    """The figures of each model, all on the same pictures, each of which is made once.

    photos: measured as they are. chosen: those of them that are manipulated. quick: at most so many pictures of each
    forged set.
    """
    sets = data / "forged" / "dev"
    sources: dict[str, tuple[Iterable[Case | None], int | None]] = {
        "manipulated": (forgeries(chosen, KINDS, data / "weights"), len(chosen) * len(KINDS)),
        "untouched": (untouched(photos), 2 * len(photos)),
        "forged/dev": (published(sets, "image", quick), None),
        "originals": (published(sets, "original", quick), None),
    }
    measured: list[dict[str, list[Outcome]]] = [{name: [] for name in (*sources, "JPEG 75")} for _ in predictors]
    failed = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        for name, (cases, total) in sources.items():
            for case in bar.track(cases, total=total, description=name):
                if case is None:
                    failed += 1
                    continue
                for predictor, outcomes in zip(predictors, measured, strict=True):
                    outcomes[name] += measure(predictor, [case])
                    if name == "manipulated" and case.half == "report":
                        outcomes["JPEG 75"] += measure(predictor, [case.saved(75)])
    free = training_free([case for case in published(sets, "image", quick) if case.path is not None])
    cards = []
    for predictor, outcomes in zip(predictors, measured, strict=True):
        spec = getattr(predictor, "spec", None)
        calibrated = isinstance(spec, ModelSpec) and spec.calibration is not None
        identity = {key: getattr(predictor, key, "") for key in ("model", "sha256")}
        described = {"spec": json.loads(spec.to_json()), "gmac": macs(spec)} if isinstance(spec, ModelSpec) else {}
        card = identity | described | {"failed": failed} | summarise(outcomes, calibrated=calibrated)
        cards.append(card | {"training_free": free})
    return cards


def training_free(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Mean AP of each training-free map on each set."""
    return {
        name: {
            dataset: statistics.fmean(outcome.ap for outcome in outcomes)
            for dataset, outcomes in _by_kind(list(measure(baseline(), cases))).items()
        }
        for name, baseline in clues.BASELINES.items()
    }


def _mixed(photos: Sequence[Path], most: int | None) -> list[Path]:
    """Of each half at most the N that come first in the order of a hash, so that all sources are there; sorted."""
    mixed = sorted(photos, key=lambda path: zlib.crc32(path.name.encode()))
    halves = ([path for path in mixed if half_of(path.name) == half] for half in ("choose", "report"))
    return sorted(path for half in halves for path in half[:most])


def write(card: dict[str, Any], attribution: Path) -> None:
    """Write docs/models.json with all figures, and the pages made from it. attribution: of the training photos."""
    git = ["git", "describe", "--always", "--dirty"]
    record = {
        "declip": declip.__version__,
        "revision": subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or None,
        "libraries": {name: version(name) for name in ("numpy", "pillow", "onnxruntime", "opencv-python-headless")},
        "size_bytes": resolve.embedded_path().stat().st_size,
        **card,
        "training": json.loads((ROOT / "docs" / "mini-training.json").read_text(encoding="utf-8")),
        "goals": goals(card),
        "sources": sources_of(attribution),
    }
    model_page.RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    model_page.main()


def sources_of(attribution: Path) -> list[dict[str, Any]]:
    """Where the photos come from: what they are for, how many, source and licence, in the order of PARTS."""
    with attribution.open(encoding="utf-8", newline="") as file:
        counts = Counter((row["file"].partition("/")[0], row["source"], row["licence"]) for row in csv.DictReader(file))
    order = sorted(counts, key=lambda line: (list(PARTS).index(line[0]), -counts[line], line))
    return [{"use": PARTS[line[0]], "photos": counts[line], "source": line[1], "licence": line[2]} for line in order]


if __name__ == "__main__":
    main()
