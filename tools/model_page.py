"""docs/models.md, written from the figures that tools/model_card.py measured. Used by that script only."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rival_sizes

from declip.models.catalog import MODELS
from declip.spec import SIZE_CLASSES, STATISTICS, Calibration, ModelSpec

__all__ = ["page", "shipped"]

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


TRIED = """### What was tried

Networks were compared on the same data after as many steps, by AP on the choosing half and on the pictures that others
manipulated. Backbones and stem are in the code and can be named in a recipe.

- **Layers.** Without stage 3 of EfficientNet, or without EfficientNet, much less is learnt: fixed statistics alone do
  not carry it, though the first stages take most of the time.
- **The history of JPEG**: `quantization-statistics`, which shows the steps of a first quantization through a second. No
  gain over `block-statistics` alone. Not kept.
- **Learnt high-pass filters**: `pixels` with a stem, instead of the fixed residuals. As good at most. Not kept.
- **Photos that have travelled** (JPEG before the manipulation, other sizes, screenshots): trained on those alone it
  sees more in CASIA and PixelHacker, and less of LaMa and CRFill. Both kinds of data are mixed.
- **One crop of each picture for all epochs** is learnt by heart after seven. The second stage draws new ones.
- **The mean of two networks' logits** finds more at the same false alarms, for twice the work. Not kept.
- **Statistics written as what ONNX Runtime computes fast**: the same numbers from 0.69 GMAC instead of 0.71. Kept.
- **Integers of 8 bits** (ONNX Runtime's static quantisation, on crops of training photos): scores move by 0.04 on
  average, and no time is gained; of the decoder alone, by 0.0005, for a few percent of the time. Not kept; bf16 is
  [much faster](performance.md).
- **Other scores of the whole picture** than the mean of the highest hundredth: means of the highest 0.25 to 20 % of
  scores or of logits, of the strongest window, the weight of the strongest part. With thresholds from the same 170
  photos none told more pictures apart: of the synthesized ones, those that react to smaller places called up to a tenth
  more manipulated, and twice as many untouched photos. Not kept.
- **Other evidence of a part** than the mean height of its logits over the threshold's times the root of its share:
  with the fourth root, with pixels instead of shares, the mean, the highest or the sum of its logits, the strongest of
  regions at ten thresholds. On forged/dev against the untouched photos of `photos/calibrate` AUC is 0.71 to 0.75 for
  all of them, 0.74 for the one that is kept and 0.75 for the mean of the highest hundredth of the whole map. With
  pixels instead of shares 12 to 14 % of the untouched photos of all sizes reach the 5 % of the small ones, with shares
  6 to 8 %."""


def page(record: Figures, attribution: Path) -> str:
    """The whole page. record: what docs/models.json holds; attribution: the list of the training photos (CSV)."""
    spec = ModelSpec.from_json(json.dumps(record["spec"]))
    parts = (
        _head(record),
        _what_it_is(record, spec),
        _how(record),
        _kinds(record),
        _untouched(record),
        _forged(record),
        _left_out(record),
        _robustness(record),
        _time(record),
        _limits(record),
        _training(record, attribution),
        TRIED,
        _official(),
        _rivals(),
    )
    return "\n\n".join(parts) + "\n"


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


def _head(record: Figures) -> str:
    return f"""# Models

This page is written by `make model-card`, which measures the embedded model; all of its figures are in
[models.json](models.json). `declip models` lists the models with what lies on your machine.

## mini, the embedded model

declip {record["declip"]}, sha256 `{record["sha256"][:16]}…`, {record["size_bytes"] / 1e6:.1f} MB,
{record["gmac"]:.2f} GMAC per 256 × 256 px, Apache-2.0."""


def _what_it_is(record: Figures, spec: ModelSpec) -> str:
    lines = ["### What it is", ""]
    for backbone in spec.backbones:
        if backbone.name in STATISTICS:
            lines.append(f"- `{backbone.name}`: {FIXED[backbone.name]}")
    learnt: dict[str, list[int]] = {}
    for backbone in spec.backbones:
        if backbone.name not in STATISTICS:
            learnt.setdefault(f"`{backbone.name}` ({backbone.weights})", []).append(backbone.layer)
    for name, layers in learnt.items():
        lines.append(f"- {name}, frozen, stages {', '.join(map(str, layers))}")
    widths = "" if spec.decoder.widths is None else f" of widths {', '.join(map(str, spec.decoder.widths))}"
    lines.append(
        f"- decoder `{spec.decoder.kind}`{widths}: the only part that is trained; it sees all of the above, fused"
    )
    lines += [
        "",
        f"Runs {spec.mode}"
        + (" at native resolution" if spec.mode == "tiled" else "")
        + f": {spec.input_size} × {spec.input_size} px in, {spec.output_size} × {spec.output_size} logits out"
        + (f", neighbouring tiles overlap by {spec.overlap} px." if spec.mode == "tiled" else "."),
    ]
    if spec.calibration is not None:
        lines += ["", _rule(spec.calibration)]
    return "\n".join(lines)


def _rule(calibration: Calibration) -> str:
    rows = []
    for i, size in enumerate(SIZE_CLASSES):
        count, photos = len(calibration.untouched[i]), calibration.photos[i]
        compared = f"{photos} photos" if count == photos else f"{photos} photos, with pieces of them {count} pictures"
        steps = "; ".join(f"{step.word} {100 * step.rate:.2g} %" for step in calibration.steps(i)) or "no verdict"
        rows.append((size, compared, steps))
    return (
        f"Connected scores of {calibration.threshold:g} and more are a part. It is flagged where it is stronger than "
        "the strongest parts of nearly all untouched photos of this size ([how](how-it-works.md)). These are "
        "compared with:\n\n"
        + _table(("size", "untouched", "verdicts, and how many untouched photos get them at most"), rows)
        + "\n\nPieces make the comparison finer; the rates are those that the number of photos supports."
    )


def _how(record: Figures) -> str:
    choose, report = record["photos"]["choose"], record["photos"]["report"]
    return f"""### How it is measured

Photos that it was not trained on are split into two halves by a hash of their names. {choose + report} of them are
manipulated once in each of the ways below (`declip synthesize` has them), in a crop of at most 512 px at its own
resolution, with fixed seeds; half of the results are saved as JPEG of quality 75–95. The threshold of the parts is
chosen on one half ({choose} of these photos); what follows on manipulations is measured on the other half ({report}).

AP is the area under the precision–recall curve of the pixels, AUC that under their ROC curve; IoU and F1 are those of
the calibrated mask with the known one. All are taken for each picture, then averaged. In brackets:
the 95 % interval of a bootstrap over photos. "Flag all" is what a mask of the whole picture would reach, in AP as in
IoU; flagging nothing reaches an IoU of 0."""


def _kinds(record: Figures) -> str:
    rows = [(kind, _cells(figures)) for kind, figures in record["kinds"].items()]
    rows.append(("**mean over kinds**", _cells(record["mean"])))
    rows += [
        (f"… saved as {name}" if "JPEG" in name else f"… {name}", _cells(f)) for name, f in record["saved"].items()
    ]
    rows.append(("… all of them saved again as JPEG 75", _cells(record["JPEG 75"])))
    header = ("manipulation", "pictures", "flag all", "AP", "AUC", "IoU", "F1", "of these pictures, the verdict is")
    best = record["mean"]["iou_best"]["mean"]
    return "\n\n".join(
        (
            "### What it finds",
            _table(header, [(name, *cells) for name, cells in rows]),
            f"If false alarms did not matter, a threshold of {record['threshold']['best']:.2f}, chosen on the other "
            f"half as well, would reach a mean IoU of {best:.3f}.",
            _goals(record),
        )
    )


def _goals(record: Figures) -> str:
    rows = [
        (row["goal"], row["wanted"], f"{row['measured']:g}", "yes" if row["met"] else "**no**")
        for row in record["goals"]
    ]
    return "What was wanted of it, and what it reaches:\n\n" + _table(("", "wanted", "measured", "met"), rows)


def _untouched(record: Figures) -> str:
    rows = [
        (f"{half} half, {kind}", str(f["pictures"]), f"{f['flagged']:.1%}", f"{f['mean_area']:.2%}", _verdicts(f))
        for half, name in (("reporting", "report"), ("choosing", "choose"))
        for kind, f in record["untouched"][name].items()
    ]
    rows += [
        (f"originals of {name}", str(f["pictures"]), f"{f['flagged']:.1%}", f"{f['mean_area']:.2%}", _verdicts(f))
        for name, f in record["originals"].items()
    ]
    return (
        "### Untouched photos\n\nWhole files, as they are and saved again as JPEG 75.\n\n"
        + _table(("photos", "count", "more than 2 % flagged", "mean area flagged", "verdicts"), rows)
        + "\n\nVerdicts compare with other photos than these, which check them. By size, both halves together. "
        "Promised is that at most 1 % are called manipulated and at most 5 % that or inconclusive. In brackets: the "
        "exact 95 % interval of the share.\n\n"
        + _table(("photos", "count", "manipulated", "inconclusive"), _sizes(record))
    )


def _sizes(record: Figures) -> list[tuple[str, ...]]:
    return [
        (
            f"{row['size']}, {kind}",
            str(row["pictures"]),
            f"{row['manipulated']} ({100 * row['low']:.1f}–{100 * row['high']:.1f} %)" if row["pictures"] else "–",
            str(row["inconclusive"]),
        )
        for kind, rows in record["sizes"].items()
        for row in rows
    ]


def _forged(record: Figures) -> str:
    rows = []
    for name, saved in record["forged"].items():
        first, again = saved["as they are"], saved["JPEG 90"]
        best = max((found[name], method) for method, found in record["training_free"].items())
        free = f"{best[0]:.2f} (`{best[1]}`)"
        cells = (free, _range(first["ap"]), _range(first["iou"]), _range(again["ap"]), _range(again["iou"]))
        rows.append(
            (SETS.get(name, name), str(first["pictures"]), f"{first['prevalence']:.2f}", *cells, _verdicts(first))
        )
    header = (
        "set",
        "pictures",
        "flag all",
        "AP of the best [training-free map](baselines.md)",
        "AP",
        "IoU",
        "AP, JPEG 90",
        "IoU, JPEG 90",
        "verdicts",
    )
    apart = "; ".join(f"{name} {_range(figure)}" for name, figure in record["told apart"].items())
    return (
        "### Pictures that others manipulated\n\nNone of these was used in training or for a threshold. They are "
        "measured as they are, and saved again as JPEG 90: where a PNG holds a photo that was a JPEG before, what was "
        "painted into it lacks the traces of compression, which flatters a detector.\n\n"
        + _table(header, rows)
        + "\n\nAUC of the image score, forged pictures against their originals, all saved again as JPEG 90 (0.5 is a "
        f"coin's): {apart}."
    )


def _left_out(record: Figures) -> str:
    found = record.get("leave_one_out")
    if not found:
        return "### Kinds that a model has never met\n\nNot measured for this version."
    rows = [
        (
            family,
            f"{row['prevalence']:.2f}",
            f"{row['ap']:.2f}",
            f"{row['iou']:.2f}",
            ", ".join(f"{kind} {figures['ap']:.2f}" for kind, figures in row["kinds"].items()),
        )
        for family, row in (*found["families"].items(),)
    ]
    mean = found["mean"]
    rows.append(("**mean**", f"{mean['prevalence']:.2f}", f"{mean['ap']:.2f}", f"{mean['iou']:.2f}", ""))
    return f"""### Kinds that a model has never met

Five models of this kind, each trained without one family of manipulations ({found["epochs"]} epochs on
{found["pairs"]} pairs, less than the embedded model has had) and measured on that family, with a rule of the mask
that was chosen on the others. [leave-one-out.json](leave-one-out.json), written by `tools/leave_one_out.py`.

{_table(("family left out", "flag all", "AP", "IoU", "AP of its kinds"), rows)}"""


def _robustness(record: Figures) -> str:
    found = record["robustness"]
    rows = [
        (kind, "–" if row["level"] is None else f"{row['level']:g}", f"{row['ap']:.2f}", f"{row['iou']:.2f}")
        for kind, doses in found["kinds"].items()
        for row in doses
    ]
    return f"""### What photos go through

{found["pictures"]} of the lossless forgeries of the reporting half, after one more step each; means over the kinds.
Resizing goes back to the old size.

![AP and IoU over the strength of JPEG, WebP, resizing, blur and noise](images/mini-robustness.png)

<details><summary>The figures</summary>

{_table(("step", "strength", "AP", "IoU"), rows)}

</details>"""


def _time(record: Figures) -> str:
    large, small = record["timings"]["large"], record["timings"]["small"]
    return f"""### Time and memory

On {record["timings"]["cores"]} processor cores, `declip localize` in a fresh process with all files written:

- {large["width"]} × {large["height"]} px: {large["seconds"]:.1f} s, {large["network_seconds"]:.1f} s in the network
  (measured in a second run), at most {large["peak_bytes"] / 1e9:.2f} GB of memory
- {small["width"]} × {small["height"]} px: {small["seconds"]:.2f} s from start to end, {small["started_seconds"]:.2f} s
  once the model is open (medians of 5)

The machine's load before was {record["timings"]["load_before"]:.1f}; times hold for an idle one."""


def _limits(record: Figures) -> str:
    groups: dict[str, list[str]] = {"well": [], "in part": [], "hardly": []}
    for kind, figures in record["kinds"].items():
        value = figures["iou"]["mean"]
        groups["well" if value >= 0.5 else "in part" if value >= 0.2 else "hardly"].append(kind)
    bounds = {"well": "IoU of 0.5 and more", "in part": "0.2 to 0.5", "hardly": "below 0.2"}
    found = "; ".join(f"{word} ({bounds[word]}): {', '.join(kinds)}" for word, kinds in groups.items() if kinds)
    return f"""### Limits

- What it finds of the kinds above – {found}.
- It knows the manipulations it was trained on, and they were made by programs. The sets made by others show how much of
  that carries over to real edits and to other generators; a low figure there means that such edits stay unseen.
- It sees traces in the pixels, not content. Scaling a photo down, strong compression, filters and screenshots remove
  them; a photo that passed through a messenger may show nothing, whatever was done to it.
- A picture that was generated or processed as a whole has no part that differs from the rest. Sharp text, overlays,
  out-of-focus areas, panoramas and pictures put together by a phone may be flagged although nobody meant to deceive.
- The figures stand on few photos: their intervals are wide, and the two halves are of the same sources.
- "nothing found" is no proof that a photo is genuine, and no verdict is a proof of intent.

The four kinds that it sees least of; of each the picture of middling AP, lossless, from photos that may be shown here
(Kodak's, Pop!_OS's):

![Pictures, their masks, the scores and the overlays](images/mini-misses.png)"""


def _training(record: Figures, attribution: Path) -> str:
    with attribution.open(encoding="utf-8", newline="") as file:
        lines = [(row["file"].partition("/")[0], row["source"], row["licence"]) for row in csv.DictReader(file)]
    names = {"train": "training", "valid": "choosing and reporting", "calibrate": "verdict thresholds"}
    counts = Counter(lines)
    rows = [
        (
            names[part],
            str(counts[part, source, licence]),
            source,
            f"<{licence}>" if licence.startswith("http") else licence,
        )
        for part, source, licence in sorted(counts, key=lambda line: (list(names).index(line[0]), -counts[line], line))
    ]
    return f"""### What it was trained on

Untouched photographs, manipulated by `declip synthesize`. They are not part of this repository.

{_table(("used for", "photos", "source", "licence"), rows)}

The frozen part was trained on ImageNet by others (see NOTICE). The photos for the verdict's thresholds have research
licences; nothing but these two numbers was derived from them.

To make it again – data, training, calibration, export; seeded, and it goes on where it was interrupted:

```sh
make mini
make model-card
```

{_history(record["training"])} The steps are in [tools/make_mini.py](../tools/make_mini.py)."""


def _history(training: Figures) -> str:
    pairs, stages = training["pairs"], training["stages"]
    said = [
        f"{stage['epochs']} of {stage['planned']} epochs of [{stage['recipe']}](../recipes/{stage['recipe']}) on "
        f"{sum(pairs[part] for part in stage['parts']):,} manipulated pictures and some of their untouched twins "
        f"({stage['hours']:.1f} h; that of the highest AP, number {stage['kept']}, was kept)"
        for stage in stages
    ]
    return f"This one took {', then '.join(said)}, on two processor cores that had other work as well."


def _official() -> str:
    rows = []
    for card in MODELS:
        if card.urls:
            numbers = dict(card.numbers)
            cells = (f"{100 * numbers[f'{name} iou']:.1f}" if f"{name} iou" in numbers else "–" for name in DOLOS)
            rows.append((f"`{card.name}`", card.trained_on, *cells))
    return f"""## The authors' checkpoints

Nine decoders that the authors of DeCLIP published, all `conv-20` on CLIP ViT-L/14, the `fusion` ones on ResNet-50 as
well; CC BY-NC-SA 4.0, so not for commercial use. Each is downloaded when it is first asked for. They squash a photo to
224 px and need torch (`pip install 'declip[torch]'`), or an export to ONNX.

Mean IoU in percent on the four test sets of Dolos: for the two trained on LDM as an independent group measured it again
with the released weights, for the others as the authors published it. These are not measurements of this repository.

{_table(("model", "trained on", "LDM", "RePaint", "LaMa", "Pluralistic"), rows)}"""


def _rivals() -> str:
    return f"<!-- rivals -->\n{rival_sizes.section(rival_sizes.measure())}<!-- /rivals -->"


def _cells(figures: Figures) -> tuple[str, ...]:
    ranges = (_range(figures[key]) for key in ("ap", "auc", "iou", "f1"))
    return str(figures["pictures"]), f"{figures['prevalence']:.2f}", *ranges, _verdicts(figures)


def _range(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} ({figure['low']:.2f}–{figure['high']:.2f})"


def _verdicts(figures: Figures) -> str:
    """ "manipulated" 40 %, "inconclusive" 10 %; a dash where the model gives none."""
    counts = {name: count for name, count in figures["verdicts"].items() if name not in ("none", "nothing found")}
    if "none" in figures["verdicts"]:
        return "–"
    total = figures["pictures"]
    named = [f"{name} {counts[name] / total:.0%}" for name in ("manipulated", "inconclusive") if name in counts]
    return ", ".join(named) or "nothing found"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
