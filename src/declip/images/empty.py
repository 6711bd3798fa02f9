"""Fakes whose mask marks nothing: most often files that mean something else by their values, as 0 and 1."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from declip.errors import DatasetError, ImageError
from declip.images.decode import read_header
from declip.images.mapfiles import read_mask
from declip.images.read import read_photo
from declip.results import Sample

__all__ = ["empty_masks", "warn_of_empty_masks"]

_READERS = 4

_log = logging.getLogger(__name__)


def empty_masks(samples: Iterable[Sample]) -> list[Sample]:
    """Return the fakes among samples whose mask marks nothing, in order.

    Reads every mask. Those that cannot be read are not among them: whoever needs them says why.
    """
    fakes = [sample for sample in samples if sample.label == "fake"]
    with ThreadPoolExecutor(_READERS) as pool:
        return [sample for sample, empty in zip(fakes, pool.map(_is_empty, fakes), strict=True) if empty]


def warn_of_empty_masks(empty: Sequence[Sample], fakes: int) -> str | None:
    """Log, and return, how many of so many fakes have a mask that marks nothing, and what their files hold instead.

    empty: as of `empty_masks`; where there are none, nothing is logged and None returned.
    """
    if not empty:
        return None
    count = f"all {fakes} fakes" if len(empty) == fakes > 1 else f"{len(empty)} of {fakes} fakes"
    text = (
        f"{count} have a mask that marks nothing, of which nothing can be learnt or measured; the first is "
        f"{_told(empty[0])}. `declip index SAMPLES.jsonl --check` examines every mask"
    )
    _log.warning("%s", text)
    return text


def _is_empty(sample: Sample) -> bool:
    try:
        return not read_mask(sample).any()
    except (ImageError, DatasetError):
        return False


def _told(sample: Sample) -> str:
    """Tell a mask's file and the value in it nearest to being manipulated, as stored and as it is read."""
    assert sample.mask is not None
    opened = read_header(sample.mask.read_bytes(), str(sample.mask))
    stored = np.asarray(opened)  # of a palette its indices
    grey = np.asarray(Image.fromarray(read_photo(sample.mask).pixels).convert("L"))
    if sample.fake_is == "white":
        which, values, rule = "highest", (stored.max(), grey.max()), "more than 127 is manipulated"
    else:
        which, values, rule = "lowest", (stored.min(), grey.min()), "at most 127 is manipulated"
    found = f"{which} value is {values[0]} (mode {opened.mode}), read as {values[1]} of 255"
    return f"{sample.mask}, whose {found}, where {rule}"
