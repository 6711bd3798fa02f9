"""Data sets as lists of samples: loaders for published layouts, and the manifest."""

from declip.datasets.empty import empty_masks, warn_of_empty_masks
from declip.datasets.hub import hugging_face
from declip.datasets.layouts import autosplice, coco_sd, dolos, folder, imdl
from declip.datasets.manifest import format_line, parse_line, read_manifest, read_records, write_manifest

__all__ = [
    "autosplice",
    "coco_sd",
    "dolos",
    "empty_masks",
    "folder",
    "format_line",
    "hugging_face",
    "imdl",
    "parse_line",
    "read_manifest",
    "read_records",
    "warn_of_empty_masks",
    "write_manifest",
]
