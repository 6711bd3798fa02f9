"""What the model card shows as pictures: how a model stands what happens to photos, and what it does not see.

`robustness` measures and `robustness_figure` draws; `misses` does both. tools/model_card.py calls them.
"""

from __future__ import annotations

import dataclasses
import statistics
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from card_cases import SEED, Case, measure
from matplotlib.figure import Figure

from declip.evaluation import plots
from declip.images.dose import Perturbation, perturb
from declip.images.overlay import overlay
from declip.localize.localizer import Localizer

# From the mildest on; before them comes the picture as it is. Doses, title and label of the panel.
DOSES: dict[Perturbation, tuple[tuple[float, ...], str, str]] = {
    "jpeg": ((95, 85, 75, 60), "JPEG", "quality"),
    "webp": ((90, 75), "WebP", "quality"),
    "resize": ((0.9, 0.75, 0.5), "resize and back", "factor"),
    "blur": ((0.5, 1.0, 2.0), "blur", "sigma, px"),
    "noise": ((1.0, 2.0, 4.0), "noise", "sigma, of 255"),
}
# Whose pictures may be shown here.
SHOWN_SOURCES = ("kodak24-", "popos-")
_ROWS = 4


def robustness(localizer: Localizer, cases: Sequence[Case]) -> dict[str, Any]:
    """Mean AP and IoU of lossless forgeries after each dose: {"pictures", "kinds": {kind: [{"level", "ap", "iou"}]}}.

    cases: those that were not re-saved are used. IoU is that at the model's threshold; both are means over the kinds of
    manipulation of their means. The first of each list, with level None, is the picture as it is.
    """
    lossless = [case for case in cases if not case.jpeg]
    whole = {"level": None, **_means(localizer, lossless)}
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, (levels, _, _) in DOSES.items():
        found[kind] = [whole]
        for level in levels:
            dosed = [dataclasses.replace(c, pixels=perturb(c.pixels, kind, level, _rng(c))) for c in lossless]
            found[kind].append({"level": level, **_means(localizer, dosed)})
    return {"pictures": len(lossless), "kinds": found}


def robustness_figure(found: Mapping[str, Any]) -> Figure:
    """AP and IoU over the doses, a panel for each kind."""
    panels = []
    for kind, (levels, title, label) in DOSES.items():
        rows = found["kinds"][kind]
        x = tuple(float(i) for i in range(len(rows)))
        lines = tuple(
            plots.Curve(label=name, x=x, y=tuple(row[name.lower()] for row in rows)) for name in ("AP", "IoU")
        )
        labels = ("–", *(f"{level:g}" for level in levels))
        panels.append(plots.Panel(title=title, x_label=label, curves=lines, ticks=x, tick_labels=labels))
    return plots.curves(panels, y_label="AP and IoU, %")


def misses(localizer: Localizer, cases: Sequence[Case], kinds: Sequence[str]) -> Figure:
    """Of each of these kinds the picture of middling AP, as it is, with its mask and its scores.

    cases: those that were not re-saved, of photos that may be shown, are used.
    """
    tiles, names = [], []
    for kind in kinds:
        shown = [c for c in cases if c.kind == kind and not c.jpeg and c.group.startswith(SHOWN_SOURCES)]
        if not shown:
            continue
        outcomes = list(measure(localizer, shown))
        place = int(np.argsort([outcome.ap for outcome in outcomes], kind="stable")[len(outcomes) // 2])
        case, outcome = shown[place], outcomes[place]
        result = localizer(case.pixels)
        tiles.append(
            [
                plots.Tile(pixels=case.pixels),
                plots.Tile(pixels=case.mask),
                plots.Tile(pixels=result.scores),
                plots.Tile(pixels=np.asarray(overlay(case.pixels, result)), caption=f"AP {outcome.ap:.2f}"),
            ]
        )
        names.append(kind)
    return plots.gallery(tiles, names, ("picture", "manipulated", "scores", "overlay"))


def hardest(kinds: Mapping[str, Any]) -> list[str]:
    """The kinds of the lowest AP in a card."""
    return sorted(kinds, key=lambda kind: float(kinds[kind]["ap"]["mean"]))[:_ROWS]


def _means(localizer: Localizer, cases: Sequence[Case]) -> dict[str, float]:
    outcomes = list(measure(localizer, cases))
    kinds = sorted({outcome.kind for outcome in outcomes})
    return {
        name: statistics.fmean(
            statistics.fmean(value(outcome) for outcome in outcomes if outcome.kind == kind) for kind in kinds
        )
        for name, value in (("ap", lambda o: o.ap), ("iou", lambda o: float(o.iou()[-1])))
    }


def _rng(case: Case) -> np.random.Generator:
    return np.random.default_rng((SEED, zlib.crc32(f"{case.group} {case.kind}".encode())))
