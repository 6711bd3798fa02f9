"""Write the pages of docs/models.json: docs/models.md, docs/mini-photos.md, the README's tables, assets/mini.json.

    python tools/model_page.py

tools/model_card.py measures these figures, and calls this. What else is on the pages comes from the catalogue, and
from the rivals' networks, which are counted here. Needs `pip install 'declip[torch]'`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch.utils.flop_counter import FlopCounterMode

from declip.models import resolve
from declip.models.catalog import MODELS, ModelCard
from declip.nn.rivals.cat_net import CatNet
from declip.nn.rivals.pscc_net import PsccNet, PsccOutput
from declip.nn.rivals.xception import GradCam, PatchForensics
from declip.spec import SIZE_CLASSES, STATISTICS, ModelSpec

Figures = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "models.json"
README = ROOT / "README.md"
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
PHOTOS = """# Photos of the embedded model

This page lists the photos that `mini` was trained, measured and calibrated on ([models.md](models.md)), with their
sources and licences. They are not part of this repository. `make model-card` writes this page.
"""
# What the rivals' authors state, in millions of parameters; nothing where no number of theirs is known.
PUBLISHED = {"PSCC-Net": "2.03 (FENet) + 0.72 (SegNet) + 0.92 (ClsNet)", "CAT-Net v2": "114.26"}


def main() -> None:
    """Write all pages anew."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    (ROOT / "docs" / "models.md").write_text(page(record), encoding="utf-8")
    (ROOT / "docs" / "mini-photos.md").write_text(photos_page(record), encoding="utf-8")
    README.write_text(readme(record), encoding="utf-8")
    figures = json.dumps(shipped(record), indent=1, ensure_ascii=False)
    resolve.embedded_path().with_suffix(".json").write_text(figures + "\n", encoding="utf-8")


def page(record: Figures) -> str:
    """Return docs/models.md."""
    spec = ModelSpec.from_json(json.dumps(record["spec"]))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("models.md.jinja").render(
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
        photos=_counts(record),
        pairs_of=lambda stage: sum(record["training"]["pairs"][part] for part in stage["parts"]),
        dict=dict,
        rivals=list(rivals()),
        published=PUBLISHED,
    )


def photos_page(record: Figures) -> str:
    """Return docs/mini-photos.md: where the photos come from, and their licences."""
    lines = [PHOTOS, "| used for | photos | source | licence |", "| --- | --- | --- | --- |"]
    for row in record["sources"]:
        licence = f"<{row['licence']}>" if row["licence"].startswith("http") else row["licence"]
        lines.append(f"| {row['use']} | {row['photos']} | {row['source']} | {licence} |")
    return "\n".join(lines) + "\n"


def _counts(record: Figures) -> Counter[str]:
    """Return how many photos were used for what."""
    counts = Counter[str]()
    for row in record["sources"]:
        counts[row["use"]] += row["photos"]
    return counts


