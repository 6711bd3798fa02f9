"""Measure a localizer and write its card: docs/models.md and docs/models.json.

    python tools/model_card.py --data ../shared/data                  the embedded model; writes docs/
    python tools/model_card.py --model a.onnx --model b.safetensors   compares candidates; writes nothing

What is measured, always on the same pictures:
- `photos/valid`, split once and for all into two halves by a hash of the file name. Every photo is manipulated by every
  kind (`declip.synthesis.forge` on a native crop of at most 512 px, seeded by the photo's name and the kind); half
  of the results are re-saved as JPEG. The mask threshold that gives the highest mean IoU is chosen on one half, and
  everything is reported on the other. Intervals are 95 % bootstrap intervals over photos.
- The same photos untouched, whole files: as they are, and re-saved as JPEG 75.
- `forged/dev`: real manipulated pictures of eight sources that nobody here made.
- Time and memory of the command line, in fresh processes.

Needs `pip install 'declip[all]'`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import declip
from declip import image, metrics
from declip.errors import DatasetError, ImageError
from declip.localizer import Localizer, load
from declip.synthesis import forge
from declip.types import Engine, Localization, ModelSpec, Predictor, Sample

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Half = Literal["choose", "report"]

ROOT = Path(__file__).resolve().parents[1]
KINDS = (
    "telea",
    "navier-stokes",
    "patchmatch",
    "biharmonic",
    "regenerate-local",
    "splice-hard",
    "splice-feathered",
    "splice-poisson",
    "splice-colour",
    "copy-move",
    "blur",
    "noise",
    "resample",
    "relight",
)
SEED = 2
CROP = 512  # px
JPEG_QUALITY = (75, 95)
RESAMPLES = 2000
FLAGGED = 0.02  # share of the area from which an untouched photo counts as falsely flagged
THRESHOLDS = (np.arange(1, 200) / 200).astype(np.float32)


# What is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A picture with its known mask. group: what it shares a photo or scene with; jpeg: re-saved by this script."""

    kind: str
    group: str
    half: Half
    pixels: Pixels
    mask: Mask
    jpeg: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one model made of one case.

    hits, alarms: (T + 1,) manipulated and untouched pixels with a score of at least each of THRESHOLDS, and last of all
    the model's own threshold.
    """

    kind: str
    group: str
    half: Half
    jpeg: bool
    pixels: int
    manipulated: int
    hits: NDArray[np.int64]
    alarms: NDArray[np.int64]
    ap: float
    score: float
    verdict: str | None
    threshold: float

    def iou(self) -> NDArray[np.float64]:
        """(T + 1,) IoU at each threshold; nan where nothing is manipulated."""
        union = self.manipulated + self.alarms
        return self.hits / union if self.manipulated else np.full(len(union), np.nan)

    def flagged(self) -> NDArray[np.float64]:
        """(T + 1,) flagged share of the area."""
        return (self.hits + self.alarms) / self.pixels


def half_of(name: str) -> Half:
    """Which half a photo belongs to, from its file name alone."""
    return "choose" if hashlib.sha256(name.encode()).digest()[0] % 2 else "report"


def forgeries(photos: Sequence[Path], kinds: Sequence[str], autoencoder: Path) -> Iterator[Case | None]:
    """Every photo manipulated by every kind, in order; None where a manipulation did not succeed.

    A splice's donor is another photo of the same half. Exactly half of each kind's results are re-saved as JPEG.
    """
    for number, path in enumerate(photos):
        half = half_of(path.name)
        others = [other for other in photos if other != path and half_of(other.name) == half]
        pixels = image.read(path).pixels
        for place, kind in enumerate(kinds):
            rng = np.random.default_rng((SEED, zlib.crc32(path.name.encode()), zlib.crc32(kind.encode())))
            crop = _crop(pixels, rng)
            donor = None
            if kind.startswith("splice"):
                if not others:
                    yield None
                    continue
                donor = _crop(image.read(others[int(rng.integers(len(others)))]).pixels, rng)
            try:
                forged, mask = forge(crop, kind, rng, donor, autoencoder=autoencoder)
            except DatasetError:
                yield None
                continue
            jpeg = (number + place) % 2 == 1
            if jpeg:
                forged = _resaved(forged, int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)))
            yield Case(kind=kind, group=path.name, half=half, pixels=forged, mask=mask, jpeg=jpeg)


def untouched(photos: Sequence[Path]) -> Iterator[Case]:
    """Every photo whole, as it is and re-saved as JPEG 75."""
    for path in photos:
        pixels = image.read(path).pixels
        nothing = np.zeros(pixels.shape[:2], dtype=bool)
        common = {"group": path.name, "half": half_of(path.name), "mask": nothing}
        yield Case(kind="as they are", pixels=pixels, **common)
        yield Case(kind="JPEG 75", pixels=_resaved(pixels, 75), jpeg=True, **common)


def forged_sets(folder: Path) -> Iterator[Case]:
    """The real manipulated pictures: each as it is, and re-saved as JPEG 90; kind = the set's name."""
    for dataset in sorted(path for path in folder.iterdir() if (path / "image").is_dir()):
        for path in sorted((dataset / "image").iterdir()):
            sample = Sample(image=path, mask=dataset / "mask" / f"{path.stem}.png", label="fake")
            pixels, mask = image.read(path).pixels, image.read_mask(sample)
            common = {"kind": dataset.name, "group": _scene(path.stem), "half": "report", "mask": mask}
            yield Case(pixels=pixels, **common)
            yield Case(pixels=_resaved(pixels, 90), jpeg=True, **common)


