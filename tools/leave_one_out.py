"""How much of a manipulation does a model see that has never met its family? Train without each family, test on it.

    python tools/leave_one_out.py --data ../shared/data --work data/mini

Five trainings of recipes/mini.toml on the first part of the embedded model's data (tools/make_mini.py), shorter than
its own, each without one family of manipulations. The rule of the mask of each is chosen as the embedded model's is, on
the choosing half of photos/valid (of its forgeries a third) and the families that were met; figures are those of the
family left out, on the reporting half. Writes docs/leave-one-out.json, which `make model-card` reads. Each training
resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from declip import calibration, training
from declip.engines import Wrapped, open_engine
from declip.localize.localizer import Localizer
from declip.models import export
from declip.spec import Calibration
from declip.synthesis import family_of

sys.path.insert(0, str(Path(__file__).parent))
import card_cases
import make_mini

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("ap", "iou", "prevalence")


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "data/mini")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--family", action="append", help="of these only, and nothing is written; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    changes = [f"epochs={arguments.epochs}", *arguments.set]
    config = training.TrainConfig.from_toml(ROOT / "recipes/mini.toml", changes)

    parts = {
        name: make_mini.make_data(arguments.data, arguments.work / name, make_mini.PARTS[name])
        for name in ("train", "valid")
    }
    photos = make_mini.pictures(arguments.data / "photos/valid")
    choosing = {path.stem for path in photos if card_cases.half_of(path.name) == "choose"}
    families = sorted({family_of(kind) for kind in card_cases.KINDS})
    # Of the choosing half a third is enough for a mean over all kinds; what decides a threshold are the untouched.
    third = [p for p in photos if card_cases.half_of(p.name) == "choose"][::3]
    chosen = sorted(third + [p for p in photos if card_cases.half_of(p.name) == "report"])
    forged = [case for case in card_cases.forgeries(chosen, card_cases.KINDS, arguments.data / "weights") if case]
    clean = [case for case in card_cases.untouched(photos) if case.half == "choose"]
    rows: dict[str, Any] = {}
    for family in arguments.family or families:
        met = [s for s in parts["train"] if s.label == "real" or family_of(s.source) != family]
        valid = [
            s for s in parts["valid"] if s.group in choosing and (s.label == "real" or family_of(s.source) != family)
        ]
        out = arguments.work / "leave-one-out" / family
        run = training.train(config, train=met, valid=valid, out=out, resume=True, cache=arguments.work / "features")
        rows[family] = measure(run.best, family, forged, clean)
        print(family, json.dumps(rows[family]), flush=True)
    record = {
        "recipe": changes,
        "epochs": arguments.epochs,
        "pairs": sum(sample.label == "fake" for sample in parts["train"]),
        "families": rows,
        "mean": _mean(list(rows.values())),
    }
    print(json.dumps(record["mean"]))
    if not arguments.family:
        target = ROOT / "docs/leave-one-out.json"
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(
    best: Path, family: str, forged: Sequence[card_cases.Case], clean: Sequence[card_cases.Case]
) -> dict[str, Any]:
    """AP, IoU at the threshold, and the masks' share, of the family that was left out: means over its kinds."""
    localizer = Localizer(open_engine(export.to_onnx(best, best.with_suffix(".onnx"))))
    known = [case for case in forged if case.half == "choose" and family_of(case.kind) != family]
    thresholds = calibration.THRESHOLDS
    untouched = [
        calibration.Untouched.of(calibration.Place(number, number), localizer(case.pixels).scores, thresholds)
        for number, case in enumerate(clean)
    ]
    base = Calibration(rates=(0.05,), mode=localizer.mode, precision=localizer.precision)
    fakes = ((localizer(case.pixels).scores, case.mask) for case in known)
    rule = calibration.fit_threshold(fakes, calibration.candidates(untouched, thresholds, base))
    localizer = Localizer(Wrapped(localizer.engine, dataclasses.replace(localizer.spec, calibration=rule)))
    kinds: dict[str, dict[str, float]] = {}
    for kind in (kind for kind in card_cases.KINDS if family_of(kind) == family):
        cases = [case for case in forged if case.half == "report" and case.kind == kind]
        outcomes = list(card_cases.measure(localizer, cases))
        rows = [(one.ap, one.iou()[-1], one.manipulated / one.pixels) for one in outcomes]
        kinds[kind] = {key: float(np.mean(found)) for key, found in zip(FIGURES, zip(*rows, strict=True), strict=True)}
    return _mean(list(kinds.values())) | {"threshold": rule.threshold, "kinds": kinds}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {key: float(np.mean([row[key] for row in rows])) for key in FIGURES}


if __name__ == "__main__":
    main()
