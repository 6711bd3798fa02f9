"""Measure a localizer and write its card: docs/models.md and docs/models.json; mini.json beside its weights.

    python tools/model_card.py                                        the embedded model; writes docs/
    python tools/model_card.py --model a.onnx --model b.safetensors   compares candidates; writes nothing

What is measured, always on the same pictures:
- `photos/valid`, split once and for all into two halves by a hash of the file name. Every photo is manipulated by every
  kind (`declip.synthesis.forge` on a native crop of at most 512 px, seeded by the photo's name and the kind); half
  of the results are re-saved as JPEG. Thresholds are chosen on one half, and everything is reported on the other.
  Intervals are 95 % bootstrap intervals over photos.
- The same photos untouched, whole files: as they are, and re-saved as JPEG 75.
- The manipulated ones of the reporting half saved again as JPEG 75.
- `forged/dev`: real manipulated pictures that nobody here made; the originals of some of them; and what the
  training-free maps make of them (`declip.baselines`).
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
import dataclasses
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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    forged_originals,
    forged_sets,
    forgeries,
    half_of,
    measure,
    resaved,
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
from declip import baselines
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


def interval(values: NDArray[np.float64], groups: Sequence[str]) -> dict[str, float]:
    """Mean over rows, then over columns, with its 95 % bootstrap interval over groups of rows.

    values: (N, K) with nan where there is none; groups: N names, resampled as wholes. {"mean", "low", "high"}.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, index, np.nan_to_num(values))
    np.add.at(counts, index, ~np.isnan(values))
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    with np.errstate(invalid="ignore"):
        means = np.nanmean(drawn @ sums / (drawn @ counts), axis=1)
        mean = float(np.nanmean(sums.sum(axis=0) / counts.sum(axis=0)))
    low, high = np.nanquantile(means, (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


def _rows(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> tuple[NDArray[np.float64], list[str]]:
    """A row per outcome, a column per kind: the value in the outcome's own column, else nan; and the rows' groups."""
    kinds = sorted({outcome.kind for outcome in outcomes})
    values = np.full((len(outcomes), len(kinds)), np.nan)
    for row, outcome in enumerate(outcomes):
        values[row, kinds.index(outcome.kind)] = value(outcome)
    return values, [outcome.group for outcome in outcomes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Indices into the arrays of an Outcome: the threshold of the figures, and the one of the highest mean IoU."""

    used: int
    best: int


def summarise(
    forged: Sequence[Outcome],
    clean: Sequence[Outcome],
    real: Sequence[Outcome],
    originals: Sequence[Outcome],
    again: Sequence[Outcome] = (),
    *,
    calibrated: bool,
) -> dict[str, Any]:
    """All figures of one model; on the reporting half, but for the choice of thresholds. again: forged, as JPEG 75."""
    choosing = [outcome for outcome in forged if outcome.half == "choose"]
    best = best_threshold(choosing)
    allowed = best_threshold(choosing, [outcome for outcome in clean if outcome.half == "choose"])
    at = Thresholds(used=-1 if calibrated else allowed, best=best)
    reporting = [outcome for outcome in forged if outcome.half == "report"]
    return {
        "threshold": {
            "used": forged[0].threshold if calibrated else float(THRESHOLDS[allowed]),
            "origin": "calibration" if calibrated else "choosing half",
            "best": float(THRESHOLDS[best]),
        },
        "photos": {half: len({o.group for o in forged if o.half == half}) for half in ("choose", "report")},
        "kinds": {kind: _figures(outcomes, at) for kind, outcomes in _by_kind(reporting).items()},
        "mean": _figures(reporting, at),
        "saved": {
            name: _figures([outcome for outcome in reporting if outcome.jpeg == jpeg], at)
            for name, jpeg in (("lossless", False), ("JPEG 75-95", True))
        },
        "JPEG 75": _figures(again, at),
        "untouched": {
            half: {kind: _alarms(o, at) for kind, o in _by_kind([o for o in clean if o.half == half]).items()}
            for half in ("report", "choose")
        },
        "sizes": {kind: _sizes(outcomes) for kind, outcomes in _by_kind(clean).items()},
        "choice": _choice(forged, clean),
        "forged": {
            name: {
                ("JPEG 90" if jpeg else "as they are"): _figures([o for o in outcomes if o.jpeg == jpeg], at)
                for jpeg in (False, True)
            }
            for name, outcomes in _by_kind(real).items()
        },
        "originals": {
            name: _alarms([o for o in outcomes if not o.jpeg], at) for name, outcomes in _by_kind(originals).items()
        },
        "told apart": {
            name: told_apart(
                [o.score for o in real if o.kind == name and o.jpeg], [o.score for o in outcomes if o.jpeg]
            )
            for name, outcomes in _by_kind(originals).items()
        },
    }


def told_apart(forged: Sequence[float], originals: Sequence[float]) -> dict[str, float]:
    """AUC of the image score, forged against originals, both re-saved alike, with its 95 % bootstrap interval."""
    wins = np.asarray([[(f > o) + (f == o) / 2 for o in originals] for f in forged])
    rng = np.random.default_rng(SEED)
    rows = rng.integers(len(forged), size=(RESAMPLES, len(forged)))
    columns = rng.integers(len(originals), size=(RESAMPLES, len(originals)))
    means = [wins[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(wins.mean()), "low": float(low), "high": float(high)}


def _figures(outcomes: Sequence[Outcome], at: Thresholds) -> dict[str, Any]:
    """Of forgeries. prevalence is what flagging everything reaches, both in AP and in IoU."""
    if not outcomes:
        return {"pictures": 0}
    return {
        "pictures": len(outcomes),
        "groups": len({outcome.group for outcome in outcomes}),
        "prevalence": interval(*_rows(outcomes, lambda o: o.manipulated / o.pixels))["mean"],
        "ap": interval(*_rows(outcomes, lambda o: o.ap)),
        "auc": interval(*_rows(outcomes, lambda o: o.auc)),
        "iou": interval(*_rows(outcomes, lambda o: float(o.iou()[at.used]))),
        "f1": interval(*_rows(outcomes, lambda o: float(o.f1()[at.used]))),
        "iou_best": interval(*_rows(outcomes, lambda o: float(o.iou()[at.best]))),
        "verdicts": _verdicts(outcomes),
    }


def _alarms(outcomes: Sequence[Outcome], at: Thresholds) -> dict[str, Any]:
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
        called, doubtful = found.count("manipulated"), found.count("inconclusive")
        share = binomtest(called, len(found)).proportion_ci() if found else None
        low, high = (share.low, share.high) if share is not None else (math.nan, math.nan)
        rows.append(
            {
                "size": size,
                "pictures": len(found),
                "manipulated": called,
                "inconclusive": doubtful,
                "low": low,
                "high": high,
            }
        )
    return rows


def _verdicts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.verdict or "none" for outcome in outcomes).items()))


def _choice(forged: Sequence[Outcome], clean: Sequence[Outcome]) -> list[dict[str, float]]:
    """On the choosing half, at every twentieth threshold: mean IoU, and share of untouched photos flagged."""
    kinds = _by_kind([outcome for outcome in forged if outcome.half == "choose"]).values()
    iou = np.mean([np.mean([outcome.iou() for outcome in kind], axis=0) for kind in kinds], axis=0)
    flagged = np.mean([outcome.flagged() > FLAGGED for outcome in clean if outcome.half == "choose"], axis=0)
    rows = range(9, len(THRESHOLDS), 20)
    return [{"threshold": float(THRESHOLDS[i]), "iou": float(iou[i]), "flagged": float(flagged[i])} for i in rows]


# Time and memory ---------------------------------------------------------------------------------------------------


class TimedEngine(Wrapped):
    """An engine that notes how long it computes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seconds = 0.0

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        start = time.perf_counter()
        try:
            return super().logits(inputs)
        finally:
            self.seconds += time.perf_counter() - start


# A process counts the memory of the one it was started from, so a small one stands in between.
_STOPWATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]))
"""


def run_command(model: Path, photo: Path, out: Path) -> tuple[float, int]:
    """(seconds, peak bytes of memory) of `declip localize` in a fresh process, files written."""
    command = [sys.executable, "-m", "declip", "localize", photo, "--out", out, "--model", model, "--force"]
    done = subprocess.run(
        [sys.executable, "-c", _STOPWATCH, *map(str, command)], check=True, capture_output=True, text=True
    )
    seconds, memory, status = json.loads(done.stdout)
    if status != 0:
        raise RuntimeError(f"declip localize ended with {status}: {done.stderr}")
    return seconds, memory


def time_model(model: Path, photos: Sequence[Path]) -> dict[str, Any]:
    """Time and memory of the command line on a photo of 12 megapixels and on one of 512 × 512 px."""
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
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
        start = time.perf_counter()
        list(localize_files(Localizer(engine), [(large, Path(large.name))], folder, force=True))
        share = engine.seconds / (time.perf_counter() - start)
        network, localizer = engine.seconds, Localizer(engine)
        started = []
        for _ in range(5):
            start = time.perf_counter()
            localizer(small)
            started.append(time.perf_counter() - start)
    return {
        "large": {
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "seconds": seconds,
            "peak_bytes": memory,
            "network_share": share,
            "network_seconds": network,
        },
        "small": {
            "height": 512,
            "width": 512,
            "seconds": statistics.median(starts),
            "started_seconds": statistics.median(started),
        },
        "cores": _cores(),
        "load_before": load_before,
    }


def _twelve_megapixels(photos: Sequence[Path]) -> Pixels:
    """The middle 3000 × 4000 px of the smallest photo that has them; failing that, the largest enlarged."""
    sizes = {path: Image.open(path).size for path in photos}
    fitting = [path for path, (width, height) in sizes.items() if width >= 4000 and height >= 3000]
    if not fitting:
        largest = max(photos, key=lambda path: sizes[path][0] * sizes[path][1])
        return np.asarray(Image.fromarray(read_photo(largest).pixels).resize((4000, 3000), Image.Resampling.BICUBIC))
    pixels = read_photo(min(fitting, key=lambda path: sizes[path][0] * sizes[path][1])).pixels
    top, left = (pixels.shape[0] - 3000) // 2, (pixels.shape[1] - 4000) // 2
    return np.ascontiguousarray(pixels[top : top + 3000, left : left + 4000])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    parser.add_argument("--model", action="append", help="a path or a catalogue name; repeatable (default: mini)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of manipulation, separated by commas")
    parser.add_argument("--manipulated", type=int, metavar="N", help="manipulate at most N photos of each half")
    parser.add_argument("--quick", type=int, metavar="N", help="at most N photos of each half, N of each forged set")
    parser.add_argument("--no-forged", action="store_true", help="leave out forged/dev")
    parser.add_argument("--no-timings", action="store_true", help="leave out time and memory")
    parser.add_argument("--no-write", action="store_true", help="print only; so does every option above but --data")
    parser.add_argument("--json", type=Path, help="put all figures of all models here")
    arguments = parser.parse_args()

    models = arguments.model or ["mini"]
    kinds = tuple(arguments.kinds.split(","))
    photos = _photos(arguments.data / "photos" / "valid", arguments.quick)
    cards = measure_models(
        [load(model) for model in models],
        photos,
        kinds,
        arguments.data,
        real=not arguments.no_forged,
        quick=arguments.quick,
        manipulated=arguments.manipulated,
        progress=sys.stderr.isatty(),
    )
    if not arguments.no_timings:
        for model, card in zip(models, cards, strict=True):
            card["timings"] = time_model(resolve.resolve(model), photos)
    # A table is never squeezed into a narrow pipe.
    console = Console(width=None if sys.stdout.isatty() else 150)
    print_comparison(cards, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(cards, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    whole = kinds == KINDS and not (arguments.quick or arguments.no_forged or arguments.no_timings)
    left_out = ROOT / "docs" / "leave-one-out.json"
    for card in cards:
        if not arguments.model and left_out.exists():
            card["leave_one_out"] = json.loads(left_out.read_text(encoding="utf-8"))
    for card in cards:
        print_goals(card, console)
    if whole and not arguments.model and not arguments.no_write:
        chosen = _photos(arguments.data / "photos" / "valid", arguments.manipulated)
        cards[0]["robustness"] = draw(load("mini"), cards[0], chosen, arguments.data / "weights", ROOT / "docs/images")
        write_page(cards[0], arguments.data / "photos" / "ATTRIBUTION.csv", ROOT / "docs")


def draw(
    localizer: Localizer, card: Mapping[str, Any], photos: Sequence[Path], autoencoder: Path, images: Path
) -> dict[str, Any]:
    """mini-robustness.png and mini-misses.png, of the reporting half; returns what the former shows."""
    reporting = [path for path in photos if half_of(path.name) == "report"]
    # Of every second photo: a mean over all kinds needs no more, and there are seventeen versions of each.
    cases = [case for case in forgeries(reporting[::2], KINDS, autoencoder) if case is not None]
    found = card_figures.robustness(localizer, cases)
    plots.save(card_figures.robustness_figure(found), images / "mini-robustness.png")
    hardest = card_figures.hardest(card["kinds"])
    shown = [path for path in reporting if path.name.startswith(card_figures.SHOWN_SOURCES)]
    cases = [case for case in forgeries(shown, hardest, autoencoder) if case is not None]
    misses = images / "mini-misses.png"
    plots.save(card_figures.misses(localizer, cases, hardest), misses)
    Image.open(misses).convert("RGB").quantize(256).save(misses, optimize=True)  # a third of the bytes
    return found


def measure_models(
    predictors: Sequence[Predictor],
    photos: Sequence[Path],
    kinds: Sequence[str],
    data: Path,
    *,
    real: bool = True,
    quick: int | None = None,
    manipulated: int | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """The figures of each model, all on the same pictures, each of which is made once.

    quick: at most so many pictures of each forged set. manipulated: at most so many photos of each half are
    manipulated; all are measured as they are.
    """
    sets = data / "forged" / "dev"
    chosen = _mixed(photos, manipulated)
    sources: list[tuple[str, Iterable[Case | None], int | None]] = [
        ("manipulated", forgeries(chosen, kinds, data / "weights"), len(chosen) * len(kinds)),
        ("untouched", untouched(photos), 2 * len(photos)),
        ("forged/dev", forged_sets(sets, quick) if real else (), None),
        ("originals", forged_originals(sets, quick) if real else (), None),
        ("JPEG 75", (), None),
    ]
    measured: list[list[list[Outcome]]] = [[[] for _ in sources] for _ in predictors]
    failed = 0
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        for number, (name, cases, total) in enumerate(sources):
            for case in bar.track(cases, total=total, description=name):
                if case is None:
                    failed += 1
                    continue
                for predictor, outcomes in zip(predictors, measured, strict=True):
                    outcomes[number] += measure(predictor, [case])
                    if name == "manipulated" and case.half == "report":
                        saved = dataclasses.replace(case, pixels=resaved(case.pixels, 75), jpeg=True)
                        outcomes[-1] += measure(predictor, [saved])
    free = training_free(sets, quick) if real else {}
    cards = []
    for predictor, outcomes in zip(predictors, measured, strict=True):
        spec = getattr(predictor, "spec", None)
        calibrated = isinstance(spec, ModelSpec) and spec.calibration is not None
        identity = {key: getattr(predictor, key, "") for key in ("model", "sha256")}
        described = {"spec": json.loads(spec.to_json()), "gmac": macs(spec)} if isinstance(spec, ModelSpec) else {}
        card = identity | described | {"failed": failed} | summarise(*outcomes, calibrated=calibrated)
        cards.append(card | ({"training_free": free} if free else {}))
    return cards


def training_free(folder: Path, quick: int | None = None) -> dict[str, dict[str, float]]:
    """Mean AP of each training-free map on each set, of the files as they are."""
    cases = [case for case in forged_sets(folder, quick) if case.path is not None]
    return {
        name: {
            dataset: statistics.fmean(outcome.ap for outcome in outcomes)
            for dataset, outcomes in _by_kind(list(measure(baseline(), cases))).items()
        }
        for name, baseline in baselines.BASELINES.items()
    }


def _photos(folder: Path, quick: int | None) -> list[Path]:
    """The photos, sorted; of each half the N that come first in the order of a hash, so that all sources are there."""
    return _mixed([path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS], quick)


def _mixed(photos: Sequence[Path], quick: int | None) -> list[Path]:
    """Of each half at most the N that come first in the order of a hash, sorted by name."""
    mixed = sorted(photos, key=lambda path: zlib.crc32(path.name.encode()))
    halves = ([path for path in mixed if half_of(path.name) == half] for half in ("choose", "report"))
    return sorted(path for half in halves for path in half[:quick])


def write_page(card: dict[str, Any], attribution: Path, docs: Path) -> None:
    """models.json with all figures, the pages made from it, and beside the weights what a report shows of them."""
    path = resolve.embedded_path()
    record = {
        "declip": declip.__version__,
        "revision": _revision(),
        "libraries": {name: version(name) for name in ("numpy", "pillow", "onnxruntime", "opencv-python-headless")},
        "size_bytes": path.stat().st_size,
        **card,
        "training": json.loads((docs / "mini-training.json").read_text(encoding="utf-8")),
        "goals": goals(card),
    }
    (docs / "models.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (docs / "models.md").write_text(model_page.page(record, attribution), encoding="utf-8")
    (docs / "mini-photos.md").write_text(model_page.photos_page(attribution), encoding="utf-8")
    figures = json.dumps(model_page.shipped(record), indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(figures + "\n", encoding="utf-8")


def _revision() -> str | None:
    """The commit of the working tree, marked where it has changes; None outside of a clone."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return git.stdout.strip() or None


if __name__ == "__main__":
    main()