def _scene(stem: str) -> str:
    """Variants of one photo share it: boat_inpainted_0 and boat_inpainted_1, rotation_img16 and scale_img16."""
    for mark in ("_inpainted", "_ours"):
        stem = stem.partition(mark)[0]
    for prefix in ("rotation_", "scale_", "scaling_"):
        stem = stem.removeprefix(prefix)
    return stem


def _crop(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = (min(CROP, side) for side in pixels.shape[:2])
    y = int(rng.integers(pixels.shape[0] - height + 1))
    x = int(rng.integers(pixels.shape[1] - width + 1))
    return np.ascontiguousarray(pixels[y : y + height, x : x + width])


def _resaved(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return image.read(buffer.getvalue()).pixels


# Measuring ---------------------------------------------------------------------------------------------------------


def measure(predictor: Predictor, cases: Iterable[Case]) -> Iterator[Outcome]:
    """What a model makes of each case, in order. Raises ImageError if it refuses one."""
    for case in cases:
        (result,) = predictor.map([case.pixels])
        if isinstance(result, ImageError):
            raise result
        yield _outcome(case, result)


def _outcome(case: Case, result: Localization) -> Outcome:
    inside, outside = result.scores[case.mask], result.scores[~case.mask]
    return Outcome(
        kind=case.kind,
        group=case.group,
        half=case.half,
        jpeg=case.jpeg,
        pixels=case.mask.size,
        manipulated=inside.size,
        hits=_at_least(inside, result.threshold),
        alarms=_at_least(outside, result.threshold),
        ap=metrics.average_precision(result.scores, case.mask),
        score=result.score,
        verdict=result.verdict,
        threshold=result.threshold,
    )


def _at_least(scores: NDArray[np.float32], own: float) -> NDArray[np.int64]:
    reached = np.bincount(np.searchsorted(THRESHOLDS, scores, side="right"), minlength=len(THRESHOLDS) + 1)
    counts = reached[::-1].cumsum()[::-1][1:]
    return np.append(counts, np.count_nonzero(scores >= own)).astype(np.int64)


def best_threshold(outcomes: Sequence[Outcome]) -> int:
    """Index into THRESHOLDS of the highest IoU, averaged over the kinds' means. All outcomes are used."""
    kinds = sorted({outcome.kind for outcome in outcomes})
    means = [np.mean([outcome.iou()[:-1] for outcome in outcomes if outcome.kind == kind], axis=0) for kind in kinds]
    return int(np.argmax(np.mean(means, axis=0)))


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
    """(photos × kinds) of a value, nan where there is none, and the photos' names."""
    groups = sorted({outcome.group for outcome in outcomes})
    kinds = sorted({outcome.kind for outcome in outcomes})
    values = np.full((len(groups), len(kinds)), np.nan)
    for outcome in outcomes:
        values[groups.index(outcome.group), kinds.index(outcome.kind)] = value(outcome)
    return values, groups


def summarise(
    forged: Sequence[Outcome], clean: Sequence[Outcome], real: Sequence[Outcome], kinds: Sequence[str]
) -> dict[str, Any]:
    """All figures of one model; `report` outcomes only, but for the choice of the threshold."""
    chosen = best_threshold([outcome for outcome in forged if outcome.half == "choose"])
    forged_report = [outcome for outcome in forged if outcome.half == "report"]
    return {
        "threshold": {"chosen": float(THRESHOLDS[chosen]), "own": forged[0].threshold},
        "photos": {half: len({o.group for o in forged if o.half == half}) for half in ("choose", "report")},
        "kinds": {
            kind: _figures([outcome for outcome in forged_report if outcome.kind == kind], chosen) for kind in kinds
        },
        "mean": _figures(forged_report, chosen),
        "saved": {
            name: _figures([outcome for outcome in forged_report if outcome.jpeg == jpeg], chosen)
            for name, jpeg in (("lossless", False), ("JPEG 75-95", True))
        },
        "untouched": {
            half: {
                kind: _alarms([o for o in clean if o.kind == kind and o.half == half], chosen)
                for kind in ("as they are", "JPEG 75")
            }
            for half in ("report", "choose")
        },
        "choice": _choice(forged, clean),
        "forged": {
            name: {
                ("JPEG 90" if jpeg else "as they are"): _figures(
                    [outcome for outcome in real if outcome.kind == name and outcome.jpeg == jpeg], chosen
                )
                for jpeg in (False, True)
            }
            for name in sorted({outcome.kind for outcome in real})
        },
    }


def _figures(outcomes: Sequence[Outcome], chosen: int) -> dict[str, Any]:
    """Of forgeries. prevalence is what flagging everything reaches, both in AP and in IoU."""
    if not outcomes:
        return {"pictures": 0}
    return {
        "pictures": len(outcomes),
        "groups": len({outcome.group for outcome in outcomes}),
        "prevalence": interval(*_rows(outcomes, lambda o: o.manipulated / o.pixels))["mean"],
        "ap": interval(*_rows(outcomes, lambda o: o.ap)),
        "iou": interval(*_rows(outcomes, lambda o: float(o.iou()[chosen]))),
        "iou_own": interval(*_rows(outcomes, lambda o: float(o.iou()[-1]))),
        "verdicts": _verdicts(outcomes),
    }


def _alarms(outcomes: Sequence[Outcome], chosen: int) -> dict[str, Any]:
    """Of untouched photos."""
    if not outcomes:
        return {"pictures": 0}
    return {
        "pictures": len(outcomes),
        "flagged": float(np.mean([outcome.flagged()[chosen] > FLAGGED for outcome in outcomes])),
        "flagged_own": float(np.mean([outcome.flagged()[-1] > FLAGGED for outcome in outcomes])),
        "mean_area": float(np.mean([outcome.flagged()[chosen] for outcome in outcomes])),
        "worst": [
            [outcome.group, round(float(outcome.flagged()[chosen]), 4)]
            for outcome in sorted(outcomes, key=lambda o: -o.flagged()[chosen])[:5]
            if outcome.flagged()[chosen] > FLAGGED
        ],
        "verdicts": _verdicts(outcomes),
    }


def _verdicts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.verdict or "none" for outcome in outcomes).items()))


