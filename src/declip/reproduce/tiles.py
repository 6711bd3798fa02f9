"""The tiles of the figures: photos, their known masks, and maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from declip.evaluation import plots
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.reproduce.cells import Maps, Measurement, Workbench
from declip.results import Sample

__all__ = ["known_tiles", "map_tile", "typical"]


def typical(samples: Sequence[Sample]) -> Sample:
    """Return the sample of the median manipulated area: chosen without a look at any result."""
    areas = [float(read_mask(sample).mean()) for sample in samples]
    return samples[int(np.argsort(areas, kind="stable")[len(areas) // 2])]


def known_tiles(sample: Sample) -> list[plots.Tile]:
    """Return the photo and its known mask."""
    return [plots.Tile(pixels=read_photo(sample.image).pixels), plots.Tile(pixels=read_mask(sample))]


def map_tile(bench: Workbench, maps: Maps, test: Measurement, *, framed: bool = False) -> plots.Tile:
    """Return a map with the IoU that this picture has in the test it is part of."""
    (scores,), (sample,) = bench.maps(maps), maps.samples
    return plots.Tile(pixels=scores, caption=f"{100 * bench.picture(test, sample, 'iou'):.0f}", framed=framed)