def shipped(record: Figures) -> dict[str, Any]:
    """Of the figures, what `declip report` tells an analyst: assets/mini.json, which travels with the weights."""

    def row(name: str, figures: Figures) -> dict[str, Any]:
        iou = {key: round(figures["iou"][key], 4) for key in ("mean", "low", "high")}
        return {"name": name, "pictures": figures["pictures"], "iou": iou, "verdicts": figures["verdicts"]}

    return {
        **{key: record[key] for key in ("model", "sha256", "declip")},
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


def readme(record: Figures) -> str:
    """Return README.md with its tables as the catalogue and the figures have them."""
    text = between(README.read_text(encoding="utf-8"), "models", "\n".join(_catalogue()))
    return between(text, "measured", "\n".join(_measured(record)))


def between(text: str, name: str, content: str) -> str:
    """Return a page with other content between its marks <!-- name --> and <!-- /name -->."""
    marked = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
    replaced, count = re.subn(marked, lambda _: f"{content}\n", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the page has no place for {name}")
    return replaced


def rivals() -> Iterator[dict[str, Any]]:
    """The rivals' shapes, parameters (BatchNorm's statistics are none) and cost at their published input.

    Nothing is computed: the networks run on torch's device "meta".
    """
    with torch.device("meta"):
        photo = (torch.empty(1, 3, 299, 299),)
        tile = (torch.empty(1, 3, 512, 512), torch.empty(1, 512, 512), torch.empty(1, 8, 8))
        networks = {
            **{f"Patch Forensics, block {block}": (PatchForensics(block), photo) for block in range(1, 6)},
            "Grad-CAM": (GradCam(), photo),
            "PSCC-Net": (PsccNet(), (torch.empty(1, 3, 256, 256),)),
            "CAT-Net v2": (CatNet(), tile),
        }
    for name, (net, inputs) in networks.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            found = net.eval()(*inputs)
        outputs = (*found.masks, found.image) if isinstance(found, PsccOutput) else (found,)
        takes, gives = (
            " + ".join("×".join(map(str, value.shape[1:])) for value in values) for values in (inputs, outputs)
        )
        parameters = sum(p.numel() for p in net.parameters())
        # A multiplication and an addition are two operations.
        gmac = counter.get_total_flops() / 2e9
        yield {"name": name, "takes": takes, "gives": gives, "parameters": parameters, "gmac": gmac}


def _catalogue() -> Iterator[str]:
    """One row per model; the IoUs are means over the Dolos sets that the card has numbers for."""
    yield "| name | what it is | licence | download | IoU, own set | IoU, other sets |\n|---|---|---|---|---|---|"
    for card in MODELS:
        size = f"[by hand]({card.by_hand})" if card.by_hand else "none, comes with declip"
        if card.urls:
            size = f"about {(card.size_bytes or 0) / 1e6:.0f} MB"
        yield f"| `{card.name}` | {card.summary} | {card.license} | {size} | {_ious(card)} |"


def _ious(card: ModelCard) -> str:
    """Mean IoU in percent on the Dolos set a model was trained on, and on the others; dashes where there is none."""
    ious = {name.removesuffix(" iou"): value for name, value in card.numbers if name.endswith(" iou")}
    own = ious.pop(f"dolos-{card.name.rpartition('-')[2]}", None)
    return "– | –" if own is None or not ious else f"{100 * own:.1f} | {100 * sum(ious.values()) / len(ious):.1f}"


def _measured(record: Figures) -> Iterator[str]:
    """What the embedded model makes of real forgeries and untouched photos, as they are and saved again."""
    yield "| | as they are | saved again as JPEG |\n|---|---|---|"
    first, again = ([found[saved] for found in record["forged"].values()] for saved in ("as they are", "JPEG 90"))
    pictures = sum(found["pictures"] for found in first)
    ious = [sum(found["iou"]["mean"] for found in sets) / len(sets) for sets in (first, again)]
    name = f"forgeries of {len(first)} sets made by others: mean IoU of the sets"
    yield f"| {name} | {ious[0]:.2f} | {ious[1]:.2f} (quality 90) |"
    said = [
        [sum(found["verdicts"].get(word, 0) for found in sets) for word in ("manipulated", "inconclusive")]
        for sets in (first, again)
    ]
    cells = " | ".join(f"{manipulated} and {inconclusive} of {pictures}" for manipulated, inconclusive in said)
    yield f"| … called manipulated and inconclusive | {cells} |"
    for rows in zip(record["sizes"]["as they are"], record["sizes"]["JPEG 75"], strict=True):
        cells = " | ".join(f"{row['manipulated']} and {row['inconclusive']} of {row['pictures']}" for row in rows)
        yield f"| untouched photos {rows[0]['size']}, the same | {cells} (quality 75) |"


def _backbones(spec: ModelSpec) -> list[tuple[str, str]]:
    """Return each backbone and what it is; the layers of one that learnt together."""
    fixed = [(f"`{one.name}`", f": {FIXED[one.name]}") for one in spec.backbones if one.name in STATISTICS]
    learnt: dict[str, list[int]] = {}
    for one in spec.backbones:
        if one.name not in STATISTICS:
            learnt.setdefault(f"`{one.name}` ({one.weights})", []).append(one.layer)
    return fixed + [(name, f", frozen, stages {', '.join(map(str, layers))}") for name, layers in learnt.items()]


def _found_kinds(record: Figures) -> dict[str, list[str]]:
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
    return groups


def _verdicts(figures: Figures) -> str:
    """ "manipulated" 40 %, "inconclusive" 10 %; a dash where the model gives none."""
    counts = figures["verdicts"]
    if "none" in counts:
        return "–"
    named = [
        f"{name} {counts[name] / figures['pictures']:.0%}" for name in ("manipulated", "inconclusive") if name in counts
    ]
    return ", ".join(named) or "nothing found"


if __name__ == "__main__":
    main()