def _choice(forged: Sequence[Outcome], clean: Sequence[Outcome]) -> list[dict[str, float]]:
    """On the choosing half, at every twentieth threshold: mean IoU, and share of untouched photos flagged."""
    forged = [outcome for outcome in forged if outcome.half == "choose"]
    clean = [outcome for outcome in clean if outcome.half == "choose" and not outcome.jpeg]
    kinds = sorted({outcome.kind for outcome in forged})
    iou = np.mean([np.mean([o.iou() for o in forged if o.kind == kind], axis=0) for kind in kinds], axis=0)
    flagged = np.mean([outcome.flagged() > FLAGGED for outcome in clean], axis=0) if clean else np.full_like(iou, np.nan)
    rows = range(9, len(THRESHOLDS), 10)
    return [{"threshold": float(THRESHOLDS[i]), "iou": float(iou[i]), "flagged": float(flagged[i])} for i in rows]


# Time and memory ---------------------------------------------------------------------------------------------------


class TimedEngine:
    """An engine that notes how long it computes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = 0.0

    @property
    def spec(self) -> ModelSpec:
        return self._engine.spec

    @property
    def model(self) -> str:
        return self._engine.model

    @property
    def sha256(self) -> str:
        return self._engine.sha256

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        start = time.perf_counter()
        try:
            return self._engine.logits(inputs)
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
    from declip.outputs import localize_files

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
    return {
        "large": {
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "seconds": seconds,
            "peak_bytes": memory,
            "network_share": share,
        },
        "small": {"height": 512, "width": 512, "seconds": statistics.median(starts)},
        "cores": _cores(),
    }


def _twelve_megapixels(photos: Sequence[Path]) -> Pixels:
    """The middle 3000 × 4000 px of the smallest photo that has them; failing that, the largest enlarged."""
    sizes = {path: Image.open(path).size for path in photos}
    fitting = [path for path, (width, height) in sizes.items() if width >= 4000 and height >= 3000]
    if not fitting:
        largest = max(photos, key=lambda path: sizes[path][0] * sizes[path][1])
        return np.asarray(Image.fromarray(image.read(largest).pixels).resize((4000, 3000), Image.Resampling.BICUBIC))
    pixels = image.read(min(fitting, key=lambda path: sizes[path][0] * sizes[path][1])).pixels
    top, left = (pixels.shape[0] - 3000) // 2, (pixels.shape[1] - 4000) // 2
    return np.ascontiguousarray(pixels[top : top + 3000, left : left + 4000])


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Printing ----------------------------------------------------------------------------------------------------------


def print_card(card: Mapping[str, Any], console: Console) -> None:
    """One model's tables."""
    thresholds = card["threshold"]
    table = Table(
        title=f"{card['model']}: photos/valid, reporting half; threshold {thresholds['chosen']:.3f} chosen on the other "
        f"half (its own: {thresholds['own']:.3f})",
        title_justify="left",
    )
    for column in ("kind", "pictures", "everything", "AP", "IoU", "IoU, own threshold", "verdicts"):
        table.add_column(column, justify="left" if column in ("kind", "verdicts") else "right")
    for kind, figures in card["kinds"].items():
        _add(table, kind, figures)
    table.add_section()
    _add(table, "mean over kinds", card["mean"])
    for name, figures in card["saved"].items():
        _add(table, f"… {name}", figures)
    console.print(table)

    table = Table("untouched", "half", "photos", f"> {FLAGGED:.0%} flagged", "own threshold", "mean area", "verdicts")
    for half, kinds in card["untouched"].items():
        for kind, figures in kinds.items():
            if figures["pictures"]:
                shares = (figures["flagged"], figures["flagged_own"], figures["mean_area"])
                table.add_row(
                    kind,
                    half,
                    str(figures["pictures"]),
                    *(f"{share:.1%}" for share in shares),
                    _counts(figures["verdicts"]),
                )
    console.print(table)

    table = Table("threshold (choosing half)", *(f"{row['threshold']:.2f}" for row in card["choice"][::2]))
    table.add_row("mean IoU", *(f"{row['iou']:.3f}" for row in card["choice"][::2]))
    table.add_row("untouched flagged", *(f"{row['flagged']:.0%}" for row in card["choice"][::2]))
    console.print(table)

    if card["forged"]:
        table = Table(title="forged/dev: real manipulations", title_justify="left")
        for column in ("set", "pictures", "everything", "AP", "IoU", "IoU, own threshold", "verdicts"):
            table.add_column(column, justify="left" if column in ("set", "verdicts") else "right")
        for name, saved in card["forged"].items():
            _add(table, name, saved["as they are"])
            _add(table, "  … JPEG 90", saved["JPEG 90"])
        console.print(table)

    if timings := card.get("timings"):
        large, small = timings["large"], timings["small"]
        console.print(
            f"{large['width']} × {large['height']} px, files written: {large['seconds']:.1f} s "
            f"(network {large['network_share']:.0%}), peak {large['peak_bytes'] / 1e9:.2f} GB; "
            f"512 × 512 px from start to end: {small['seconds']:.2f} s; {timings['cores']} cores"
        )


