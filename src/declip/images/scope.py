"""Tell what is not a photograph, before a model that knows only photographs gives it a score.

A detector of manipulated photographs calls many screenshots, plots and pages of text manipulated: sharp, noiseless
edges are what it looks for. What tells a photograph is its sensor's noise. Three tests use that:

- drawn: where nothing happens, the pixels are all the same rather than nearly so (`still`), and where there are edges,
  much beside them is the same too (`drawn`);
- written: dark strokes on a ground that goes on at the same level beneath all of them (`level`), as paper does;
- shaded: a gradient without edges that is smoother than any lens and sensor make one (`roughness`).

A page that shows a photo is refused as long as most of its *structure* is drawn: an article with one picture is a
screenshot, while an album that is nearly all pictures is examined, and so is a photo with black bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["OutOfScope", "why_not"]

Kind: TypeAlias = Literal["too small", "no content", "no photograph"]

_SMALLEST_SIDE = 64  # pixels; a quarter of the side of the tiles that models see
_ONE_COLOUR = 8  # levels between the darkest and the brightest value of each channel

# Chosen on tools/make_graphics.py's first half and on photographs (tools/graphics_figures.py measures the second half).
_STILL, _DRAWN, _STILL_AND_DRAWN = 0.6, 1.5, 1.6  # least still; weight of drawn; least still + weight · drawn
_LEVEL, _WRITTEN, _FEWEST_PAIRS, _STEEP, _COLOURED = 0.95, 0.3, 16, 0.75, 30
_ROUGHNESS, _HARDLY = 0.85, 0.01

_HEIGHT, _WIDTH, _MOST = 32, 64, 320  # of blocks
_FEWEST = 4  # cells, below which shares of them say nothing

_Luma: TypeAlias = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfScope:
    """Why a picture is not examined. kind: a stable word; reason: a sentence for people."""

    kind: Kind
    reason: str


_TOO_SMALL = OutOfScope(
    kind="too small", reason=f"The picture is too small: a side has fewer than {_SMALLEST_SIDE} pixels."
)
_NO_CONTENT = OutOfScope(kind="no content", reason="The picture shows nothing: it is of one colour all over.")
_NO_PHOTOGRAPH = OutOfScope(
    kind="no photograph",
    reason="This is no photograph: it looks like a screenshot, a plot, a drawing or a page of text.",
)


class _Measures(NamedTuple):
    """What the tests look at; shares in [0, 1].

    still: of the 8×8 cells without structure, those without noise. drawn: of the 16×16 cells with structure, those in
    which many pixels equal their neighbours. structure: the share of 16×16 cells that have it. level: of the pairs of
    32×32 cells with strokes, those on a ground of one level; pairs, written: how many pairs have strokes, and their
    share. steepness: how far the median cell with structure has two levels alone, and nothing between (1). colour: mean
    difference of red and blue, in levels. roughness: mean second difference of the 8×8 cells that are neither even nor
    have edges, in levels; 0 if there are none.
    """

    still: float
    drawn: float
    structure: float
    level: float
    pairs: int
    written: float
    steepness: float
    colour: float
    roughness: float


def why_not(pixels: NDArray[np.uint8]) -> OutOfScope | None:
    """Return why a picture should not be examined; None for a photograph, and in doubt.

    pixels: (H, W, 3) uint8 sRGB, not resized: the test looks at noise. The same pixels give the same answer. Takes some
    30 ms however large the picture is.
    """
    if min(pixels.shape[:2]) < _SMALLEST_SIDE:
        return _TOO_SMALL
    blocks = _blocks(pixels)
    if _one_colour(blocks) and _one_colour(pixels):
        return _NO_CONTENT
    found = _measure(blocks)
    drawn = found.still >= _STILL and found.still + _DRAWN * found.drawn >= _STILL_AND_DRAWN
    written = (
        found.level >= _LEVEL
        and found.pairs >= _FEWEST_PAIRS
        and found.written >= _WRITTEN
        and found.steepness >= _STEEP
        and found.colour <= _COLOURED
    )
    shaded = found.structure <= _HARDLY and found.roughness <= _ROUGHNESS
    return _NO_PHOTOGRAPH if drawn or written or shaded else None


def _one_colour(pixels: NDArray[np.uint8]) -> bool:
    """Return whether (..., 3) pixels are of one colour. One axis after another: numpy is ten times as fast so."""
    rows = pixels.reshape(-1, pixels.shape[-2], 3)
    darkest, brightest = rows.min(0).min(0), rows.max(0).max(0)
    return bool(np.all(brightest - darkest <= _ONE_COLOUR))


def _starts(size: int, block: int, count: int) -> NDArray[np.intp]:
    """Return where blocks begin: spread evenly, and on multiples of 8 as the blocks of a JPEG do."""
    if count == 1:
        return np.array([(size - block) // 2 // 8 * 8])
    return np.unique(np.linspace(0, size - block, count).astype(np.intp) // 8 * 8)


def _blocks(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut out (N, 32, 64, 3) blocks: all of a small picture, an even sample of a large one."""
    height, width = pixels.shape[:2]
    rows, columns = height // _HEIGHT, width // _WIDTH
    too_many = max(1.0, (rows * columns / _MOST) ** 0.5)
    rows, columns = max(1, int(rows / too_many)), max(1, int(columns / too_many))
    ys, xs = _starts(height, _HEIGHT, rows), _starts(width, _WIDTH, columns)
    return np.stack([pixels[y : y + _HEIGHT, x : x + _WIDTH] for y in ys for x in xs])


