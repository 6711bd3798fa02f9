"""Figures: they show the numbers they are given, and grey is never stretched."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from declip.evaluation import plots

NAMES = ("telea", "noise")


def texts(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_a_matrix_shows_its_numbers_and_frames_known_pairs() -> None:
    values = np.array([[0.637, 0.27], [math.nan, 0.0]])
    figure = plots.matrix({"one": values, "two": values}, NAMES, NAMES)
    first, second = figure.axes[:2]
    assert texts(first) == ["63.7", "27.0", "0.0"] == texts(second)
    assert len(first.patches) == 2  # the diagonal
    assert first.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in first.get_xticklabels()] == list(NAMES)


def test_a_matrix_of_other_rows_frames_nothing_and_its_ink_is_readable() -> None:
    figure = plots.matrix({"": np.array([[0.05, 0.95]])}, ("JPEG 75",), NAMES)
    assert not figure.axes[0].patches
    dark, bright = figure.axes[0].texts
    assert (dark.get_color(), bright.get_color()) == ("white", "black")


def test_curves_are_percent_on_one_axis_and_one_colour_per_label() -> None:
    def panel(title: str, falls: bool) -> plots.Panel:
        line = plots.Curve(label="ID", x=(100, 50), y=(0.5, 0.25), low=(0.4, 0.2), high=(0.6, 0.3))
        other = plots.Curve(label="OOD", x=(100, 50), y=(0.1, 0.1), dashed=True)
        return plots.Panel(title=title, x_label="quality", curves=(line, other), reversed=falls, ticks=(50, 100))

    figure = plots.curves([panel("jpeg", True), panel("noise", False)])
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [50.0, 25.0]  # type: ignore[union-attr]
    assert left.get_ylim() == (0, 100)
    assert left.xaxis_inverted() and not right.xaxis_inverted()
    assert left.lines[0].get_color() == right.lines[0].get_color() != left.lines[1].get_color()
    assert left.lines[1].get_linestyle() == "--"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ID", "OOD"]
    assert len(left.collections) == 1  # the band of the curve that has intervals


def test_names_may_stand_for_places() -> None:
    curve = plots.Curve(label="", x=(0, 1), y=(0, 1))
    figure = plots.curves([plots.Panel(title="", x_label="", curves=(curve,), ticks=(0, 1), tick_labels=NAMES)])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(NAMES)
    assert not figure.legends


def a_gallery() -> Figure:
    photo = np.full((8, 8, 3), 200, np.uint8)
    faint = np.full((8, 8), 0.3, np.float32)
    faint[0, 0] = 0.31
    mask = np.eye(8, dtype=bool)
    tiles = [plots.Tile(pixels=photo), plots.Tile(pixels=mask), plots.Tile(pixels=faint, caption="57", framed=True)]
    return plots.gallery([tiles], ["row"], ["photo", "known", "map"], gap=2, note="a note")


def test_grey_is_never_stretched() -> None:
    figure = a_gallery()
    photo, known, gap, scores = figure.axes
    assert scores.images[0].get_clim() == (0, 1) == known.images[0].get_clim()
    assert not gap.axison and not gap.images
    assert [axis.get_title() for axis in (photo, known, scores)] == ["photo", "known", "map"]
    assert scores.get_xlabel() == "57" and photo.get_ylabel() == "row"
    assert scores.spines["top"].get_linewidth() > 2 > known.spines["top"].get_linewidth()


def test_a_faint_map_stays_faint_in_the_file_which_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.save(a_gallery(), tmp_path / "new" / name)
    pixels = np.asarray(Image.open(tmp_path / "new" / "a.png").convert("L"))
    place = pixels[pixels.shape[0] // 2, int(pixels.shape[1] * 0.83)]
    assert abs(int(place) - 76) < 6  # 0.3 of 255
    first, second = (path.read_bytes() for path in sorted((tmp_path / "new").iterdir()))
    assert first == second
