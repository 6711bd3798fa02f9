"""Read pictures, turn them into what networks take, and draw and keep the maps."""

from declip.images.dose import augment, jitter, perturb
from declip.images.mapfiles import read_mask, read_scores, write_mask, write_scores
from declip.images.overlay import overlay_png
from declip.images.read import EXTENSIONS, MAX_BYTES, MAX_PIXELS, count_pages, read_photo
from declip.images.tensors import normalise, resize_scores, squash, to_input, to_scores

__all__ = [
    "EXTENSIONS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "augment",
    "count_pages",
    "jitter",
    "normalise",
    "overlay_png",
    "perturb",
    "read_mask",
    "read_photo",
    "read_scores",
    "resize_scores",
    "squash",
    "to_input",
    "to_scores",
    "write_mask",
    "write_scores",
]
