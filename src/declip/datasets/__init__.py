"""Load data sets as lists of samples: from published layouts, from the manifest, from the Hugging Face hub."""

from declip.datasets.hub import hugging_face
from declip.datasets.index import LAYOUTS, check_options, load_layout
from declip.datasets.layouts import autosplice, coco_sd, dolos, folder, imdl
from declip.datasets.manifest import format_line, parse_line, read_manifest, read_records, write_manifest

__all__ = [
    "LAYOUTS",
    "autosplice",
    "check_options",
    "coco_sd",
    "dolos",
    "folder",
    "format_line",
    "hugging_face",
    "imdl",
    "load_layout",
    "parse_line",
    "read_manifest",
    "read_records",
    "write_manifest",
]