def _add(table: Table, name: str, figures: Mapping[str, Any]) -> None:
    if figures["pictures"]:
        table.add_row(
            name,
            str(figures["pictures"]),
            f"{figures['prevalence']:.3f}",
            *(_range(figures[key]) for key in ("ap", "iou")),
            f"{figures['iou_own']['mean']:.3f}",
            _counts(figures["verdicts"]),
        )


def _range(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} ({figure['low']:.2f}–{figure['high']:.2f})"


def _counts(verdicts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in verdicts.items())


def print_comparison(cards: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The models side by side: AP / IoU."""
    table = Table("AP / IoU", *(card["model"] for card in cards), title="side by side", title_justify="left")
    for kind in cards[0]["kinds"]:
        table.add_row(kind, *(_pair(card["kinds"][kind]) for card in cards))
    table.add_section()
    table.add_row("mean over kinds", *(_pair(card["mean"]) for card in cards))
    table.add_row(
        "untouched flagged",
        *(" / ".join(f"{f['flagged']:.1%}" for f in card["untouched"]["report"].values()) for card in cards),
    )
    table.add_section()
    for name in cards[0]["forged"]:
        table.add_row(name, *(_pair(card["forged"][name]["as they are"]) for card in cards))
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
    parser.add_argument("--quick", type=int, metavar="N", help="at most N photos of each half; writes nothing")
    parser.add_argument("--no-forged", action="store_true", help="leave out forged/dev; writes nothing")
    parser.add_argument("--no-timings", action="store_true", help="leave out time and memory; writes nothing")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--json", type=Path, help="also write all figures of all models here")
    arguments = parser.parse_args()

    models = arguments.model or ["mini"]
    kinds = tuple(arguments.kinds.split(","))
    photos = _photos(arguments.data / "photos" / "valid", arguments.quick)
    localizers = [load(model) for model in models]
    cards = measure_models(
        localizers, photos, kinds, arguments.data, real=not arguments.no_forged, progress=sys.stderr.isatty()
    )
    for model, card in zip(models, cards, strict=True):
        if not arguments.no_timings:
            card["timings"] = time_model(declip.weights.resolve(model), photos)
    # A table is never squeezed into a narrow pipe.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for card in cards:
        print_card(card, console)
    if len(cards) > 1:
        print_comparison(cards, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(cards, indent=1) + "\n", encoding="utf-8")


def measure_models(
    predictors: Sequence[Predictor],
    photos: Sequence[Path],
    kinds: Sequence[str],
    data: Path,
    *,
    real: bool = True,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """The figures of each model, all on the same pictures, each of which is made once."""
    forged: list[list[Outcome]] = [[] for _ in predictors]
    clean: list[list[Outcome]] = [[] for _ in predictors]
    genuine: list[list[Outcome]] = [[] for _ in predictors]
    failed = 0
    total = len(photos) * len(kinds)
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("manipulated", total=total)
        for case in forgeries(photos, kinds, data / "weights"):
            bar.advance(task)
            if case is None:
                failed += 1
                continue
            for predictor, outcomes in zip(predictors, forged, strict=True):
                outcomes += measure(predictor, [case])
        task = bar.add_task("untouched", total=2 * len(photos))
        for case in untouched(photos):
            bar.advance(task)
            for predictor, outcomes in zip(predictors, clean, strict=True):
                outcomes += measure(predictor, [case])
        task = bar.add_task("forged/dev", total=None)
        for case in forged_sets(data / "forged" / "dev") if real else ():
            bar.advance(task)
            for predictor, outcomes in zip(predictors, genuine, strict=True):
                outcomes += measure(predictor, [case])
    cards = []
    for predictor, *outcomes in zip(predictors, forged, clean, genuine, strict=True):
        identity = {key: getattr(predictor, key, "") for key in ("model", "sha256")}
        cards.append({**identity, "failed": failed, **summarise(*outcomes, kinds)})
    return cards


def _photos(folder: Path, quick: int | None) -> list[Path]:
    """The photos, sorted; of each half the N that come first in the order of a hash, so that all sources are there."""
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in image.EXTENSIONS)
    if quick is None:
        return photos
    mixed = sorted(photos, key=lambda path: zlib.crc32(path.name.encode()))
    return sorted(path for half in ("choose", "report") for path in [p for p in mixed if half_of(p.name) == half][:quick])


if __name__ == "__main__":
    main()
