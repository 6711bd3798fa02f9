"""The page docs/performance.md and its picture, from bench/results.json.

python bench/speed_page.py
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acceptance import checks, main_row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.png"
WAYS = ("official", "exact", "fast")

WHAT = """\
How fast declip computes on one machine, against the official way of computing the same networks, and against how fast
that machine multiplies matrices, which is the limit of what any way can reach. This page is written by `make bench`;
the figures of a section are of one machine, and the ratios are what carries over to another.

- **official**: the way the official code computes, in code written for this bench from what is known of it. All 24
  blocks of ViT-L/14 run although block 20 is read, and all stages of RN50; attention writes its scores out as a matrix;
  tokens become a grid one by one; convolution, BatchNorm and ReLU follow each other; fp32, eager. Matrix products and
  convolutions are torch's. If it reached less than 60 % of the machine's peak, the comparison would be void.
- **exact**: `declip.load(…)` as it is, fp32. The same logits as the official way.
- **fast**: `declip.load(…, precision="fast")`. Scores differ a little; how much is below."""

HOW = """\
What is compared is timed in turns, A B C A B C …, in one process with as many threads as cores; tables give the median,
and minimum – maximum where there is room. In each turn matrix products of several shapes are timed, too: the fastest
shape of a turn is its peak. Operations are counted by torch's `FlopCounterMode`, two per multiply–accumulate, those of
a convolution as if it were computed directly; what a BatchNorm or a softmax takes is time, and no operation counts.

The pictures are those of `examples/photos`. The weights are random (the time is the same). Random layers of BatchNorm
and ReLU enlarge any rounding as no trained network does, 45-fold in 20 layers; so shifts of 1 stand before the ReLUs,
with which it is 3-fold. The mean logit is 0: decisions at 0.5 are then as close as can be."""

AGAIN = """\
```sh
make bench                                           # everything, then this page; for an idle machine
.venv/bin/python bench/speed.py --only networks      # one section; the others stay as they are
.venv/bin/python bench/steady.py                     # 2,000 photos: memory and rate
.venv/bin/python bench/speed_page.py                 # the page from the figures that are there
```