def _cells(blocks: NDArray[np.int16], side: int) -> NDArray[np.int16]:
    """Divide (N, 32, 64) blocks into (cells, side · side)."""
    tall, wide = _HEIGHT // side, _WIDTH // side
    return blocks.reshape(-1, tall, side, wide, side).transpose(0, 1, 3, 2, 4).reshape(-1, side * side)


def _measure(blocks: NDArray[np.uint8]) -> _Measures:
    red, green, blue = (blocks[..., channel].astype(np.int16) for channel in range(3))
    luma = (red + 2 * green + blue + 2) >> 2
    small = _cells(luma, 8)
    span = np.ptp(small, axis=1)
    flat, weak = int(np.count_nonzero(span <= 1)), int(np.count_nonzero((span > 1) & (span < 8)))
    structure, drawn, steepness = _structure(luma)
    level, pairs = _ground(luma)
    return _Measures(
        still=flat / (flat + weak) if flat else 0.0,
        drawn=drawn,
        structure=structure,
        level=level,
        pairs=pairs,
        written=pairs / len(blocks),
        steepness=steepness,
        colour=float(np.abs(red - blue).mean()),
        roughness=_roughness(small[(span > 1) & (span < 24)]),
    )


def _structure(luma: _Luma) -> tuple[float, float, float]:
    """Return the share of cells with structure, how many of them are drawn, and how steep they are."""
    across = np.abs(np.diff(luma, axis=2, append=luma[:, :, -2:-1]))
    down = np.abs(np.diff(luma, axis=1, append=luma[:, -2:-1, :]))
    cells = _cells(luma, 16)
    rich = np.ptp(cells, axis=1) >= 40
    if np.count_nonzero(rich) < _FEWEST:
        return float(rich.mean()), 0.0, 0.0
    same = (_cells(across + down, 16)[rich] == 0).mean(1)
    values = cells[rich].astype(np.float32)
    bright = values > ((values.max(1) + values.min(1)) / 2)[:, None]
    share = bright.mean(1)
    apart = (values * bright).sum(1) / bright.sum(1) - (values * ~bright).sum(1) / (~bright).sum(1)
    steepness = share * (1 - share) * apart**2 / values.var(1)
    return float(rich.mean()), float((same > 0.15).mean()), float(np.median(steepness))


def _ground(luma: _Luma) -> tuple[float, int]:
    """Return the share of pairs of cells with strokes whose bright ground has one level, and how many there are."""
    halves = _cells(luma, 32)
    strokes = np.ptp(halves, axis=1).reshape(-1, 2).max(1) >= 60
    pairs = int(np.count_nonzero(strokes))
    if pairs < _FEWEST:
        return 0.0, pairs
    some = halves.reshape(-1, 2, 32 * 32)[strokes][..., ::2]
    ground = np.partition(some, 471, axis=2)[..., 471]  # the 92nd percentile of 512
    return float((np.abs(np.diff(ground, axis=1)) <= 4).mean()), pairs


def _roughness(cells: _Luma) -> float:
    if len(cells) < _FEWEST:
        return 0.0
    at = cells.reshape(-1, 8, 8)
    neighbours = at[:, :-2, 1:-1] + at[:, 2:, 1:-1] + at[:, 1:-1, :-2] + at[:, 1:-1, 2:]
    return float(np.abs(4 * at[:, 1:-1, 1:-1] - neighbours).mean())
