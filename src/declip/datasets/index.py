"""Load a data set by the name of its layout, as `declip index` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from declip.datasets.layouts import autosplice, coco_sd, dolos, folder, imdl
from declip.errors import DatasetError
from declip.results import Sample

__all__ = ["LAYOUTS", "check_options", "load_layout"]

# Of each layout its function and the options that it takes.
LAYOUTS: dict[str, tuple[Callable[..., list[Sample]], frozenset[str]]] = {
    "dolos": (dolos, frozenset({"generator", "faces", "split", "reals"})),
    "autosplice": (autosplice, frozenset({"quality", "split", "reals"})),
    "coco-sd": (coco_sd, frozenset({"split"})),
    "folder": (folder, frozenset({"masks", "mask_name", "fake_is", "group", "split"})),
    "imdl": (imdl, frozenset({"split"})),
}


def load_layout(layout: str, root: str | Path, options: Mapping[str, Any]) -> list[Sample]:
    """Return the samples of a data set.

    layout: a name in LAYOUTS. root: the data set's folder; of imdl, also a file. options: arguments of the layout's
    function; those that are None count as not given. Raises DatasetError for a layout or an option that does not exist,
    and as the layout's function does.
    """
    check_options(layout, options)
    load, _ = LAYOUTS[layout]
    return load(root, **{name: value for name, value in options.items() if value is not None})


def check_options(layout: str, options: Mapping[str, Any]) -> None:
    """Raise DatasetError for a layout that does not exist, or an option that it does not take."""
    manifest = layout.endswith(".jsonl")
    if not manifest and layout not in LAYOUTS:
        raise DatasetError(f"{layout} is neither a manifest (.jsonl) nor a layout; those are {', '.join(LAYOUTS)}")
    known = frozenset() if manifest else LAYOUTS[layout][1]
    for name, value in options.items():
        if value is not None and name not in known:
            raise DatasetError(f"--{name.replace('_', '-')} is not for {'a manifest' if manifest else layout}")
