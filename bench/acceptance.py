"""What is asked for of the figures in results.json, in one place; `speed.py` prints it and the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["checks", "main_row"]

LEAST_EXACT = 1.4  # times the official way's speed: ViT-L/14 conv-20, batch 4
LEAST_FAST = 2.5
MOST_LOGITS = 1e-4  # |Δlogit| of exact against the official way, in standard deviations of the logits
LEAST_EXACT_PEAK = 0.80  # share of the machine's fp32 matrix-product peak
LEAST_OFFICIAL_PEAK = 0.60  # below that the comparison is void: the official way was computed badly
MOST_SCORES = 0.01  # mean |Δscore| of fast against exact
LEAST_ALIKE = 0.99  # share of pixels that fast decides as exact does, at 0.5
LEAST_MINI = 1.5  # times the speed of mini's exact engine, on a batch of tiles
MOST_MINI_IOU = 0.01
MOST_GROWTH = 1.2  # memory at the end against that at the first mark
MOST_DRIFT = 0.10  # of the rate, first to last photos
LEAST_STREAM = 0.95  # of the network's own rate, for small photos from their files
FAST_FLAGS = ("avx512_bf16", "amx_bf16", "avx512_vnni", "avx_vnni", "amx_int8")

# (what is asked for, what was found, whether it is so; None: not measured)
Check = tuple[str, str, bool | None]


def main_row(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of ViT-L/14 conv-20 at batch 4."""
    rows = found.get("networks", ())
    return next((row for row in rows if row["name"] == "ViT-L/14, conv-20" and row["batch"] == 4), None)


def checks(found: Mapping[str, Any]) -> list[Check]:
    """All that is asked for, of what results.json holds so far."""
    return [*_of_main(found), *_of_mini(found), *_of_streams(found), *_of_steady(found.get("steady"))]


def _of_main(found: Mapping[str, Any]) -> list[Check]:
    row = main_row(found)
    ratios = {} if row is None else row["against_official"]
    peaks = {} if row is None else row["share_of_fp32_peak"]
    agreement = {} if row is None else row["agreement"]
    asked = [
        _least("the official way: share of the fp32 peak, or all this is void", peaks.get("official"), "official peak"),
        _least("exact against the official way: times as fast", ratios.get("exact"), "exact"),
        _most("exact against the official way: largest Δlogit / deviation", agreement, "exact_logits_relative"),
        _least("exact: share of the fp32 peak", peaks.get("exact"), "exact peak"),
    ]
    if any(flag in found.get("environment", {}).get("flags", ()) for flag in FAST_FLAGS):
        asked += [
            _least("fast against the official way: times as fast", ratios.get("fast"), "fast"),
            _most("fast against exact: mean Δscore", agreement, "fast_mean_score_difference"),
            _least("fast against exact: pixels decided alike", agreement.get("fast_decisions_alike"), "alike"),
        ]
    return asked


LEASTS = {
    "official peak": LEAST_OFFICIAL_PEAK,
    "exact": LEAST_EXACT,
    "exact peak": LEAST_EXACT_PEAK,
    "fast": LEAST_FAST,
    "alike": LEAST_ALIKE,
    "mini": LEAST_MINI,
}
MOSTS = {"exact_logits_relative": MOST_LOGITS, "fast_mean_score_difference": MOST_SCORES}
PERCENT = ("official peak", "exact peak", "alike")


def _least(asked: str, value: float | None, name: str) -> Check:
    limit = LEASTS[name]

    def text(number: float) -> str:
        return f"{100 * number:.3g} %" if name in PERCENT else f"{number:.3g}"

    asked = f"{asked}, at least {text(limit)}"
    return (asked, "not measured", None) if value is None else (asked, text(value), value >= limit)


def _most(asked: str, values: Mapping[str, float], name: str) -> Check:
    asked, value = f"{asked}, at most {MOSTS[name]:g}", values.get(name)
    return (asked, "not measured", None) if value is None else (asked, f"{value:.2g}", value <= MOSTS[name])


def _of_mini(found: Mapping[str, Any]) -> list[Check]:
    tiles = [row for row in found.get("mini", {}).get("rows", ()) if row["what"] == "tile"]
    largest = max(tiles, key=lambda row: row["batch"], default={})  # 8: what a localizer takes at once
    asked = f"mini, fast against exact: IoU within {MOST_MINI_IOU}"
    fast, exact = found.get("mini_fast_iou"), found.get("mini_exact_iou")
    iou: Check = (asked, "not measured", None)
    if fast is not None and exact is not None:
        iou = (asked, f"{fast:.4f}, {exact:.4f}", abs(fast - exact) <= MOST_MINI_IOU)
    return [_least("mini, fast against exact: times as fast, by tile", largest.get("fast_against_exact"), "mini"), iou]


def _of_streams(found: Mapping[str, Any]) -> list[Check]:
    rows = [row for row in found.get("streams", {}).get("rows", ()) if row["photo"] == "256 px"]
    shares = [row["share_of_network"]["median"] for row in rows]
    asked = f"small photos, batch 4: of the network's own rate, at least {100 * LEAST_STREAM:.0f} %"
    if not shares:
        return [(asked, "not measured", None)]
    return [(asked, ", ".join(f"{100 * share:.1f} %" for share in shares), min(shares) >= LEAST_STREAM)]


def _of_steady(steady: Mapping[str, Any] | None) -> list[Check]:
    photos = "2,000" if steady is None else f"{steady['photos']:,}"
    memory = f"{photos} photos: memory at the end, at most {MOST_GROWTH} × that at the first mark"
    rate = f"{photos} photos: rate of the last against the first, within {100 * MOST_DRIFT:.0f} %"
    if steady is None:
        return [(memory, "not measured", None), (rate, "not measured", None)]
    ratio = steady["rate_last"] / steady["rate_first"]
    machine = steady["gflops_last"] / steady["gflops_first"]
    # A machine that others use as well is not the same after ten minutes.
    own, all_, others = (f"{100 * (share - 1):+.1f} %" for share in (ratio / machine, ratio, machine))
    told = f"{own} ({all_}, the machine itself {others})"
    return [
        (memory, f"{steady['growth']:.2f}", steady["growth"] <= MOST_GROWTH),
        (rate, told, abs(ratio / machine - 1) <= MOST_DRIFT),
    ]
