"""Arrays and tables → figures: matrices, curves, galleries of maps.

Each function returns a matplotlib Figure of its own; there is no global state and no window. `save` writes it.
Colours can be told apart by the colour-blind (Okabe and Ito; cividis). Scores are grey, black 0 and white 1, never
stretched to what a picture happens to contain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from declip.files import write_atomic

__all__ = ["Curve", "Panel", "Tile", "curves", "gallery", "matrix", "save"]

# Okabe and Ito, without the yellow that white paper swallows; markers, for prints in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SMALL, _NORMAL = 8, 9  # pt
_TILE = 1.25  # inches
_DPI = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line. y: in [0, 1]; low, high: ends of intervals, drawn as a band; empty for none. dashed: drawn so."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Axes with curves.

    x_label: below them. reversed: x falls to the right. ticks: where x has marks; () = chosen.
    tick_labels: what stands there instead of the numbers.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    reversed: bool = False
    ticks: tuple[float, ...] = ()
    tick_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tile:
    """A picture of a gallery: (H, W, 3) uint8, or (H, W) float in [0, 1] or bool, shown as grey. framed: stands out."""

    pixels: NDArray[Any] = field(repr=False)
    caption: str = ""
    framed: bool = False


def matrix(panels: Mapping[str, NDArray[np.float64]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw heat maps of IoU side by side with their numbers in percent, on one scale from 0 to 100.

    panels: by title, (rows, columns) in [0, 1]; nan is left empty. rows: tested on; columns: trained on. A pair of the
    same name is framed: there the generator was known.
    """
    side = max(2.3, 0.72 * len(columns))
    width, height = 1.5 + (side + 0.35) * len(panels) + 0.7, 1.55 + 0.72 * len(rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    colours = colormaps["cividis"]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        shown = axis.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="equal")
        axis.set_title(title, fontsize=_NORMAL)
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor", fontsize=_SMALL)
        axis.set_yticks(range(len(rows)), rows, fontsize=_SMALL)
        axis.set_xlabel("trained on", fontsize=_NORMAL)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        for (y, x), value in np.ndenumerate(values):
            if math.isnan(value):
                continue
            known = rows[y] == columns[x]
            ink = "black" if value > 0.5 else "white"
            weight = "bold" if known else "normal"
            axis.text(x, y, f"{100 * value:.1f}", ha="center", va="center", color=ink, fontsize=_NORMAL, weight=weight)
            if known:
                axis.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", lw=1.8))
    axes[0].set_ylabel("tested on", fontsize=_NORMAL)
    bar = figure.colorbar(shown, ax=list(axes), fraction=0.04, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "25", "50", "75", "100"], fontsize=_SMALL)
    bar.set_label("IoU, %", fontsize=_NORMAL)
    bar.outline.set_visible(False)
    return figure


def curves(panels: Sequence[Panel], *, y_label: str = "IoU, %") -> Figure:
    """Draw panels of lines side by side, percent from 0 on a shared axis; a label has one colour in all of them."""
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    width = max(3.8, 0.7 + 2.5 * len(panels))  # inches
    figure = Figure(figsize=(width, 3.1), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for curve in panel.curves:
            number = labels.index(curve.label)
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            style = "--" if curve.dashed else "-"
            values = [100 * value for value in curve.y]
            axis.plot(curve.x, values, style, color=colour, marker=marker, ms=4, lw=1.4, label=curve.label)
            if curve.low:
                low, high = ([100 * value for value in ends] for ends in (curve.low, curve.high))
                axis.fill_between(curve.x, low, high, color=colour, alpha=0.15, lw=0)
        axis.set_title(panel.title, fontsize=_NORMAL)
        axis.set_xlabel(panel.x_label, fontsize=_NORMAL)
        if panel.ticks:
            axis.set_xticks(panel.ticks, panel.tick_labels or [f"{tick:g}" for tick in panel.ticks])
        axis.tick_params(labelsize=_SMALL)
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if panel.reversed:
            axis.invert_xaxis()
    axes[0].set_ylabel(y_label, fontsize=_NORMAL)
    axes[0].set_ylim(0, 100)
    if len(labels) > 1:
        handles = {text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        fitting = int(width / (0.6 + 0.055 * max(map(len, labels))))
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=max(1, min(len(labels), fitting)),
            fontsize=_SMALL,
            frameon=False,
        )
    return figure


def gallery(
    tiles: Sequence[Sequence[Tile]], rows: Sequence[str], columns: Sequence[str], *, gap: int = 0, note: str = ""
) -> Figure:
    """Draw a grid of pictures with names left and above. gap: columns before a wider space. note: one line below."""
    ratios = [1.0] * len(columns)
    if gap:
        ratios.insert(gap, 0.08)
    width = 0.75 + _TILE * sum(ratios) + 0.04 * len(columns)
    height = 0.45 + (_TILE + 0.2) * len(rows) + 0.2 * bool(note)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.0, hspace=0.0)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(rows), len(ratios), squeeze=False, width_ratios=ratios)
    for y, line in enumerate(axes):
        if gap:
            line[gap].set_axis_off()
        places = [axis for x, axis in enumerate(line) if not gap or x != gap]
        for x, (axis, tile) in enumerate(zip(places, tiles[y], strict=True)):
            grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if tile.pixels.ndim == 2 else {}
            axis.imshow(tile.pixels, interpolation="nearest" if tile.pixels.dtype == bool else "antialiased", **grey)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set(edgecolor="#D55E00" if tile.framed else "#999999", linewidth=2.2 if tile.framed else 0.6)
            axis.set_xlabel(tile.caption, fontsize=_SMALL - 1, labelpad=1.5)
            if y == 0:
                axis.set_title(columns[x], fontsize=_SMALL, pad=3)
        places[0].set_ylabel(rows[y], fontsize=_SMALL)
    if note:
        figure.supxlabel(note, fontsize=_SMALL - 1)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    # Without the program's name, the same figure is the same file.
    options: dict[str, Any] = {"format": "png", "dpi": _DPI, "facecolor": "white", "metadata": {"Software": None}}
    write_atomic(path, lambda partial: figure.savefig(partial, **options))
