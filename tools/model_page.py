"""docs/models.md, written from the figures that tools/model_card.py measured. Used by that script only."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import rival_sizes

from declip.models.catalog import MODELS
from declip.spec import SIZE_CLASSES, STATISTICS, ModelSpec

__all__ = ["page", "photos_page", "shipped"]

Figures = Mapping[str, Any]

SETS = {
    "casia1_subset": "splices and copy–moves made in Photoshop, 384 × 256 px (CASIA 1)",
    "cmh_copymove": "copy–move; source and target are both in the mask (CMH)",
    "copymove_baheesa_rot_scale": "copy–move, turned or scaled; source and target are both in the mask",
    "crfill_places256": "in-painting by a GAN (CRFill), 256 px",
    "inpaintanything_lama": "objects removed by LaMa",
    "inpaintanything_sd2": "in-painting by Stable Diffusion 2",
    "pixelhacker_celebahq": "in-painting by latent diffusion (PixelHacker), faces, half of the picture",
    "psbattles_mantranet": "edits by amateurs (PS-Battles)",
}
FIXED = {
    "residual-statistics": "fixed high-pass filters, and the local strength of what they leave",
    "block-statistics": "the spectrum of JPEG's blocks, the share of coefficients near zero, and grids of 8 and 4 px",
    "quantization-statistics": "by which steps the coefficients of JPEG's blocks are or were quantized",
    "pixels": "the picture itself, for learnt filters",
}
DOLOS = ("dolos-ldm", "dolos-repaint", "dolos-lama", "dolos-pluralistic")
PARTS = {"train": "training", "valid": "choosing and reporting", "calibrate": "verdicts"}
PHOTOS = """# Photos of the embedded model

This page lists the photos that `mini` was trained, measured and calibrated on ([models.md](models.md)), with their
sources and licences. They are not part of this repository. `make model-card` writes this page.
"""


def page(record: Figures, attribution: Path) -> str:
    """Return the page. record: what docs/models.json holds; attribution: the list of the training photos (CSV)."""
    spec = ModelSpec.from_json(json.dumps(record["spec"]))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return (
        templates.get_template("models.md.jinja").render(
            record=record,
            spec=spec,
            sizes=SIZE_CLASSES,
            sets=SETS,
            dolos=DOLOS,
            models=MODELS,
            backbones=_backbones(spec),
            verdicts=_verdicts,
            best_free=lambda name: max((found[name], method) for method, found in record["training_free"].items()),
            found_kinds=_found_kinds(record),
            photos=_counts(attribution),
            pairs_of=lambda stage: sum(record["training"]["pairs"][part] for part in stage["parts"]),
            dict=dict,
            rivals=rival_sizes.section(rival_sizes.measure()),
        )
        + "\n"
    )


def shipped(record: Figures) -> dict[str, Any]:
    """Of the figures, what `declip report` tells an analyst: assets/mini.json, which travels with the weights."""

    def row(name: str, figures: Figures) -> dict[str, Any]:
        iou = {key: round(figures["iou"][key], 4) for key in ("mean", "low", "high")}
        return {"name": name, "pictures": figures["pictures"], "iou": iou, "verdicts": figures["verdicts"]}

    return {
        "model": record["model"],
        "sha256": record["sha256"],
        "declip": record["declip"],
        "kinds": [row(kind, figures) for kind, figures in record["kinds"].items()],
        "mean": row("mean over kinds", record["mean"]),
        "saved": [row(name, figures) for name, figures in record["saved"].items()],
        "untouched": [
            {"name": name, "pictures": figures["pictures"], "verdicts": figures["verdicts"]}
            for name, figures in record["untouched"]["report"].items()
        ],
        "forged": [
            {**row(SETS.get(name, name), saved["as they are"]), "again": row("JPEG 90", saved["JPEG 90"])}
            for name, saved in record["forged"].items()
        ],
    }


def _backbones(spec: ModelSpec) -> list[tuple[str, str]]:
    """Return each backbone and what it is; the layers of one that learnt together."""
    fixed = [(f"`{one.name}`", f": {FIXED[one.name]}") for one in spec.backbones if one.name in STATISTICS]
    learnt: dict[str, list[int]] = {}
    for one in spec.backbones:
        if one.name not in STATISTICS:
            learnt.setdefault(f"`{one.name}` ({one.weights})", []).append(one.layer)
    return fixed + [(name, f", frozen, stages {', '.join(map(str, layers))}") for name, layers in learnt.items()]


def _found_kinds(record: Figures) -> list[tuple[str, list[str]]]:
    """Return the kinds that are found well, in part and hardly."""
    groups: dict[str, list[str]] = {
        "well (IoU of 0.5 and more)": [],
        "in part (0.2 to 0.5)": [],
        "hardly (below 0.2)": [],
    }
    well, in_part, hardly = groups.values()
    for kind, figures in record["kinds"].items():
        value = figures["iou"]["mean"]
        (well if value >= 0.5 else in_part if value >= 0.2 else hardly).append(kind)
    return list(groups.items())


def photos_page(attribution: Path) -> str:
    """Return docs/mini-photos.md: where the photos come from, and their licences."""
    lines = [PHOTOS, "| used for | photos | source | licence |", "| --- | --- | --- | --- |"]
    counts = _sources(attribution)
    for part, source, licence in sorted(counts, key=lambda key: (list(PARTS).index(key[0]), -counts[key], key)):
        linked = f"<{licence}>" if licence.startswith("http") else licence
        lines.append(f"| {PARTS[part]} | {counts[part, source, licence]} | {source} | {linked} |")
    return "\n".join(lines) + "\n"


def _counts(attribution: Path) -> list[tuple[str, int]]:
    """Return what the photos were used for, and how many."""
    counts = _sources(attribution)
    return [(name, sum(count for key, count in counts.items() if key[0] == part)) for part, name in PARTS.items()]


def _sources(attribution: Path) -> Counter[tuple[str, str, str]]:
    """Return how many photos there are of each (part, source, licence)."""
    with attribution.open(encoding="utf-8", newline="") as file:
        return Counter((row["file"].partition("/")[0], row["source"], row["licence"]) for row in csv.DictReader(file))


def _verdicts(figures: Figures) -> str:
    """ "manipulated" 40 %, "inconclusive" 10 %; a dash where the model gives none."""
    counts = {name: count for name, count in figures["verdicts"].items() if name not in ("none", "nothing found")}
    if "none" in figures["verdicts"]:
        return "–"
    total = figures["pictures"]
    named = [f"{name} {counts[name] / total:.0%}" for name in ("manipulated", "inconclusive") if name in counts]
    return ", ".join(named) or "nothing found"