`bench/results.json` has all figures. At its top, `official_s`, `exact_s` and `fast_s` are seconds per picture of
ViT-L/14 conv-20 at batch 4. On GPUs there is `bench/gpu_speed.py`; the service under load is in
[Serving](serve.md#load)."""


def main() -> int:
    """Write the page and the picture."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(found), encoding="utf-8")
    draw(found, PICTURE)
    print(f"{PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}", file=sys.stderr)
    return 0


def page(found: Mapping[str, Any]) -> str:
    """docs/performance.md."""
    sections = [
        "# Performance\n\n<!-- Written by bench/speed_page.py from bench/results.json; change those. -->",
        "## What was measured\n\n" + WHAT,
        "## How\n\n" + HOW + "\n\n" + machine(found),
        "## Results\n\n" + results(found),
        *(f"## {title}\n\n{told(found, name)}" for name, title in TITLES.items()),
        "## How to run again\n\n" + AGAIN,
    ]
    return "\n\n".join(sections) + "\n"


def tables(found: Mapping[str, Any]) -> list[str]:
    """What `speed.py` prints."""
    shown = [machine(found), results(found)]
    return shown + [told(found, name) for name in SECTIONS if name in found]


def told(found: Mapping[str, Any], section: str) -> str:
    """A section's text, and where it was measured if not where the page was."""
    here, cpu = found.get("environment", {}).get("cpu"), found.get("sections", {}).get(section, {}).get("cpu")
    text = SECTIONS[section](found)
    return text if cpu in (None, here) else f"{text}\n\nMeasured on another machine ({cpu})."


def machine(found: Mapping[str, Any]) -> str:
    """Where it ran."""
    where = found["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    sections = "; ".join(
        f"{name} on {section['date']}{', a quick run' if section['quick'] else ''}, {section['busy_before']:g}"
        for name, section in found["sections"].items()
    )
    text = (
        f"declip {found['version']} on {where['cpu']}, {where['cores']} cores, {where['threads']} threads, "
        f"{where['memory_gb']:g} GB; {', '.join(where['flags'])}; Linux {where['system']}, Python {where['python']}, "
        f"{versions}. Load average at the beginning: {', '.join(f'{load:g}' for load in where['load_before'])}. "
        f"Sections, and how many cores other work took before each: {sections}."
    )
    return _filled(text)


def results(found: Mapping[str, Any]) -> str:
    """What is asked for, the peaks, the networks, the picture."""
    asked = [(text, value, _verdict(good)) for text, value, good in checks(found)]
    blocks = [_table(("asked for", "found", ""), asked)]
    if "networks" in found:
        blocks += ["![Seconds per picture](images/performance.png)", networks(found), _peaks(found)]
    return "\n\n".join(blocks)


def _verdict(good: bool | None) -> str:
    return "" if good is None else "yes" if good else "**no**"


def networks(found: Mapping[str, Any]) -> str:
    """Seconds and ratios of the paper's networks."""
    rows = []
    for row in found["networks"]:
        ways, ratios = row["ways"], row["against_official"]
        seconds = [_seconds(ways.get(way)) for way in WAYS]
        times = [_ratio(ratios.get(way)) for way in WAYS[1:]]
        shares = [_percent(row["share_of_fp32_peak"].get(way)) for way in WAYS]
        rows.append((row["name"], row["batch"], *seconds, *times, *shares))
    heads = (
        "network",
        "batch",
        *(f"{way}, s" for way in WAYS),
        *(f"{way}, times as fast" for way in WAYS[1:]),
        *(f"{way}, of fp32 peak" for way in WAYS),
    )
    blocks = ["Seconds per picture, median (minimum – maximum):", _table(heads, rows)]
    agreement = {row["name"]: row for row in found["networks"]}
    apart = [
        (
            name,
            *(f"{row['gmac'][way]:.1f}" if way in row["gmac"] else "–" for way in WAYS[:2]),
            _scientific(row["agreement"].get("exact_logits_relative")),
            _scientific(row["agreement"].get("fast_mean_score_difference")),
            _percent(row["agreement"].get("fast_decisions_alike"), 2),
        )
        for name, row in agreement.items()
    ]
    heads = (
        "network",
        "official, GMAC",
        "needed, GMAC",
        "exact: largest Δlogit / deviation",
        "fast: mean Δscore",
        "fast: decided alike",
    )
    blocks += ["Work per picture, and how far apart the results are on the example photos:", _table(heads, apart)]
    return "\n\n".join(blocks + _skipped(found["networks"][0]["fast_skipped"]))


def _skipped(reason: str | None) -> list[str]:
    return [] if reason is None else [f"No fast engine was measured: {reason}"]


def _peaks(found: Mapping[str, Any]) -> str:
    rows = [
        (
            dtype,
            f"{entry['gflops']['median']:.0f}",
            f"{entry['gflops']['min']:.0f} – {entry['gflops']['max']:.0f}",
            *(f"{rate:.0f}" for rate in entry["by_shape"].values()),
        )
        for dtype, entry in found["peak"].items()
    ]
    shapes = tuple(next(iter(found["peak"].values()))["by_shape"])
    heads = ("type", "peak, GFLOP/s", "min – max", *shapes)
    return "\n\n".join(["Matrix products of this machine in the same turns, GFLOP/s by shape:", _table(heads, rows)])


def parts(found: Mapping[str, Any]) -> str:
    """From a file to a Localization."""
    if "pipeline" not in found:
        return NOT_YET
    rows = []
    for row in found["pipeline"]["rows"]:
        taken = ", ".join(
            f"{part} {_milliseconds(entry['median'])}" for part, entry in row["parts"].items() if part != "whole"
        )
        whole = row["parts"]["whole"]
        rows.append((row["model"], row["precision"], row["photo"], _milliseconds(whole["median"]), taken))
    blocks = [
        _filled(
            "One photo from its JPEG file to a Localization, medians in milliseconds. Of a network that sees the photo "
            "whole, the backbone is the same network with the linear decoder, and the decoder the difference; of one "
            "that looks at tiles, the network is what all tiles take, and the rest is what it does not hide."
        ),
        _table(("model", "precision", "photo", "whole, ms", "parts, ms"), rows),
    ]
    return "\n\n".join(blocks)


def streams(found: Mapping[str, Any]) -> str:
    """Photos from their files against the network alone."""
    if "streams" not in found:
        return NOT_YET
    rows = [
        (
            row["model"],
            row["precision"],
            row["photo"],
            f"{row['photos_per_second']['map']['median']:.3g}",
            f"{row['photos_per_second']['network']['median']:.3g}",
            "{median:.1%} ({min:.0%} – {max:.0%})".format(**row["share_of_network"]).replace("%", " %"),
            f"{row['turns']} of {row['photos']}",
        )
        for row in found["streams"]["rows"]
    ]
    first = found["streams"]["rows"][0]
    said = (
        f"`Localizer.map` over photos from their files, {first['batch']} at once, against the network alone on as many "
        "pictures; the share is that of each turn, in which one follows the other. RN50 with the linear decoder "
        "stands in for ViT-L/14 conv-20 in bf16 on processors without it: it takes less time, so that reading and "
        "resizing weigh more."
    )
    if before := found.get("pipeline", {}).get("streams"):
        shares = ", ".join(f"{row['precision']} {_percent(row['share_of_network'])}" for row in before)
        said += (
            f" Measured before by medians of five turns, not turn by turn, on {found['environment']['cpu']}, 0.5 MP, "
            f"{before[0]['model']}: {shares}."
        )
    blocks = [
        _filled(said),
        _table(("model", "precision", "photos", "map, /s", "network, /s", "share", "turns, photos"), rows),
    ]
    return "\n\n".join(blocks + _skipped(found["streams"]["fast_skipped"]))


def mini(found: Mapping[str, Any]) -> str:
    """The embedded model."""
    if "mini" not in found:
        return NOT_YET
    section = found["mini"]
    rows = [
        (
            row["what"],
            row["batch"],
            *(_seconds(row["ways"].get(way)) for way in WAYS[1:]),
            _ratio(row["fast_against_exact"]),
        )
        for row in section["rows"]
    ]
    blocks = [
        "Seconds per tile and per photo, median (minimum – maximum):",
        _table(("what", "batch", "exact, s", "fast, s", "fast, times as fast"), rows),
    ]
    if section["agreement"]:
        apart = section["agreement"]
        blocks.append(
            "Fast against exact on tiles of the example photos: mean |Δscore| "
            f"{_scientific(apart['fast_mean_score_difference'])}, {_percent(apart['fast_decisions_alike'], 2)} of "
            "pixels decided alike at 0.5."
        )
    return "\n\n".join(blocks + _skipped(section["fast_skipped"]))


def start(found: Mapping[str, Any]) -> str:
    """Fresh processes; memory over many photos."""
    blocks = []
    if "start" in found:
        rows = [(row["name"], _seconds(row["seconds"]), f"{row['peak_mb']:,}") for row in found["start"]["rows"]]
        blocks += [
            _filled(
                "A fresh Python process that opens the model, localizes one photo of 0.5 MP and ends; files are in the "
                "page cache. The official way is without its text tower, which the official code also loads. The "
                "highest memory counts the pages of a mapped weight file, which the system can take back."
            ),
            _table(("model", "from start to end, s", "highest memory, MB"), rows),
        ]
        blocks += [f"{name} was not measured: {why}" for name, why in found["start"]["skipped"].items()]
    if steady := found.get("steady"):
        mark = steady["mark"]
        text = (
            f"{steady['photos']:,} photos of 0.5 MP through `declip.load().map`: {steady['mb_first']:.0f} MB resident "
            f"after the first {mark}, {steady['mb_last']:.0f} MB at the end; {steady['rate_first']:.2f} photos a "
            f"second over the first {mark}, {steady['rate_last']:.2f} over the last. The machine, which others use as "
            f"well, meanwhile gave {steady['gflops_first']:.0f} and {steady['gflops_last']:.0f} GFLOP/s of matrix "
            "products."
        )
        if steady["cpu"] not in (found["environment"]["cpu"], found["sections"].get("start", {}).get("cpu")):
            text += f" Measured on another machine ({steady['cpu']})."
        blocks.append(_filled(text))
    return "\n\n".join(blocks) if blocks else NOT_YET


def training(found: Mapping[str, Any]) -> str:
    """Epochs."""
    if "training" not in found:
        return NOT_YET
    section = found["training"]
    rows = [
        (
            row["decoder"],
            _seconds(row["uncached"]),
            _seconds(row["cached"]),
            f"{row['ratio']:.2f}",
            f"{row['step']['median']:.3g}",
        )
        for row in section["rows"]
    ]
    heads = ("decoder", "epoch through the backbone, s", "epoch from the cache, s", "ratio", "a step from the cache, s")
    said = (
        f"ViT-L/14 up to block 20, {section['images']} pictures, batch {section['batch']}, fp32, by the loop of "
        "`declip train`:"
    )
    return "\n\n".join([said, _table(heads, rows)])


SECTIONS = {"pipeline": parts, "streams": streams, "mini": mini, "start": start, "training": training}
TITLES = {
    "pipeline": "Parts",
    "streams": "Streams",
    "mini": "mini",
    "start": "Memory and start",
    "training": "Training",
}
NOT_YET = "Not measured yet."


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def _seconds(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "–"
    return f"{entry['median']:.3g} ({entry['min']:.3g} – {entry['max']:.3g})"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if abs(seconds) < 1 else f"{1000 * seconds:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Bars of seconds per picture at batch 4, with minimum and maximum, and the least time that the peak allows."""
    from matplotlib.figure import Figure

    from declip.evaluation import plots

    rows = [row for row in found["networks"] if row["batch"] == 4]
    colours = {"official": "#999999", "exact": "#0072B2", "fast": "#D55E00"}
    figure = Figure(figsize=(7.2, 0.7 + 0.85 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for number, row in enumerate(rows):
        for place, way in enumerate(WAYS):
            entry = row["ways"].get(way)
            if entry is None:
                continue
            height = number + 0.27 * (place - 1)
            middle = entry["median"]
            ends = [[middle - entry["min"]], [entry["max"] - middle]]
            label = way if way not in {text.get_label() for text in axis.containers} else None
            axis.barh(height, middle, 0.25, color=colours[way], label=label)
            axis.errorbar(middle, height, xerr=ends, color="black", lw=0.8, capsize=2)
            said = f"{middle:.2f} s" + ("" if way == "official" else f", {row['against_official'][way]:.2f}×")
            axis.text(entry["max"], height, f"  {said}", va="center", fontsize=8)
        limit = 2 * row["gmac"]["exact"] / found["peak"]["float32"]["gflops"]["median"]
        name = "all matrix products at the fp32 peak" if number == 0 else None
        axis.plot([limit, limit], [number - 0.42, number + 0.42], "--", color="black", lw=1, label=name)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("seconds per picture, batch 4", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.16)
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    plots.save(figure, path)


if __name__ == "__main__":
    if main_row(json.loads(RESULTS.read_text(encoding="utf-8"))) is None:
        sys.exit(f"{RESULTS} has no row of ViT-L/14 conv-20 at batch 4; run `make bench` first")
    sys.exit(main())
